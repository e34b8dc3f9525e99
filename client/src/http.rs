//! Requests to one homeserver: typed by ruma, carried by reqwest, with time limits and retries.
//!
//! A request is repeated when the server says "later" (429, honouring `Retry-After` and `retry_after_ms`), when
//! no connection came up, and, for idempotent methods only, when a gateway failed. `PUT …/send/…` carries a
//! transaction id, so a repeated send stays one event.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    sync::RwLock,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use client_ruma::api::{
    IncomingResponse, OutgoingRequest, SupportedVersions,
    auth_scheme::{AuthScheme, SendAccessToken},
    error::{FromHttpResponseError, RetryAfter},
    path_builder::PathBuilder,
};
use futures_util::StreamExt;
use http::{HeaderMap, Method, StatusCode, header};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, Result};

/// Attempts per request, the first one included.
const MAX_ATTEMPTS: u32 = 6;
/// First pause of the exponential backoff; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// A server that asks for more patience than this gets an error instead: the person should know.
const MAX_REQUESTED_WAIT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An ordinary request. Joins over federation and media are the slow ones.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// Largest answer we keep in memory: media and first syncs of big accounts stay below.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// A string that never shows up in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What `GET /_matrix/client/versions` said; kept in the session file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServerVersions {
    pub versions: Vec<String>,
    #[serde(default)]
    pub unstable_features: BTreeMap<String, bool>,
}

impl ServerVersions {
    fn supported(&self) -> SupportedVersions {
        SupportedVersions::from_parts(&self.versions, &self.unstable_features)
    }
}

/// The connection to one homeserver.
#[derive(Debug)]
pub struct Http {
    client: reqwest::Client,
    base: String,
    token: RwLock<Option<Secret>>,
    supported: RwLock<SupportedVersions>,
}

impl Http {
    /// A connection to `base`, such as `https://matrix.example.org`. Nothing is sent yet.
    pub fn new(base: &str) -> Result<Self> {
        let url = Url::parse(base).map_err(|_| Error::Address(base.to_owned()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(Error::Address(base.to_owned()));
        }
        Ok(Self {
            client: build_client(&url)?,
            base: url.as_str().trim_end_matches('/').to_owned(),
            token: RwLock::new(None),
            supported: RwLock::new(
                ServerVersions { versions: vec!["v1.11".to_owned()], ..Default::default() }.supported(),
            ),
        })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn set_token(&self, token: Option<Secret>) {
        *self.token.write().unwrap_or_else(std::sync::PoisonError::into_inner) = token;
    }

    pub fn set_versions(&self, versions: &ServerVersions) {
        *self.supported.write().unwrap_or_else(std::sync::PoisonError::into_inner) = versions.supported();
    }

    /// Asks the server which versions it speaks.
    pub async fn fetch_versions(&self) -> Result<ServerVersions> {
        let request = http::Request::get(format!("{}/_matrix/client/versions", self.base))
            .body(Bytes::new())
            .map_err(|error| Error::Request(error.into()))?;
        let response = self.carry(request, REQUEST_TIMEOUT).await?;
        if response.status() != StatusCode::OK {
            return Err(Error::Answer(format!("{} from /versions", response.status())));
        }
        serde_json::from_slice(response.body()).map_err(|error| Error::Answer(error.to_string()))
    }

    /// Sends a typed request and reads the typed answer.
    pub async fn send<R>(&self, request: R) -> Result<R::IncomingResponse>
    where
        R: OutgoingRequest,
        for<'a> R::Authentication: AuthScheme<Input<'a> = SendAccessToken<'a>>,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = Cow<'a, SupportedVersions>>,
        Error: From<R::EndpointError>,
    {
        self.send_within(request, REQUEST_TIMEOUT).await
    }

    /// Like [`Self::send`] with a time limit of its own, for long polls.
    pub async fn send_within<R>(&self, request: R, limit: Duration) -> Result<R::IncomingResponse>
    where
        R: OutgoingRequest,
        for<'a> R::Authentication: AuthScheme<Input<'a> = SendAccessToken<'a>>,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = Cow<'a, SupportedVersions>>,
        Error: From<R::EndpointError>,
    {
        let request = {
            let token = self.token.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            let supported = self.supported.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            let auth = token
                .as_ref()
                .map_or(SendAccessToken::None, |token| SendAccessToken::IfRequired(token.expose()));
            request.try_into_http_request::<BytesMut>(&self.base, auth, Cow::Owned(supported))?
        };
        let response = self.carry(request.map(BytesMut::freeze), limit).await?;
        R::IncomingResponse::try_from_http_response(response).map_err(|error| match error {
            FromHttpResponseError::Server(error) => Error::from(error),
            other => Error::Answer(other.to_string()),
        })
    }

    /// Sends until an answer is worth returning, or patience ends.
    async fn carry(&self, request: http::Request<Bytes>, limit: Duration) -> Result<http::Response<Bytes>> {
        let mut attempt = 1;
        loop {
            let outcome = self.attempt(request.clone(), limit).await;
            let pause = match &outcome {
                Ok(response) => pause_after_answer(request.method(), response, attempt)?,
                Err(Error::Transport(error)) => pause_after_failure(request.method(), error, attempt),
                Err(_) => None,
            };
            match pause {
                Some(pause) if attempt < MAX_ATTEMPTS => {
                    tracing::debug!(path = request.uri().path(), ?pause, attempt, "trying again");
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                }
                _ => return outcome,
            }
        }
    }

    async fn attempt(&self, request: http::Request<Bytes>, limit: Duration) -> Result<http::Response<Bytes>> {
        let mut request = reqwest::Request::try_from(request)?;
        *request.timeout_mut() = Some(limit);
        let response = self.client.execute(request).await?;
        let mut parts = http::Response::builder().status(response.status());
        if let Some(headers) = parts.headers_mut() {
            headers.clone_from(response.headers());
        }
        let mut body = BytesMut::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Error::TooLarge { limit: MAX_ANSWER });
            }
            body.extend_from_slice(&chunk);
        }
        parts.body(body.freeze()).map_err(|error| Error::Answer(error.to_string()))
    }
}

/// Installs rustls' ring provider as the process default, once. Programs call it first thing in `main`; the
/// library calls it too, so that a test need not know.
pub fn install_tls_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // A second caller that wins the race has installed the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn build_client(url: &Url) -> Result<reqwest::Client> {
    install_tls_provider();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("waxwing-client/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::limited(3));
    if is_loopback(url) {
        // A proxy of the environment cannot reach our own machine.
        builder = builder.no_proxy();
    }
    if url.scheme() == "http" {
        // Plain HTTP needs no trust store, and a bare container has none to offer.
        builder = builder.tls_certs_only([]);
    }
    Ok(builder.build()?)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::PUT | Method::DELETE | Method::HEAD)
}

fn pause_after_failure(method: &Method, error: &reqwest::Error, attempt: u32) -> Option<Duration> {
    // A time limit already cost all the patience one request deserves.
    let again = error.is_connect() || (is_idempotent(method) && !error.is_builder());
    (again && !error.is_timeout()).then(|| backoff(attempt))
}

/// `Ok(None)`: this answer is final. `Err`: the server asks for more patience than we have.
fn pause_after_answer(
    method: &Method,
    response: &http::Response<Bytes>,
    attempt: u32,
) -> Result<Option<Duration>> {
    match response.status() {
        StatusCode::TOO_MANY_REQUESTS => {
            let wait = requested_wait(response.headers(), response.body(), SystemTime::now())
                .unwrap_or_else(|| backoff(attempt));
            if wait > MAX_REQUESTED_WAIT {
                return Err(Error::RateLimited { wait });
            }
            Ok(Some(wait))
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
            if is_idempotent(method) && !is_matrix_error(response.body()) =>
        {
            Ok(Some(backoff(attempt)))
        }
        _ => Ok(None),
    }
}

/// A homeserver that answers 502 or 504 with a Matrix error speaks of a remote server: final for us.
fn is_matrix_error(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Coded {
        #[serde(rename = "errcode")]
        _errcode: String,
    }
    serde_json::from_slice::<Coded>(body).is_ok()
}

/// How long a 429 asks us to wait: the header first, then the body's older `retry_after_ms`.
///
/// <https://spec.matrix.org/v1.18/client-server-api/#rate-limiting>
fn requested_wait(headers: &HeaderMap, body: &[u8], now: SystemTime) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Body {
        retry_after_ms: Option<u64>,
    }
    let from_header = headers.get(header::RETRY_AFTER).and_then(|value| RetryAfter::try_from(value).ok());
    match from_header {
        Some(RetryAfter::Delay(delay)) => Some(delay),
        Some(RetryAfter::DateTime(when)) => Some(when.duration_since(now).unwrap_or(FIRST_PAUSE)),
        None => {
            let body = serde_json::from_slice::<Body>(body).ok()?;
            body.retry_after_ms.map(Duration::from_millis)
        }
    }
}

/// Exponential, with jitter so that many clients do not come back in step.
fn backoff(attempt: u32) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(MAX_PAUSE);
    full.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Turns what a person typed (`example.org`, `https://matrix.example.org`) into a base URL, asking
/// `/.well-known/matrix/client` when it is only a name.
///
/// <https://spec.matrix.org/v1.18/client-server-api/#well-known-uris>
pub async fn discover(server: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct WellKnown {
        #[serde(rename = "m.homeserver")]
        homeserver: Homeserver,
    }
    #[derive(Deserialize)]
    struct Homeserver {
        base_url: String,
    }
    if server.starts_with("http://") || server.starts_with("https://") {
        return Ok(server.trim_end_matches('/').to_owned());
    }
    let origin = format!("https://{server}");
    let http = Http::new(&origin)?;
    let request = http::Request::get(format!("{origin}/.well-known/matrix/client"))
        .body(Bytes::new())
        .map_err(|error| Error::Request(error.into()))?;
    let Ok(response) = http.carry(request, CONNECT_TIMEOUT).await else { return Ok(origin) };
    let well_known = (response.status() == StatusCode::OK)
        .then(|| serde_json::from_slice::<WellKnown>(response.body()).ok())
        .flatten();
    Ok(well_known.map_or(origin, |found| found.homeserver.base_url.trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: StatusCode, body: &'static str) -> http::Response<Bytes> {
        let mut response = http::Response::new(Bytes::from_static(body.as_bytes()));
        *response.status_mut() = status;
        response
    }

    #[test]
    fn retry_after_header_wins_over_the_body() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "3".parse().unwrap());
        let body = br#"{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1500}"#;
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(requested_wait(&headers, body, now), Some(Duration::from_secs(3)));
        assert_eq!(requested_wait(&HeaderMap::new(), body, now), Some(Duration::from_millis(1500)));
        assert_eq!(requested_wait(&HeaderMap::new(), b"slow down", now), None);
    }

    #[test]
    fn a_rate_limit_beyond_our_patience_is_an_error() {
        let patient = answer(StatusCode::TOO_MANY_REQUESTS, r#"{"retry_after_ms":2000}"#);
        assert_eq!(pause_after_answer(&Method::POST, &patient, 1).unwrap(), Some(Duration::from_secs(2)));
        let hopeless = answer(StatusCode::TOO_MANY_REQUESTS, r#"{"retry_after_ms":3600000}"#);
        assert!(matches!(
            pause_after_answer(&Method::POST, &hopeless, 1),
            Err(Error::RateLimited { wait }) if wait == Duration::from_hours(1)
        ));
    }

    #[test]
    fn only_idempotent_requests_survive_a_gateway_failure() {
        let failure = answer(StatusCode::BAD_GATEWAY, "<html>");
        assert!(pause_after_answer(&Method::PUT, &failure, 1).unwrap().is_some());
        assert!(pause_after_answer(&Method::POST, &failure, 1).unwrap().is_none());
        let remote = answer(StatusCode::BAD_GATEWAY, r#"{"errcode":"M_UNKNOWN","error":"remote is down"}"#);
        assert!(pause_after_answer(&Method::GET, &remote, 1).unwrap().is_none());
    }

    #[test]
    fn backoff_grows_and_stays_bounded() {
        for attempt in 1..40 {
            assert!(backoff(attempt) <= MAX_PAUSE);
        }
        assert!(backoff(1) <= FIRST_PAUSE);
        assert!(backoff(5) >= FIRST_PAUSE.saturating_mul(8));
    }

    #[test]
    fn addresses_are_checked() {
        assert!(Http::new("ftp://example.org").is_err());
        assert!(Http::new("example.org").is_err());
        assert_eq!(Http::new("http://127.0.0.1:8008/").unwrap().base(), "http://127.0.0.1:8008");
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", Secret::new("syt_token")), "Secret(…)");
    }
}
