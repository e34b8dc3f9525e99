//! <https://spec.matrix.org/v1.19/client-server-api/#account-registration>

use super::uia;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, no_appservice};
use crate::state::Api;
use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use http::StatusCode;
use ruma::api::client::account::register::{LoginType, RegistrationKind};
use ruma::api::client::account::{check_registration_token_validity, get_username_availability, register};
use ruma::api::error::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};
use waxwing_services::RegistrationMode;
use waxwing_services::accounts::{AccountError, DeviceWish, Made, NewAccount, SecretRegistration, stage};

/// `POST /_matrix/client/v3/register`
pub(super) async fn register(
    api: Api,
    args: Args<register::v3::Request>,
) -> ApiResult<register::v3::Response> {
    let request = &args.request;
    let wish = DeviceWish {
        device_id: request.device_id.clone(),
        display_name: request.initial_device_display_name.clone(),
        refresh: request.refresh_token,
    };
    let mut new = NewAccount {
        username: request.username.clone(),
        password: request.password.clone(),
        session: (!request.inhibit_login).then_some(wish),
        ..NewAccount::default()
    };
    match (&request.kind, &request.login_type) {
        (RegistrationKind::Guest, _) => {
            if api.accounts.registration_mode() != RegistrationMode::Open {
                return Err(AccountError::GuestsClosed.into());
            }
            let session = Some(DeviceWish {
                display_name: request.initial_device_display_name.clone(),
                ..DeviceWish::default()
            });
            new = NewAccount { guest: true, session, ..NewAccount::default() };
        }
        (RegistrationKind::User, Some(LoginType::ApplicationService)) => {
            let requester = args.requester.as_ref().ok_or_else(|| no_appservice(&args.parts))?;
            new.appservice = requester.appservice.as_deref().map(str::to_owned);
            new.username = Some(appservice_name(&api, request.username.as_deref())?);
            new.password = None;
        }
        (RegistrationKind::User, _) => person(&api, &args, &mut new).await?,
        _ => return Err(ApiError::invalid_param("The kind of account is not known")),
    }
    Ok(response(api.accounts.create(new).await?))
}

fn response(made: Made) -> register::v3::Response {
    let mut response = register::v3::Response::new(made.user_id);
    if let Some(session) = made.session {
        response.device_id = Some(session.device_id);
        response.access_token = Some(session.access_token);
        response.refresh_token = session.refresh_token;
        response.expires_in = session.expires_in;
    }
    response
}

/// Bridges give whole user ids as well as names.
fn appservice_name(api: &Api, username: Option<&str>) -> ApiResult<String> {
    let name = username.ok_or_else(|| ApiError::missing_param("The user name is missing"))?;
    let suffix = format!(":{}", api.core.server_name);
    let bare = name.strip_prefix('@').and_then(|name| name.strip_suffix(suffix.as_str()));
    Ok(bare.unwrap_or(name).to_owned())
}

/// What a person must show: a name that is free, and then what the mode asks for.
async fn person(api: &Api, args: &Args<register::v3::Request>, new: &mut NewAccount) -> ApiResult<()> {
    let flows = flows(api).await?;
    let upgrade = args.request.guest_access_token.as_ref();
    match &args.request.username {
        Some(username) if upgrade.is_none() => drop(api.accounts.check_available(username).await?),
        _ => {}
    }
    let done = uia::go_on(api, None, &args.parts, &args.json, &flows).await?;
    if new.password.is_none() {
        return Err(ApiError::missing_param("The password is missing"));
    }
    new.registration_token = done.registration_token;
    new.email = done.email;
    new.guest_access_token = upgrade.cloned();
    Ok(())
}

/// The ways in: what the mode asks for, an address where the server sends mail (needed or welcome), the terms where there
/// are any.
async fn flows(api: &Api) -> ApiResult<Vec<Vec<&'static str>>> {
    let first: &[&str] = match api.accounts.registration_mode() {
        RegistrationMode::Open => &[stage::DUMMY, stage::REGISTRATION_TOKEN],
        RegistrationMode::Token => &[stage::REGISTRATION_TOKEN],
        // The one token of the first administrator is good all the same.
        RegistrationMode::Closed if api.accounts.first_token().await?.is_some() => {
            &[stage::REGISTRATION_TOKEN]
        }
        RegistrationMode::Closed => return Err(AccountError::RegistrationClosed.into()),
    };
    let settings = &api.core.settings.accounts;
    let mail = api.accounts.sends_mail();
    // Without a mail server nobody could show one.
    let required = mail && settings.email.as_ref().is_some_and(|email| email.required);
    let mut flows = Vec::new();
    for stage in first {
        let begin: &[&str] = if settings.terms.policies.is_empty() { &[] } else { &[stage::TERMS] };
        let with = |more: &[&'static str]| {
            let whole = begin.iter().chain(more).copied();
            // A dummy is for flows that have nothing else.
            let whole: Vec<&'static str> = whole.collect();
            if whole.len() > 1 {
                whole.into_iter().filter(|stage| *stage != stage::DUMMY).collect()
            } else {
                whole
            }
        };
        if !required {
            flows.push(with(&[stage]));
        }
        if mail {
            flows.push(with(&[stage, stage::EMAIL]));
        }
    }
    Ok(flows)
}

/// `GET /_matrix/client/v3/register/available`
pub(super) async fn available(
    api: Api,
    args: Args<get_username_availability::v3::Request>,
) -> ApiResult<get_username_availability::v3::Response> {
    api.accounts.check_available(&args.request.username).await?;
    Ok(get_username_availability::v3::Response::new(true))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`
pub(super) async fn token_validity(
    api: Api,
    args: Args<check_registration_token_validity::v1::Request>,
) -> ApiResult<check_registration_token_validity::v1::Response> {
    if api.accounts.registration_mode() == RegistrationMode::Closed {
        return Err(AccountError::RegistrationClosed.into());
    }
    let valid = api.accounts.registration_token_valid(&args.request.token).await?;
    Ok(check_registration_token_validity::v1::Response::new(valid))
}

/// `GET /_synapse/admin/v1/register`: a nonce, as Synapse gives it to tools that know the shared secret.
pub(super) async fn secret_nonce(State(api): State<Api>) -> ApiResult<Json<Value>> {
    Ok(Json(json!({ "nonce": api.accounts.secret_nonce().await? })))
}

#[derive(Deserialize)]
struct Secret {
    nonce: String,
    username: String,
    password: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    mac: String,
}

/// `POST /_synapse/admin/v1/register`
pub(super) async fn secret(State(api): State<Api>, body: Bytes) -> ApiResult<Json<Value>> {
    let body: Secret = crate::extract::json(&body)?;
    if body.username.is_empty() || body.password.is_empty() {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::BadJson, "Empty name or password"));
    }
    let made = api
        .accounts
        .create_with_secret(SecretRegistration {
            nonce: body.nonce,
            username: body.username,
            password: body.password,
            admin: body.admin,
            user_type: body.user_type,
            mac: body.mac,
        })
        .await?;
    let mut answer = json!({ "user_id": made.user_id, "home_server": api.core.server_name });
    if let Some(session) = made.session {
        answer["access_token"] = session.access_token.into();
        answer["device_id"] = session.device_id.as_str().into();
    }
    Ok(Json(answer))
}
