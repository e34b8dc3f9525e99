//! Every request that this server makes of other servers, one method each.
//!
//! Where exact PDUs matter they stay raw JSON; elsewhere ruma's types. Answers are hostile until proven otherwise: all
//! are bounded in time and size, and nothing in them is verified here.

mod identity;
mod media;
mod membership;
mod multipart;
mod policy;
mod queries;
mod rooms;

pub use identity::{IdentityKey, IdentityServer, StoreInvite, StoredInvite};
pub use media::{MediaError, RemoteMedia, ThumbnailQuery};
pub use membership::{InviteRequest, SendJoin, Template};
pub use multipart::MultipartError;
pub use policy::PolicyServer;
pub(crate) use queries::KeyCriteria;
pub use rooms::{Related, StateIds, WholeState};

use bytes::Bytes;
use http::{Method, StatusCode};
use ruma::api::path_builder::PathBuilder;
use ruma::api::{IncomingResponse, OutgoingBody, OutgoingRequest};
use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

use crate::health::Health;
use crate::signing::{self, Identity};
use crate::transport::{Request, Response, Transport, TransportError};

/// How long an ordinary request may take, body included.
const TIMEOUT: Duration = Duration::from_secs(30);
/// For requests that somebody waits for and that have a fallback: keys, profiles, directories.
const QUICK: Duration = Duration::from_secs(10);
/// The largest ordinary answer.
const SMALL_BODY: usize = 1 << 20;
/// The largest answer to a list of keys, devices, events.
const LIST_BODY: usize = 16 << 20;
/// An error's body is read up to here.
const ERROR_BODY: usize = 64 << 10;

/// A request got no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server could not be reached a moment ago: not tried.
    #[error("{0} was unreachable a moment ago")]
    Pausing(OwnedServerName),
    /// No answer, or not the whole of it.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The server refused.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The answer is not what the protocol says.
    #[error("an answer that makes no sense: {0}")]
    Nonsense(String),
    /// The request could not be written.
    #[error("not a request: {0}")]
    Unwritable(String),
}

impl ClientError {
    /// The refusal, if the server answered with one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            ClientError::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether the server does not know the endpoint.
    pub(crate) fn is_unrecognized(&self) -> bool {
        self.refusal().is_some_and(|refusal| {
            refusal.errcode == "M_UNRECOGNIZED"
                || (refusal.errcode.is_empty() && matches!(refusal.status.as_u16(), 404 | 405))
        })
    }
}

/// A server's error answer.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The `errcode`; empty when the body had none.
    pub errcode: String,
    /// The `error` text. Another server wrote it: do not trust it, do not log it at length.
    pub error: String,
    /// The `room_version` of `M_INCOMPATIBLE_ROOM_VERSION`.
    pub room_version: Option<String>,
    /// How long the server asks us to wait.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status.as_u16(), self.errcode)
    }
}

#[derive(Deserialize, Default)]
struct ErrorBody {
    #[serde(default)]
    errcode: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    room_version: Option<String>,
    #[serde(default)]
    retry_after_ms: Option<u64>,
}

/// Signs requests and sends them.
#[derive(Clone)]
pub struct Client {
    identity: Identity,
    transport: Arc<dyn Transport>,
    health: Arc<Health>,
}

/// A request about to be made.
struct Call<'a> {
    destination: &'a ServerName,
    method: Method,
    path: String,
    body: Option<Bytes>,
    timeout: Duration,
    limit: usize,
    signed: bool,
    insistent: bool,
}

impl<'a> Call<'a> {
    fn new(destination: &'a ServerName, method: Method, path: String) -> Call<'a> {
        Call {
            destination,
            method,
            path,
            body: None,
            timeout: TIMEOUT,
            limit: SMALL_BODY,
            signed: true,
            insistent: false,
        }
    }

    fn get(destination: &'a ServerName, path: String) -> Call<'a> {
        Call::new(destination, Method::GET, path)
    }

    fn body(mut self, json: &RawValue) -> Call<'a> {
        self.body = Some(Bytes::copy_from_slice(json.get().as_bytes()));
        self
    }

    fn timeout(mut self, timeout: Duration) -> Call<'a> {
        self.timeout = timeout;
        self
    }

    fn limit(mut self, bytes: usize) -> Call<'a> {
        self.limit = bytes;
        self
    }

    fn unsigned(mut self) -> Call<'a> {
        self.signed = false;
        self
    }

    /// Tries even a server that was unreachable a moment ago.
    fn insistent(mut self) -> Call<'a> {
        self.insistent = true;
        self
    }
}

impl Client {
    /// A client that speaks as `identity`.
    pub fn new(identity: Identity, transport: Arc<dyn Transport>, health: Arc<Health>) -> Client {
        Client { identity, transport, health }
    }

    /// As whom it speaks.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What is known of who can be reached. Tell it of servers that speak to us.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Sends; gives the head of a successful answer.
    async fn open(&self, call: Call<'_>) -> Result<Response, ClientError> {
        let destination = call.destination;
        if destination == self.identity.server {
            return Err(ClientError::Unwritable("a request to ourselves".into()));
        }
        if !call.insistent && !self.health.may_try(destination) {
            return Err(ClientError::Pausing(destination.to_owned()));
        }
        let authorization = if call.signed {
            let method = call.method.as_str();
            let body = call.body.as_deref();
            let header = signing::authorization(&self.identity, destination, method, &call.path, body);
            Some(header.map_err(|error| ClientError::Unwritable(error.to_string()))?)
        } else {
            None
        };
        let request = Request {
            destination: destination.to_owned(),
            method: call.method,
            path_and_query: call.path,
            body: call.body,
            authorization,
            timeout: call.timeout,
        };
        let response = match self.transport.send(request).await {
            Ok(response) => response,
            Err(error) => {
                if matches!(error, TransportError::Connection(_) | TransportError::Timeout) {
                    self.health.failed(destination);
                }
                return Err(error.into());
            }
        };
        self.health.recovered(destination);
        if response.status.is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// Sends; gives the whole body of a successful answer.
    async fn bytes(&self, call: Call<'_>) -> Result<Bytes, ClientError> {
        let (timeout, limit) = (call.timeout, call.limit);
        let whole = async { Ok(self.open(call).await?.collect(limit).await?) };
        tokio::time::timeout(timeout, whole).await.map_err(|_| TransportError::Timeout)?
    }

    /// Sends; reads a successful answer as JSON.
    async fn json<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, ClientError> {
        let body = self.bytes(call).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Nonsense(error.to_string()))
    }

    /// Sends one of ruma's requests.
    async fn typed<R>(
        &self,
        destination: &ServerName,
        request: R,
        adjust: impl FnOnce(Call<'_>) -> Call<'_> + Send,
    ) -> Result<R::IncomingResponse, ClientError>
    where
        R: OutgoingRequest + Send,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        let unwritable = |error: &dyn std::error::Error| ClientError::Unwritable(error.to_string());
        let request = request.try_into_http_request_inner("https://x", ()).map_err(|e| unwritable(&e))?;
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let body: Vec<u8> = body.try_into_buf().map_err(|e| unwritable(&e.into()))?;
        let mut call = Call::new(destination, head.method, path);
        call.body = (!body.is_empty()).then(|| body.into());
        let answer = self.bytes(adjust(call)).await?;
        let response = http::Response::new(&*answer);
        R::IncomingResponse::try_from_http_response_inner(response)
            .map_err(|error| ClientError::Nonsense(error.to_string()))
    }
}

async fn refusal(response: Response) -> ClientError {
    let status = response.status;
    let retry_header = response.headers.get(http::header::RETRY_AFTER);
    let retry_seconds = retry_header.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let read = tokio::time::timeout(QUICK, response.collect(ERROR_BODY)).await;
    let body: ErrorBody = read
        .ok()
        .and_then(Result::ok)
        .and_then(|body| serde_json::from_slice(&body).ok())
        .unwrap_or_default();
    let retry_after =
        body.retry_after_ms.map(Duration::from_millis).or(retry_seconds.map(Duration::from_secs));
    ClientError::Refused(Refusal {
        status,
        errcode: body.errcode,
        error: body.error,
        room_version: body.room_version,
        retry_after,
    })
}

/// A path of escaped segments.
fn path(segments: &[&str]) -> String {
    let mut url = Url::parse("https://x").expect("a constant URL");
    url.path_segments_mut().expect("https has a path").extend(segments);
    url.path().to_owned()
}

/// Appends an escaped query.
fn with_query(path: String, pairs: &[(&str, &str)]) -> String {
    if pairs.is_empty() {
        return path;
    }
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    format!("{path}?{}", query.finish())
}

/// Writes a request body.
fn to_body(value: &impl serde::Serialize) -> Result<Box<RawValue>, ClientError> {
    serde_json::value::to_raw_value(value).map_err(|error| ClientError::Unwritable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        let path = path(&["_matrix", "federation", "v1", "event", "$a/b+c?d#e%f:g"]);
        assert_eq!(path, "/_matrix/federation/v1/event/$a%2Fb+c%3Fd%23e%25f:g");
        assert_eq!(with_query("/x".into(), &[("event_id", "$a+b&c")]), "/x?event_id=%24a%2Bb%26c");
    }
}
