use crate::client::room::author;
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::alias::{create_alias, delete_alias, get_alias};
use ruma::api::client::room::aliases;

/// `GET /directory/room/{roomAlias}`
pub(super) async fn resolve(
    api: Api,
    args: Args<get_alias::v3::Request>,
) -> ApiResult<get_alias::v3::Response> {
    let (room, servers) = api.directory.resolve_alias(&args.request.room_alias).await?;
    Ok(get_alias::v3::Response::new(room, servers))
}

/// `PUT /directory/room/{roomAlias}`
pub(super) async fn create(
    api: Api,
    args: Args<create_alias::v3::Request>,
) -> ApiResult<create_alias::v3::Response> {
    let (request, requester) = (&args.request, &args.requester);
    let author = author(requester);
    api.directory.create_alias(&author, requester.is_admin, &request.room_alias, &request.room_id).await?;
    Ok(create_alias::v3::Response::new())
}

/// `DELETE /directory/room/{roomAlias}`
pub(super) async fn delete(
    api: Api,
    args: Args<delete_alias::v3::Request>,
) -> ApiResult<delete_alias::v3::Response> {
    let author = author(&args.requester);
    api.directory.delete_alias(&author, args.requester.is_admin, &args.request.room_alias).await?;
    Ok(delete_alias::v3::Response::new())
}

/// `GET /rooms/{roomId}/aliases`
pub(super) async fn of_room(api: Api, args: Args<aliases::v3::Request>) -> ApiResult<aliases::v3::Response> {
    api.reader.may_read(&args.requester.user_id, &args.request.room_id).await?;
    Ok(aliases::v3::Response::new(api.directory.aliases(&args.request.room_id).await?))
}
