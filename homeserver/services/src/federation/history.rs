//! What another server fetches of a room: events, state, history.

use super::access::raw;
use super::{Federation, FederationError};
use crate::timeline::partial::wait_for_members;
use ruma::{EventId, OwnedEventId, RoomId, ServerName};
use serde_json::value::RawValue;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{RoomRow, StoredEvent};

/// Events in one answer to `/backfill`, whatever the other server asks for.
const MAX_BACKFILL: usize = 100;
/// Events in one answer to `/get_missing_events`.
const MAX_MISSING: usize = 50;
/// Events near a moment that are looked at, in case the nearest ones are not to be seen.
const CANDIDATES: i64 = 20;
/// Events walked over for one answer.
const MAX_WALK: usize = 1000;

/// A question of `get_missing_events`.
#[derive(Clone, Debug)]
pub struct MissingEvents {
    /// What the other server has.
    pub earliest: Vec<OwnedEventId>,
    /// What it wants the events before.
    pub latest: Vec<OwnedEventId>,
    /// Events wanted at most.
    pub limit: usize,
    /// Nothing less deep than this.
    pub min_depth: u64,
}

/// State before an event with what authorises it.
#[derive(Debug)]
pub struct RoomState {
    /// The state events.
    pub state: Vec<Arc<StoredEvent>>,
    /// Their auth chain.
    pub auth_chain: Vec<Arc<StoredEvent>>,
}

impl RoomState {
    /// The state events in federation format.
    pub fn state_json(&self) -> Vec<Box<RawValue>> {
        self.state.iter().map(|stored| raw(stored)).collect()
    }
    /// The auth chain in federation format.
    pub fn auth_chain_json(&self) -> Vec<Box<RawValue>> {
        self.auth_chain.iter().map(|stored| raw(stored)).collect()
    }
    /// The ids of the state events.
    pub fn state_ids(&self) -> Vec<OwnedEventId> {
        self.state.iter().map(|stored| stored.event.event_id.clone()).collect()
    }
    /// The ids of the auth chain.
    pub fn auth_chain_ids(&self) -> Vec<OwnedEventId> {
        self.auth_chain.iter().map(|stored| stored.event.event_id.clone()).collect()
    }
}

impl Federation {
    /// One event: <https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1eventeventid>.
    ///
    /// # Errors
    /// [`FederationError::NotFound`], [`FederationError::Forbidden`] for a server that is not in the room.
    pub async fn event(
        &self,
        origin: &ServerName,
        event_id: &EventId,
    ) -> Result<Box<RawValue>, FederationError> {
        // Rejected ones too: others may follow them, and whoever gets those must be able to judge for itself.
        let stored = self.core.store.event(event_id).await?.ok_or(FederationError::NotFound("event"))?;
        let row = self.core.store.read().await?.room_load(&stored.event.room_id).await?;
        let row = row.ok_or(FederationError::NotFound("event"))?;
        self.must_be_in(origin, &row.room_id).await?;
        let mut shown = self.shown(origin, &row, &[stored]).await?;
        shown.pop().ok_or(FederationError::NotFound("event"))
    }

    /// The state before an event: `/state` and `/state_ids`.
    ///
    /// # Errors
    /// [`FederationError::NotFound`] when the event is not part of the room's graph.
    pub async fn room_state(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event_id: &EventId,
    ) -> Result<RoomState, FederationError> {
        let mut row = self.room_of_member(origin, room).await?;
        if row.partial {
            if !wait_for_members(&self.core, room, self.timeline.patience.elsewhere).await? {
                return Err(FederationError::Forbidden(
                    "this server does not know the whole state yet".to_owned(),
                ));
            }
            row = self.room_of_member(origin, room).await?;
        }
        let root = self
            .event_of(&row, event_id)
            .await?
            .and_then(|stored| stored.state_before)
            .ok_or(FederationError::NotFound("event"))?;
        self.state_at(&row, root).await
    }

    pub(super) async fn state_at(&self, row: &RoomRow, root: NodeId) -> Result<RoomState, FederationError> {
        let ids = self.state_ids_at(root).await?;
        let state = self.events_in_order(&ids).await?;
        let auth_chain = self.auth_chain(row, &state).await?;
        Ok(RoomState { state, auth_chain })
    }

    /// The auth chain of an event.
    ///
    /// # Errors
    /// [`FederationError::NotFound`].
    pub async fn event_auth(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event_id: &EventId,
    ) -> Result<Vec<Box<RawValue>>, FederationError> {
        let row = self.room_of_member(origin, room).await?;
        let stored = self.event_of(&row, event_id).await?.ok_or(FederationError::NotFound("event"))?;
        let chain = self.auth_chain(&row, &[stored]).await?;
        Ok(chain.iter().map(|stored| raw(stored)).collect())
    }

    async fn event_of(
        &self,
        row: &RoomRow,
        event_id: &EventId,
    ) -> Result<Option<Arc<StoredEvent>>, FederationError> {
        let stored = self.core.store.event(event_id).await?;
        Ok(stored.filter(|stored| stored.event.room_id == row.room_id))
    }

    /// History before `from`, which is part of the answer, deepest first.
    /// <https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid>
    pub async fn backfill(
        &self,
        origin: &ServerName,
        room: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Box<RawValue>>, FederationError> {
        let row = self.room_of_member(origin, room).await?;
        let limit = limit.min(MAX_BACKFILL);
        let mut heap: BinaryHeap<(u64, i64, OwnedEventId)> = BinaryHeap::new();
        let mut seen: BTreeSet<OwnedEventId> = BTreeSet::new();
        let mut found: Vec<Arc<StoredEvent>> = Vec::new();
        let mut walked = 0;
        self.push_known(&row, from, &mut heap, &mut seen).await?;
        while let Some((_, _, id)) = heap.pop() {
            walked += 1;
            if found.len() >= limit || walked > MAX_WALK {
                break;
            }
            let Some(stored) = self.core.store.event(&id).await? else { continue };
            self.push_known(&row, &stored.event.prev_events, &mut heap, &mut seen).await?;
            found.push(stored);
        }
        self.shown(origin, &row, &found).await
    }

    async fn push_known(
        &self,
        row: &RoomRow,
        ids: &[OwnedEventId],
        heap: &mut BinaryHeap<(u64, i64, OwnedEventId)>,
        seen: &mut BTreeSet<OwnedEventId>,
    ) -> Result<(), FederationError> {
        let new: Vec<OwnedEventId> = ids.iter().filter(|id| seen.insert((*id).clone())).cloned().collect();
        for stored in self.events_in_order(&new).await? {
            if !stored.flags.outlier && stored.event.room_id == row.room_id {
                heap.push((u64::from(stored.event.depth), stored.sn, stored.event.event_id.clone()));
            }
        }
        Ok(())
    }

    /// The events between what the other server has and what it got, oldest first.
    /// <https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid>
    pub async fn missing_events(
        &self,
        origin: &ServerName,
        room: &RoomId,
        query: MissingEvents,
    ) -> Result<Vec<Box<RawValue>>, FederationError> {
        let row = self.room_of_member(origin, room).await?;
        let limit = query.limit.min(MAX_MISSING);
        let mut seen: BTreeSet<OwnedEventId> = query.earliest.iter().cloned().collect();
        let mut found: Vec<Arc<StoredEvent>> = Vec::new();
        let mut queue: VecDeque<OwnedEventId> = VecDeque::new();
        for latest in self.events_in_order(&query.latest).await? {
            seen.insert(latest.event.event_id.clone());
            if latest.event.room_id == row.room_id {
                queue.extend(latest.event.prev_events.iter().cloned());
            }
        }
        let mut walked = 0;
        while let Some(id) = queue.pop_front() {
            walked += 1;
            if found.len() >= limit || walked > MAX_WALK {
                break;
            }
            if !seen.insert(id.clone()) {
                continue;
            }
            let Some(stored) = self.event_of(&row, &id).await? else { continue };
            if stored.flags.outlier || u64::from(stored.event.depth) < query.min_depth {
                continue;
            }
            queue.extend(stored.event.prev_events.iter().cloned());
            found.push(stored);
        }
        found.sort_by_key(|stored| (stored.event.depth, stored.sn));
        self.shown(origin, &row, &found).await
    }

    /// The event nearest to a moment that the server may see: the first at or after it (`forward`), or the last at or
    /// before it. <https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1timestamp_to_eventroomid>
    ///
    /// # Errors
    /// [`FederationError::NotFound`] when there is none on that side.
    pub async fn event_at(
        &self,
        origin: &ServerName,
        room: &RoomId,
        at: u64,
        forward: bool,
    ) -> Result<(OwnedEventId, u64), FederationError> {
        let row = self.room_of_member(origin, room).await?;
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        let found = self.core.store.read().await?.events_by_time(room, at, forward, CANDIDATES).await?;
        let may = self.may_see(origin, &row.room_id, &found).await?;
        let hit = found.into_iter().zip(may).find(|(_, may)| *may);
        let (stored, _) = hit.ok_or(FederationError::NotFound("event on that side of the timestamp"))?;
        Ok((stored.event.event_id.clone(), stored.event.origin_server_ts.get().into()))
    }
}
