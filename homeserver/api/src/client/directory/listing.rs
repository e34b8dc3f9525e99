use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::directory::{
    get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility,
};
use ruma::api::client::room::Visibility;
use waxwing_services::directory::PublicRoomsQuery;

/// `GET /publicRooms`
pub(super) async fn list(
    api: Api,
    args: Args<get_public_rooms::v3::Request>,
) -> ApiResult<get_public_rooms::v3::Response> {
    let request = args.request;
    let query = PublicRoomsQuery {
        server: request.server,
        limit: request.limit,
        since: request.since,
        ..PublicRoomsQuery::default()
    };
    let page = api.directory.public_rooms(query).await?;
    let mut response = get_public_rooms::v3::Response::new(page.chunk);
    response.next_batch = page.next;
    response.prev_batch = page.prev;
    response.total_room_count_estimate = page.total;
    Ok(response)
}

/// `POST /publicRooms`
pub(super) async fn search(
    api: Api,
    args: Args<get_public_rooms_filtered::v3::Request>,
) -> ApiResult<get_public_rooms_filtered::v3::Response> {
    let request = args.request;
    let query = PublicRoomsQuery {
        server: request.server,
        limit: request.limit,
        since: request.since,
        filter: request.filter,
        network: request.room_network,
    };
    let page = api.directory.public_rooms(query).await?;
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.chunk = page.chunk;
    response.next_batch = page.next;
    response.prev_batch = page.prev;
    response.total_room_count_estimate = page.total;
    Ok(response)
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
