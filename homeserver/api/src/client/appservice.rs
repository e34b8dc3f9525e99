//! Application services speak for their users:
//! <https://spec.matrix.org/v1.19/application-service-api/#identity-assertion>.

use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::extract::Query;
use http::StatusCode;
use http::request::Parts;
use ruma::api::error::ErrorCode;
use ruma::{OwnedDeviceId, OwnedUserId};
use serde::Deserialize;
use std::sync::Arc;
use waxwing_services::accounts::Requester;

#[derive(Deserialize)]
struct Asserted {
    user_id: Option<OwnedUserId>,
    #[serde(alias = "org.matrix.msc3202.device_id")]
    device_id: Option<OwnedDeviceId>,
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
    let Query(asserted) = if itself {
        Query(Asserted { user_id: None, device_id: None })
    } else {
        Query::try_from_uri(&parts.uri).map_err(ApiError::invalid_param)?
    };
    let user_id = asserted.user_id.unwrap_or_else(|| appservice.sender.clone());
    if user_id != appservice.sender {
        if !api.core.is_local(&user_id) || !appservice.has_user(&user_id) {
            return Err(ApiError::forbidden("The application service may not speak for this user"));
        }
        if api.accounts.user(&user_id).await?.is_none_or(|row| row.deactivated) {
            return Err(ApiError::forbidden("The application service has not registered this user"));
        }
    }
    if let Some(device) = &asserted.device_id
        && api.accounts.device(&user_id, device).await.is_err()
    {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            ErrorCode::UnknownDevice,
            "The user has no such device",
        ));
    }
    Ok(Some(Arc::new(Requester {
        user_id,
        device_id: asserted.device_id,
        is_guest: false,
        is_admin: false,
        is_locked: false,
        is_suspended: false,
        appservice: Some(Arc::clone(&appservice.id)),
    })))
}
