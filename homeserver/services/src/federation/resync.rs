//! Fetches the members of rooms that were joined without them, in the background: one room at a time by one node (a
//! lease), from one server after the other until one has them, across restarts.

use super::Federation;
use crate::timeline::TimelineError;
use ruma::{EventId, OwnedServerName};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{Engine, PartialRow, StoreError};

/// Rooms whose members are fetched at the same time: each may hold a hundred megabytes.
const PARALLEL: usize = 8;
/// How often the table is looked at: rooms that other nodes joined, and those whose time has come.
const LOOK: Duration = Duration::from_secs(2);
/// How long a lease lasts without being renewed, milliseconds.
const LEASE: u64 = waxwing_storage::LEASE_LASTS;
/// How often it is renewed.
const RENEW: Duration = waxwing_storage::LEASE_RENEW;
/// The wait after the first server failed, milliseconds; doubled with each round of all servers.
const FIRST_WAIT: u64 = 200;
/// The longest wait, milliseconds.
const LONGEST_WAIT: u64 = 600_000;
/// Joins of one room whose states are asked for in one attempt: more than one only where somebody left and came back.
const MOST_JOINS: i64 = 20;
/// Servers beside the one that let us in that are asked in one round.
const MOST_SERVERS: usize = 20;

type Busy = Arc<Mutex<BTreeSet<ruma::OwnedRoomId>>>;

impl Federation {
    /// Fetches members until it is dropped.
    pub(super) async fn resync(&self) {
        let busy = Busy::default();
        let mut tasks = JoinSet::new();
        loop {
            let wanted = self.timeline.members_wanted.notified();
            tokio::pin!(wanted);
            wanted.as_mut().enable();
            match self.due(&busy, PARALLEL.saturating_sub(tasks.len())).await {
                Ok(rooms) => {
                    for partial in rooms {
                        let (this, busy) = (self.clone(), Arc::clone(&busy));
                        tasks.spawn(async move {
                            let room = partial.room_id.clone();
                            if let Err(error) = this.fetch_members(partial).await {
                                tracing::warn!(%room, %error, "the members of a room could not be taken in");
                            }
                            busy.lock().await.remove(&room);
                        });
                    }
                }
                Err(error) => tracing::warn!(%error, "rooms without members could not be looked up"),
            }
            tokio::select! {
                () = &mut wanted => {}
                Some(_) = tasks.join_next() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Asks one server for what is missing in each room whose turn it is, one room after the other: what the task does all
    /// the time, for whoever drives it by hand. Gives how many rooms still lack members.
    ///
    /// # Errors
    /// The database's.
    pub async fn fetch_members_now(&self) -> Result<usize, TimelineError> {
        let limit = PARALLEL as i64;
        let due = self.core.store.read().await?.partial_rooms_due(self.core.now(), limit).await?;
        for partial in due {
            self.attempt_or_later(&partial).await?;
        }
        Ok(self.core.store.read().await?.partial_rooms().await?.len())
    }

    /// Rooms to begin with now.
    async fn due(&self, busy: &Busy, most: usize) -> Result<Vec<PartialRow>, StoreError> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let mut busy = busy.lock().await;
        let limit = (busy.len() + most) as i64;
        let mut due = self.core.store.read().await?.partial_rooms_due(self.core.now(), limit).await?;
        due.retain(|partial| !busy.contains(&partial.room_id));
        due.truncate(most);
        busy.extend(due.iter().map(|partial| partial.room_id.clone()));
        Ok(due)
    }

    /// One attempt with one server.
    async fn fetch_members(&self, partial: PartialRow) -> Result<(), TimelineError> {
        if self.core.store.engine() == Engine::Sqlite {
            // There is one node.
            return self.attempt_or_later(&partial).await;
        }
        let owner = self.outgoing.outbox.owner();
        let Some(epoch) = self.lease(&partial, &owner).await? else {
            // Another node is at it.
            tokio::time::sleep(LOOK).await;
            return Ok(());
        };
        let attempt = self.attempt_or_later(&partial);
        tokio::pin!(attempt);
        loop {
            tokio::select! {
                outcome = &mut attempt => break outcome?,
                () = tokio::time::sleep(RENEW) => {
                    if self.lease(&partial, &owner).await? != Some(epoch) {
                        return Ok(());
                    }
                }
            }
        }
        let name = lease_name(&partial);
        self.core
            .store
            .write("lease", Vec::new(), move |tx| {
                let (name, owner) = (name.clone(), owner.clone());
                Box::pin(async move { Ok(tx.lease_give_back(&name, &owner).await?) })
            })
            .await
    }

    async fn attempt_or_later(&self, partial: &PartialRow) -> Result<(), TimelineError> {
        match self.attempt(partial).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::info!(room = %partial.room_id, error, "the members of a room are still missing");
                self.retry_later(partial).await
            }
        }
    }

    async fn attempt(&self, partial: &PartialRow) -> Result<(), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let store = &self.core.store;
        let mut conn = store.read().await.map_err(|error| text(&error))?;
        let wanted = conn.partial_wanted(&partial.room_id, MOST_JOINS).await.map_err(|error| text(&error))?;
        drop(conn);
        let servers = self.servers_to_ask(partial).await.map_err(|error| text(&error))?;
        let turn = usize::try_from(partial.attempts).unwrap_or_default() % servers.len().max(1);
        let server = servers.get(turn).ok_or_else(|| "no server is known".to_owned())?;
        for id in wanted {
            let join = store.event(&id).await.map_err(|error| text(&error))?;
            let join = join.ok_or_else(|| "the join is gone".to_owned())?;
            let prev = &join.event.prev_events;
            let full = match self.inbound.state_before_join(server, &partial.room_id, prev).await {
                Ok(full) => Some(full),
                // What came since an earlier join is judged by what is known of it, rather than never.
                Err(error) if id != partial.join_id && partial.attempts >= servers.len() as i64 => {
                    tracing::warn!(room = %partial.room_id, join = %id, error, "nobody has the state before a join");
                    None
                }
                Err(error) => return Err(error),
            };
            self.note_state(partial, &id, full).await.map_err(|error| text(&error))?;
        }
        if self.timeline.complete(partial).await.map_err(|error| text(&error))? {
            tracing::info!(room = %partial.room_id, %server, "the members of a room are here");
        }
        Ok(())
    }

    /// The whole state before a join is here: whoever goes on after a crash need not ask for it again.
    async fn note_state(
        &self,
        partial: &PartialRow,
        join: &EventId,
        full: Option<NodeId>,
    ) -> Result<(), StoreError> {
        let input = Arc::new((partial.room_id.clone(), join.to_owned()));
        self.core
            .store
            .write("state before a join", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { tx.partial_fill(&input.0, &input.1, full).await })
            })
            .await
    }

    /// The server that let us in first, then others in an order that differs from room to room.
    async fn servers_to_ask(&self, partial: &PartialRow) -> Result<Vec<OwnedServerName>, StoreError> {
        let mut all = self.core.store.read().await?.servers_in(&partial.room_id).await?;
        all.retain(|server| *server != self.core.server_name && *server != partial.resident);
        all.sort();
        let start = partial.room_id.as_bytes().iter().map(|byte| usize::from(*byte)).sum::<usize>();
        let count = all.len();
        let others = (0..count.min(MOST_SERVERS)).map(|step| all[(start + step) % count].clone());
        Ok(std::iter::once(partial.resident.clone()).chain(others).collect())
    }

    async fn retry_later(&self, partial: &PartialRow) -> Result<(), TimelineError> {
        let round = self.servers_to_ask(partial).await?.len().max(1) as i64;
        let attempts = partial.attempts.saturating_add(1);
        let doubled = u32::try_from(attempts / round).unwrap_or(u32::MAX).min(16);
        let wait = (FIRST_WAIT << doubled).min(LONGEST_WAIT);
        let (room, at) = (partial.room_id.clone(), self.core.now() + wait);
        self.core
            .store
            .write("members later", Vec::new(), move |tx| {
                let room = room.clone();
                Box::pin(async move { Ok(tx.partial_retry(&room, attempts, at).await?) })
            })
            .await
    }

    async fn lease(&self, partial: &PartialRow, owner: &str) -> Result<Option<i64>, TimelineError> {
        let (name, owner, now) = (lease_name(partial), owner.to_owned(), self.core.now());
        self.core
            .store
            .write("lease", Vec::new(), move |tx| {
                let (name, owner) = (name.clone(), owner.clone());
                Box::pin(async move { Ok(tx.lease_take(&name, &owner, now, now + LEASE).await?) })
            })
            .await
    }
}

fn lease_name(partial: &PartialRow) -> String {
    format!("members:{}", partial.room_id)
}
