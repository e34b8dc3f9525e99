use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::client::to_device::send_event_to_device;
use waxwing_services::to_device::{Sending, ToDeviceError};

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(send)
}

/// `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`
async fn send(
    api: Api,
    args: Args<send_event_to_device::v3::Request>,
) -> ApiResult<send_event_to_device::v3::Response> {
    let request = args.request;
    let messages = request.messages.into_iter().map(|(user, devices)| {
        (user, devices.into_iter().map(|(device, content)| (device, content.into_json())).collect())
    });
    let sending = Sending {
        kind: request.event_type.to_string(),
        txn_id: request.txn_id.to_string(),
        messages: messages.collect(),
    };
    let who = &args.requester;
    let exempt = who.appservice.as_ref().is_some_and(|id| {
        api.core.settings.plaintext.appservices.iter().any(|exempt| exempt.as_str() == &**id)
    });
    api.to_device.send(&who.user_id, who.device_id.as_deref(), sending, exempt).await?;
    Ok(send_event_to_device::v3::Response::new())
}

impl From<ToDeviceError> for ApiError {
    fn from(error: ToDeviceError) -> ApiError {
        match error {
            ToDeviceError::Store(error) => ApiError::from(error),
            ToDeviceError::Refused(refusal) => ApiError::forbidden(refusal),
            error @ ToDeviceError::TooMany => ApiError::too_large(error),
            error @ ToDeviceError::BadContent => ApiError::bad_json(error),
        }
    }
}
