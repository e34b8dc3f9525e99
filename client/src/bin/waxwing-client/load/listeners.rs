//! People who hold a long poll and note when messages arrive.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::{sync::Notify, task::JoinSet};

use super::{
    accounts::User,
    context::{Context, PREPARERS},
    find::{self, Mark},
    histogram::Histogram,
    http::{Call, Connection, Failure, escape},
};

/// How long a poll waits for news at the server, in milliseconds.
const POLL_MS: u64 = 30_000;
/// A poll that failed is made again after this long.
const AFTER_FAILURE: Duration = Duration::from_millis(200);
/// Events of a room in one answer. More than come between two polls, so that none is left out.
const TIMELINE: u64 = 100;

/// The messages of one stretch of sending: when each was to be sent, and when it arrived where.
#[derive(Debug, Default)]
struct Stretch {
    first: u64,
    count: u64,
    interval: Duration,
    began: Option<Instant>,
    arrived: u64,
    expected: Option<u64>,
    repeated: u64,
    failures: u64,
    times: Histogram,
}

/// Where all listeners note what arrives. Each message's time counts from the moment at which it was to be sent, not
/// from when the driver or the server came to it: what had to wait has waited.
#[derive(Debug, Default)]
pub struct Board {
    stretch: Mutex<Stretch>,
    complete: Notify,
}

/// What became of a stretch.
#[derive(Debug)]
pub struct Arrivals {
    pub times: Histogram,
    pub missing: u64,
    pub repeated: u64,
    pub failed_polls: u64,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Stretch> {
        self.stretch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to note the messages `first` and on, the first of which is to be sent at `began`, each next one an
    /// `interval` later.
    pub fn begin(&self, first: u64, count: u64, began: Instant, interval: Duration) {
        *self.lock() = Stretch { first, count, interval, began: Some(began), ..Stretch::default() };
    }

    fn arrive(&self, seen: &mut HashSet<u64>, number: u64, now: Instant) {
        let mut stretch = self.lock();
        let Some(began) = stretch.began else { return };
        let Some(at) = number.checked_sub(stretch.first).filter(|at| *at < stretch.count) else { return };
        if !seen.insert(number) {
            stretch.repeated += 1;
            return;
        }
        let due = began + Duration::from_secs_f64(stretch.interval.as_secs_f64() * at as f64);
        stretch.times.add(now.saturating_duration_since(due));
        stretch.arrived += 1;
        if stretch.expected == Some(stretch.arrived) {
            self.complete.notify_one();
        }
    }

    /// Waits until so many deliveries were noted, for a limited time, and ends the stretch.
    pub async fn finish(&self, expected: u64, patience: Duration) -> Arrivals {
        let done = {
            let mut stretch = self.lock();
            stretch.expected = Some(expected);
            stretch.arrived >= expected
        };
        if !done {
            let _ = tokio::time::timeout(patience, self.complete.notified()).await;
        }
        let stretch = std::mem::take(&mut *self.lock());
        Arrivals {
            missing: expected.saturating_sub(stretch.arrived),
            repeated: stretch.repeated,
            failed_polls: stretch.failures,
            times: stretch.times,
        }
    }

    fn failed(&self) {
        self.lock().failures += 1;
    }
}

/// Stores the filter that clients use: lazy members, and no more of the timeline than is shown.
pub async fn store_filter(
    connection: &mut Connection,
    user: &User,
    timeline: u64,
) -> Result<String, Failure> {
    let body = json!({
        "presence": {"types": []},
        "room": {
            "timeline": {"limit": timeline, "lazy_load_members": true},
            "state": {"lazy_load_members": true},
        },
    });
    let path = format!("/_matrix/client/v3/user/{}/filter", escape(&user.id));
    let answer = connection.prepare(&Call::post(path, body.to_string()).by(user)).await?;
    find::text_after(&answer, b"\"filter_id\":").map(escape).ok_or(Failure::Malformed("filter_id"))
}

/// The call that syncs from a token on, or from the beginning.
pub fn syncing(user: &User, filter: &str, since: Option<&str>, timeout: u64) -> Call {
    let since = since.map(|since| format!("&since={}", escape(since))).unwrap_or_default();
    Call::get(format!("/_matrix/client/v3/sync?filter={filter}&timeout={timeout}{since}")).by(user)
}

/// The token that continues an answer to a sync.
pub fn next_batch(answer: &[u8]) -> Result<&str, Failure> {
    find::text_after(answer, b"\"next_batch\":").ok_or(Failure::Malformed("next_batch"))
}

/// A person who is ready to poll.
pub struct Ready {
    user: Arc<User>,
    filter: String,
    since: String,
}

/// Syncs everybody once, so that their next sync waits.
pub async fn ready(context: &Context, people: &[Arc<User>]) -> Result<Vec<Ready>> {
    context.progress.stage(&format!("{} first syncs", people.len()));
    let mut ready = Vec::new();
    for server in context.servers() {
        let here = people.iter().filter(|user| user.server.url() == server.url());
        let some = context
            .each(server, PREPARERS, here, async |connection, user| {
                let filter =
                    store_filter(connection, user, TIMELINE).await.context("cannot store a filter")?;
                let answer =
                    connection.prepare(&syncing(user, &filter, None, 0)).await.context("first sync")?;
                let since = next_batch(&answer)?.to_owned();
                Ok(Ready { user: Arc::clone(user), filter, since })
            })
            .await?;
        ready.extend(some);
    }
    Ok(ready)
}

/// Lets everybody poll, each over a connection of their own, until the set is dropped.
pub async fn listen(board: &Arc<Board>, mark: &Mark, people: Vec<Ready>) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for person in people {
        let mut connection = Connection::new(&person.user.server);
        connection.open().await?;
        tasks.spawn(poll(Arc::clone(board), mark.clone(), connection, person));
    }
    Ok(tasks)
}

async fn poll(board: Arc<Board>, mark: Mark, mut connection: Connection, person: Ready) {
    let Ready { user, filter, mut since } = person;
    let mut seen = HashSet::new();
    loop {
        let answer = connection.call(&syncing(&user, &filter, Some(&since), POLL_MS)).await;
        let now = Instant::now();
        let next = answer.and_then(|answer| {
            for number in mark.numbers(&answer) {
                board.arrive(&mut seen, number, now);
            }
            next_batch(&answer).map(str::to_owned)
        });
        match next {
            Ok(next) => since = next,
            Err(_) => {
                board.failed();
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_counts_from_when_a_message_was_to_be_sent() {
        let (board, mut seen) = (Board::default(), HashSet::new());
        let began = Instant::now();
        board.begin(100, 3, began, Duration::from_millis(10));
        let now = began + Duration::from_millis(30);
        for number in [102, 100, 101, 101, 99, 103] {
            board.arrive(&mut seen, number, now);
        }
        let arrivals = board.finish(4, Duration::from_millis(1)).await;
        assert_eq!((arrivals.times.count(), arrivals.missing, arrivals.repeated), (3, 1, 1));
        // The first was due 30 ms before, the last 10 ms before.
        assert!((arrivals.times.max().unwrap() - 30.0).abs() < 0.01);
        assert!((arrivals.times.quantile(0.01).unwrap() - 10.0).abs() < 0.1);
        // What comes after the end is of no stretch.
        board.arrive(&mut HashSet::new(), 100, now);
        assert_eq!(board.finish(0, Duration::ZERO).await.times.count(), 0);
    }

    #[tokio::test]
    async fn the_last_arrival_ends_the_wait() {
        let board = Arc::new(Board::default());
        board.begin(0, 1, Instant::now(), Duration::from_millis(1));
        let late = Arc::clone(&board);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            late.arrive(&mut HashSet::new(), 0, Instant::now());
        });
        let arrivals = board.finish(1, Duration::from_mins(1)).await;
        assert_eq!((arrivals.times.count(), arrivals.missing), (1, 0));
    }
}
