//! Reading together what many rooms of one answer need: a sync of a thousand rooms must not ask the database a thousand
//! times for each of their parts.

use super::build::Build;
use super::sticky::MAX_STICKY;
use super::summary::Counts;
use crate::before::holders_before;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use waxwing_model::{StateKey, state_key};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{Hero, ReceiptRow, RoomRow, StateQuestion, StoreResult, StoredEvent};

/// Rooms that are read together: what they need fits into the caches, twice.
pub(super) const ROOMS: usize = 125;
/// So many such groups of rooms are worked on at the same time: while one is read the other is written.
pub(super) const TOGETHER: usize = 2;
/// Newest events that are read of each room at least: enough for most of what is asked of them.
const EVENTS: usize = 20;

/// What was read of some rooms.
#[derive(Default)]
pub(super) struct Ahead {
    pub rows: BTreeMap<OwnedRoomId, RoomRow>,
    pub account_data: HashMap<OwnedRoomId, Vec<(String, String)>>,
    pub receipts: HashMap<OwnedRoomId, Vec<ReceiptRow>>,
    pub extremities: HashMap<OwnedRoomId, Vec<OwnedEventId>>,
    pub heroes: HashMap<OwnedRoomId, Vec<Hero>>,
    /// Events that are sticky now.
    pub sticky: HashMap<OwnedRoomId, Vec<OwnedEventId>>,
    /// The state that is shown of rooms that are shown whole.
    pub state: HashMap<OwnedRoomId, Vec<(StateKey, OwnedEventId)>>,
    events: HashMap<OwnedRoomId, Newest>,
}

/// The newest events of a room.
#[derive(Clone)]
pub(super) struct Newest {
    /// Newest first.
    pub events: Vec<Arc<StoredEvent>>,
    /// There are no others.
    pub complete: bool,
}

/// Which states are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateAhead {
    /// None.
    None,
    /// Everything but members.
    BesidesMembers,
    /// Everything.
    Everything,
}

impl Ahead {
    /// The newest events of the room, when they were read.
    pub fn newest(&self, room: &RoomId) -> Option<Newest> {
        self.events.get(room).cloned()
    }
}

impl Build<'_> {
    /// Reads what these rooms, [`ROOMS`] at most, need to be shown whole with `limit` events each.
    pub(super) async fn look_ahead(
        &self,
        rooms: &[OwnedRoomId],
        limit: usize,
        state: StateAhead,
    ) -> StoreResult<Ahead> {
        let mut ahead = Ahead::default();
        if rooms.is_empty() {
            return Ok(ahead);
        }
        let chunk = (limit + 1).max(EVENTS);
        let events = self.core().store.timelines_backward(rooms, self.upto.0 + 1, chunk).await?;
        let newest = |events: Vec<Arc<StoredEvent>>| Newest { complete: events.len() < chunk, events };
        ahead.events = events.into_iter().map(|(room, events)| (room, newest(events))).collect();
        {
            let mut conn = self.core().store.read().await?;
            ahead.rows = conn.rooms_load(rooms).await?;
            ahead.extremities = conn.backward_extremities_of(rooms).await?;
            ahead.sticky = conn.sticky_events_of(rooms, self.core().now(), MAX_STICKY).await?;
            for receipt in conn.receipts_of_rooms(rooms, self.user()).await? {
                ahead.receipts.entry(receipt.room_id.clone()).or_default().push(receipt);
            }
            for (room, kind, content) in conn.account_data_all(self.user()).await? {
                let Some(room) = room else { continue };
                ahead.account_data.entry(room).or_default().push((kind, content));
            }
        }
        self.count_ahead(rooms).await?;
        self.states_ahead(&mut ahead, state).await?;
        self.events_ahead(&ahead).await?;
        let unnamed = self.unnamed(&ahead).await?;
        ahead.heroes = self.core().store.read().await?.heroes_of(&unnamed, self.user()).await?;
        Ok(ahead)
    }

    async fn count_ahead(&self, rooms: &[OwnedRoomId]) -> StoreResult<()> {
        let read = self.sync.notifier.folds().head();
        let mut counts: HashMap<&OwnedRoomId, Counts> =
            rooms.iter().map(|room| (room, Counts::default())).collect();
        let found = self.core().store.read().await?.member_counts_of(rooms).await?;
        for (room, membership, count) in found {
            if let Some(counts) = counts.get_mut(&room) {
                counts.add(&membership, count);
            }
        }
        for (room, counts) in counts {
            self.sync.summaries.put(room, read, counts);
        }
        Ok(())
    }

    async fn states_ahead(&self, ahead: &mut Ahead, wanted: StateAhead) -> StoreResult<()> {
        let store = &self.core().store;
        let mut questions: Vec<(NodeId, u64)> = Vec::with_capacity(ahead.rows.len());
        for (room, row) in &ahead.rows {
            questions.push((row.state_root, self.member_counts(room).await?.all));
        }
        let found = match wanted {
            StateAhead::None => return Ok(()),
            StateAhead::BesidesMembers => {
                store.states_besides(&questions, &StateEventType::RoomMember).await?
            }
            StateAhead::Everything => {
                let roots: Vec<NodeId> = questions.into_iter().map(|(root, _)| root).collect();
                store.states_entries(&roots).await?
            }
        };
        ahead.state = ahead.rows.keys().cloned().zip(found).collect();
        Ok(())
    }

    /// Brings into the caches the events of the states, and the states around the newest events.
    async fn events_ahead(&self, ahead: &Ahead) -> StoreResult<()> {
        let store = &self.core().store;
        let own = state_key(StateEventType::RoomMember, self.user().as_str());
        let keys = [state_key(StateEventType::RoomHistoryVisibility, ""), own.clone()];
        let newest: Vec<Arc<StoredEvent>> =
            ahead.events.values().flat_map(|newest| newest.events.iter().cloned()).collect();
        let before = holders_before(self.core(), &newest, &keys).await?;
        let questions: Vec<StateQuestion> =
            ahead.rows.values().map(|row| (row.state_root, vec![own.clone()])).collect();
        let found = store.states_get_many(&questions).await?;
        let around = before.into_iter().flatten().chain(found).flatten().flatten();
        let shown = ahead.state.values().flatten().map(|(_, id)| id.clone());
        let mut ids: Vec<OwnedEventId> = around.chain(shown).collect();
        ids.sort_unstable();
        ids.dedup();
        store.events(&ids).await?;
        Ok(())
    }

    /// The rooms whose states have no name.
    async fn unnamed(&self, ahead: &Ahead) -> StoreResult<Vec<OwnedRoomId>> {
        let mut unnamed = Vec::new();
        for (room, row) in &ahead.rows {
            if !self.is_named(row.state_root).await? {
                unnamed.push(room.clone());
            }
        }
        Ok(unnamed)
    }
}
