//! Level with the log: what was committed before a request came, by whichever node, is in this node's memory before the
//! request is answered. One question to the database for all requests that come while the last one is under way.

use crate::engine::Engine;
use crate::store::{Inner, Store};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use waxwing_model::LogPosition;

/// What this node commits itself, and what it is told of, is in memory so soon after the commit: the log is not read
/// for what is about to come.
const ABOUT_TO_COME: Duration = Duration::from_millis(2);

/// Questions where the log ends, one at a time.
#[derive(Default)]
pub(crate) struct Ends {
    /// How many were begun.
    begun: AtomicU64,
    /// The last one that was answered: its number and, unless the database failed, the answer.
    last: Mutex<(u64, Option<LogPosition>)>,
}

impl Ends {
    /// Where the log ends, by a question that was begun after this call.
    async fn ask(&self, store: &Store) -> Option<LogPosition> {
        let before = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.0 > before {
            // Whoever was first in the queue asked for all who waited.
            return last.1;
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let asked = async { store.read().await?.log_head().await };
        let end = asked.await.inspect_err(|error| tracing::debug!(%error, "the end of the log is not known"));
        *last = (number, end.ok());
        last.1
    }
}

impl Store {
    /// Waits until memory has everything that was committed before this call, wherever it was; gives where the log
    /// ended. On SQLite, where one process writes, that is at once and without a question.
    ///
    /// `None` where the database did not say, or memory did not get there, by `deadline`: the caller goes on with what
    /// there is.
    pub async fn level(&self, deadline: Instant) -> Option<LogPosition> {
        if self.engine() == Engine::Sqlite {
            return Some(self.tail().head());
        }
        let levelled = async {
            let end = self.inner.ends.ask(self).await?;
            self.inner.reach(end).await;
            (self.tail().head() >= end).then_some(end)
        };
        timeout_at(deadline, levelled).await.ok().flatten()
    }
}

impl Inner {
    /// Reads the log up to `position`, unless what is missing comes by itself.
    async fn reach(&self, position: LogPosition) {
        let mut head = self.tail.subscribe();
        let comes = head.wait_for(|head| *head >= position);
        if timeout(ABOUT_TO_COME, comes).await.is_ok() {
            return;
        }
        if let Err(error) = self.catch_up_to(position).await {
            tracing::warn!(%error, "cannot follow the log");
        }
    }
}
