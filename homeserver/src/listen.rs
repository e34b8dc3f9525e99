//! Listeners: bound all together before anything is served, ended all together.

use crate::config::Addresses;
use anyhow::{Context, bail};
use axum::Router;
use axum_server::Handle;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use std::future::{Ready, ready};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::Pin;
use std::task::{Context as Waker, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Sleep;

/// A connection that has not sent its first request by then is closed.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// A handshake that is not done by then is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A client that takes nothing of its answer for so long is cut off: the answer is memory that others need.
const STALLED: Duration = Duration::from_secs(30);

/// What a listener speaks.
#[derive(Clone)]
pub enum Scheme {
    Http,
    Https(RustlsConfig),
}

/// The sockets of one setting.
#[derive(Debug)]
pub struct Sockets(Vec<(SocketAddr, TcpListener)>);

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
            let listener = TcpListener::bind(&resolved[..]).with_context(what)?;
            sockets.push((listener.local_addr().with_context(what)?, listener));
        }
        Ok(Sockets(sockets))
    }

    /// The addresses as bound: where a port was 0, with the port that it became.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|(address, _)| *address).collect()
    }
}

/// Takes connections, sends small answers at once, and cuts off whoever does not take theirs.
#[derive(Clone, Copy)]
struct Watched {
    patience: Duration,
}

impl<S> Accept<TcpStream, S> for Watched {
    type Stream = Taken;
    type Service = S;
    type Future = Ready<io::Result<(Taken, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(
            stream
                .set_nodelay(true)
                .map(|()| (Taken { stream, patience: self.patience, stalled: None }, service)),
        )
    }
}

/// A connection. A timer runs only while something is not taken.
struct Taken {
    stream: TcpStream,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Taken {
    /// The outcome of a write, or an error when the other end has taken nothing for too long.
    fn judge<T>(&mut self, waker: &mut Waker<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        stalled.as_mut().poll(waker).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Taken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        waker: &mut Waker<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(waker, into)
    }
}

impl AsyncWrite for Taken {
    fn poll_write(mut self: Pin<&mut Self>, waker: &mut Waker<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(waker, bytes);
        self.judge(waker, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        waker: &mut Waker<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(waker, pieces);
        self.judge(waker, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(waker)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(waker)
    }
}

/// Running listeners.
#[derive(Default)]
pub struct Listeners {
    handles: Vec<Handle<SocketAddr>>,
    tasks: JoinSet<io::Result<()>>,
}

impl Listeners {
    /// Starts serving `routes` on each socket.
    pub fn serve(&mut self, sockets: Sockets, scheme: &Scheme, routes: &Router) -> io::Result<()> {
        for (_, listener) in sockets.0 {
            let handle = Handle::new();
            self.handles.push(handle.clone());
            let service = routes.clone().into_make_service_with_connect_info::<SocketAddr>();
            let server = axum_server::from_tcp(listener)?.handle(handle).first_request_timeout(FIRST_REQUEST);
            match scheme {
                Scheme::Http => {
                    self.tasks.spawn(server.acceptor(Watched { patience: STALLED }).serve(service))
                }
                Scheme::Https(tls) => {
                    let acceptor = RustlsAcceptor::new(tls.clone())
                        .handshake_timeout(HANDSHAKE)
                        .acceptor(Watched { patience: STALLED });
                    self.tasks.spawn(server.acceptor(acceptor).serve(service))
                }
            };
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
        for handle in &self.handles {
            handle.graceful_shutdown(Some(grace));
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn whoever_takes_nothing_is_cut_off() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let idle = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (mut taken, ()) =
            Watched { patience: Duration::from_millis(200) }.accept(stream, ()).await.unwrap();
        let all = vec![0; 64 * 1024 * 1024];
        let outcome = taken.write_all(&all).await;
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(idle);
    }

    #[test]
    fn a_taken_address_is_named_with_its_setting() {
        let first = Sockets::bind("listen.client", &Addresses::of("127.0.0.1:0")).unwrap();
        let taken = first.addresses()[0].to_string();
        let error = format!("{:#}", Sockets::bind("listen.client", &Addresses::of(&taken)).unwrap_err());
        assert!(error.contains("listen.client") && error.contains(&taken), "{error}");
    }
}
