use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::keys::claim_keys;

/// `POST /_matrix/client/v3/keys/claim`
pub(super) async fn claim(
    api: Api,
    args: Args<claim_keys::v3::Request>,
) -> ApiResult<claim_keys::v3::Response> {
    let claimed = api.keys.claim(args.request.one_time_keys, args.request.timeout).await?;
    let mut response = claim_keys::v3::Response::new(claimed.one_time_keys);
    response.failures = claimed.failures;
    Ok(response)
}
