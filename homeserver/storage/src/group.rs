//! Group commit: what is waiting is written in one transaction, so that a busy server pays for one fsync where it
//! would have paid for a hundred. A member that fails, fails alone.

use crate::error::{StoreError, StoreResult};
use crate::events::StoredEvent;
use crate::log::LogRow;
use crate::postgres::Lost;
use crate::repeats::{Answered, Change};
use crate::store::Inner;
use crate::tx::{Buffers, Slot, TransactionKey, Tx};
use crate::unfiled::Taken;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId};
use std::any::Any;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use waxwing_model::LogPosition;
use waxwing_rooms::state_tree::NodeId;

/// Members of one group: enough to amortise an fsync, few enough to keep the first from waiting long.
const GROUP_LIMIT: usize = 128;
/// Members that may wait: beyond it callers wait for a place, which is how overload reaches them.
pub(crate) const QUEUE_LIMIT: usize = 4096;

/// What a member answers, its type erased.
pub(crate) type Answer = Result<Box<dyn Any + Send>, Box<dyn Any + Send>>;
/// Runs a member once; it may be run again when its group could not be committed.
pub(crate) type Run = Box<dyn for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Answer> + Send + Sync>;

/// What a write needs: looked up, and locked, for all members of a group at once, before the first of them runs.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The rooms whose rows it will change.
    pub rooms: Vec<OwnedRoomId>,
    /// The request, where it may be a repeated one: [`Tx::transaction_get`] has the answer at hand.
    pub request: Option<TransactionKey>,
    /// Users for whose devices it will ask: [`Tx::devices_of_all`].
    pub devices_of: Vec<OwnedUserId>,
}

/// One write that waits for its group.
pub(crate) struct Job {
    pub name: &'static str,
    pub needs: Needs,
    pub run: Run,
    pub answer: oneshot::Sender<Result<Answer, StoreError>>,
}

/// Those whom a group of several has answered are about to write again. Where groups take long, the next waits a moment
/// for them: otherwise it begins with the first of them, and the others wait for as long as it takes.
const SEVERAL: usize = 4;
const SLOW: Duration = Duration::from_millis(4);
const GATHER: Duration = Duration::from_millis(1);
/// While the database is away a group is tried again for so long: a restart or a fail-over passes as a delay.
const RIDE_OUT: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(100);

/// Commits groups until the store is closed.
pub(crate) async fn commit_groups(inner: Arc<Inner>, mut queue: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(GROUP_LIMIT);
    let mut away = false;
    let (mut members, mut took) = (0, Duration::ZERO);
    while queue.recv_many(&mut jobs, GROUP_LIMIT).await > 0 {
        if members >= SEVERAL && took >= SLOW && jobs.len() * 2 < members {
            tokio::time::sleep(GATHER).await;
            while jobs.len() < GROUP_LIMIT
                && let Ok(job) = queue.try_recv()
            {
                jobs.push(job);
            }
        }
        members = jobs.len();
        let started = Instant::now();
        metrics::histogram!("waxwing_commit_group_members").record(jobs.len() as f64);
        let patience = if away { Duration::ZERO } else { RIDE_OUT };
        away = !commit_jobs(&inner, std::mem::take(&mut jobs), patience).await;
        if away {
            // Those behind would wait as long, one group after the other, only to hear the same.
            while let Ok(job) = queue.try_recv() {
                let _ = job.answer.send(Err(StoreError::Away("nothing can be written".to_owned())));
            }
        }
        took = started.elapsed();
        metrics::histogram!("waxwing_commit_seconds").record(took);
    }
}

/// Why a group has no answers.
enum Failure {
    /// Nothing of it was written.
    Undone(StoreError),
    /// Nothing of it was written: a member failed after it had written, and had nothing to go back to.
    Careless,
    /// The connection was lost during the commit: nobody knows.
    Unknown(StoreError, Box<(Answers, Written)>),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Undone(error)
    }
}

/// Whether the database is there.
async fn commit_jobs(inner: &Arc<Inner>, jobs: Vec<Job>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    match commit_surely(inner, &jobs, deadline).await {
        Ok(answers) => {
            for (job, answer) in jobs.into_iter().zip(answers) {
                // A caller that has gone away needs no answer; its write stands.
                let _ = job.answer.send(answer);
            }
            true
        }
        Err(error) if error.is_lost() => {
            tracing::warn!(%error, members = jobs.len(), "a group could not be committed: the database is away");
            for job in jobs {
                let _ = job.answer.send(Err(StoreError::Away(error.to_string())));
            }
            false
        }
        Err(error) if jobs.len() == 1 => {
            tracing::warn!(%error, name = jobs[0].name, "a write could not be committed");
            for job in jobs {
                let _ = job.answer.send(Err(StoreError::Commit(error.to_string())));
            }
            true
        }
        Err(error) => {
            // One of them broke the commit as a whole: each alone, so that the others do not suffer for it.
            tracing::warn!(%error, members = jobs.len(), "a group could not be committed; its members go one by one");
            let mut there = true;
            for job in jobs {
                let single = std::slice::from_ref(&job);
                let deadline = if there { deadline } else { Instant::now() };
                let answer = match commit_surely(inner, single, deadline).await {
                    Ok(mut answers) => answers.pop().unwrap_or(Err(StoreError::Closed)),
                    Err(error) if error.is_lost() => {
                        there = false;
                        Err(StoreError::Away(error.to_string()))
                    }
                    Err(error) => Err(StoreError::Commit(error.to_string())),
                };
                let _ = job.answer.send(answer);
            }
            there
        }
    }
}

type Answers = Vec<Result<Answer, StoreError>>;

/// Commits, again where the database was lost on the way and is back before `deadline`. Never twice: where the
/// connection was lost during the commit, the log says whether it was done.
///
/// Members hardly ever fail after they have written. So at first none has a savepoint, which would be two statements for
/// each; where one does fail the group is undone and begins anew, with savepoints.
async fn commit_surely(inner: &Arc<Inner>, jobs: &[Job], deadline: Instant) -> StoreResult<Answers> {
    let (mut looked_again, mut careful) = (false, false);
    loop {
        let error = match commit_together(inner, jobs, careful).await {
            Ok(answers) => return Ok(answers),
            Err(Failure::Undone(error)) => error,
            Err(Failure::Careless) => {
                careful = true;
                continue;
            }
            Err(Failure::Unknown(error, done)) => {
                let (answers, written) = *done;
                if was_committed(inner, &written.rows, deadline).await? {
                    tracing::info!(%error, "the database was lost during a commit, which was done");
                    finish(inner, written).await;
                    return Ok(answers);
                }
                error
            }
        };
        if matches!(error, StoreError::Answered) && !looked_again {
            looked_again = true;
            continue;
        }
        if !error.is_lost() || Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn commit_together(inner: &Arc<Inner>, jobs: &[Job], careful: bool) -> Result<Answers, Failure> {
    let mut conn = inner.pools.writer().await?;
    conn.execute(crate::dialect::begin(conn.engine())).await?;
    let mut tx = Tx::new(conn, inner, careful);
    let done = match run_members(&mut tx, jobs).await {
        Ok(answers) => match flush(&mut tx).await {
            Ok(written) => match tx.conn.execute("COMMIT").await {
                Ok(()) => Ok((answers, written)),
                Err(error) if error.is_lost() => Err(Failure::Unknown(error, Box::new((answers, written)))),
                Err(error) => Err(Failure::Undone(error)),
            },
            Err(error) => Err(Failure::Undone(error)),
        },
        Err(failure) => Err(failure),
    };
    match done {
        Ok((answers, written)) => {
            drop(tx);
            finish(inner, written).await;
            Ok(answers)
        }
        Err(failure @ Failure::Unknown(..)) => Err(failure),
        Err(failure) => {
            if matches!(&failure, Failure::Undone(error) if error.is_lost()) {
                // Nobody answers; the server undoes it.
                tx.conn.discard();
            } else if let Err(second) = tx.conn.execute("ROLLBACK").await {
                tracing::warn!(error = %second, "rollback failed");
                tx.conn.discard();
            }
            Err(failure)
        }
    }
}

/// Whether the rows of a transaction whose end was not seen are in the log.
async fn was_committed(inner: &Arc<Inner>, rows: &[LogRow], deadline: Instant) -> StoreResult<bool> {
    loop {
        let found = async {
            let mut conn = inner.pools.writer().await?;
            conn.execute(crate::dialect::begin(conn.engine())).await?;
            let found = conn.log_has(rows).await;
            if conn.execute("ROLLBACK").await.is_err() {
                conn.discard();
            }
            found
        };
        match found.await {
            Err(error) if error.is_lost() && Instant::now() < deadline => tokio::time::sleep(RETRY).await,
            found => return found,
        }
    }
}

/// Tells this node what was committed.
async fn finish(inner: &Arc<Inner>, written: Written) {
    inner.heard_now();
    inner.nodes.written(&written.nodes);
    for stored in &written.events {
        inner.event_cache_put(Arc::clone(stored));
    }
    inner.current.relate(&written.related);
    inner.repeats.committed(written.repeats);
    inner.unfiled.committed(written.taken, written.filed);
    inner.publish(written.rows).await;
    // Whoever is told looks up to the end of the log.
    inner.outbox_written(written.destinations, written.outgoing);
}

async fn run_members(tx: &mut Tx, jobs: &[Job]) -> Result<Answers, Failure> {
    let needs = || jobs.iter().map(|job| &job.needs);
    let rooms: BTreeSet<OwnedRoomId> = needs().flat_map(|needs| needs.rooms.iter().cloned()).collect();
    tx.lock_rooms(&rooms.into_iter().collect::<Vec<_>>()).await?;
    let requests: Vec<TransactionKey> = needs().filter_map(|needs| needs.request.clone()).collect();
    tx.transactions_look_up(&requests).await?;
    tx.devices_look_up(needs().flat_map(|needs| needs.devices_of.iter().cloned()).collect()).await?;
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs {
        tx.member_begin();
        match AssertUnwindSafe((job.run)(tx)).catch_unwind().await {
            Ok(Ok(value)) => {
                tx.member_keep().await?;
                answers.push(Ok(Ok(value)));
            }
            Ok(Err(error)) => {
                if !tx.member_undo().await? {
                    return Err(Failure::Careless);
                }
                answers.push(Ok(Err(error)));
            }
            Err(_) => {
                if !tx.member_undo().await? {
                    return Err(Failure::Careless);
                }
                tracing::error!(name = job.name, "a write panicked");
                answers.push(Err(StoreError::Panicked));
            }
        }
    }
    Ok(answers)
}

/// What a committed group has written.
#[derive(Default)]
struct Written {
    rows: Vec<LogRow>,
    events: Vec<Arc<StoredEvent>>,
    destinations: BTreeSet<OwnedServerName>,
    outgoing: bool,
    /// What others relate to from now on.
    related: Vec<(OwnedRoomId, OwnedEventId)>,
    repeats: Change,
    /// To-device messages that are gone, and up to where all are filed now.
    taken: Vec<Taken>,
    filed: Option<i64>,
    /// Nodes of states that had waited for a group.
    nodes: Vec<NodeId>,
}

/// Writes what the members collected: first what needs no position, then, under the lock of the log's head, the rest.
async fn flush(tx: &mut Tx) -> StoreResult<Written> {
    let mut buffers = std::mem::take(&mut tx.buffers);
    buffers.redact();
    let (late, now): (Vec<Answered>, Vec<Answered>) =
        std::mem::take(&mut buffers.transactions).into_iter().partition(|answered| answered.late);
    let mut repeats = Change { late, forgotten: std::mem::take(&mut buffers.forgotten), settled: None };
    let waited = tx.nodes.unwritten();
    let waited_ids: Vec<NodeId> = waited.iter().map(|(id, _)| *id).collect();
    buffers.nodes.extend(waited);
    tx.conn.state_nodes_insert(&buffers.nodes).await?;
    let in_time = tx.in_time(&buffers.events);
    tx.rooms_flush().await?;
    if tx.conn.transactions_insert(&now.iter().collect::<Vec<_>>()).await? < now.len() {
        // The same request was being answered by another node when this group looked it up.
        return Err(StoreError::Answered);
    }
    let below =
        buffers.events.iter().filter(|event| event.slot.is_none() && event.number.is_none()).count() as i64;
    if buffers.log.is_empty() && buffers.events.is_empty() {
        let (related, taken) = (std::mem::take(&mut tx.related), buffers.taken);
        return Ok(Written { related, repeats, taken, nodes: waited_ids, ..Written::default() });
    }
    let count = buffers.log.len() as i64;
    let places = tx.conn.auth_places(&buffers.events).await?;
    let (last, lowest, numbers) = tx.conn.log_advance(count, below, places.new_ones()).await?;
    let mut written = place(&buffers, last - count, lowest + below);
    let first = numbers - places.new_ones() + 1;
    let nodes = places.number_from(first);
    tx.conn.events_insert(&written.events, &in_time, &nodes.of_events).await?;
    tx.conn.auth_nodes_insert(&nodes.new).await?;
    tx.conn.search_insert(&written.events).await?;
    tx.conn.media_uses_note(&written.events).await?;
    tx.conn.log_insert(&written.rows).await?;
    let position = |slot: Slot| last - count + slot.0 as i64 + 1;
    tx.conn.outbox_insert(&buffers.outbox, position).await?;
    tx.conn.outgoing_insert(&buffers.outgoing, position).await?;
    tx.conn.messages_insert(&buffers.to_device, !tx.unfiled.is_late(), position).await?;
    written.filed = tx.unfiled.file(&mut tx.conn, buffers.to_device.len(), last).await?;
    written.taken = buffers.taken;
    tx.conn.relations_insert(&buffers.relations, &written.events).await?;
    tx.conn.thread_subscriptions_place(&buffers.thread_subscriptions, position).await?;
    written.related = std::mem::take(&mut tx.related);
    tx.repeats.settle(&mut tx.conn, &mut repeats, last).await?;
    written.repeats = repeats;
    written.nodes = waited_ids;
    Ok(written)
}

/// Gives each event its number and each row its position. `base` is the position before the first row, `ceiling` one
/// above the highest number below zero.
fn place(buffers: &Buffers, base: i64, ceiling: i64) -> Written {
    let mut next_below = ceiling;
    let mut rows: Vec<LogRow> = buffers
        .log
        .iter()
        .enumerate()
        .map(|(index, row)| LogRow {
            position: LogPosition(base + index as i64 + 1),
            fact: row.fact,
            room: row.room.clone(),
            user: row.user.clone(),
            reference: row.reference.clone(),
            data: row.data.clone(),
            event: None,
        })
        .collect();
    let mut events = Vec::with_capacity(buffers.events.len());
    for new in &buffers.events {
        let sn = match new.slot {
            Some(slot) => base + slot.0 as i64 + 1,
            None => new.number.unwrap_or_else(|| {
                next_below -= 1;
                next_below
            }),
        };
        let stored = Arc::new(StoredEvent {
            event: Arc::clone(&new.event),
            sn,
            flags: new.flags,
            state_before: new.state_before,
            redacted_by: new.redacted_by.clone(),
        });
        if let Some(slot) = new.slot {
            rows[slot.0].event = Some(Arc::clone(&stored));
        }
        events.push(stored);
    }
    let destinations = buffers.outbox.iter().map(|row| row.destination.clone()).collect();
    Written { rows, events, destinations, outgoing: !buffers.outgoing.is_empty(), ..Written::default() }
}
