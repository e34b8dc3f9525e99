use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::keys::upload_signatures;
use serde_json::json;

/// `POST /_matrix/client/v3/keys/signatures/upload`
pub(super) async fn upload(
    api: Api,
    args: Args<upload_signatures::v3::Request>,
) -> ApiResult<upload_signatures::v3::Response> {
    let signed = args.request.signed_keys.iter().map(|(user, keys)| {
        let keys = keys.iter().map(|(key, json)| (key.to_owned(), json.get().to_owned()));
        (user.clone(), keys.collect())
    });
    let failures = api.keys.sign(&args.requester.user_id, signed.collect()).await?;
    let mut response = upload_signatures::v3::Response::new();
    for (user, keys) in failures {
        for (key, (errcode, error)) in keys {
            let failure = serde_json::from_value(json!({ "errcode": errcode, "error": error }))?;
            response.failures.entry(user.clone()).or_default().insert(key, failure);
        }
    }
    Ok(response)
}
