use super::json;
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::keys::upload_keys;
use ruma::{OneTimeKeyAlgorithm, UInt};
use waxwing_services::keys::KeyUpload;

/// `POST /_matrix/client/v3/keys/upload`
pub(super) async fn upload(
    api: Api,
    args: Args<upload_keys::v3::Request>,
) -> ApiResult<upload_keys::v3::Response> {
    let request = args.request;
    let upload = KeyUpload {
        device_keys: request.device_keys.map(json),
        one_time_keys: request
            .one_time_keys
            .into_iter()
            .map(|(id, key)| (id.to_string(), json(key)))
            .collect(),
        fallback_keys: request
            .fallback_keys
            .into_iter()
            .map(|(id, key)| (id.to_string(), json(key)))
            .collect(),
    };
    let who = &args.requester;
    let counts = api.keys.upload(&who.user_id, who.device_id.as_deref(), upload).await?;
    let counts = counts
        .into_iter()
        .map(|(algorithm, count)| (OneTimeKeyAlgorithm::from(algorithm), UInt::new_saturating(count)));
    Ok(upload_keys::v3::Response::new(counts.collect()))
}
