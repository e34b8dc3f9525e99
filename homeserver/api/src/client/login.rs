//! <https://spec.matrix.org/v1.19/client-server-api/#login>

use super::uia;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, Received, no_appservice};
use crate::routes::answer;
use crate::state::Api;
use axum::response::Response;
use http::StatusCode;
use ruma::api::client::session::login::v3::{DiscoveryInfo, HomeserverInfo};
use ruma::api::client::session::{
    get_login_token, get_login_types, login, logout, logout_all, refresh_token,
};
use ruma::api::error::ErrorCode;
use serde::Deserialize;
use waxwing_services::accounts::{DeviceWish, LOGIN_TOKEN_LIFETIME, LoginName, Session};

/// `GET /_matrix/client/v3/login`
pub(super) async fn flows(
    _api: Api,
    _args: Args<get_login_types::v3::Request>,
) -> ApiResult<get_login_types::v3::Response> {
    use get_login_types::v3::{ApplicationServiceLoginType, LoginType, PasswordLoginType, TokenLoginType};
    let mut token = TokenLoginType::new();
    token.get_login_token = true;
    Ok(get_login_types::v3::Response::new(vec![
        LoginType::Password(PasswordLoginType::new()),
        LoginType::Token(token),
        LoginType::ApplicationService(ApplicationServiceLoginType::new()),
    ]))
}

/// The body of a login. Read here and not by ruma, which takes it that there is a `type`.
#[derive(Deserialize)]
struct Login {
    #[serde(rename = "type")]
    kind: String,
    identifier: Option<Identifier>,
    user: Option<String>,
    // As the identifier, before there were any.
    medium: Option<String>,
    address: Option<String>,
    password: Option<String>,
    token: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
    #[serde(default)]
    refresh_token: bool,
}

#[derive(Deserialize)]
struct Identifier {
    #[serde(rename = "type")]
    kind: String,
    user: Option<String>,
    medium: Option<String>,
    address: Option<String>,
    phone: Option<String>,
}

impl Login {
    /// <https://spec.matrix.org/v1.19/client-server-api/#identifier-types>
    fn name(&self) -> ApiResult<LoginName<'_>> {
        let missing = |what: &str| ApiError::missing_param(format_args!("The identifier has no {what}"));
        let Some(identifier) = &self.identifier else {
            return match (&self.user, &self.medium, &self.address) {
                (Some(user), _, _) => Ok(LoginName::User(user)),
                (None, Some(medium), Some(address)) => Ok(LoginName::Address { medium, address }),
                _ => Err(ApiError::missing_param("The user is missing")),
            };
        };
        match identifier.kind.as_str() {
            "m.id.user" => identifier.user.as_deref().map(LoginName::User).ok_or_else(|| missing("user")),
            "m.id.thirdparty" => {
                let medium = identifier.medium.as_deref().ok_or_else(|| missing("medium"))?;
                let address = identifier.address.as_deref().ok_or_else(|| missing("address"))?;
                Ok(LoginName::Address { medium, address })
            }
            "m.id.phone" => {
                let address = identifier.phone.as_deref().ok_or_else(|| missing("phone"))?;
                Ok(LoginName::Address { medium: "msisdn", address })
            }
            _ => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                ErrorCode::Unknown,
                "The type of the identifier is not known",
            )),
        }
    }

    fn user(&self) -> ApiResult<&str> {
        match self.name()? {
            LoginName::User(user) => Ok(user),
            LoginName::Address { .. } => Err(ApiError::forbidden("Wrong user name or password")),
        }
    }
}

/// `POST /_matrix/client/v3/login`
pub(super) async fn login(api: Api, received: Received) -> ApiResult<Response> {
    let body: &[u8] = if received.body.is_empty() { b"{}" } else { &received.body };
    let login: Login = crate::extract::json(body)?;
    let wish = DeviceWish {
        device_id: login.device_id.as_deref().map(Into::into),
        display_name: login.initial_device_display_name.clone(),
        refresh: login.refresh_token,
    };
    let session = match login.kind.as_str() {
        "m.login.password" => {
            let name = login.name()?;
            let password = login
                .password
                .as_deref()
                .ok_or_else(|| ApiError::missing_param("The password is missing"))?;
            api.accounts.login_password(name, password, wish).await?
        }
        "m.login.token" => {
            let token =
                login.token.as_deref().ok_or_else(|| ApiError::missing_param("The token is missing"))?;
            api.accounts.login_with_token(token, wish).await?
        }
        "m.login.application_service" => {
            let requester = received.requester.as_deref();
            let requester = requester.ok_or_else(|| no_appservice(&received.parts))?;
            let id = requester.appservice.as_deref().unwrap_or_default();
            api.accounts.login_appservice(id, login.user()?, wish).await?
        }
        _ => {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                ErrorCode::Unknown,
                "The type of the login is not known",
            ));
        }
    };
    answer(response(&api, session))
}

fn response(api: &Api, session: Session) -> login::v3::Response {
    let mut response = login::v3::Response::new(session.user_id, session.access_token, session.device_id);
    response.refresh_token = session.refresh_token;
    response.expires_in = session.expires_in;
    response.well_known =
        api.well_known.client.as_ref().map(|url| DiscoveryInfo::new(HomeserverInfo::new(url.clone())));
    response
}

/// `POST /_matrix/client/v1/login/get_token`
pub(super) async fn token(
    api: Api,
    args: Args<get_login_token::v1::Request>,
) -> ApiResult<get_login_token::v1::Response> {
    uia::require(&api, &args.requester, &args.parts, &args.json).await?;
    let token = api.accounts.login_token(&args.requester.user_id).await?;
    Ok(get_login_token::v1::Response::new(LOGIN_TOKEN_LIFETIME, token))
}

/// `POST /_matrix/client/v3/refresh`
pub(super) async fn refresh(
    api: Api,
    args: Args<refresh_token::v3::Request>,
) -> ApiResult<refresh_token::v3::Response> {
    let session = api.accounts.refresh(&args.request.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(session.access_token);
    response.refresh_token = session.refresh_token;
    response.expires_in_ms = session.expires_in;
    Ok(response)
}

/// `POST /_matrix/client/v3/logout`
pub(super) async fn logout(api: Api, args: Args<logout::v3::Request>) -> ApiResult<logout::v3::Response> {
    if let Some(device) = &args.requester.device_id {
        api.accounts.logout(&args.requester.user_id, device).await?;
    }
    Ok(logout::v3::Response::new())
}

/// `POST /_matrix/client/v3/logout/all`
pub(super) async fn logout_all(
    api: Api,
    args: Args<logout_all::v3::Request>,
) -> ApiResult<logout_all::v3::Response> {
    api.accounts.logout_all(&args.requester.user_id).await?;
    Ok(logout_all::v3::Response::new())
}
