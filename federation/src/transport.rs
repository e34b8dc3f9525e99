//! Requests to other servers, below the protocol: one trait, so that a simulation can stand in for the network.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use ruma::OwnedServerName;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;
use waxwing_model::Clock;

use crate::discovery::{Discovery, DiscoveryConfig, call_web, fetch_following_redirects};
use crate::net::{
    AddressPolicy, Connector, Dns, GuardedDns, HttpClient, TlsError, client_config, http_client,
};

/// A body may pause this long between two pieces. Bounds a peer that feeds us one byte at a time when the whole has no
/// deadline (media).
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A request to a server, signed already.
#[derive(Clone, Debug)]
pub struct Request {
    /// The server, by its name.
    pub destination: OwnedServerName,
    /// The method.
    pub method: Method,
    /// The path and query as signed.
    pub path_and_query: String,
    /// The JSON body as signed.
    pub body: Option<Bytes>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// From sending to the head of the response.
    pub timeout: Duration,
}

/// A request to a web server that is no Matrix server: an identity server.
#[derive(Clone)]
pub struct WebRequest {
    /// The method.
    pub method: Method,
    /// Where; only `https` is called.
    pub url: Url,
    /// The JSON body.
    pub body: Option<Bytes>,
    /// The access token for the server.
    pub bearer: Option<String>,
    /// From sending to the head of the response.
    pub timeout: Duration,
}

/// The head of a response and its body as it arrives.
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body. A stalled peer ends it with an error.
    pub body: BoxStream<'static, Result<Bytes, TransportError>>,
}

impl Response {
    /// A response with its body at hand: for simulations and tests.
    pub fn complete(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response {
        let body = futures_util::stream::once(async move { Ok(body) }).boxed();
        Response { status, headers, body }
    }

    /// Reads the whole body, up to `limit` bytes.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, TransportError> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.body.try_next().await? {
            if whole.len() + piece.len() > limit {
                return Err(TransportError::TooLarge(limit));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

/// No response came, or not the whole of it. The text is for our log: it names addresses.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// It could not be connected to, or the connection broke.
    #[error("{0}")]
    Connection(String),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// The body is larger than this many bytes.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The request could not be put together.
    #[error("not a request: {0}")]
    Request(#[from] http::Error),
}

/// Carries requests to other servers.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends a signed request. Never follows a redirect: the signature is for this server only.
    async fn send(&self, request: Request) -> Result<Response, TransportError>;
    /// Fetches a public document, unsigned, following a few redirects: media that a server keeps elsewhere.
    async fn fetch(&self, url: &Url, timeout: Duration) -> Result<Response, TransportError>;
    /// Calls a web server that is no Matrix server. Never follows a redirect: the token is for this server only.
    async fn call(&self, request: WebRequest) -> Result<Response, TransportError>;
}

/// What the real transport is told by the configuration.
#[derive(Clone, Debug, Default)]
pub struct TransportConfig {
    /// Discovery.
    pub discovery: DiscoveryConfig,
    /// Addresses that may be connected to.
    pub addresses: AddressPolicy,
    /// Certificate authorities to trust beside the system's.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The `User-Agent` header.
    pub user_agent: String,
}

/// The real network: discovery, pooled TLS connections, HTTP/1.1 and HTTP/2.
pub struct HttpTransport {
    discovery: Arc<Discovery>,
    http: HttpClient,
    connector: Connector,
    user_agent: String,
}

impl HttpTransport {
    /// Sets it up; connects to nothing yet.
    pub fn new(config: TransportConfig, dns: Arc<dyn Dns>, clock: Clock) -> Result<HttpTransport, TlsError> {
        let tls = client_config(&config.extra_roots)?;
        let guarded = GuardedDns::new(dns, config.addresses);
        let connector = Connector::new(guarded.clone(), tls);
        let http = http_client(connector.clone());
        let discovery = Discovery::new(config.discovery, guarded, http.clone(), connector.clone(), clock);
        Ok(HttpTransport { discovery: Arc::new(discovery), http, connector, user_agent: config.user_agent })
    }

    /// Where it looks servers up.
    pub fn discovery(&self) -> &Arc<Discovery> {
        &self.discovery
    }

    async fn send_now(&self, request: Request) -> Result<Response, TransportError> {
        let route = self.discovery.route(&request.destination).await;
        self.connector.learn(&route);
        let mut builder = http::Request::builder()
            .method(request.method)
            .uri(format!("https://{}{}", route.authority, request.path_and_query))
            .header(HOST, &route.authority)
            .header(USER_AGENT, &self.user_agent)
            .header(ACCEPT, "*/*");
        if let Some(authorization) = &request.authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        if request.body.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        let request_for_http = builder.body(Full::new(request.body.unwrap_or_default()))?;
        match self.http.request(request_for_http).await {
            Ok(response) => Ok(into_response(response)),
            Err(error) => {
                if error.is_connect() {
                    self.discovery.forget(&request.destination).await;
                }
                Err(TransportError::Connection(describe(&error)))
            }
        }
    }
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let started = Instant::now();
        let result = tokio::time::timeout(request.timeout, self.send_now(request)).await;
        let outcome = match &result {
            Ok(Ok(response)) if response.status.is_success() => "ok",
            Ok(Ok(_)) => "refused",
            Ok(Err(_)) => "unreachable",
            Err(_) => "timeout",
        };
        metrics::counter!("waxwing_federation_requests_total", "outcome" => outcome).increment(1);
        metrics::histogram!("waxwing_federation_request_seconds").record(started.elapsed().as_secs_f64());
        result.map_err(|_| TransportError::Timeout)?
    }

    async fn fetch(&self, url: &Url, timeout: Duration) -> Result<Response, TransportError> {
        let fetching = fetch_following_redirects(&self.http, &self.connector, url.clone());
        let response = tokio::time::timeout(timeout, fetching).await.map_err(|_| TransportError::Timeout)?;
        response.map(into_response).map_err(|error| TransportError::Connection(describe(&error)))
    }

    async fn call(&self, request: WebRequest) -> Result<Response, TransportError> {
        let timeout = request.timeout;
        let calling = call_web(&self.http, &self.connector, &self.user_agent, request);
        let response = tokio::time::timeout(timeout, calling).await.map_err(|_| TransportError::Timeout)?;
        response.map(into_response).map_err(|error| TransportError::Connection(describe(&error)))
    }
}

fn into_response(response: http::Response<Incoming>) -> Response {
    let (head, body) = response.into_parts();
    let body = futures_util::stream::try_unfold(body.into_data_stream(), |mut pieces| async move {
        match tokio::time::timeout(IDLE_TIMEOUT, pieces.try_next()).await {
            Ok(Ok(piece)) => Ok(piece.map(|piece| (piece, pieces))),
            Ok(Err(error)) => Err(TransportError::Connection(describe(&error))),
            Err(_) => Err(TransportError::Timeout),
        }
    });
    Response { status: head.status, headers: head.headers, body: body.boxed() }
}

/// An error with its causes: the outermost says only "client error".
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
