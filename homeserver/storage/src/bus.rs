//! How a node learns that another process has committed rows: a hint where the engine can give one, and a poll.
//! A hint may be lost, repeated or late; the log is the truth.
//!
//! Hints go and come on connections of their own, so that they never wait behind requests, and are sent without waiting
//! for the disk: a NOTIFY is a transaction, which otherwise costs an fsync under a lock of the whole cluster.

use crate::engine::Pools;
use crate::store::Inner;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use waxwing_model::LogPosition;

/// The channel of hints, and that of what nodes tell each other beside the log.
const CHANNEL: &str = "waxwing_log";
const WHISPERS: &str = "waxwing_whispers";
const WHISPER: &str = "SELECT pg_notify('waxwing_whispers', $1)";
const NOTIFY: &str = "SELECT pg_notify('waxwing_log', $1)";
/// A lost hint costs at most this much.
const POLL: Duration = Duration::from_secs(1);
/// Hints are coalesced: at most one in this time.
const COALESCE: Duration = Duration::from_millis(2);
/// A node gives a hint at least this often, so that all who listen know that they still hear.
const HEARTBEAT: Duration = Duration::from_secs(4);
/// Whoever hears nothing for so long, not even its own heartbeat, listens to a dead line.
const SILENCE: Duration = Duration::from_secs(10);
/// A hint that is not sent by then goes over a dead line.
const SENT: Duration = Duration::from_secs(5);
/// Between attempts to connect again after a connection was lost.
const RECONNECT: Duration = Duration::from_millis(250);

/// Starts the tasks that follow other writers of the log. They end with the store.
pub(crate) fn follow(inner: &Arc<Inner>, to_whisper: mpsc::Receiver<String>) {
    tokio::spawn(poll(Arc::downgrade(inner)));
    if let Pools::Postgres { own, .. } = &inner.pools {
        let committed = inner.committed.subscribe();
        tokio::spawn(listen(Arc::downgrade(inner), committed.clone(), own.options().clone()));
        tokio::spawn(hint(Arc::downgrade(inner), committed, to_whisper, own.options().clone()));
    }
}

async fn poll(store: Weak<Inner>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(inner) = store.upgrade() else { return };
        catch_up(&inner).await;
    }
}

async fn catch_up(inner: &Inner) {
    match inner.catch_up().await {
        Ok(()) => {}
        Err(error @ crate::StoreError::GoneBack(_)) => tracing::error!(%error, "cannot follow the log"),
        Err(error) => tracing::warn!(%error, "cannot follow the log"),
    }
}

/// Returns when the store is closed.
async fn closed(mut committed: watch::Receiver<()>) {
    while committed.changed().await.is_ok() {}
}

async fn listen(store: Weak<Inner>, committed: watch::Receiver<()>, options: PgConnectOptions) {
    let own = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let pool = own.connect_lazy_with(options);
    let hints = async {
        loop {
            match follow_hints(&store, &pool).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "hints from the database are cut off; polling"),
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
    // What was committed before we listened.
    let mut position = None;
    loop {
        let Some(inner) = store.upgrade() else { return Ok(()) };
        if position.is_none_or(|position| inner.tail.head() < position) {
            catch_up(&inner).await;
        }
        drop(inner);
        // Without a hint the connection was lost and is there again: what came between was not heard.
        let silence =
            || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "nothing is heard"));
        let hint = tokio::time::timeout(SILENCE, listener.try_recv()).await.map_err(|_| silence())??;
        if let Some(whisper) = hint.as_ref().filter(|hint| hint.channel() == WHISPERS) {
            let Some(inner) = store.upgrade() else { return Ok(()) };
            inner.whispers.hear(whisper.payload());
            // It says nothing about the log: what is known of that is not to be asked for again.
            position = Some(inner.tail.head());
            continue;
        }
        position = hint.and_then(|hint| hint.payload().parse().ok()).map(LogPosition);
    }
}

/// Tells the other nodes after this one has committed rows, outside the transactions that write them, and what this
/// one tells them beside the log.
async fn hint(
    store: Weak<Inner>,
    mut committed: watch::Receiver<()>,
    mut to_whisper: mpsc::Receiver<String>,
    options: PgConnectOptions,
) {
    // A hint that a crash of the database loses is a lost hint.
    let options = options.options([("synchronous_commit", "off")]);
    let mut connection: Option<PgConnection> = None;
    loop {
        let sent = tokio::select! {
            changed = tokio::time::timeout(HEARTBEAT, committed.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
                let Some(head) = store.upgrade().map(|inner| inner.tail.head()) else { return };
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
