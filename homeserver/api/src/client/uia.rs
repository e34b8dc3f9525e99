//! User-interactive authentication before an endpoint does what it is asked.

use crate::error::{ApiError, ApiResult};
use crate::extract::address;
use crate::limits::Limited;
use crate::state::Api;
use http::request::Parts;
use serde::Deserialize;
use waxwing_services::accounts::{Requester, UiaDone, UiaRequest, stage};

/// Asks for the requester's password, unless `auth` in `json` holds it or names a session that has it.
///
/// # Errors
/// 401 with the flows; 403 when the session was begun for something else or the password is someone else's.
pub(crate) async fn require(api: &Api, requester: &Requester, parts: &Parts, json: &[u8]) -> ApiResult<()> {
    go_on(api, Some(requester), parts, json, &[vec![stage::PASSWORD]]).await.map(|_| ())
}

/// The same, but application services are not asked: they have no passwords.
/// <https://spec.matrix.org/v1.19/application-service-api/#device-management>
pub(crate) async fn require_of_people(
    api: &Api,
    requester: &Requester,
    parts: &Parts,
    json: &[u8],
) -> ApiResult<()> {
    if requester.appservice.is_some() {
        return Ok(());
    }
    require(api, requester, parts, json).await
}

/// Goes through one of `flows`.
pub(crate) async fn go_on(
    api: &Api,
    requester: Option<&Requester>,
    parts: &Parts,
    json: &[u8],
    flows: &[Vec<&'static str>],
) -> ApiResult<UiaDone> {
    if tries_a_password(json) {
        // By address and by account: a stolen token must not help to guess its owner's password.
        api.limits.check(Limited::Login, &address(parts).to_string())?;
        if let Some(requester) = requester {
            api.limits.check(Limited::Login, requester.user_id.as_str())?;
        }
    }
    let endpoint = format!("{} {}", parts.method, parts.uri.path());
    let user = requester.map(|requester| &*requester.user_id);
    let request = UiaRequest { endpoint: &endpoint, user, json, flows };
    api.accounts.uia(request).await.map_err(ApiError::from)
}

/// Whether the body holds a password to be checked.
fn tries_a_password(json: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Body {
        auth: Option<Auth>,
    }
    #[derive(Deserialize)]
    struct Auth {
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let auth = serde_json::from_slice::<Body>(json).ok().and_then(|body| body.auth);
    auth.and_then(|auth| auth.kind).is_some_and(|kind| kind == stage::PASSWORD)
}
