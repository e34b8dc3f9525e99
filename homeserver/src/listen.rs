//! Listeners: bound all together before anything is served, ended all together.

use crate::config::Addresses;
use crate::taken::{STALLED, Taken};
use anyhow::{Context, bail};
use axum::Router;
use axum::extract::ConnectInfo;
use axum_server::tls_rustls::RustlsConfig;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A connection that has not sent its first request by then is closed.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// A handshake that is not done by then is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a failure to take a connection, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// When the server ends: how long it waits for the next of the connections that were made before, of which the system
/// keeps so many at most.
const LAST_ACCEPT: Duration = Duration::from_millis(5);
const BACKLOG: usize = 4096;
/// When the server ends: how long a connection that has asked for nothing yet may take to begin.
const LAST_REQUEST: Duration = Duration::from_millis(100);
/// How every connection of HTTP/2 begins: <https://www.rfc-editor.org/rfc/rfc9113#section-3.4>.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often the beginning of a connection is looked at until it can be told from that.
const PEEK_EVERY: Duration = Duration::from_millis(10);

/// What a listener speaks.
#[derive(Clone)]
pub enum Scheme {
    Http,
    Https(RustlsConfig),
}

/// The sockets of one setting.
#[derive(Debug)]
pub struct Sockets(Vec<(SocketAddr, std::net::TcpListener)>);

impl Sockets {
    /// Binds each address of the setting `key`.
    pub fn bind(key: &str, addresses: &Addresses) -> anyhow::Result<Sockets> {
        let mut sockets = Vec::new();
        for address in addresses.iter() {
            let what = || format!("setting {key}: cannot listen on {address}");
            let resolved: Vec<SocketAddr> = address.to_socket_addrs().with_context(what)?.collect();
            if resolved.is_empty() {
                bail!("{}: the name has no address", what());
            }
            let listener = std::net::TcpListener::bind(&resolved[..]).with_context(what)?;
            sockets.push((listener.local_addr().with_context(what)?, listener));
        }
        Ok(Sockets(sockets))
    }

    /// The addresses as bound: where a port was 0, with the port that it became.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|(address, _)| *address).collect()
    }
}

/// Running listeners.
#[derive(Default)]
pub struct Listeners {
    tasks: JoinSet<std::io::Result<()>>,
    connections: TaskTracker,
    /// No more connections, no further requests on those that there are.
    closing: CancellationToken,
    /// What is left is cut off.
    closed: CancellationToken,
}

/// What the connections of one listener share.
struct Shared {
    scheme: Scheme,
    routes: Router,
    closing: CancellationToken,
    closed: CancellationToken,
}

impl Listeners {
    /// Starts serving `routes` on each socket.
    pub fn serve(&mut self, sockets: Sockets, scheme: &Scheme, routes: &Router) -> std::io::Result<()> {
        let shared = Arc::new(Shared {
            scheme: scheme.clone(),
            routes: routes.clone(),
            closing: self.closing.clone(),
            closed: self.closed.clone(),
        });
        for (_, listener) in sockets.0 {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            self.tasks.spawn(accept(listener, Arc::clone(&shared), self.connections.clone()));
        }
        Ok(())
    }

    /// Waits until a listener ends by itself, which none should.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Ok(()))) => anyhow::anyhow!("a listener ended"),
            Some(Ok(Err(error))) => anyhow::Error::new(error).context("a listener failed"),
            Some(Err(error)) => anyhow::Error::new(error).context("a listener failed"),
            // No listener at all: wait for a signal.
            None => std::future::pending().await,
        }
    }

    /// Takes no more connections, lets requests finish for `grace`, then closes what is left.
    pub async fn close(mut self, grace: Duration) {
        self.closing.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.connections.close();
        if tokio::time::timeout(grace, self.connections.wait()).await.is_err() {
            self.closed.cancel();
            self.connections.wait().await;
        }
    }
}

/// Takes connections until the end.
async fn accept(listener: TcpListener, shared: Arc<Shared>, connections: TaskTracker) -> std::io::Result<()> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.closing.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => drop(connections.spawn(connection(stream, peer, Arc::clone(&shared)))),
            Err(error) => {
                // One connection may have broken off, or there are too many: neither ends the listener.
                tracing::debug!(%error, "no connection was taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Those whom the system has let in already may have asked: closing the listener would cut them off unheard.
    for _ in 0..BACKLOG {
        let Ok(Ok((stream, peer))) = tokio::time::timeout(LAST_ACCEPT, listener.accept()).await else {
            break;
        };
        connections.spawn(connection(stream, peer, Arc::clone(&shared)));
    }
    Ok(())
}

/// Serves one connection until it ends. Thousands of clients hold one each and wait: what only its beginning needs is on
/// the heap and gone when requests are served.
async fn connection(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    // Small answers are to leave at once. A connection that refuses is as good without.
    let _ = stream.set_nodelay(true);
    match &shared.scheme {
        Scheme::Http => {
            let begun = Box::pin(async {
                let mut begun = std::pin::pin!(begins_as_http2(&stream));
                tokio::select! {
                    biased;
                    begun = tokio::time::timeout(FIRST_REQUEST, &mut begun) => begun,
                    () = shared.closing.cancelled() => tokio::time::timeout(LAST_REQUEST, begun).await,
                }
            });
            let Ok(begun) = begun.await else { return };
            let http2 = matches!(begun, Ok(true));
            serve(Taken::new(stream, STALLED), http2, peer, &shared).await;
        }
        // On the heap: else connections that are not encrypted would be as large as those that are.
        Scheme::Https(tls) => Box::pin(encrypted(stream, tls, peer, &shared)).await,
    }
}

async fn encrypted(stream: TcpStream, tls: &RustlsConfig, peer: SocketAddr, shared: &Shared) {
    let handshake = TlsAcceptor::from(tls.get_inner()).accept(Taken::new(stream, STALLED));
    let handshake = Box::pin(tokio::time::timeout(HANDSHAKE, handshake));
    let stream = tokio::select! {
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "no TLS"),
            Err(_) => return tracing::debug!(%peer, "the TLS handshake took too long"),
        },
        () = shared.closing.cancelled() => return,
    };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Box::pin(serve(stream, http2, peer, shared)).await;
}

/// Whether a connection begins as one of HTTP/2. Looks at what has come without taking it: what is read before the version
/// is known would double the buffer in which requests are read.
async fn begins_as_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let count = stream.peek(&mut seen).await?;
        if count == 0 || seen[..count] != PREFACE[..count] {
            return Ok(false);
        }
        if count == PREFACE.len() {
            return Ok(true);
        }
        tokio::time::sleep(PEEK_EVERY).await;
    }
}

async fn serve<I>(io: I, is_http2: bool, peer: SocketAddr, shared: &Shared)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Arc::new(AtomicBool::new(false));
    let (routes, first) = (shared.routes.clone(), Arc::clone(&asked));
    let service = service_fn(move |mut request: Request<Incoming>| {
        first.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(waxwing_api::answer(routes, request).await) }
    });
    let io = TokioIo::new(io);
    // On the heap where it is made: a task is as large as the largest of what it may ever hold, times the moves.
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let connection = Box::pin(builder.timer(TokioTimer::new()).serve_connection(io, service));
        until_end(connection, &asked, peer, shared).await;
    } else {
        let mut builder = http1::Builder::new();
        // Between requests clients may be quiet for as long as they like.
        builder.timer(TokioTimer::new()).header_read_timeout(None);
        let connection = Box::pin(builder.serve_connection(io, service));
        until_end(connection, &asked, peer, shared).await;
    }
}

/// Drives a connection until it ends, or has not asked for anything, or the server stops.
async fn until_end<C>(mut connection: Pin<Box<C>>, asked: &AtomicBool, peer: SocketAddr, shared: &Shared)
where
    C: GracefulConnection<Error = hyper::Error>,
{
    let patience = tokio::time::sleep(FIRST_REQUEST);
    tokio::pin!(patience);
    let (mut patient, mut closing) = (true, false);
    loop {
        tokio::select! {
            // What has been asked before the end is read before the connection is told of the end.
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection broke");
                }
                return;
            }
            () = &mut patience, if patient => {
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
                patient = false;
            }
            () = shared.closing.cancelled(), if !closing => {
                connection.as_mut().graceful_shutdown();
                closing = true;
            }
            () = shared.closed.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_named_with_its_setting() {
        let first = Sockets::bind("listen.client", &Addresses::of("127.0.0.1:0")).unwrap();
        let taken = first.addresses()[0].to_string();
        let error = format!("{:#}", Sockets::bind("listen.client", &Addresses::of(&taken)).unwrap_err());
        assert!(error.contains("listen.client") && error.contains(&taken), "{error}");
    }
}
