//! Rooms that one of our users joined without being told all members (MSC3706): the user is in at once, and the members
//! arrive behind.
//!
//! Until then the room's state lacks members, and so do the states before the events that come meanwhile. Such an event
//! is judged with the help of the members that it names as authorising it. When the whole state before the join is
//! here, the states before all of these events are worked out again in their order, the verdicts on them with it, a slice
//! at a time (`judge`); what that changes in the room's current state is committed at the end against its revision
//! (`complete`). Somebody may join anew meanwhile, after a gap: then that join is one of these events, and the state before
//! it is asked for, too.
//! <https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid>

mod complete;
mod judge;
mod plan;

use super::Timeline;
use super::error::TimelineError;
use super::resolve::resolve_entries;
use crate::Core;
use ruma::{OwnedEventId, OwnedServerName, RoomId, RoomVersionId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::ports::{Outlier, Persisted, Received, Verdict};
use waxwing_federation::remote::JoinedRoom;
use waxwing_model::{Event, StateKey};
use waxwing_rooms::auth::{check_state_dependent, state_to_load_for};
use waxwing_rooms::resolve::StateMap;
use waxwing_rooms::state_tree::NodeId;
use waxwing_rooms::{AuthError, AuthMap};
use waxwing_storage::{Fact, NewRow, RoomRow, StoreResult, Tx};

/// A request that needs all members waits no longer: about as long as clients wait for an answer.
pub(crate) const WAIT: Duration = Duration::from_secs(90);
/// How often the room's row is looked at where no hint comes.
const LOOK: Duration = Duration::from_secs(1);
/// Servers of a room that are remembered until its members are here: more than any room has.
const MOST_SERVERS: usize = 20_000;
/// Attempts to take in a join while others change the room.
const ATTEMPTS: usize = 8;

/// Waits until all members of the room are here, or nobody of ours is in it any more; `false` when `limit` passed first.
pub(crate) async fn wait_for_members(core: &Core, room: &RoomId, limit: Duration) -> StoreResult<bool> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut heads = core.store.tail().subscribe();
    loop {
        heads.borrow_and_update();
        let mut conn = core.store.read().await?;
        let partial = conn.room_load(room).await?.is_some_and(|row| row.partial);
        if !partial || conn.local_joined_count(room).await? == 0 {
            return Ok(true);
        }
        drop(conn);
        let next = (tokio::time::Instant::now() + LOOK).min(deadline);
        let _ = tokio::time::timeout_at(next, heads.changed()).await;
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

/// Marks the room, which is about to be put, as one whose members are missing. `before`: the state before the join, as it
/// was told.
pub(super) async fn mark(
    core: &Core,
    tx: &mut Tx,
    row: &mut RoomRow,
    joined: &JoinedRoom,
    before: NodeId,
) -> Result<(), TimelineError> {
    // With members again while those of an earlier join are missing: what came between the two still lacks them.
    if !joined.members_omitted && !row.partial {
        return Ok(());
    }
    let mut servers: BTreeSet<OwnedServerName> =
        joined.servers_in_room.iter().take(MOST_SERVERS).cloned().collect();
    servers.insert(joined.resident.clone());
    servers.remove(&core.server_name);
    let servers: Vec<OwnedServerName> = servers.into_iter().collect();
    let (join, whole) = (&joined.join.event_id, Some(before).filter(|_| !joined.members_omitted));
    tx.partial_begin(&row.room_id, join, &joined.resident, &servers, whole).await?;
    row.partial = true;
    tx.log_append(NewRow::new(Fact::Room).room(row.room_id.clone()).data("partial"));
    Ok(())
}

impl Timeline {
    /// Whether the room's state lacks members.
    pub(super) async fn lacks_members(&self, room: &RoomId) -> Result<bool, TimelineError> {
        Ok(self.core.store.read().await?.room_load(room).await?.is_some_and(|row| row.partial))
    }

    /// The entries of the state at `root` that `event` is judged by, where the state may lack members with the help of
    /// those that it names as authorising it.
    pub(super) async fn judges(
        &self,
        event: &Event,
        version: &RoomVersionId,
        root: NodeId,
        partial: bool,
    ) -> Result<Result<AuthMap, AuthError>, TimelineError> {
        let keys = match state_to_load_for(event, version) {
            Ok(keys) => keys,
            Err(error) => return Ok(Err(error)),
        };
        let found = self.core.store.state_get_many(root, &keys).await?;
        let mut entries: StateMap =
            keys.iter().cloned().zip(found).filter_map(|(key, id)| Some((key, id?))).collect();
        if partial {
            entries =
                self.with_claimed((&event.room_id, version), entries, &keys, &event.auth_events).await?;
        }
        let ids: Vec<OwnedEventId> = entries.values().cloned().collect();
        let events = self.core.store.events(&ids).await?;
        let of = |(key, id)| Some((key, Arc::clone(&events.get(&id)?.event)));
        Ok(Ok(entries.into_iter().filter_map(of).collect()))
    }

    /// Entries of a state that may lack members, resolved with those that an event claims to be authorised by. So a
    /// member whom we do not know counts, and one whom we know to be gone does not come back by claiming to be there.
    pub(super) async fn with_claimed(
        &self,
        (room, version): (&RoomId, &RoomVersionId),
        entries: StateMap,
        keys: &[StateKey],
        claimed: &[OwnedEventId],
    ) -> Result<StateMap, TimelineError> {
        let events = self.core.store.events(claimed).await?;
        let mut claims = StateMap::new();
        for (id, stored) in events {
            if let Some(key) = stored.event.state_entry().filter(|_| !stored.flags.rejected) {
                claims.insert(key, id);
            }
        }
        if claims.iter().all(|(key, id)| !keys.contains(key) || entries.get(key) == Some(id)) {
            return Ok(entries);
        }
        let mut resolved = resolve_entries(&self.core, room, version, [entries, claims]).await?;
        resolved.retain(|key, _| keys.contains(key));
        Ok(resolved)
    }

    /// Whether all that the join follows is part of our graph already: its state need not be told by others.
    pub(super) async fn follows_ours(&self, join: &Event) -> Result<bool, TimelineError> {
        if join.prev_events.is_empty()
            || self.core.store.read().await?.room_load(&join.room_id).await?.is_none()
        {
            return Ok(false);
        }
        let known = self.core.store.events(&join.prev_events).await?;
        Ok(join.prev_events.iter().all(|id| {
            known.get(id).is_some_and(|stored| !stored.flags.outlier && stored.event.room_id == join.room_id)
        }))
    }

    /// Takes in a join, made through another server, that follows events which are here: it is judged by what we
    /// know, whatever the other server let pass.
    pub(super) async fn accept_following(&self, joined: &JoinedRoom) -> Result<(), TimelineError> {
        let join = &joined.join;
        let state = joined.state.values().map(|event| Outlier { event: Arc::clone(event), rejected: None });
        let outliers = joined.auth_chain.iter().cloned().chain(state).collect();
        self.take_outliers(&joined.version, outliers).await?;
        for _ in 0..ATTEMPTS {
            let row = self.core.store.read().await?.room_load(&join.room_id).await?;
            let row = row.ok_or(TimelineError::NoRoom)?;
            let before = self.before(&join.room_id, &join.prev_events).await?;
            let before =
                before.ok_or_else(|| TimelineError::Internal("no state before a join".to_owned()))?;
            for root in BTreeSet::from([before, row.state_root]) {
                let map = self.judges(join, &row.version, root, row.partial).await??;
                check_state_dependent(join, &row.version, &map)?;
            }
            let received = Received {
                event: Arc::clone(join),
                origin: joined.resident.clone(),
                state_before: before,
                verdict: Verdict::Accepted,
                current_state: Some(row.state_root),
                fetched: Vec::new(),
                history: None,
            };
            if self.take_in(received).await? == Persisted::Stored {
                return Ok(());
            }
        }
        Err(TimelineError::Raced)
    }
}
