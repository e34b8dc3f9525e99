//! A request that another server has signed.

use crate::error::{ApiError, ApiResult};
use crate::extract::{path, read_body};
use crate::state::Api;
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use ruma::OwnedServerName;
use ruma::api::error::ErrorCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use waxwing_federation::signing::{AuthError, Incoming, verify_request};
use waxwing_services::federation::Federation;

/// The largest body of an ordinary request.
pub(super) const SMALL: usize = 1 << 20;
/// The largest transaction: 50 events of 64 KiB and 100 EDUs.
pub(super) const TRANSACTION: usize = 16 << 20;

/// A request of an authenticated server.
pub(super) struct Signed {
    /// Who sent it.
    pub origin: OwnedServerName,
    /// Variables of the path, decoded, in order.
    pub path: Vec<String>,
    /// Parameters of the query, decoded, in order.
    pub query: Vec<(String, String)>,
    /// The body as it came.
    pub body: Bytes,
    /// Everything else that answers.
    pub api: Api,
}

impl Signed {
    /// A variable of the path.
    pub fn path<T: for<'a> TryFrom<&'a str>>(&self, index: usize, name: &str) -> ApiResult<T> {
        let text = self.path.get(index).map(String::as_str).unwrap_or_default();
        T::try_from(text).map_err(|_| ApiError::invalid_param(format_args!("{name} is not valid")))
    }

    /// The first parameter of this name.
    pub fn text(&self, name: &str) -> Option<&str> {
        text(&self.query, name)
    }

    /// A parameter that may be missing.
    pub fn optional<T: for<'a> TryFrom<&'a str>>(&self, name: &str) -> ApiResult<Option<T>> {
        self.text(name)
            .map(T::try_from)
            .transpose()
            .map_err(|_| ApiError::invalid_param(format_args!("{name} is not valid")))
    }

    /// A parameter that must be there.
    pub fn required<T: for<'a> TryFrom<&'a str>>(&self, name: &str) -> ApiResult<T> {
        self.optional(name)?.ok_or_else(|| ApiError::missing_param(format_args!("{name} is missing")))
    }

    /// A number that may be missing.
    pub fn number(&self, name: &str) -> ApiResult<Option<u64>> {
        number(&self.query, name)
    }

    /// The whole body as JSON.
    pub fn raw(&self) -> ApiResult<Box<RawValue>> {
        self.json()
    }

    /// The body, typed.
    pub fn json<T: DeserializeOwned>(&self) -> ApiResult<T> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

pub(super) fn text<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

pub(super) fn number(query: &[(String, String)], name: &str) -> ApiResult<Option<u64>> {
    text(query, name)
        .map(str::parse)
        .transpose()
        .map_err(|_| ApiError::invalid_param(format_args!("{name} is no number")))
}

/// The parameters of a query.
pub(super) fn query(uri: &http::Uri) -> ApiResult<Vec<(String, String)>> {
    let Query(query) = Query::try_from_uri(uri).map_err(ApiError::invalid_param)?;
    Ok(query)
}

/// The federation service; the listener is not opened without one.
pub(super) fn federation(api: &Api) -> ApiResult<Federation> {
    api.federation.clone().ok_or_else(ApiError::unrecognized)
}

/// Authenticates and reads a request. The signature is over the bytes of the path and query as they came.
pub(super) async fn receive(
    api: &Api,
    federation: &Federation,
    limit: usize,
    request: Request,
) -> ApiResult<Signed> {
    let (mut parts, body) = request.into_parts();
    // Nobody's body is read for nothing: who signs nothing does not get that far.
    waxwing_federation::signing::credentials(&parts.headers).map_err(unauthorized)?;
    let body = read_body(body, limit).await?;
    let incoming = Incoming {
        method: parts.method.as_str(),
        path_and_query: parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
        headers: &parts.headers,
        body: &body,
    };
    let ring = &federation.outgoing().ring;
    let origin = verify_request(ring, federation.server_name(), incoming).await.map_err(unauthorized)?;
    api.limits.check_server(origin.as_str())?;
    federation.outgoing().sender.heard_from(&origin);
    let query = query(&parts.uri)?;
    let path = path(&mut parts).await?;
    Ok(Signed { origin, path, query, body, api: api.clone() })
}

fn unauthorized(error: AuthError) -> ApiError {
    match error {
        AuthError::Internal(error) => ApiError::internal(error),
        AuthError::Body => ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::NotJson, error),
        AuthError::Missing
        | AuthError::Malformed(_)
        | AuthError::WrongDestination
        | AuthError::FromOurselves
        | AuthError::UnknownKey(_, _)
        | AuthError::BadSignature => ApiError::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, error),
    }
}

/// Registers endpoints that other servers sign: `async fn(Federation, Signed) -> ApiResult<Response>`.
pub(super) trait SignedExt: Sized {
    /// With an ordinary body.
    fn signed<F, Fut>(self, method: MethodFilter, path: &str, handler: F) -> Self
    where
        F: Fn(Federation, Signed) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send,
    {
        self.signed_upto(SMALL, method, path, handler)
    }

    /// With a body of at most `limit` bytes.
    fn signed_upto<F, Fut>(self, limit: usize, method: MethodFilter, path: &str, handler: F) -> Self
    where
        F: Fn(Federation, Signed) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send;
}

impl SignedExt for Router<Api> {
    fn signed_upto<F, Fut>(self, limit: usize, method: MethodFilter, path: &str, handler: F) -> Self
    where
        F: Fn(Federation, Signed) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send,
    {
        let serve = move |State(api): State<Api>, request: Request| async move {
            let served = async {
                let federation = federation(&api)?;
                let signed = receive(&api, &federation, limit, request).await?;
                handler(federation, signed).await
            };
            served.await.unwrap_or_else(ApiError::into_response)
        };
        self.route(path, on(method, serve))
    }
}

/// An answer in JSON.
pub(super) fn json(value: &impl Serialize) -> ApiResult<Response> {
    let bytes = serde_json::to_vec(value).map_err(ApiError::internal)?;
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// `{}`.
pub(super) fn empty() -> ApiResult<Response> {
    json(&serde_json::Map::new())
}
