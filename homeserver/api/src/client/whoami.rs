use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::account::whoami;

/// `GET /_matrix/client/v3/account/whoami`
pub(super) async fn whoami(_api: Api, args: Args<whoami::v3::Request>) -> ApiResult<whoami::v3::Response> {
    let mut response = whoami::v3::Response::new(args.requester.user_id.clone(), args.requester.is_guest);
    response.device_id = args.requester.device_id.clone();
    Ok(response)
}
