use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::keys::get_keys;

/// `POST /_matrix/client/v3/keys/query`
pub(super) async fn query(api: Api, args: Args<get_keys::v3::Request>) -> ApiResult<get_keys::v3::Response> {
    let request = args.request;
    let found = api.keys.query(&args.requester.user_id, request.device_keys, request.timeout).await?;
    let mut response = get_keys::v3::Response::new();
    response.device_keys = found.device_keys;
    response.master_keys = found.master_keys;
    response.self_signing_keys = found.self_signing_keys;
    response.user_signing_keys = found.user_signing_keys;
    response.failures = found.failures;
    Ok(response)
}
