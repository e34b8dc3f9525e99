//! Forgets what is kept for a named time only: one node at a time, now and then.

use crate::Core;
use crate::federation::{ANSWERS_KEPT_FOR, prune_outgoing};
use crate::media::{Media, Tidied};
use crate::timeline::Timeline;
use crate::timeline::resolve::fill_graph;
use crate::to_device::ToDevice;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_model::opaque_id;
use waxwing_storage::{StoreError, StoreResult};

/// A server that just started has better things to do.
const FIRST: Duration = Duration::from_mins(2);
/// How often it is done. What is forgotten is days old: an hour more does not matter.
const EVERY: Duration = Duration::from_hours(1);
/// The lease of the node that does it, a little shorter than [`EVERY`] so that it is free at the next turn.
const LEASE: Duration = Duration::from_mins(55);
const LEASE_NAME: &str = "housekeeping";
/// Closed accounts taken out of their rooms in one turn: each leave may ask other servers.
const CLOSED_AT_ONCE: i64 = 20;
/// A client repeats a request within minutes, and after a night at most.
const REQUESTS_KEPT_FOR: Duration = Duration::from_hours(48);
/// Of so many minutes they are forgotten at a time, so that no write waits for long.
const REQUESTS_SLICE: Duration = Duration::from_mins(5);

/// What was forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Answers to other servers' transactions.
    pub answers: u64,
    /// Answers to clients' requests that may be repeated.
    pub requests: u64,
    /// Ids of other servers' to-device messages.
    pub message_ids: u64,
    /// Files.
    pub media: Tidied,
    /// Notes of what goes to other servers.
    pub outgoing: u64,
    /// Rows of the log.
    pub log_rows: u64,
    /// Rooms whose events were given their place in the auth graph.
    pub placed: u64,
}

/// The service.
pub struct Housekeeping {
    core: Core,
    to_device: ToDevice,
    media: Media,
    timeline: Option<Timeline>,
    owner: Arc<str>,
}

impl Housekeeping {
    /// The service.
    pub fn new(core: Core, to_device: ToDevice, media: Media) -> Housekeeping {
        Housekeeping { core, to_device, media, timeline: None, owner: opaque_id(16).into() }
    }

    /// Takes closed accounts out of rooms, too, that they could not leave when they were closed.
    #[must_use]
    pub fn with_timeline(mut self, timeline: Timeline) -> Housekeeping {
        self.timeline = Some(timeline);
        self
    }

    /// Tidies up from time to time until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut wait = FIRST;
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            wait = EVERY;
            match self.turn().await {
                Ok(Some(forgotten)) => tracing::debug!(?forgotten, "tidied up"),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "cannot tidy up; trying again later"),
            }
        }
    }

    /// Tidies up once, unless another node has done so a moment ago.
    pub async fn turn(&self) -> StoreResult<Option<Forgotten>> {
        let (owner, now) = (Arc::clone(&self.owner), self.core.now());
        let ours = self.core.store.write("housekeeping lease", Vec::new(), move |tx| {
            let owner = Arc::clone(&owner);
            Box::pin(async move {
                let until = now + LEASE.as_millis() as u64;
                Ok::<_, StoreError>(tx.lease_take(LEASE_NAME, &owner, now, until).await?.is_some())
            })
        });
        if !ours.await? {
            return Ok(None);
        }
        let answers = self.forget_answers(now).await?;
        self.empty_closed().await?;
        let requests = self.forget_requests(now).await?;
        let message_ids = self.to_device.prune().await?;
        let outgoing = prune_outgoing(&self.core).await?;
        let log_rows = self.core.store.log_trim(now).await?;
        let media = self.media.tidy().await?;
        let placed = self.fill_graphs().await?;
        Ok(Some(Forgotten { answers, requests, message_ids, media, outgoing, log_rows, placed }))
    }

    /// Rooms of an older database get their auth graph before it is needed. What was done stays done, wherever it is
    /// interrupted.
    async fn fill_graphs(&self) -> StoreResult<u64> {
        let (mut rooms, mut after) = (0, String::new());
        loop {
            let next = self.core.store.read().await?.auth_graph_next(&after).await?;
            let Some(room) = next else { return Ok(rooms) };
            fill_graph(&self.core, &room).await?;
            rooms += 1;
            after = room.to_string();
        }
    }

    async fn forget_requests(&self, now: u64) -> StoreResult<u64> {
        let before = now.saturating_sub(REQUESTS_KEPT_FOR.as_millis() as u64);
        let mut all = 0;
        loop {
            let slice = self.core.store.write("forget requests", Vec::new(), move |tx| {
                Box::pin(
                    async move { tx.transactions_prune(before, REQUESTS_SLICE.as_millis() as u64).await },
                )
            });
            match slice.await? {
                0 => return Ok(all),
                some => all += some,
            }
        }
    }

    async fn empty_closed(&self) -> StoreResult<()> {
        let Some(timeline) = &self.timeline else { return Ok(()) };
        let closed = self.core.store.read().await?.users_closed_in_rooms(CLOSED_AT_ONCE).await?;
        for user in closed {
            if let Err(error) = timeline.leave_all(&user).await {
                tracing::warn!(%user, %error, "a closed account could not leave its rooms");
            }
        }
        Ok(())
    }

    async fn forget_answers(&self, now: u64) -> StoreResult<u64> {
        let before = now.saturating_sub(ANSWERS_KEPT_FOR.as_millis() as u64);
        self.core
            .store
            .write("forget answers", Vec::new(), move |tx| {
                Box::pin(async move { tx.inbound_transactions_prune(before).await })
            })
            .await
    }
}
