use futures_util::FutureExt;
use moka::sync::Cache;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use waxwing_model::{Clock, chance};

use super::queue::{Next, PERHAPS_OURS, Queue};
use super::slots::{SLOW_AFTER, Slots};
use super::transaction::{MAX_DURABLE_EDUS, MAX_EDUS, MAX_PDUS, Prepared};
use super::volatile::{VolatileEdu, VolatileQueue};
use crate::client::{Client, ClientError};
use crate::ports::{BatchLimits, Outbox, PortResult};

/// Transactions to one destination before others get a turn.
const TURN: usize = 20;
/// The transaction being retried is kept in memory only while the wait is short: many dead destinations times 4 MB are
/// too much. Later it is put together again from the same rows.
const KEEP_BODY_WAIT: u64 = 60 * 1000;
/// Destinations asked for at once when the database is polled.
const POLL_LIMIT: usize = 1000;
/// Slow destinations that are remembered.
const MAX_SLOW: u64 = 10_000;
/// And for how long: they may have had a bad day.
const SLOW_FOR: Duration = Duration::from_hours(1);

/// How many transactions fly and how often the database is asked without being told.
#[derive(Clone, Copy, Debug)]
pub struct SenderLimits {
    /// Destinations served at the same time, those that are slow or dead not counted: they have places beside.
    pub parallel: usize,
    /// A wake may be lost (another node wrote the row): the database is asked this often.
    pub poll: Duration,
}

impl Default for SenderLimits {
    fn default() -> SenderLimits {
        SenderLimits { parallel: 64, poll: Duration::from_secs(30) }
    }
}

#[derive(Default)]
struct Destination {
    queue: Queue,
    volatile: VolatileQueue,
    open: Option<Prepared>,
    /// When it stands in which schedule.
    scheduled: Option<(u64, bool)>,
    heard: bool,
}

#[derive(Default)]
struct State {
    destinations: BTreeMap<OwnedServerName, Destination>,
    /// Who is due when: those that answer promptly, as far as is known.
    prompt: BTreeSet<(u64, OwnedServerName)>,
    /// And those that failed or were slow the last time.
    suspect: BTreeSet<(u64, OwnedServerName)>,
}

impl State {
    fn schedule(&mut self, suspect: bool) -> &mut BTreeSet<(u64, OwnedServerName)> {
        if suspect { &mut self.suspect } else { &mut self.prompt }
    }
}

/// Sends what waits in the outbox: one transaction in flight for each destination, many destinations in parallel.
/// A handle: clones share everything.
#[derive(Clone)]
pub struct Sender {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    outbox: Arc<dyn Outbox>,
    clock: Clock,
    /// When this sender was made: with the server, as a rule.
    since: u64,
    limits: SenderLimits,
    state: Mutex<State>,
    slots: Mutex<Slots>,
    /// Destinations that took long the last time.
    slow: Cache<OwnedServerName, ()>,
    changed: Notify,
}

/// What the sender does next.
enum Ready {
    /// This destination's turn begins.
    Serve { destination: OwnedServerName, catch_up: bool },
    /// Nothing for so long, as far as can be told.
    Wait(Option<Duration>),
}

/// How a turn ended.
enum Turn {
    /// Nothing is left.
    Drained,
    /// More is left.
    More,
    /// The destination did not accept.
    Failed { retry_after: Option<u64>, perhaps_ours: bool },
    /// The database did not answer.
    Postponed,
}

impl Sender {
    /// Sends nothing before [`Sender::run`].
    pub fn new(client: Client, outbox: Arc<dyn Outbox>, clock: Clock, limits: SenderLimits) -> Sender {
        let (state, changed) = (Mutex::default(), Notify::new());
        let slots = Mutex::new(Slots::new(limits.parallel));
        let slow = Cache::builder().max_capacity(MAX_SLOW).time_to_live(SLOW_FOR).build();
        let since = clock.millis();
        Sender {
            inner: Arc::new(Inner { client, outbox, clock, since, limits, state, slots, slow, changed }),
        }
    }

    /// There are new rows for a destination.
    pub fn wake(&self, destination: &ServerName) {
        self.inner.with(destination, |entry| entry.queue.wake());
    }

    /// Asks the outbox what waits, now instead of at the next poll.
    pub async fn look_again(&self) {
        self.inner.poll_outbox().await;
        self.inner.changed.notify_one();
    }

    /// Something that may be lost, and of which only the latest value counts.
    pub fn push_volatile(&self, destination: &ServerName, edu: VolatileEdu) {
        self.inner.with(destination, |entry| {
            // Nobody needs to know who typed when the destination is back.
            if entry.queue.is_failing() && matches!(edu, VolatileEdu::Typing(_)) {
                return;
            }
            entry.volatile.push(edu);
            entry.queue.wake();
        });
    }

    /// The destination spoke to us: it is back, whatever the backoff says.
    pub fn heard_from(&self, destination: &ServerName) {
        self.inner.client.health().recovered(destination);
        let mut state = self.inner.state.lock();
        // Most servers that speak to us are well; they need no entry.
        if let Some(entry) = state.destinations.get_mut(destination) {
            if entry.queue.heard_from() {
                entry.heard = true;
            }
            self.inner.reschedule(&mut state, destination);
            drop(state);
            self.inner.changed.notify_one();
        }
    }

    /// Sends until `stop` resolves, then lets the transactions in flight finish.
    pub async fn run(&self, stop: impl Future<Output = ()> + Send) {
        let mut stop = std::pin::pin!(stop.fuse());
        let mut flying = JoinSet::new();
        let mut next_poll = Instant::now();
        loop {
            if Instant::now() >= next_poll {
                self.inner.poll_outbox().await;
                next_poll = Instant::now() + self.inner.limits.poll;
            }
            let wait = self.start_ready(&mut flying);
            metrics::gauge!("waxwing_federation_transactions_in_flight").set(flying.len() as f64);
            let wake_at = wait.map_or(next_poll, |wait| next_poll.min(Instant::now() + wait));
            tokio::select! {
                () = &mut stop => break,
                () = self.inner.changed.notified() => {}
                _ = flying.join_next(), if !flying.is_empty() => {}
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
        while flying.join_next().await.is_some() {}
    }

    /// One round of [`Sender::run`] for whoever drives it by hand: asks the outbox what waits, and serves each destination that
    /// is due now, one after the other. Gives how many accepted what they were sent.
    pub async fn serve_due(&self) -> usize {
        self.inner.poll_outbox().await;
        let mut accepted = 0;
        while let Ready::Serve { destination, catch_up } = self.next_ready() {
            accepted += usize::from(Arc::clone(&self.inner).serve(destination, catch_up).await);
        }
        accepted
    }

    /// Starts what is due and has a place; gives how long until that changes by itself.
    fn start_ready(&self, flying: &mut JoinSet<()>) -> Option<Duration> {
        loop {
            match self.next_ready() {
                Ready::Serve { destination, catch_up } => {
                    let inner = Arc::clone(&self.inner);
                    flying.spawn(async move {
                        inner.serve(destination, catch_up).await;
                    });
                }
                Ready::Wait(wait) => return wait,
            }
        }
    }

    /// The next destination that is due and has a place, which counts as begun.
    fn next_ready(&self) -> Ready {
        let (now, moment) = (self.inner.clock.millis(), Instant::now());
        let mut state = self.inner.state.lock();
        let mut wait: Option<Duration> = None;
        for suspect in [false, true] {
            while let Some((at, destination)) = state.schedule(suspect).first().cloned() {
                let later = if at > now {
                    Some(Duration::from_millis(at - now))
                } else if self.inner.slots.lock().may_start(suspect, moment) {
                    None
                } else {
                    // A place becomes free when something ends, too.
                    Some(self.inner.slots.lock().next_change(moment).unwrap_or(SLOW_AFTER))
                };
                if let Some(later) = later {
                    wait = Some(wait.map_or(later, |wait| wait.min(later)));
                    break;
                }
                state.schedule(suspect).pop_first();
                let Some(entry) = state.destinations.get_mut(&destination) else { continue };
                entry.scheduled = None;
                match entry.queue.next(now) {
                    Next::Send { catch_up } => {
                        self.inner.slots.lock().start(destination.clone(), suspect, moment);
                        return Ready::Serve { destination, catch_up };
                    }
                    Next::Wait(_) => self.inner.reschedule(&mut state, &destination),
                    Next::Idle => {}
                }
            }
        }
        Ready::Wait(wait)
    }
}

impl Inner {
    fn with(&self, destination: &ServerName, change: impl FnOnce(&mut Destination)) {
        if destination == self.client.identity().server {
            return;
        }
        let mut state = self.state.lock();
        change(state.destinations.entry(destination.to_owned()).or_default());
        self.reschedule(&mut state, destination);
        drop(state);
        self.changed.notify_one();
    }

    /// Puts a destination into the schedule where its queue says.
    fn reschedule(&self, state: &mut State, destination: &ServerName) {
        let Some(entry) = state.destinations.get_mut(destination) else { return };
        let before = entry.scheduled.take();
        let suspect = entry.queue.is_failing() || self.slow.contains_key(destination);
        let due = entry.queue.due(self.clock.millis());
        entry.scheduled = due.map(|at| (at, suspect));
        let forget = entry.queue.is_idle() && entry.volatile.is_empty() && entry.open.is_none();
        if let Some((at, suspect)) = before {
            state.schedule(suspect).remove(&(at, destination.to_owned()));
        }
        if let Some(at) = due {
            state.schedule(suspect).insert((at, destination.to_owned()));
        } else if forget {
            state.destinations.remove(destination);
        }
    }

    /// Learns of destinations with rows that nobody woke us for.
    async fn poll_outbox(&self) {
        let waiting = match self.outbox.destinations_waiting(POLL_LIMIT).await {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::warn!(%error, "the outbox could not be read");
                return;
            }
        };
        let mut state = self.state.lock();
        for found in waiting {
            let destination = found.destination.clone();
            match state.destinations.get_mut(&destination) {
                Some(entry) => entry.queue.wake(),
                None => {
                    let (now, chance) = (self.clock.millis(), chance());
                    let queue = Queue::resume(&found, now, chance);
                    let entry = Destination { queue, ..Destination::default() };
                    state.destinations.insert(destination.clone(), entry);
                }
            }
            self.reschedule(&mut state, &destination);
        }
    }

    /// One destination's turn: sends its transactions one after the other and enters the outcome. Whether it accepted them.
    async fn serve(self: Arc<Self>, destination: OwnedServerName, catch_up: bool) -> bool {
        let turn = AssertUnwindSafe(self.send_some(&destination, catch_up)).catch_unwind().await;
        // A bug must not leave a destination in flight for ever.
        let turn = turn.unwrap_or(Turn::Postponed);
        let accepted = matches!(turn, Turn::Drained | Turn::More);
        if self.slots.lock().end(&destination, Instant::now()) {
            self.slow.insert(destination.clone(), ());
        } else if accepted {
            self.slow.invalidate(&destination);
        }
        let (now, chance) = (self.clock.millis(), chance());
        let failed = {
            let mut state = self.state.lock();
            let Some(entry) = state.destinations.get_mut(&destination) else { return accepted };
            match turn {
                Turn::Drained => entry.queue.succeeded(!entry.volatile.is_empty()),
                Turn::More => entry.queue.succeeded(true),
                Turn::Postponed => entry.queue.postponed(now),
                Turn::Failed { retry_after, perhaps_ours } => {
                    entry.queue.failed(now, retry_after, perhaps_ours, chance);
                    entry.volatile.forget_typing();
                }
            }
            let failed = entry.queue.is_failing().then(|| entry.queue.state(&destination));
            if failed.as_ref().and_then(|state| state.interval).is_some_and(|wait| wait > KEEP_BODY_WAIT) {
                entry.open = None;
            }
            let failed = failed.filter(|_| matches!(turn, Turn::Failed { .. }));
            self.reschedule(&mut state, &destination);
            failed
        };
        if let Some(state) = failed
            && let Err(error) = self.outbox.destination_failed(&state).await
        {
            tracing::warn!(%destination, %error, "a failure could not be recorded");
        }
        self.changed.notify_one();
        accepted
    }

    async fn send_some(&self, destination: &ServerName, catch_up: bool) -> Turn {
        if self.take_heard(destination)
            && let Err(error) = self.outbox.destination_recovered(destination).await
        {
            tracing::warn!(%destination, %error, "a recovery could not be recorded");
        }
        for _ in 0..TURN {
            let prepared = match self.prepare(destination, catch_up).await {
                Ok(Some(prepared)) => prepared,
                Ok(None) => return Turn::Drained,
                Err(error) => {
                    tracing::warn!(%destination, %error, "the outbox could not be read");
                    return Turn::Postponed;
                }
            };
            if let Err(error) =
                self.client.send_transaction(destination, &prepared.txn_id, &prepared.body).await
            {
                tracing::debug!(%destination, %error, "a transaction was not accepted");
                metrics::counter!("waxwing_federation_transactions_total", "outcome" => "failed")
                    .increment(1);
                return Turn::Failed {
                    retry_after: wait_asked_for(&error),
                    perhaps_ours: self.is_perhaps_ours(&error),
                };
            }
            metrics::counter!("waxwing_federation_transactions_total", "outcome" => "sent").increment(1);
            self.forget_open(destination);
            if let Some(upto) = prepared.upto
                && let Err(error) = self.outbox.batch_done(destination, upto).await
            {
                tracing::warn!(%destination, %error, "a sent batch could not be recorded");
                return Turn::Postponed;
            }
            if !prepared.full && prepared.upto.is_none() {
                return Turn::Drained;
            }
        }
        Turn::More
    }

    /// The transaction to send next: the one that was not accepted yet, or a new one.
    async fn prepare(&self, destination: &ServerName, catch_up: bool) -> PortResult<Option<Prepared>> {
        if let Some(open) = self.open(destination) {
            return Ok(Some(open));
        }
        let limits = BatchLimits { pdus: MAX_PDUS, edus: MAX_DURABLE_EDUS, catch_up };
        let batch = self.outbox.next_batch(destination, limits).await?;
        let room = MAX_EDUS - batch.as_ref().map_or(0, |batch| batch.edus.len().min(MAX_EDUS));
        let volatile = self.take_volatile(destination, room);
        if batch.is_none() && volatile.is_empty() {
            return Ok(None);
        }
        let prepared = Prepared::of(&self.client.identity().server, self.clock.millis(), batch, volatile);
        if prepared.upto.is_some() {
            let mut state = self.state.lock();
            if let Some(entry) = state.destinations.get_mut(destination) {
                entry.open = Some(prepared.clone());
            }
        }
        Ok(Some(prepared))
    }

    /// Whether a failure may come of our having been away: the other side could not fetch our key (`401`), or remembers
    /// that it could not reach us.
    fn is_perhaps_ours(&self, error: &ClientError) -> bool {
        let unauthorised = error.refusal().is_some_and(|refusal| refusal.status.as_u16() == 401);
        unauthorised || self.clock.millis().saturating_sub(self.since) < PERHAPS_OURS
    }

    fn open(&self, destination: &ServerName) -> Option<Prepared> {
        self.state.lock().destinations.get(destination)?.open.clone()
    }

    fn forget_open(&self, destination: &ServerName) {
        if let Some(entry) = self.state.lock().destinations.get_mut(destination) {
            entry.open = None;
        }
    }

    fn take_volatile(&self, destination: &ServerName, limit: usize) -> Vec<Arc<RawValue>> {
        let mut state = self.state.lock();
        state.destinations.get_mut(destination).map_or_else(Vec::new, |entry| entry.volatile.take(limit))
    }

    fn take_heard(&self, destination: &ServerName) -> bool {
        let mut state = self.state.lock();
        state.destinations.get_mut(destination).is_some_and(|entry| std::mem::take(&mut entry.heard))
    }
}

/// What a `429` asks for.
fn wait_asked_for(error: &ClientError) -> Option<u64> {
    error.refusal()?.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}
