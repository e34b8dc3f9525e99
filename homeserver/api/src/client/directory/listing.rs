use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::UInt;
use ruma::api::client::directory::{
    get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility,
};
use ruma::api::client::room::Visibility;
use serde::Serialize;
use serde_json::{Map, Value};
use waxwing_services::directory::{PublicRooms, PublicRoomsQuery};

/// A page of the list, which names every room's join rule: ruma's type leaves out `public`, and clients look for it.
#[derive(Serialize)]
pub(crate) struct PublicList {
    chunk: Vec<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_room_count_estimate: Option<UInt>,
}

impl PublicList {
    /// As clients and servers read it.
    pub fn of(page: PublicRooms) -> ApiResult<PublicList> {
        let chunk = page
            .chunk
            .iter()
            .map(|room| {
                let mut shown: Map<String, Value> =
                    serde_json::from_value(serde_json::to_value(room).map_err(ApiError::internal)?)
                        .map_err(ApiError::internal)?;
                shown.entry("join_rule").or_insert_with(|| "public".into());
                Ok(shown)
            })
            .collect::<ApiResult<Vec<_>>>()?;
        Ok(PublicList {
            chunk,
            next_batch: page.next,
            prev_batch: page.prev,
            total_room_count_estimate: page.total,
        })
    }
}

/// `GET /publicRooms`
pub(super) async fn list(api: Api, args: Args<get_public_rooms::v3::Request>) -> ApiResult<PublicList> {
    let request = args.request;
    let query = PublicRoomsQuery {
        server: request.server,
        limit: request.limit,
        since: request.since,
        ..PublicRoomsQuery::default()
    };
    PublicList::of(api.directory.public_rooms(query).await?)
}

/// `POST /publicRooms`
pub(super) async fn search(
    api: Api,
    args: Args<get_public_rooms_filtered::v3::Request>,
) -> ApiResult<PublicList> {
    let request = args.request;
    let query = PublicRoomsQuery {
        server: request.server,
        limit: request.limit,
        since: request.since,
        filter: request.filter,
        network: request.room_network,
    };
    PublicList::of(api.directory.public_rooms(query).await?)
}

/// `GET /directory/list/room/{roomId}`
pub(super) async fn visibility(
    api: Api,
    args: Args<get_room_visibility::v3::Request>,
) -> ApiResult<get_room_visibility::v3::Response> {
    let published = api.directory.is_published(&args.request.room_id).await?;
    let visibility = if published { Visibility::Public } else { Visibility::Private };
    Ok(get_room_visibility::v3::Response::new(visibility))
}

/// `PUT /directory/list/room/{roomId}`
pub(super) async fn set_visibility(
    api: Api,
    args: Args<set_room_visibility::v3::Request>,
) -> ApiResult<set_room_visibility::v3::Response> {
    let (request, requester) = (&args.request, &args.requester);
    let published = request.visibility == Visibility::Public;
    api.directory.publish(&requester.user_id, requester.is_admin, &request.room_id, published).await?;
    Ok(set_room_visibility::v3::Response::new())
}
