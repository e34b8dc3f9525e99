//! Hints over NATS: a subject of this server's own, on which each node says how far the log has come.

use super::{COALESCE, HEARTBEAT, RECONNECT, SILENCE, catch_up, heard};
use crate::store::Inner;
use async_nats::{Client, ConnectOptions, Event, Message, ServerAddr, Subscriber};
use futures_util::{FutureExt, StreamExt};
use std::fmt;
use std::path::PathBuf;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use url::Url;

/// A server that is there answers in this time.
const CONNECT: Duration = Duration::from_secs(3);
/// How often the line is tried: one that is dead is given up after three of them.
const PING: Duration = Duration::from_secs(1);
/// Hints that wait to be looked at; of those beyond them some are lost, which is no matter.
const WAITING: usize = 256;
/// Messages that wait to be sent, while the line is slow.
const TO_SEND: usize = 64;
/// After a hint at what the log does not have, hints are not listened to for this time: anybody at NATS may give one.
const LIE: Duration = Duration::from_millis(20);
/// The longest wait between attempts to connect; it doubles from the usual one.
const LONGEST_RECONNECT: Duration = Duration::from_secs(4);

/// Where NATS is, and who this server is there.
#[derive(Clone, Default)]
pub struct Nats {
    /// Addresses of one cluster's servers: `nats://HOST:PORT` or `tls://HOST:PORT`, with or without `USER:PASSWORD@`.
    pub servers: Vec<String>,
    /// The subject of hints, which no other server's nodes use.
    pub subject: String,
    /// The user and the password, where they are not in an address.
    pub user: Option<(String, String)>,
    /// A token instead.
    pub token: Option<String>,
    /// The content of a credentials file (a JWT and the seed of its key) instead.
    pub credentials: Option<String>,
    /// A file of certificate authorities that are trusted instead of the system's, PEM.
    pub roots: Option<PathBuf>,
    /// The files of a certificate with which this node shows who it is, and of its key, PEM.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// Why there is no line to NATS. Names no address: those may hold passwords.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// An address is none of a NATS server.
    #[error("an address is not `nats://HOST:PORT` or `tls://HOST:PORT`")]
    Address,
    /// The credentials are none.
    #[error("the credentials cannot be read")]
    Credentials,
    /// No server took the connection.
    #[error("no server took the connection: {0}")]
    Connect(async_nats::ConnectErrorKind),
    /// The connection was lost.
    #[error("the connection was lost")]
    Lost,
    /// Nothing was heard, not even what this node says.
    #[error("nothing is heard")]
    Silence,
}

/// An address without its secrets, which would show in the client's own log lines; and these.
fn address(text: &str) -> Result<(ServerAddr, Option<(String, Option<String>)>), NatsError> {
    let mut url = Url::parse(text).map_err(|_| NatsError::Address)?;
    if !["nats", "tls"].contains(&url.scheme()) || !url.has_host() {
        return Err(NatsError::Address);
    }
    let user =
        (!url.username().is_empty()).then(|| (url.username().to_owned(), url.password().map(str::to_owned)));
    url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| NatsError::Address)?;
    let server = ServerAddr::from_url(url).map_err(|_| NatsError::Address)?;
    Ok((server, user))
}

impl Nats {
    /// Whether the addresses and the credentials are such.
    ///
    /// # Errors
    /// [`NatsError::Address`], [`NatsError::Credentials`].
    pub fn check(&self) -> Result<(), NatsError> {
        self.options().map(|_| ())
    }

    /// How to connect, and where.
    fn options(&self) -> Result<(ConnectOptions, Vec<ServerAddr>), NatsError> {
        let mut options = ConnectOptions::new();
        let mut servers = Vec::with_capacity(self.servers.len());
        let mut in_address = None;
        for text in &self.servers {
            let (server, user) = address(text)?;
            servers.push(server);
            in_address = in_address.or(user);
        }
        if servers.is_empty() {
            return Err(NatsError::Address);
        }
        if let Some(credentials) = &self.credentials {
            options = options.credentials(credentials).map_err(|_| NatsError::Credentials)?;
        } else if let Some(token) = &self.token {
            options = options.token(token.clone());
        } else if let Some((user, password)) = &self.user {
            options = options.user_and_password(user.clone(), password.clone());
        } else if let Some((user, password)) = in_address {
            options = match password {
                Some(password) => options.user_and_password(user, password),
                None => options.token(user),
            };
        }
        if let Some(roots) = &self.roots {
            options = options.add_root_certificates(roots.clone());
        }
        if let Some((certificate, key)) = &self.certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        // One of the addresses asks for TLS: none is used without.
        let options = options
            .require_tls(servers.iter().any(ServerAddr::tls_required))
            .name("waxwing")
            .connection_timeout(CONNECT)
            .ping_interval(PING)
            .subscription_capacity(WAITING)
            .client_capacity(TO_SEND)
            // This module connects again itself; the client must only get round all servers once.
            .max_reconnects(servers.len());
        Ok((options, servers))
    }

    /// Connects. `lost` is told when the connection is gone, or the server is about to go.
    async fn connect(&self, lost: watch::Sender<bool>) -> Result<(Client, Subscriber), NatsError> {
        let (options, servers) = self.options()?;
        let options = options.event_callback(move |event| {
            if matches!(event, Event::Disconnected | Event::LameDuckMode | Event::Draining | Event::Closed) {
                lost.send_replace(true);
            }
            std::future::ready(())
        });
        let connected = options.connect(servers).await;
        let client = connected.map_err(|error| NatsError::Connect(error.kind()))?;
        let hints = client.subscribe(self.subject.clone()).await.map_err(|_| NatsError::Lost)?;
        Ok((client, hints))
    }
}

/// Gives hints and hears them until the store is closed.
pub(super) async fn carry(store: Weak<Inner>, committed: watch::Receiver<()>, nats: Nats) {
    let mut wait = RECONNECT;
    loop {
        let Err(error) = session(&store, committed.clone(), &nats).await else { return };
        let Some(inner) = store.upgrade() else { return };
        let was_up = inner.lines.nats.as_ref().is_some_and(|nats| nats.swap(false, Ordering::Relaxed));
        drop(inner);
        if was_up {
            wait = RECONNECT;
        }
        if wait == RECONNECT {
            tracing::warn!(%error, "hints over NATS are cut off; they go over the database");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_RECONNECT);
    }
}

/// One connection, until it is lost (an error) or the store is closed.
async fn session(store: &Weak<Inner>, committed: watch::Receiver<()>, nats: &Nats) -> Result<(), NatsError> {
    let (lost, mut is_lost) = watch::channel(false);
    let (client, hints) = nats.connect(lost).await?;
    tokio::select! {
        ended = tell(store, committed, &client, &nats.subject) => ended,
        ended = hear(store, hints) => ended,
        _ = is_lost.wait_for(|lost| *lost) => Err(NatsError::Lost),
    }
}

async fn tell(
    store: &Weak<Inner>,
    mut committed: watch::Receiver<()>,
    client: &Client,
    subject: &str,
) -> Result<(), NatsError> {
    loop {
        // The first one comes back at once: so it is known that the line is good.
        let Some(head) = store.upgrade().map(|inner| inner.tail.head()) else { return Ok(()) };
        let told = client.publish(subject.to_owned(), head.0.to_string().into());
        told.await.map_err(|_| NatsError::Lost)?;
        tokio::time::sleep(COALESCE).await;
        if matches!(tokio::time::timeout(HEARTBEAT, committed.changed()).await, Ok(Err(_))) {
            return Ok(());
        }
    }
}

async fn hear(store: &Weak<Inner>, mut hints: Subscriber) -> Result<(), NatsError> {
    let mut first = true;
    loop {
        let hint = tokio::time::timeout(SILENCE, hints.next()).await.map_err(|_| NatsError::Silence)?;
        let mut position = said(&hint.ok_or(NatsError::Lost)?);
        // Those that came meanwhile count as one.
        while let Some(Some(more)) = hints.next().now_or_never() {
            position = position.max(said(&more));
        }
        let Some(inner) = store.upgrade() else { return Ok(()) };
        if std::mem::take(&mut first) {
            if let Some(up) = &inner.lines.nats {
                up.store(true, Ordering::Relaxed);
            }
            tracing::info!("hints go over NATS");
            // What was committed before we listened.
            catch_up(&inner).await;
        }
        // What is no position says nothing.
        if let Some(position) = position {
            heard(&inner, "nats", Some(position)).await;
            if inner.tail.head().0 < position {
                // The log does not reach there: who says so is no node of this server.
                drop(inner);
                tokio::time::sleep(LIE).await;
            }
        }
    }
}

/// The position that a hint carries.
fn said(hint: &Message) -> Option<i64> {
    std::str::from_utf8(&hint.payload).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_addresses() {
        let (server, user) = address("nats://who:secret@127.0.0.1:4333").unwrap();
        assert_eq!((server.host(), server.port()), ("127.0.0.1", 4333));
        assert!(!format!("{server:?}").contains("secret"));
        assert_eq!(user, Some(("who".to_owned(), Some("secret".to_owned()))));
        assert!(address("tls://nats.example.org").unwrap().0.tls_required());
        for bad in ["nats:", "http://x", "127.0.0.1:4222", "", "ws://x"] {
            assert!(address(bad).is_err(), "{bad}");
        }
        let nats = Nats { servers: vec!["nats://who:secret@x".to_owned()], ..Nats::default() };
        assert!(!format!("{nats:?}").contains("secret"));
        assert!(nats.check().is_ok());
        assert!(matches!(
            Nats { credentials: Some("none".to_owned()), ..nats }.check(),
            Err(NatsError::Credentials)
        ));
    }
}
