use super::json;
use crate::client::uia;
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::keys::upload_signing_keys;
use waxwing_services::keys::SigningKeys;

/// `POST /_matrix/client/v3/keys/device_signing/upload`: without further authentication for the first keys, and for
/// those that are there already.
pub(super) async fn upload(
    api: Api,
    args: Args<upload_signing_keys::v3::Request>,
) -> ApiResult<upload_signing_keys::v3::Response> {
    let request = args.request;
    let keys = SigningKeys {
        master: request.master_key.map(json),
        self_signing: request.self_signing_key.map(json),
        user_signing: request.user_signing_key.map(json),
    };
    let user = &args.requester.user_id;
    api.keys.signing_keys_check(user, &keys).await?;
    if api.keys.signing_keys_need_auth(user, &keys).await? {
        uia::require_of_people(&api, &args.requester, &args.parts, &args.json).await?;
    }
    api.keys.signing_keys_put(user, keys).await?;
    Ok(upload_signing_keys::v3::Response::new())
}
