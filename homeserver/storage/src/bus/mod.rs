//! How a node learns that another process has committed rows: a hint, over PostgreSQL or over NATS, and a poll.
//! A hint may be lost, repeated or late; the log is the truth.
//!
//! Where NATS is configured and there, hints go over it; else over PostgreSQL. Every node listens to both. One that cannot
//! listen looks more often meanwhile. What nodes tell each other beside the log goes over PostgreSQL alone, which has one
//! order for all.

mod nats;
mod notify;

pub use nats::{Nats, NatsError};

use crate::engine::Pools;
use crate::store::Inner;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A lost hint costs at most this much.
const POLL: Duration = Duration::from_secs(1);
/// And this much where a line over which hints come is down: ten small lookups a second meanwhile.
const POLL_DEAF: Duration = Duration::from_millis(100);
/// Hints are coalesced: at most one in this time.
const COALESCE: Duration = Duration::from_millis(2);
/// A node gives a hint at least this often, so that all who listen know that they still hear.
const HEARTBEAT: Duration = Duration::from_secs(4);
/// Whoever hears nothing for so long, not even its own heartbeat, listens to a dead line.
const SILENCE: Duration = Duration::from_secs(10);
/// Between attempts to connect again after a connection was lost.
const RECONNECT: Duration = Duration::from_millis(250);

/// Which lines this node hears hints over.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// PostgreSQL's.
    notify: AtomicBool,
    /// Whether NATS is configured, and hears.
    nats: Option<AtomicBool>,
}

impl Lines {
    /// None is up yet.
    pub fn new(with_nats: bool) -> Lines {
        Lines { notify: AtomicBool::new(false), nats: with_nats.then(AtomicBool::default) }
    }

    /// Whether hints may pass this node by.
    fn deaf(&self) -> bool {
        !self.notify.load(Ordering::Relaxed)
            || self.nats.as_ref().is_some_and(|nats| !nats.load(Ordering::Relaxed))
    }

    /// Whether NATS is there.
    fn nats(&self) -> bool {
        self.nats.as_ref().is_some_and(|nats| nats.load(Ordering::Relaxed))
    }
}

/// Starts the tasks that follow other writers of the log. They end with the store.
pub(crate) fn follow(inner: &Arc<Inner>, to_whisper: mpsc::Receiver<String>, nats: Option<Nats>) {
    tokio::spawn(poll(Arc::downgrade(inner)));
    let Pools::Postgres { own, .. } = &inner.pools else { return };
    let committed = inner.committed.subscribe();
    tokio::spawn(notify::listen(Arc::downgrade(inner), committed.clone(), own.options().clone()));
    tokio::spawn(notify::hint(Arc::downgrade(inner), committed.clone(), to_whisper, own.options().clone()));
    if let Some(nats) = nats {
        tokio::spawn(nats::carry(Arc::downgrade(inner), committed, nats));
    }
}

async fn poll(store: Weak<Inner>) {
    loop {
        let deaf = match store.upgrade() {
            Some(inner) => matches!(inner.pools, Pools::Postgres { .. }) && inner.lines.deaf(),
            None => return,
        };
        tokio::time::sleep(if deaf { POLL_DEAF } else { POLL }).await;
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

/// A hint has come over a line: the log reaches to `position` at least, as whoever sent it says.
async fn heard(inner: &Inner, line: &'static str, position: Option<i64>) {
    metrics::counter!("waxwing_hints_heard_total", "line" => line).increment(1);
    if position.is_none_or(|position| inner.tail.head().0 < position) {
        catch_up(inner).await;
    }
}

/// Returns when the store is closed.
async fn closed(mut committed: watch::Receiver<()>) {
    while committed.changed().await.is_ok() {}
}
