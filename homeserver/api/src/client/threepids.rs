//! Addresses and telephone numbers: nobody here has any, and none can be added.
//! <https://spec.matrix.org/v1.19/client-server-api/#adding-account-administrative-contact-information>

use super::user::plain::plain_request;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, Received};
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use http::StatusCode;
use ruma::api::auth_scheme::AccessToken;
use ruma::api::client::account::{
    ThirdPartyIdRemovalStatus, add_3pid, bind_3pid, delete_3pid, get_3pids,
    request_3pid_management_token_via_email as manage_email,
    request_3pid_management_token_via_msisdn as manage_msisdn,
    request_password_change_token_via_email as password_email,
    request_password_change_token_via_msisdn as password_msisdn,
    request_registration_token_via_email as register_email,
    request_registration_token_via_msisdn as register_msisdn, unbind_3pid,
};
use ruma::api::error::ErrorCode;
use serde_json::{Value, json};

plain_request!(
    /// `POST /account/3pid`: the deprecated way to add one.
    Add, POST, AccessToken, {
        1.0 => "/_matrix/client/r0/account/3pid",
        1.1 => "/_matrix/client/v3/account/3pid",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma_json(list)
        .ruma(delete)
        .ruma(unbind)
        .untyped::<Add, _, _>(refuse)
        .untyped::<add_3pid::v3::Request, _, _>(refuse)
        .untyped::<bind_3pid::v3::Request, _, _>(refuse)
        .untyped::<manage_email::v3::Request, _, _>(refuse)
        .untyped::<manage_msisdn::v3::Request, _, _>(refuse)
        .untyped::<password_email::v3::Request, _, _>(refuse)
        .untyped::<password_msisdn::v3::Request, _, _>(refuse)
        .untyped::<register_email::v3::Request, _, _>(refuse)
        .untyped::<register_msisdn::v3::Request, _, _>(refuse)
}

/// `GET /_matrix/client/v3/account/3pid`. The list is there although it is empty: clients go through it.
async fn list(_api: Api, _args: Args<get_3pids::v3::Request>) -> ApiResult<Value> {
    Ok(json!({ "threepids": [] }))
}

/// `POST /_matrix/client/v3/account/3pid/delete`: there was none.
async fn delete(_api: Api, _args: Args<delete_3pid::v3::Request>) -> ApiResult<delete_3pid::v3::Response> {
    Ok(delete_3pid::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

/// `POST /_matrix/client/v3/account/3pid/unbind`: there was none.
async fn unbind(_api: Api, _args: Args<unbind_3pid::v3::Request>) -> ApiResult<unbind_3pid::v3::Response> {
    Ok(unbind_3pid::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

async fn refuse(_api: Api, received: Received) -> ApiResult<Response> {
    crate::extract::json::<serde::de::IgnoredAny>(&received.body)?;
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        ErrorCode::ThreepidDenied,
        "This server takes no addresses and telephone numbers",
    ))
}
