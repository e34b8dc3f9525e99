//! Application services speak for their users:
//! <https://spec.matrix.org/v1.19/application-service-api/#identity-assertion>; and what only they may call.

use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use axum::extract::Query;
use http::StatusCode;
use http::request::Parts;
use ruma::api::client::appservice::{request_ping, set_room_visibility};
use ruma::api::client::room::Visibility;
use ruma::api::error::ErrorCode;
use ruma::{OwnedDeviceId, OwnedUserId};
use serde::Deserialize;
use std::sync::Arc;
use waxwing_services::accounts::Requester;
use waxwing_services::appservices::{Appservice, LinkError, NetworksError, PingError};

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(ping).ruma(set_visibility)
}

#[derive(Default, Deserialize)]
struct Asserted {
    #[serde(rename = "user_id")]
    user: Option<OwnedUserId>,
    #[serde(rename = "device_id")]
    device: Option<OwnedDeviceId>,
    /// The same by its older name (MSC3202); bridges give both.
    #[serde(rename = "org.matrix.msc3202.device_id")]
    unstable_device: Option<OwnedDeviceId>,
}

/// Who an application service speaks for, when the token is one's. With `itself`, what it asserts is not looked at: the
/// user may not exist yet.
pub(crate) async fn identify(
    api: &Api,
    token: &str,
    parts: &Parts,
    itself: bool,
) -> ApiResult<Option<Arc<Requester>>> {
    let Some(appservice) = api.accounts.appservices().by_token(token) else { return Ok(None) };
    if itself {
        return Ok(Some(Arc::new(requester(appservice, appservice.sender.clone()))));
    }
    let Query(asserted) = Query::<Asserted>::try_from_uri(&parts.uri).map_err(ApiError::invalid_param)?;
    let user_id = asserted.user.unwrap_or_else(|| appservice.sender.clone());
    if !api.core.is_local(&user_id) || !appservice.has_user(&user_id) {
        return Err(ApiError::forbidden("The application service may not speak for this user"));
    }
    let Some(row) = api.accounts.user(&user_id).await?.filter(|row| !row.deactivated) else {
        return Err(ApiError::forbidden("The application service has not registered this user"));
    };
    let device_id = asserted.device.or(asserted.unstable_device);
    if let Some(device) = &device_id
        && api.accounts.device(&user_id, device).await.is_err()
    {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            ErrorCode::UnknownDevice,
            "The user has no such device",
        ));
    }
    Ok(Some(Arc::new(Requester {
        device_id,
        is_locked: row.locked,
        is_suspended: row.suspended,
        ..requester(appservice, user_id)
    })))
}

fn requester(appservice: &Appservice, user_id: OwnedUserId) -> Requester {
    Requester {
        user_id,
        device_id: None,
        is_guest: false,
        is_admin: false,
        is_locked: false,
        is_suspended: false,
        appservice: Some(Arc::clone(&appservice.id)),
    }
}

/// `POST /_matrix/client/v1/appservice/{appserviceId}/ping`
async fn ping(api: Api, args: Args<request_ping::v1::Request>) -> ApiResult<request_ping::v1::Response> {
    let id = args.request.appservice_id;
    if args.requester.appservice.as_deref() != Some(id.as_str()) {
        return Err(ApiError::forbidden("This is not the token of that application service"));
    }
    let transaction = args.request.transaction_id.as_ref().map(|id| id.as_str());
    Ok(request_ping::v1::Response::new(api.feeds.ping(&id, transaction).await?))
}

/// `PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}`
async fn set_visibility(
    api: Api,
    args: Args<set_room_visibility::v3::Request>,
) -> ApiResult<set_room_visibility::v3::Response> {
    let listed = match args.request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        _ => return Err(ApiError::bad_json("visibility must be `public` or `private`")),
    };
    let appservice = args.requester.appservice.as_deref();
    api.networks.list_room(appservice, &args.request.network_id, &args.request.room_id, listed).await?;
    Ok(set_room_visibility::v3::Response::new())
}

impl From<PingError> for ApiError {
    fn from(error: PingError) -> ApiError {
        let (status, code) = match &error {
            PingError::Link(LinkError::NoUrl) => (StatusCode::BAD_REQUEST, "M_URL_NOT_SET"),
            PingError::Link(LinkError::Timeout) => (StatusCode::GATEWAY_TIMEOUT, "M_CONNECTION_TIMEOUT"),
            PingError::Link(LinkError::Failed(_)) => (StatusCode::BAD_GATEWAY, "M_CONNECTION_FAILED"),
            PingError::BadStatus { status, body } => {
                return ApiError::custom(StatusCode::BAD_GATEWAY, "M_BAD_STATUS", &error)
                    .with("status", *status)
                    .with("body", body.as_str());
            }
        };
        ApiError::custom(status, code, error)
    }
}

impl From<NetworksError> for ApiError {
    fn from(error: NetworksError) -> ApiError {
        match error {
            NetworksError::NotFound(what) => ApiError::not_found(format_args!("The {what} was not found")),
            NetworksError::InvalidParam(why) => ApiError::invalid_param(why),
            NetworksError::NotAppservice => ApiError::forbidden(error),
            NetworksError::Store(error) => ApiError::from(error),
        }
    }
}
