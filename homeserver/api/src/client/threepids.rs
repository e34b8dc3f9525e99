//! E-mail addresses of accounts: <https://spec.matrix.org/v1.19/client-server-api/#adding-account-administrative-contact-information>.
//! There is no gateway to telephones, and no identity server is trusted.

use super::uia;
use super::user::plain::plain_request;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, Received};
use crate::limits::Limited;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
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
use serde::Deserialize;
use serde_json::{Value, json};
use waxwing_services::accounts::{AccountError, Purpose, TokenRequest};

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
        .ruma(add)
        .ruma(delete)
        .ruma(unbind)
        .ruma(bind)
        .untyped::<Add, _, _>(add_by_identity_server)
        .untyped::<manage_email::v3::Request, _, _>(|api, it| request_email(api, it, Purpose::Add))
        .untyped::<password_email::v3::Request, _, _>(|api, it| request_email(api, it, Purpose::Password))
        .untyped::<register_email::v3::Request, _, _>(|api, it| request_email(api, it, Purpose::Register))
        .untyped::<manage_msisdn::v3::Request, _, _>(no_telephones)
        .untyped::<password_msisdn::v3::Request, _, _>(no_telephones)
        .untyped::<register_msisdn::v3::Request, _, _>(no_telephones)
}

/// `GET /_matrix/client/v3/account/3pid`
async fn list(api: Api, args: Args<get_3pids::v3::Request>) -> ApiResult<Value> {
    let addresses = api.accounts.addresses(&args.requester.user_id).await?;
    let shown = addresses.into_iter().map(|row| {
        json!({
            "medium": row.medium,
            "address": row.address,
            "validated_at": row.validated_at,
            "added_at": row.added_at,
        })
    });
    Ok(json!({ "threepids": shown.collect::<Vec<_>>() }))
}

/// `POST /_matrix/client/v3/account/3pid/add`
async fn add(api: Api, args: Args<add_3pid::v3::Request>) -> ApiResult<add_3pid::v3::Response> {
    if !api.accounts.sends_mail() {
        return Err(AccountError::AddressDenied.into());
    }
    uia::require(&api, &args.requester, &args.parts, &args.json).await?;
    let request = &args.request;
    let (sid, secret) = (request.sid.as_str(), request.client_secret.as_str());
    api.accounts.add_address(&args.requester.user_id, sid, secret).await?;
    Ok(add_3pid::v3::Response::new())
}

/// `POST /_matrix/client/v3/account/3pid/delete`. One that is not there is gone.
async fn delete(api: Api, args: Args<delete_3pid::v3::Request>) -> ApiResult<delete_3pid::v3::Response> {
    let request = &args.request;
    let medium = request.medium.as_str();
    match api.accounts.remove_address(&args.requester.user_id, medium, &request.address).await {
        Ok(()) | Err(AccountError::AddressNotFound) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(delete_3pid::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

/// `POST /_matrix/client/v3/account/3pid/unbind`: nothing was ever bound.
async fn unbind(_api: Api, _args: Args<unbind_3pid::v3::Request>) -> ApiResult<unbind_3pid::v3::Response> {
    Ok(unbind_3pid::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

/// `POST /_matrix/client/v3/account/3pid/bind`
async fn bind(_api: Api, _args: Args<bind_3pid::v3::Request>) -> ApiResult<bind_3pid::v3::Response> {
    Err(ApiError::new(
        StatusCode::BAD_REQUEST,
        ErrorCode::ServerNotTrusted,
        "This server trusts no identity server",
    ))
}

async fn add_by_identity_server(_api: Api, received: Received) -> ApiResult<Response> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "three_pid_creds")]
        _creds: serde::de::IgnoredAny,
    }
    crate::extract::json::<Body>(&received.body)?;
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        ErrorCode::ThreepidAuthFailed,
        "This server trusts no identity server; use /account/3pid/add",
    ))
}

/// The body of `…/email/requestToken`.
#[derive(Deserialize)]
struct EmailBody {
    client_secret: String,
    email: String,
    send_attempt: u32,
    next_link: Option<String>,
}

/// `POST …/email/requestToken`. The answer says nothing about whose address it is; the letter does.
async fn request_email(api: Api, received: Received, purpose: Purpose) -> ApiResult<Response> {
    let body: EmailBody = crate::extract::json(&received.body)?;
    // By whom it goes to as well: nobody's mailbox is filled from many places.
    api.limits.check(Limited::Mail, &body.email.trim().to_lowercase())?;
    let request = TokenRequest {
        purpose,
        email: &body.email,
        client_secret: &body.client_secret,
        send_attempt: i64::from(body.send_attempt),
        next_link: body.next_link.as_deref(),
    };
    let sid = api.accounts.request_email(request).await?;
    Ok(Json(json!({ "sid": sid })).into_response())
}

/// The body of `…/msisdn/requestToken`.
#[derive(Deserialize)]
struct TelephoneBody {
    #[serde(rename = "client_secret")]
    _client_secret: String,
    #[serde(rename = "country")]
    _country: String,
    #[serde(rename = "phone_number")]
    _phone_number: String,
    #[serde(rename = "send_attempt")]
    _send_attempt: u32,
}

async fn no_telephones(_api: Api, received: Received) -> ApiResult<Response> {
    crate::extract::json::<TelephoneBody>(&received.body)?;
    Err(AccountError::MediumNotSupported.into())
}
