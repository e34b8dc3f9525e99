//! Requests over keep-alive connections: HTTP/1.1 over plain TCP, with nothing between the driver and the server.

use std::{fmt::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use url::Url;

use super::{accounts::User, find};

/// The largest answer, in bytes: an initial sync of a thousand large rooms is tens of megabytes.
const ANSWER_LIMIT: usize = 256 << 20;
/// An answer that has not come after this long will not come: longer than any long poll of the driver, and than
/// other servers need for an initial sync of many rooms.
const PATIENCE: Duration = Duration::from_mins(3);
/// How often a call of a preparation is tried again when the server asks to wait or fails.
const TRIES: u32 = 20;
/// The longest wait that a server may ask for before a preparation is given up.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Where a homeserver's client API is.
#[derive(Debug, Clone)]
pub struct Server(Arc<Address>);

#[derive(Debug)]
struct Address {
    url: Url,
    socket: SocketAddr,
    host: HeaderValue,
}

impl Server {
    /// Looks the host up once. Only `http://HOST:PORT` is understood: TLS would measure TLS.
    pub async fn new(url: &Url) -> Result<Self> {
        if url.scheme() != "http" || !matches!(url.path(), "" | "/") {
            bail!("{url}: the load driver speaks plain HTTP to the root of a server: http://HOST:PORT");
        }
        let host = url.host_str().context("the server's URL has no host")?;
        let port = url.port_or_known_default().unwrap_or(80);
        let socket = tokio::net::lookup_host((host, port))
            .await
            .with_context(|| format!("cannot look up {host}"))?
            .next()
            .with_context(|| format!("{host} has no address"))?;
        let host = HeaderValue::from_str(&format!("{host}:{port}"))?;
        Ok(Self(Arc::new(Address { url: url.clone(), socket, host })))
    }

    pub fn url(&self) -> &str {
        self.0.url.as_str().trim_end_matches('/')
    }
}

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the connection broke: {0}")]
    Connection(String),
    #[error("no answer within {PATIENCE:?}")]
    Silence,
    #[error("the server answered {status} {code}")]
    Refused { status: u16, code: String, answer: Bytes },
    #[error("the answer has no {0}")]
    Malformed(&'static str),
}

impl Failure {
    /// The name under which failures of this kind are counted: a status, or a word.
    pub fn kind(&self) -> String {
        match self {
            Self::Connection(_) => "connection".to_owned(),
            Self::Silence => "silence".to_owned(),
            Self::Refused { status, .. } => status.to_string(),
            Self::Malformed(_) => "malformed".to_owned(),
        }
    }

    /// How long to wait before the same call may go well: of overload and of servers that are starting.
    fn retry_after(&self, tried: u32) -> Option<Duration> {
        let Self::Refused { status, answer, .. } = self else { return None };
        let asked = find::number_after(answer, b"\"retry_after_ms\":").map(Duration::from_millis);
        match status {
            429 => asked.or(Some(Duration::from_secs(1))).filter(|wait| *wait <= LONGEST_WAIT),
            500..=599 if tried < 3 => Some(Duration::from_millis(200)),
            _ => None,
        }
    }
}

/// A request to be made. The path begins with a slash and is escaped already.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    path: String,
    authorization: Option<HeaderValue>,
    content_type: &'static str,
    body: Bytes,
}

impl Call {
    fn new(method: Method, path: impl Into<String>, body: Bytes) -> Self {
        Self { method, path: path.into(), authorization: None, content_type: "application/json", body }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, Bytes::new())
    }

    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, path, body.into())
    }

    pub fn put(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::PUT, path, body.into())
    }

    pub fn by(mut self, user: &User) -> Self {
        self.authorization = Some(user.authorization.clone());
        self
    }

    pub fn content_type(mut self, content_type: &'static str) -> Self {
        self.content_type = content_type;
        self
    }

    fn request(&self, server: &Server) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(self.path.as_str())
            .header(header::HOST, server.0.host.clone());
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        if self.method != Method::GET {
            request = request.header(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        request.body(Full::new(self.body.clone())).map_err(|error| Failure::Connection(error.to_string()))
    }
}

/// One connection. It is opened when it is needed, and again when the server closed it.
pub struct Connection {
    server: Server,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    pub fn new(server: &Server) -> Self {
        Self { server: server.clone(), sender: None }
    }

    /// Opens the connection, if it is not open.
    pub async fn open(&mut self) -> Result<(), Failure> {
        if self.sender.as_ref().is_some_and(|sender| !sender.is_closed()) {
            return Ok(());
        }
        let failed = |error: &dyn std::error::Error| Failure::Connection(error.to_string());
        let stream = TcpStream::connect(self.server.0.socket).await.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        // It ends when the sender is dropped or the server closes; its error comes out of the call too.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        self.sender = Some(sender);
        Ok(())
    }

    /// Makes the call; returns the answer's body if its status is 2xx.
    pub async fn call(&mut self, call: &Call) -> Result<Bytes, Failure> {
        let answered = match tokio::time::timeout(PATIENCE, self.attempt(call)).await {
            Ok(answered) => answered,
            Err(_) => Err(Failure::Silence),
        };
        // What comes late must not be taken for the answer to the next call.
        if matches!(answered, Err(Failure::Silence | Failure::Connection(_))) {
            self.sender = None;
        }
        let (status, body) = answered?;
        if status.is_success() {
            return Ok(body);
        }
        let code = find::text_after(&body, b"\"errcode\":").unwrap_or("without errcode").to_owned();
        Err(Failure::Refused { status: status.as_u16(), code, answer: body })
    }

    async fn attempt(&mut self, call: &Call) -> Result<(StatusCode, Bytes), Failure> {
        let mut again = true;
        let answer = loop {
            self.open().await?;
            let Some(sender) = &mut self.sender else {
                return Err(Failure::Connection("closed at once".to_owned()));
            };
            let sent = match sender.ready().await {
                Ok(()) => sender.send_request(call.request(&self.server)?).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(answer) => break answer,
                // An idle connection that the server closed meanwhile: the request was never sent.
                Err(error) if again && (error.is_canceled() || error.is_closed()) => {
                    again = false;
                    self.sender = None;
                }
                Err(error) => return Err(Failure::Connection(error.to_string())),
            }
        };
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        Ok((status, body.map_err(|error| Failure::Connection(error.to_string()))?.to_bytes()))
    }

    /// As `call`, for preparations: waits when the server asks to, and tries again, a bounded number of times.
    pub async fn prepare(&mut self, call: &Call) -> Result<Bytes, Failure> {
        let mut tried = 0;
        loop {
            let failure = match self.call(call).await {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            tried += 1;
            match failure.retry_after(tried) {
                Some(wait) if tried < TRIES => tokio::time::sleep(wait).await,
                _ => return Err(failure),
            }
        }
    }
}

/// A path segment with everything escaped that is not unreserved.
pub fn escape(segment: &str) -> String {
    let mut escaped = String::with_capacity(segment.len() + 8);
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(byte as char);
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped() {
        assert_eq!(escape("!a-b_c~1.2:x/y"), "%21a-b_c~1.2%3Ax%2Fy");
        assert_eq!(escape("ä"), "%C3%A4");
    }

    #[test]
    fn only_overload_and_passing_failures_are_tried_again() {
        let refused = |status, answer: &'static str| Failure::Refused {
            status,
            code: String::new(),
            answer: Bytes::from_static(answer.as_bytes()),
        };
        assert_eq!(
            refused(429, r#"{"retry_after_ms": 250}"#).retry_after(1),
            Some(Duration::from_millis(250))
        );
        assert_eq!(refused(429, "{}").retry_after(1), Some(Duration::from_secs(1)));
        assert_eq!(refused(429, r#"{"retry_after_ms":3600000}"#).retry_after(1), None);
        assert!(refused(502, "").retry_after(1).is_some() && refused(502, "").retry_after(3).is_none());
        assert_eq!(refused(403, "").retry_after(1), None);
    }

    #[tokio::test]
    async fn only_plain_http_to_the_root_is_taken() {
        for url in ["https://127.0.0.1:1", "http://127.0.0.1:1/path"] {
            assert!(Server::new(&Url::parse(url).unwrap()).await.is_err(), "{url}");
        }
        let server = Server::new(&Url::parse("http://127.0.0.1:8008").unwrap()).await.unwrap();
        assert_eq!(server.url(), "http://127.0.0.1:8008");
    }
}
