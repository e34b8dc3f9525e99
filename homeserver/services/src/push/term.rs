//! The time for which one node delivers.

use super::Parts;
use super::fleet::Fleet;
use super::lease::{Lease, Written};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use waxwing_model::LogPosition;
use waxwing_storage::{PusherKey, PusherRow, StoreResult, Tx};

/// The name of its cursor.
pub(super) const CURSOR: &str = "push";
/// How often the cursor is saved when there was nothing to tell: after a crash so much is read again.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// In the end requests in flight get so long, less than a service manager waits: one that is cut may be sent twice.
const LAST: Duration = Duration::from_secs(5);
/// After a failure to read the database.
const RETRY: u64 = 1000;

/// A term: while this node holds the lease.
pub(super) struct Term {
    pub parts: Arc<Parts>,
    pub lease: Arc<Lease>,
    pub fleet: Fleet,
    /// The users to whom there is something to tell up to here are marked.
    cursor: AtomicI64,
}

/// A turn of one pusher; over when this is dropped.
struct Turn {
    term: Arc<Term>,
    key: PusherKey,
    host: String,
    /// When the next one may come.
    not_before: AtomicU64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let not_before = self.not_before.load(Ordering::Relaxed);
        self.term.fleet.finished(&self.key, &self.host, not_before);
    }
}

impl Turn {
    async fn run(self) {
        match self.term.deliver(&self.key).await {
            // Who lost the lease starts no more turns.
            Ok(()) | Err(Written::Lost) => {}
            Err(Written::Store(error)) => {
                tracing::warn!(%error, "a push notification could not be prepared");
                self.not_before.store(self.term.parts.core.now() + RETRY, Ordering::Relaxed);
            }
        }
    }
}

/// Where to begin when no term saved how far it came: nothing is owed from before a pusher was made.
fn first_cursor(pushers: &[PusherRow], head: LogPosition) -> LogPosition {
    let oldest = pushers.iter().map(|row| LogPosition(row.marked)).min();
    oldest.map_or(head, |oldest| oldest.min(head))
}

impl Term {
    /// Reads where the last term ended.
    pub async fn start(parts: Arc<Parts>, lease: Arc<Lease>) -> StoreResult<Arc<Term>> {
        // Before the pushers are read: what is set meanwhile comes after it in the log.
        let head = parts.core.store.tail().head();
        let (cursor, pushers) = {
            let mut conn = parts.core.store.read().await?;
            (conn.cursor_load(CURSOR).await?, conn.pushers_all().await?)
        };
        let cursor = cursor.unwrap_or_else(|| first_cursor(&pushers, head));
        let term = Term { parts, lease, fleet: Fleet::default(), cursor: AtomicI64::new(cursor.0) };
        term.fleet.load(pushers);
        Ok(Arc::new(term))
    }

    pub fn cursor(&self) -> LogPosition {
        LogPosition(self.cursor.load(Ordering::SeqCst))
    }

    pub fn set_cursor(&self, position: LogPosition) {
        self.cursor.store(position.0, Ordering::SeqCst);
    }

    /// Reads and delivers until `ends` is cancelled.
    pub async fn serve(self: Arc<Term>, ends: &CancellationToken) -> StoreResult<()> {
        let mut turns = JoinSet::new();
        let result = match self.go_on(ends, &mut turns).await {
            Ok(()) | Err(Written::Lost) => Ok(()),
            Err(Written::Store(error)) => Err(error),
        };
        let finish = async { while turns.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST, finish).await.is_err() {
            turns.shutdown().await;
        }
        if let Err(Written::Store(error)) = self.save_cursor().await {
            tracing::warn!(%error, "how far push notifications have come could not be saved");
        }
        result
    }

    async fn go_on(
        self: &Arc<Term>,
        ends: &CancellationToken,
        turns: &mut JoinSet<()>,
    ) -> Result<(), Written> {
        let tail = self.parts.core.store.tail();
        let mut head = tail.subscribe();
        let mut save = tokio::time::interval(SAVE_EVERY);
        save.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut saved = LogPosition::START;
        while !ends.is_cancelled() {
            head.mark_unchanged();
            self.read_on().await?;
            let now = self.parts.core.now();
            while let Some(key) = self.fleet.next(now) {
                self.start_turn(key, turns);
            }
            metrics::gauge!("waxwing_push_lag_rows").set((tail.head().0 - self.cursor().0).max(0) as f64);
            metrics::gauge!("waxwing_push_waiting_pushers").set(self.fleet.waiting() as f64);
            let next = self.fleet.next_due().map(|at| Duration::from_millis(at.saturating_sub(now)));
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return Ok(()) },
                Some(_) = turns.join_next() => {}
                () = tokio::time::sleep(next.unwrap_or(SAVE_EVERY)) => {}
                _ = save.tick() => if saved != self.cursor() {
                    saved = self.cursor();
                    self.save_cursor().await?;
                },
                () = ends.cancelled() => {}
            }
        }
        Ok(())
    }

    fn start_turn(self: &Arc<Term>, key: PusherKey, turns: &mut JoinSet<()>) {
        let host = self.fleet.host(&key);
        let turn = Turn { term: Arc::clone(self), key, host, not_before: AtomicU64::new(0) };
        turns.spawn(turn.run());
    }

    async fn save_cursor(&self) -> Result<(), Written> {
        let cursor = self.cursor();
        self.write("push cursor", move |tx| Box::pin(tx.cursor_save(CURSOR, cursor))).await
    }

    /// Writes, if the lease is this node's still.
    pub async fn write<F>(&self, name: &'static str, change: F) -> Result<(), Written>
    where
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, StoreResult<()>> + Send + Sync + 'static,
    {
        let input = Arc::new((Arc::clone(&self.lease), change));
        self.parts
            .core
            .store
            .write(name, Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    if !input.0.holds(tx).await? {
                        return Err(Written::Lost);
                    }
                    Ok(input.1(tx).await?)
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pushkey: &str, position: i64, marked: i64) -> PusherRow {
        let user_id = "@a:x".try_into().unwrap();
        PusherRow {
            key: PusherKey { user_id, app_id: "app".into(), pushkey: pushkey.into() },
            device_id: None,
            json: "{}".into(),
            enabled: true,
            updated_at: 0,
            position,
            marked,
            badge: None,
            failing: None,
        }
    }

    #[test]
    fn the_first_term_begins_where_the_oldest_pusher_was_made() {
        let head = LogPosition(100);
        assert_eq!(first_cursor(&[], head), head);
        // Both were made while no term had saved how far it came.
        assert_eq!(first_cursor(&[row("a", 70, 70), row("b", 40, 60)], head), LogPosition(60));
        // Made after the head was looked at.
        assert_eq!(first_cursor(&[row("a", 120, 120)], head), head);
    }
}
