//! One application service, served by whoever holds its lease.

use super::body::assemble;
use super::collect::{Batch, MAX_ROWS, collect};
use super::interest::Interest;
use super::volatile::Volatile;
use super::{Shared, wakes};
use crate::appservices::Appservice;
use bytes::Bytes;
use rand::RngExt;
use reqwest::StatusCode;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_model::{LogPosition, opaque_id};
use waxwing_storage::{Engine, LEASE_LASTS, LEASE_RENEW, StoreError, StoreResult};

/// How often it is renewed, or asked for.
const RENEW: Duration = LEASE_RENEW;
/// The first wait after a failure; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait: a bridge that is back after a long outage has not been told that it may ping.
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// After a failure of the database.
const STORE_WAIT: Duration = Duration::from_secs(1);
/// The cursor is written when nothing concerned the application service for so many rows.
const SAVE_ROWS: i64 = 5000;
/// And when nothing did for so long.
const SAVE_EVERY: Duration = Duration::from_mins(1);

/// Why serving ended.
enum End {
    /// Another node has the lease.
    Lost,
    /// The database failed.
    Store(StoreError),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> End {
        End::Store(error)
    }
}

/// Serves one application service.
pub(super) struct Worker {
    shared: Arc<Shared>,
    appservice: Arc<Appservice>,
}

/// Failures in a row.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after one more failure: some more or less, so that several do not come at once.
    fn next(&mut self) -> Duration {
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures += 1;
        wait.mul_f64(rand::rng().random_range(0.8..1.2))
    }
}

/// Where serving stands.
struct Course {
    epoch: i64,
    position: LogPosition,
    /// The cursor in the database.
    saved: LogPosition,
    interest: Interest,
    volatile: Volatile,
    backoff: Backoff,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, appservice: Arc<Appservice>) -> Worker {
        Worker { shared, appservice }
    }

    fn lease(&self) -> String {
        format!("appservice-{}", self.appservice.id)
    }

    /// Serves whenever this node has the lease, until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let wait = match self.take_lease().await {
                Ok(Some(epoch)) => match stop.run_until_cancelled(self.hold(epoch)).await {
                    None | Some(End::Lost) => RENEW,
                    Some(End::Store(error)) => {
                        tracing::warn!(appservice = %self.appservice.id, %error, "the database failed");
                        STORE_WAIT
                    }
                },
                Ok(None) => RENEW,
                Err(error) => {
                    tracing::warn!(appservice = %self.appservice.id, %error, "its lease could not be taken");
                    STORE_WAIT
                }
            };
            let _ = stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
        if let Err(error) = self.give_back().await {
            tracing::warn!(appservice = %self.appservice.id, %error, "its lease could not be given back");
        }
    }

    async fn take_lease(&self) -> StoreResult<Option<i64>> {
        let core = &self.shared.core;
        core.store.lease_share(&self.lease(), &self.shared.owner, core.now(), LEASE_LASTS).await
    }

    async fn give_back(&self) -> StoreResult<()> {
        let (name, owner) = (self.lease(), Arc::clone(&self.shared.owner));
        self.shared
            .core
            .store
            .write("application service let go", Vec::new(), move |tx| {
                let (name, owner) = (name.clone(), Arc::clone(&owner));
                Box::pin(async move { tx.lease_give_back(&name, &owner).await })
            })
            .await
    }

    /// Serves while the lease is renewed.
    async fn hold(&self, epoch: i64) -> End {
        tokio::select! {
            end = self.serve(epoch) => end,
            end = self.renew(epoch) => end,
        }
    }

    async fn renew(&self, epoch: i64) -> End {
        if self.shared.core.store.engine() == Engine::Sqlite {
            // Nobody else could take it.
            return std::future::pending().await;
        }
        let mut until = self.shared.core.now() + LEASE_LASTS;
        loop {
            tokio::time::sleep(RENEW).await;
            let began = self.shared.core.now();
            match self.take_lease().await {
                Ok(Some(same)) if same == epoch => until = began + LEASE_LASTS,
                Ok(_) => return End::Lost,
                // The lease holds a while longer; another node may take it then.
                Err(error) if self.shared.core.now() >= until => return End::Store(error),
                Err(_) => {}
            }
        }
    }

    async fn serve(&self, epoch: i64) -> End {
        match self.serve_until_failure(epoch).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn serve_until_failure(&self, epoch: i64) -> Result<std::convert::Infallible, End> {
        let store = &self.shared.core.store;
        let mut conn = store.read().await?;
        let cursor = conn.appservice_cursor(&self.appservice.id).await?;
        let open = conn.appservice_transaction_open(&self.appservice.id).await?;
        drop(conn);
        let position = cursor.unwrap_or_else(|| store.tail().head());
        let mut head = store.tail().subscribe();
        let interest = Interest::load(&self.shared.core, &self.appservice, position).await?;
        let volatile = Volatile::new(&self.shared, &self.appservice);
        let backoff = Backoff::default();
        let mut course = Course { epoch, position, saved: position, interest, volatile, backoff };
        if let Some((number, body)) = open {
            self.deliver(&mut course, number, body.into()).await?;
        }
        loop {
            head.mark_unchanged();
            if self.turn(&mut course).await? {
                continue;
            }
            if course.position.0 - course.saved.0 >= SAVE_ROWS {
                self.save(&mut course).await?;
            }
            tokio::select! {
                _ = head.changed() => {}
                () = course.volatile.changed() => {}
                () = tokio::time::sleep(SAVE_EVERY), if course.position > course.saved => {
                    self.save(&mut course).await?;
                }
            }
        }
    }

    /// Tells what there is, at most one transaction. Whether there may be more.
    async fn turn(&self, course: &mut Course) -> Result<bool, End> {
        let core = &self.shared.core;
        let head = core.store.tail().head();
        let upto = LogPosition(head.0.min(course.position.0 + MAX_ROWS));
        let batch = collect(core, &self.appservice, &mut course.interest, course.position, upto).await?;
        let volatile = course.volatile.take(&self.shared, &course.interest).await?;
        course.position = batch.upto;
        if !batch.is_empty() {
            let body = assemble(core, &self.appservice, &batch, volatile).await?;
            let number = self.put(course, &batch, &body).await?;
            course.saved = batch.upto;
            self.deliver(course, number, body.into()).await?;
            return Ok(true);
        }
        if !volatile.is_empty() {
            self.send_volatile(course, &batch, volatile).await?;
        }
        Ok(course.position < core.store.tail().head())
    }

    /// Stores a transaction and moves the cursor. Messages to devices that only the application service reads go into
    /// it for good.
    async fn put(&self, course: &Course, batch: &Batch, body: &str) -> Result<i64, End> {
        let encryption = self.appservice.encryption;
        let taken: Vec<_> = batch
            .messages
            .iter()
            // Others may yet ask for theirs by `/sync` (MSC4203).
            .filter(|message| encryption && self.appservice.has_user_alone(&message.user))
            .map(|message| (message.user.clone(), message.device.clone(), message.position))
            .collect();
        let (id, lease, owner) =
            (self.appservice.id.to_string(), self.lease(), Arc::clone(&self.shared.owner));
        let input = Arc::new((id, lease, owner, body.to_owned(), taken));
        let (epoch, upto) = (course.epoch, batch.upto);
        let number = self
            .shared
            .core
            .store
            .write("application service transaction", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (id, lease, owner, body, taken) = &*input;
                    if !tx.lease_hold(lease, owner, epoch).await? {
                        return Ok::<_, StoreError>(None);
                    }
                    for (user, device, position) in taken {
                        tx.to_device_delete_one(user, device, *position).await?;
                    }
                    tx.appservice_transaction_put(id, upto, body).await
                })
            })
            .await?;
        number.ok_or(End::Lost)
    }

    /// Sends a stored transaction until it is accepted, and forgets it then.
    async fn deliver(&self, course: &mut Course, number: i64, body: Bytes) -> Result<(), End> {
        let id = number.to_string();
        while !self.send(&id, body.clone(), &course.backoff).await {
            let wait = course.backoff.next();
            self.pause(wait).await?;
        }
        self.recovered(&mut course.backoff);
        let (id, lease, owner) =
            (self.appservice.id.to_string(), self.lease(), Arc::clone(&self.shared.owner));
        let input = Arc::new((id, lease, owner));
        let epoch = course.epoch;
        let held = self
            .shared
            .core
            .store
            .write("application service accepted", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (id, lease, owner) = &*input;
                    let held = tx.lease_hold(lease, owner, epoch).await?;
                    if held {
                        tx.appservice_transaction_accepted(id, number).await?;
                    }
                    Ok::<_, StoreError>(held)
                })
            })
            .await?;
        if held { Ok(()) } else { Err(End::Lost) }
    }

    /// Tells what is true now, once. Where it is not taken, the next thing waits.
    async fn send_volatile(
        &self,
        course: &mut Course,
        batch: &Batch,
        volatile: Vec<Box<RawValue>>,
    ) -> Result<(), End> {
        let body = assemble(&self.shared.core, &self.appservice, batch, volatile).await?;
        // Not a number, so that it is none of the others.
        let id = format!("now-{}", opaque_id(16));
        if self.send(&id, body.into(), &course.backoff).await {
            self.recovered(&mut course.backoff);
        } else {
            let wait = course.backoff.next();
            self.pause(wait).await?;
        }
        course.volatile.sent();
        Ok(())
    }

    async fn send(&self, id: &str, body: Bytes, backoff: &Backoff) -> bool {
        let answer = self.shared.queries.link().transaction(&self.appservice, id, body).await;
        let accepted = answer.as_ref().is_ok_and(StatusCode::is_success);
        let outcome = if accepted { "accepted" } else { "failed" };
        let labels = [("appservice", self.appservice.id.to_string()), ("outcome", outcome.to_owned())];
        metrics::counter!("waxwing_appservice_transactions_total", &labels).increment(1);
        if !accepted && backoff.failures == 0 {
            let why = match answer {
                Ok(status) => format!("it answered with status {}", status.as_u16()),
                Err(error) => error.to_string(),
            };
            tracing::warn!(appservice = %self.appservice.id, why, "a transaction was not accepted; trying again");
        }
        accepted
    }

    fn recovered(&self, backoff: &mut Backoff) {
        if std::mem::take(&mut backoff.failures) > 0 {
            tracing::info!(appservice = %self.appservice.id, "the application service takes transactions again");
        }
    }

    /// Waits, or until the application service shows that it is there.
    async fn pause(&self, wait: Duration) -> Result<(), End> {
        let store = &self.shared.core.store;
        let mut head = store.tail().subscribe();
        let mut seen = store.tail().head();
        let end = tokio::time::Instant::now() + wait;
        while tokio::time::timeout_at(end, head.changed()).await.is_ok() {
            let upto = store.tail().head();
            let rows = store.tail().range(seen, upto).unwrap_or_default();
            if rows.iter().any(|row| wakes(row, &self.appservice.id)) {
                return Ok(());
            }
            seen = upto;
        }
        Ok(())
    }

    /// Writes down how far nothing concerned the application service.
    async fn save(&self, course: &mut Course) -> Result<(), End> {
        let (id, lease, owner) =
            (self.appservice.id.to_string(), self.lease(), Arc::clone(&self.shared.owner));
        let input = Arc::new((id, lease, owner));
        let (epoch, position) = (course.epoch, course.position);
        let held = self
            .shared
            .core
            .store
            .write("application service cursor", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (id, lease, owner) = &*input;
                    let held = tx.lease_hold(lease, owner, epoch).await?;
                    if held {
                        tx.appservice_cursor_move(id, position).await?;
                    }
                    Ok::<_, StoreError>(held)
                })
            })
            .await?;
        course.saved = position;
        if held { Ok(()) } else { Err(End::Lost) }
    }
}
