use crate::client::room::author;
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::room::upgrade_room;

/// `POST /rooms/{roomId}/upgrade`
pub(super) async fn upgrade(
    api: Api,
    args: Args<upgrade_room::v3::Request>,
) -> ApiResult<upgrade_room::v3::Response> {
    let author = author(&args.requester);
    let request = args.request;
    let new = api
        .directory
        .upgrade(&author, &request.room_id, request.new_version, request.additional_creators)
        .await?;
    Ok(upgrade_room::v3::Response::new(new))
}
