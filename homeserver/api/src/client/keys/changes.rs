use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::keys::get_key_changes;
use waxwing_model::LogPosition;
use waxwing_services::keys::device_list_changes;
use waxwing_services::sync::SyncToken;

/// `GET /_matrix/client/v3/keys/changes`
pub(super) async fn changes(
    api: Api,
    args: Args<get_key_changes::v3::Request>,
) -> ApiResult<get_key_changes::v3::Response> {
    let (from, to) = (position("from", &args.request.from)?, position("to", &args.request.to)?);
    let store = &api.core.store;
    let upto = to.min(store.tail().head());
    let changes = device_list_changes(store, &args.requester.user_id, from, upto).await?;
    let changed = changes.changed.into_iter().collect();
    Ok(get_key_changes::v3::Response::new(changed, changes.left.into_iter().collect()))
}

/// The position of a sync token.
fn position(name: &str, token: &str) -> ApiResult<LogPosition> {
    let token = token.parse::<SyncToken>();
    token
        .map(|token| token.position)
        .map_err(|_| ApiError::invalid_param(format_args!("`{name}` is not a sync token")))
}
