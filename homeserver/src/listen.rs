//! Listeners: bound all together before anything is served, ended all together.

use crate::config::Addresses;
use anyhow::{Context, bail};
use axum::Router;
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;
use tokio::task::JoinSet;

/// A connection that has not sent its first request by then is closed.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// A handshake that is not done by then is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

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

/// Running listeners.
#[derive(Default)]
pub struct Listeners {
    handles: Vec<Handle<SocketAddr>>,
    tasks: JoinSet<std::io::Result<()>>,
}

impl Listeners {
    /// Starts serving `routes` on each socket.
    pub fn serve(&mut self, sockets: Sockets, scheme: &Scheme, routes: &Router) -> std::io::Result<()> {
        for (_, listener) in sockets.0 {
            let handle = Handle::new();
            self.handles.push(handle.clone());
            let service = routes.clone().into_make_service_with_connect_info::<SocketAddr>();
            let server = axum_server::from_tcp(listener)?.handle(handle).first_request_timeout(FIRST_REQUEST);
            match scheme {
                Scheme::Http => self.tasks.spawn(server.acceptor(NoDelayAcceptor).serve(service)),
                Scheme::Https(tls) => {
                    let acceptor = RustlsAcceptor::new(tls.clone())
                        .handshake_timeout(HANDSHAKE)
                        .acceptor(NoDelayAcceptor);
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

    #[test]
    fn a_taken_address_is_named_with_its_setting() {
        let first = Sockets::bind("listen.client", &Addresses::of("127.0.0.1:0")).unwrap();
        let taken = first.addresses()[0].to_string();
        let error = format!("{:#}", Sockets::bind("listen.client", &Addresses::of(&taken)).unwrap_err());
        assert!(error.contains("listen.client") && error.contains(&taken), "{error}");
    }
}
