//! From an HTTP request to a typed one and who makes it.

use crate::access::Rules;
use crate::bodies::{self, ReadError};
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, RawPathParams, Request};
use bytes::Bytes;
use http::request::Parts;
use http::{StatusCode, header};
use ruma::api::auth_scheme::{
    AccessToken, AccessTokenOptional, AppserviceToken, AppserviceTokenOptional, NoAccessToken,
    NoAuthentication, extract_bearer_or_query_token,
};
use ruma::api::error::ErrorCode;
use ruma::api::{IncomingRequest, auth_scheme::AuthScheme};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use waxwing_services::accounts::Requester;

/// A client that has not sent its body by then is too slow or has gone.
const BODY_PATIENCE: Duration = Duration::from_mins(1);

/// A request as a handler gets it.
pub struct Args<R>
where
    R: IncomingRequest,
    R::Authentication: ClientAuth,
{
    /// The typed request.
    pub request: R,
    /// Who makes it: `Arc<Requester>`, an `Option` of it, or `()`, by the endpoint's authentication.
    pub requester: <R::Authentication as ClientAuth>::Who,
    /// The body as it came.
    pub json: Bytes,
    /// From where it came.
    pub address: IpAddr,
    /// Everything else: method, URI, headers.
    pub parts: Parts,
}

impl<R> Args<R>
where
    R: IncomingRequest,
    R::Authentication: ClientAuth,
{
    /// What the client calls itself.
    pub fn user_agent(&self) -> Option<&str> {
        user_agent(&self.parts)
    }
}

/// How an endpoint wants to know who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// A token is not looked at.
    None,
    /// A token may come; a wrong one is an error.
    Optional,
    /// A token must come.
    Required,
    /// An application service's token must come.
    Appservice,
    /// An application service's token may come; anything else is not looked at.
    AppserviceOptional,
}

/// The authentication of a client endpoint and what it gives the handler.
pub trait ClientAuth: AuthScheme {
    /// `Arc<Requester>`, an `Option` of it, or `()`.
    type Who: Send;
    #[doc(hidden)]
    const SCHEME: u8;
    #[doc(hidden)]
    fn who(requester: Option<Arc<Requester>>) -> Option<Self::Who>;
}

macro_rules! client_auth {
    ($($auth:ty, $who:ty, $scheme:expr, $from:expr;)*) => {
        $(impl ClientAuth for $auth {
            type Who = $who;
            const SCHEME: u8 = $scheme as u8;
            fn who(requester: Option<Arc<Requester>>) -> Option<$who> {
                $from(requester)
            }
        })*
    };
}

client_auth! {
    NoAuthentication, (), Scheme::None, |_| Some(());
    NoAccessToken, (), Scheme::None, |_| Some(());
    AccessToken, Arc<Requester>, Scheme::Required, std::convert::identity;
    AccessTokenOptional, Option<Arc<Requester>>, Scheme::Optional, Some;
    AppserviceToken, Arc<Requester>, Scheme::Appservice, std::convert::identity;
    AppserviceTokenOptional, Option<Arc<Requester>>, Scheme::AppserviceOptional, Some;
}

pub(crate) fn scheme<A: ClientAuth>() -> Scheme {
    [Scheme::None, Scheme::Optional, Scheme::Required, Scheme::Appservice, Scheme::AppserviceOptional]
        .into_iter()
        .find(|scheme| *scheme as u8 == A::SCHEME)
        .unwrap_or(Scheme::Required)
}

/// A request with its body read and its sender known, not yet typed.
pub(crate) struct Received {
    pub parts: Parts,
    pub body: Bytes,
    pub path: Vec<String>,
    pub requester: Option<Arc<Requester>>,
    pub address: IpAddr,
}

/// Authenticates, counts and reads a request, in this order: nothing is read for who may not send it.
pub(crate) async fn receive(
    api: &Api,
    rules: &Rules,
    scheme: Scheme,
    request: Request,
) -> ApiResult<Received> {
    let (mut parts, body) = request.into_parts();
    let address = address(&parts);
    if let Some(limited) = rules.limited.filter(|limited| limited.by_address())
        && !is_unlimited(api, &parts)
    {
        api.limits.check(limited, &address.to_string())?;
    }
    let requester = authenticate(api, scheme, rules, &parts).await?;
    if let (Some(limited), Some(requester)) = (rules.limited, &requester)
        && !limited.by_address()
    {
        count(api, limited, requester)?;
    }
    let path = path(&mut parts).await?;
    let body = read_body(body, rules.body).await?;
    Ok(Received { parts, body, path, requester, address })
}

/// Whether an application service asks whose users the limits do not count for: it makes accounts by the hundred.
fn is_unlimited(api: &Api, parts: &Parts) -> bool {
    let Ok(Some(token)) = token(parts) else { return false };
    let appservices = api.accounts.appservices();
    appservices.by_token(&token).is_some_and(|appservice| !appservice.is_rate_limited_for_users())
}

/// One of the application services' own limits, or that of the account.
fn count(api: &Api, limited: crate::limits::Limited, requester: &Requester) -> ApiResult<()> {
    let appservices = api.accounts.appservices();
    if requester.appservice.as_deref().is_some_and(|id| !appservices.is_rate_limited(id, &requester.user_id))
    {
        return Ok(());
    }
    api.limits.check(limited, requester.user_id.as_str())
}

/// The path's variables, decoded, in order.
pub(crate) async fn path(parts: &mut Parts) -> ApiResult<Vec<String>> {
    let params = RawPathParams::from_request_parts(parts, &()).await.map_err(ApiError::invalid_param)?;
    Ok(params.iter().map(|(_, value)| value.to_owned()).collect())
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 `M_TOO_LARGE`; 408 when it takes too long; 429 while others take all the memory for bodies; 400 when the connection
/// breaks.
pub(crate) async fn read_body(body: Body, limit: usize) -> ApiResult<Bytes> {
    match tokio::time::timeout(BODY_PATIENCE, bodies::read(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(ReadError::TooLarge)) => {
            Err(ApiError::too_large(format_args!("The body is larger than {limit} bytes")))
        }
        Ok(Err(ReadError::Broken)) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, "The body could not be read"))
        }
        Ok(Err(ReadError::NoPlace)) => Err(crate::load::too_much()),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            ErrorCode::Unknown,
            "The body did not come in time",
        )),
    }
}

/// Types a received request.
pub(crate) fn typed<R>(received: Received) -> ApiResult<Args<R>>
where
    R: IncomingRequest,
    R::Authentication: ClientAuth,
{
    let Received { parts, body, path, requester, address } = received;
    let request = parse(&parts, &body, &path)?;
    let requester = <R::Authentication as ClientAuth>::who(requester).ok_or_else(ApiError::missing_token)?;
    Ok(Args { request, requester, json: body, address, parts })
}

/// Parses with ruma. An empty body is read as `{}`, and the content type is not looked at.
pub(crate) fn parse<R: IncomingRequest>(parts: &Parts, body: &[u8], path: &[String]) -> ApiResult<R> {
    // Fields that an endpoint does not look at are skipped without being decoded.
    let text = std::str::from_utf8(body).map_err(|_| not_json("The body is not UTF-8"))?;
    let takes_json = parts.method == http::Method::POST || parts.method == http::Method::PUT;
    if takes_json && !text.is_empty() {
        // What is no JSON at all may break another rule first, or none: raw contents are not looked into.
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(not_json)?;
    }
    let body: &[u8] = if body.is_empty() && takes_json { b"{}" } else { body };
    let mut request = http::Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    Ok(R::try_from_http_request_inner(request, &path)?)
}

/// Reads a body by hand. What is no JSON at all is said to be that first.
pub(crate) fn json<T: serde::de::DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    let text = std::str::from_utf8(body).map_err(|_| not_json("The body is not UTF-8"))?;
    serde_json::from_str(text).map_err(|error| match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Err(broken) => not_json(broken),
        Ok(_) => error.into(),
    })
}

fn not_json(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::NotJson, error)
}

async fn authenticate(
    api: &Api,
    scheme: Scheme,
    rules: &Rules,
    parts: &Parts,
) -> ApiResult<Option<Arc<Requester>>> {
    if scheme == Scheme::None {
        return Ok(None);
    }
    let Some(token) = token(parts)? else {
        return match scheme {
            Scheme::Required | Scheme::Appservice => Err(ApiError::missing_token()),
            Scheme::None | Scheme::Optional | Scheme::AppserviceOptional => Ok(None),
        };
    };
    if let Some(requester) =
        crate::client::appservice::identify(api, &token, parts, scheme == Scheme::AppserviceOptional).await?
    {
        allow(rules, &requester)?;
        if requester.device_id.is_some() {
            api.accounts.seen(&requester, address(parts), user_agent(parts));
        }
        return Ok(Some(requester));
    }
    match scheme {
        // Clients send their old token along with a login; it means nothing there.
        Scheme::None | Scheme::AppserviceOptional => return Ok(None),
        Scheme::Appservice => {
            api.accounts.authenticate(&token).await?;
            return Err(ApiError::forbidden("Only application services may do that"));
        }
        Scheme::Optional | Scheme::Required => {}
    }
    let requester = api.accounts.authenticate(&token).await?;
    allow(rules, &requester)?;
    api.accounts.seen(&requester, address(parts), user_agent(parts));
    Ok(Some(requester))
}

/// Why a request that only an application service may make is refused: it has no token, or that of someone else.
pub(crate) fn no_appservice(parts: &Parts) -> ApiError {
    match token(parts) {
        Ok(Some(_)) => ApiError::unknown_token(false),
        Ok(None) => ApiError::missing_token(),
        Err(error) => error,
    }
}

fn token(parts: &Parts) -> ApiResult<Option<String>> {
    let mut request = http::Request::new(());
    *request.uri_mut() = parts.uri.clone();
    if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
        request.headers_mut().insert(header::AUTHORIZATION, value.clone());
    }
    extract_bearer_or_query_token(&request)
        .map_err(|error| ApiError::new(StatusCode::UNAUTHORIZED, ErrorCode::MissingToken, error))
}

/// Whether an account in this standing may call the endpoint.
fn allow(rules: &Rules, requester: &Requester) -> ApiResult<()> {
    if requester.is_locked && !rules.locked {
        return Err(ApiError::locked());
    }
    if requester.is_guest && !rules.guests {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            ErrorCode::GuestAccessForbidden,
            "Guests may not do that",
        ));
    }
    if requester.is_suspended && !rules.suspended {
        return Err(ApiError::suspended());
    }
    Ok(())
}

/// Authenticates a request that a handler reads by itself (uploads, downloads): like [`Args`], without typing it.
pub(crate) async fn authenticate_raw(api: &Api, rules: &Rules, parts: &Parts) -> ApiResult<Arc<Requester>> {
    let requester =
        authenticate(api, Scheme::Required, rules, parts).await?.ok_or_else(ApiError::missing_token)?;
    if let Some(limited) = rules.limited {
        count(api, limited, &requester)?;
    }
    Ok(requester)
}

fn user_agent(parts: &Parts) -> Option<&str> {
    parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok())
}

/// From where a request came. What a reverse proxy says is believed when it runs beside us or in a private network.
pub(crate) fn address(parts: &Parts) -> IpAddr {
    let peer = parts
        .extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip().to_canonical());
    let near = match peer {
        IpAddr::V4(peer) => peer.is_loopback() || peer.is_private(),
        IpAddr::V6(peer) => peer.is_loopback() || peer.is_unique_local(),
    };
    if !near {
        return peer;
    }
    let forwarded = parts.headers.get_all("x-forwarded-for").iter().next_back();
    forwarded
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.rsplit(',').next())
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_believed_when_it_is_near() {
        let ask = |peer: &str| {
            let request = http::Request::builder()
                .header("x-forwarded-for", "6.6.6.6, 203.0.113.9")
                .extension(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)))
                .body(())
                .unwrap();
            address(&request.into_parts().0).to_string()
        };
        assert_eq!(ask("127.0.0.1"), "203.0.113.9");
        assert_eq!(ask("198.51.100.1"), "198.51.100.1");
    }
}
