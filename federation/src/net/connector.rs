use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use moka::sync::Cache;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::{GuardedDns, Host, Route};

/// From the first look-up to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one address may stay silent before the next one is tried beside it (RFC 8305 says 250 ms).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(300);
/// Addresses tried for one connection.
const MAX_ATTEMPTS: usize = 6;
/// Idle connections kept for one destination: one suffices for HTTP/2, a few for HTTP/1.
const IDLE_PER_HOST: usize = 4;
/// Less than what the usual reverse proxies keep idle connections (60 to 75 s), so that we close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Routes remembered for the connector; they are written anew before every request.
const ROUTES: u64 = 20_000;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no route is known to this authority")]
    NoRoute,
    #[error(transparent)]
    Dns(#[from] super::DnsError),
    #[error("a private address is not connected to")]
    Private,
    #[error("connecting: {0}")]
    Io(#[from] std::io::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("the name cannot stand in a certificate")]
    Name,
    #[error("connecting took too long")]
    Timeout,
}

/// The pooled HTTP client over our own connector.
pub(crate) type HttpClient = Client<Connector, Full<Bytes>>;

/// Makes the client. Connections are pooled by authority.
pub(crate) fn http_client(connector: Connector) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .build(connector)
}

/// Opens TLS connections. The URL's authority is what the request is addressed to (it becomes `Host`); where that is,
/// and whose certificate counts there, is looked up in the routes. That is the whole point: an HTTP client that takes
/// address, SNI and `Host` from one URL cannot follow an SRV record.
#[derive(Clone)]
pub(crate) struct Connector {
    dns: GuardedDns,
    tls: TlsConnector,
    routes: Cache<String, Arc<Route>>,
}

impl Connector {
    pub(crate) fn new(dns: GuardedDns, tls: Arc<ClientConfig>) -> Connector {
        Connector { dns, tls: TlsConnector::from(tls), routes: Cache::new(ROUTES) }
    }

    /// Tells where the authority of `route` is reached. Every request does this before it is sent.
    pub(crate) fn learn(&self, route: &Arc<Route>) {
        self.routes.insert(route.authority.to_ascii_lowercase(), Arc::clone(route));
    }

    async fn connect(self, authority: String) -> Result<TlsIo, ConnectError> {
        let route = self.routes.get(&authority.to_ascii_lowercase()).ok_or(ConnectError::NoRoute)?;
        let bare = route.tls_name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(|_| ConnectError::Name)?;
        let connecting = async {
            let tcp = self.connect_any(&route).await?;
            let _ = tcp.set_nodelay(true);
            self.tls.connect(name, tcp).await.map_err(ConnectError::Tls)
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        Ok(TlsIo(TokioIo::new(stream.map_err(|_| ConnectError::Timeout)??)))
    }

    /// Tries the targets in order; the first that accepts wins.
    async fn connect_any(&self, route: &Route) -> Result<TcpStream, ConnectError> {
        let mut last = ConnectError::NoRoute;
        for target in &route.targets {
            let addresses = match (&target.host, target.trusted) {
                (Host::Address(ip), trusted) if trusted || self.dns.permits(*ip) => vec![*ip],
                (Host::Address(_), _) => {
                    last = ConnectError::Private;
                    continue;
                }
                (Host::Name(name), true) => match self.dns.addresses_unguarded(name).await {
                    Ok(found) => found,
                    Err(error) => {
                        last = error.into();
                        continue;
                    }
                },
                (Host::Name(name), false) => match self.dns.addresses(name).await {
                    Ok(found) => found,
                    Err(error) => {
                        last = error.into();
                        continue;
                    }
                },
            };
            let sockets = addresses.into_iter().map(|ip| SocketAddr::new(ip, target.port)).collect();
            match race(sockets).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Connects to the first address that answers; each next one is started when the one before failed or is slow.
async fn race(addresses: Vec<SocketAddr>) -> Result<TcpStream, ConnectError> {
    let mut waiting = addresses.into_iter().take(MAX_ATTEMPTS);
    let mut running = FuturesUnordered::new();
    let mut last = ConnectError::NoRoute;
    loop {
        let more = match waiting.next() {
            Some(address) => {
                running.push(TcpStream::connect(address));
                true
            }
            None => false,
        };
        let patience = async {
            if more { tokio::time::sleep(NEXT_ADDRESS_AFTER).await } else { std::future::pending().await }
        };
        tokio::select! {
            finished = running.next() => match finished {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error.into(),
                None => return Err(last),
            },
            () = patience => {}
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TlsIo;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TlsIo, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        Box::pin(self.clone().connect(authority))
    }
}

/// A TLS connection as the HTTP client wants it.
pub(crate) struct TlsIo(TokioIo<TlsStream<TcpStream>>);

impl Connection for TlsIo {
    fn connected(&self) -> Connected {
        let (_, session) = self.0.inner().get_ref();
        let connected = Connected::new();
        if session.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
    }
}

impl hyper::rt::Read for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
