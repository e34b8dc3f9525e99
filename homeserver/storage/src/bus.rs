//! How a node learns that another process has committed rows: a hint where the engine can give one, and a poll.
//! A hint may be lost, repeated or late; the log is the truth.

use crate::engine::Pools;
use crate::store::Inner;
use sqlx::postgres::PgListener;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The channel of hints.
const CHANNEL: &str = "waxwing_log";
const NOTIFY: &str = "SELECT pg_notify('waxwing_log', '')";
/// A lost hint costs at most this much.
const POLL: Duration = Duration::from_secs(1);
/// Hints are coalesced: at most one in this time.
const COALESCE: Duration = Duration::from_millis(2);
/// Between attempts to listen again after the connection was lost.
const RECONNECT: Duration = Duration::from_secs(1);

/// Starts the tasks that follow other writers of the log. They end with the store.
pub(crate) fn follow(inner: &Arc<Inner>) {
    tokio::spawn(poll(Arc::downgrade(inner)));
    if let Pools::Postgres(pool) = &inner.pools {
        tokio::spawn(listen(Arc::downgrade(inner), pool.clone()));
        tokio::spawn(hint(Arc::downgrade(inner), pool.clone()));
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
    if let Err(error) = inner.catch_up().await {
        tracing::warn!(%error, "cannot follow the log");
    }
}

async fn listen(store: Weak<Inner>, pool: sqlx::PgPool) {
    while store.strong_count() > 0 {
        match PgListener::connect_with(&pool).await {
            Ok(mut listener) => {
                if let Err(error) = follow_hints(&store, &mut listener).await {
                    tracing::warn!(%error, "hints from the database are cut off; polling");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot listen for hints from the database; polling"),
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn follow_hints(store: &Weak<Inner>, listener: &mut PgListener) -> Result<(), sqlx::Error> {
    listener.listen(CHANNEL).await?;
    loop {
        // The store may be closed while nothing comes.
        if let Ok(hint) = tokio::time::timeout(POLL, listener.recv()).await {
            hint?;
        }
        let Some(inner) = store.upgrade() else { return Ok(()) };
        catch_up(&inner).await;
    }
}

/// Tells the other nodes after this one's head has moved: from a connection of its own, outside the transactions.
async fn hint(store: Weak<Inner>, pool: sqlx::PgPool) {
    let mut head = match store.upgrade() {
        Some(inner) => inner.tail.subscribe(),
        None => return,
    };
    while head.changed().await.is_ok() {
        head.mark_unchanged();
        if let Err(error) = sqlx::query(NOTIFY).execute(&pool).await {
            tracing::debug!(%error, "a hint was not sent");
        }
        tokio::time::sleep(COALESCE).await;
    }
}
