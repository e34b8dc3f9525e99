use crate::client::reading::size;
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::OwnedRoomId;
use ruma::api::client::room::get_summary;
use ruma::api::client::space::get_hierarchy;
use serde::Serialize;
use waxwing_services::directory::{HierarchyQuery, SpaceRoom, Summary};

/// A room's summary. The names of MSC3266 stand beside those of the specification.
#[derive(Serialize)]
pub(super) struct SummaryAnswer {
    #[serde(flatten)]
    summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<String>,
    #[serde(rename = "im.nheko.summary.room_version", skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(rename = "im.nheko.summary.encryption", skip_serializing_if = "Option::is_none")]
    encryption: Option<String>,
}

/// `GET /room_summary/{roomIdOrAlias}`
pub(super) async fn summary(api: Api, args: Args<get_summary::v1::Request>) -> ApiResult<SummaryAnswer> {
    let mut via = args.request.via;
    let room = match OwnedRoomId::try_from(args.request.room_id_or_alias) {
        Ok(room) => room,
        Err(alias) => {
            let (room, servers) = api.directory.resolve_alias(&alias).await?;
            via.extend(servers);
            room
        }
    };
    let user = args.requester.as_ref().map(|requester| &*requester.user_id);
    let (summary, membership) = api.directory.summary(user, &room, &via).await?;
    Ok(SummaryAnswer {
        version: summary.room_version.clone(),
        encryption: summary.encryption.clone(),
        summary,
        membership,
    })
}

/// A page of a space's tree.
#[derive(Serialize)]
pub(super) struct HierarchyAnswer {
    rooms: Vec<SpaceRoom>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

/// `GET /rooms/{roomId}/hierarchy`
pub(super) async fn hierarchy(
    api: Api,
    args: Args<get_hierarchy::v1::Request>,
) -> ApiResult<HierarchyAnswer> {
    let request = args.request;
    let query = HierarchyQuery {
        from: request.from,
        limit: request.limit.map(size),
        max_depth: request.max_depth.map(Into::into),
        suggested_only: request.suggested_only,
    };
    let page = api.directory.hierarchy(&args.requester.user_id, &request.room_id, &query).await?;
    Ok(HierarchyAnswer { rooms: page.rooms, next_batch: page.next })
}
