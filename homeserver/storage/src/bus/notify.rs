//! Hints over PostgreSQL: `LISTEN` and `NOTIFY`.
//!
//! They go and come on connections of their own, so that they never wait behind requests, and are sent without waiting
//! for the disk: a NOTIFY is a transaction, which otherwise costs an fsync under a lock of the whole cluster.

use super::{COALESCE, HEARTBEAT, RECONNECT, SILENCE, catch_up, closed, heard};
use crate::store::Inner;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection};
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The channel of hints, and that of what nodes tell each other beside the log.
const CHANNEL: &str = "waxwing_log";
const WHISPERS: &str = "waxwing_whispers";
const WHISPER: &str = "SELECT pg_notify('waxwing_whispers', $1)";
const NOTIFY: &str = "SELECT pg_notify('waxwing_log', $1)";
/// A hint that is not sent by then goes over a dead line.
const SENT: Duration = Duration::from_secs(5);

/// Hears hints until the store is closed.
pub(super) async fn listen(store: Weak<Inner>, committed: watch::Receiver<()>, options: PgConnectOptions) {
    let own = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let pool = own.connect_lazy_with(options);
    let hints = async {
        loop {
            match follow_hints(&store, &pool).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "hints from the database are cut off; polling"),
            }
            if let Some(inner) = store.upgrade() {
                inner.lines.notify.store(false, Ordering::Relaxed);
            }
            tokio::time::sleep(RECONNECT).await;
        }
    };
    // Receiving a hint is broken off at the end alone.
    tokio::select! {
        () = hints => {}
        () = closed(committed) => {}
    }
}

async fn follow_hints(store: &Weak<Inner>, pool: &sqlx::PgPool) -> Result<(), sqlx::Error> {
    let listener = tokio::time::timeout(SENT, PgListener::connect_with(pool)).await;
    let mut listener = listener.map_err(|_| sqlx::Error::PoolTimedOut)??;
    listener.listen_all([CHANNEL, WHISPERS]).await?;
    let Some(inner) = store.upgrade() else { return Ok(()) };
    inner.lines.notify.store(true, Ordering::Relaxed);
    // What was committed before we listened.
    catch_up(&inner).await;
    drop(inner);
    loop {
        // Without a hint the connection was lost and is there again: what came between was not heard.
        let silence =
            || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "nothing is heard"));
        let hint = tokio::time::timeout(SILENCE, listener.try_recv()).await.map_err(|_| silence())??;
        let Some(inner) = store.upgrade() else { return Ok(()) };
        match hint {
            // It says nothing about the log.
            Some(whisper) if whisper.channel() == WHISPERS => inner.whispers.hear(whisper.payload()),
            hint => heard(&inner, "notify", hint.and_then(|hint| hint.payload().parse().ok())).await,
        }
    }
}

/// Tells the other nodes after this one has committed rows, outside the transactions that write them, and what this
/// one tells them beside the log.
pub(super) async fn hint(
    store: Weak<Inner>,
    mut committed: watch::Receiver<()>,
    mut to_whisper: mpsc::Receiver<String>,
    options: PgConnectOptions,
) {
    // A hint that a crash of the database loses is a lost hint.
    let options = options.options([("synchronous_commit", "off")]);
    let mut connection: Option<PgConnection> = None;
    let mut notified = Instant::now();
    loop {
        let sent = tokio::select! {
            changed = tokio::time::timeout(HEARTBEAT, committed.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
                let Some(inner) = store.upgrade() else { return };
                if inner.lines.nats() && notified.elapsed() < HEARTBEAT {
                    // It goes there; the heartbeat comes here all the same.
                    continue;
                }
                notified = Instant::now();
                let head = inner.tail.head();
                drop(inner);
                send(&mut connection, &options, NOTIFY, &head.0.to_string()).await.inspect_err(|_| {
                    committed.mark_changed();
                })
            }
            Some(text) = to_whisper.recv() => {
                let sent = send(&mut connection, &options, WHISPER, &text).await;
                if sent.is_err() && let Some(inner) = store.upgrade() {
                    // The others lose it; this node need not.
                    inner.whispers.hear(&text);
                }
                sent
            }
        };
        match sent {
            Ok(()) => tokio::time::sleep(COALESCE).await,
            Err(error) => {
                tracing::warn!(%error, "a hint was not sent; trying again");
                connection = None;
                tokio::time::sleep(RECONNECT).await;
            }
        }
    }
}

async fn send(
    connection: &mut Option<PgConnection>,
    options: &PgConnectOptions,
    statement: &'static str,
    text: &str,
) -> Result<(), sqlx::Error> {
    let sent = async {
        if connection.is_none() {
            *connection = Some(options.connect().await?);
        }
        if let Some(connection) = connection {
            sqlx::query(statement).bind(text).execute(connection).await?;
        }
        Ok(())
    };
    tokio::time::timeout(SENT, sent).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}
