//! Who may read a room, and what of it.

use super::{ReadError, RoomReader};
use crate::timeline::partial::{WAIT, wait_for_members};
use crate::visibility::{LastJoined, stay_of};
use ruma::events::StateEventType;
use ruma::events::room::history_visibility::HistoryVisibility;
use ruma::{OwnedEventId, RoomId, UserId};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::StateKey;
use waxwing_rooms::state_tree::NodeId;
use waxwing_rooms::visibility::visibility_of;
use waxwing_storage::{StoreResult, StoredEvent};

/// A state to read: the one at a root, with one entry changed (the reader's own leaving).
#[derive(Clone, Debug)]
pub(super) struct StateView {
    pub root: NodeId,
    pub after: Option<(StateKey, OwnedEventId)>,
}

/// A reader's place in a room.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    /// The state that the reader sees: the current one, or that at leaving.
    pub state: StateView,
    /// When the reader was last joined.
    pub last: LastJoined,
    /// Joined now.
    pub joined: bool,
    /// The newest event that the reader sees has this number; no bound for one who is in the room.
    pub newest: i64,
    /// Members of the room that the reader is in are still being fetched.
    pub partial: bool,
}

impl RoomReader {
    /// Whether `user` may read `room`: is in it, was, or looks in where it is world readable.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] if not.
    pub async fn may_read(&self, user: &UserId, room: &RoomId) -> Result<(), ReadError> {
        self.seat(user, room).await.map(|_| ())
    }

    /// The place of `user` in `room`: joined, or gone and not forgotten, or looking in from outside where the room is
    /// world readable.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for everyone else, and for rooms that do not exist.
    pub(super) async fn seat(&self, user: &UserId, room: &RoomId) -> Result<Seat, ReadError> {
        let present = self.core.store.now().await?;
        let row = present.room(room).await?.ok_or(ReadError::Forbidden)?;
        let member = present.member(room, user).await?;
        let now = StateView { root: row.state_root, after: None };
        let (last, end) = match &member {
            Some(member) => stay_of(&self.core, member).await?,
            None => (LastJoined::Never, None),
        };
        if last == LastJoined::Now {
            return Ok(Seat { state: now, last, joined: true, newest: i64::MAX, partial: row.partial });
        }
        if let Some(end) = end
            && let Some(root) = end.state_before
            && member.is_some_and(|member| !member.forgotten)
        {
            let after = end.event.state_entry().map(|entry| (entry, end.event.event_id.clone()));
            return Ok(Seat {
                state: StateView { root, after },
                last,
                joined: false,
                newest: end.sn,
                partial: false,
            });
        }
        let visibility = self.state_event(&now, StateEventType::RoomHistoryVisibility, "").await?;
        match visibility_of(visibility.as_ref().map(|stored| &*stored.event)) {
            HistoryVisibility::WorldReadable => {
                Ok(Seat { state: now, last, joined: false, newest: i64::MAX, partial: false })
            }
            _ => Err(ReadError::Forbidden),
        }
    }

    /// The same, when all members of the room are here; for one who is in it waits until they are.
    ///
    /// # Errors
    /// [`ReadError::Incomplete`] when that takes too long.
    pub(super) async fn whole_seat(&self, user: &UserId, room: &RoomId) -> Result<Seat, ReadError> {
        let seat = self.seat(user, room).await?;
        if !seat.partial {
            return Ok(seat);
        }
        if !wait_for_members(&self.core, room, WAIT).await? {
            return Err(ReadError::Incomplete);
        }
        self.seat(user, room).await
    }

    /// The event of one state entry.
    pub(super) async fn state_event(
        &self,
        view: &StateView,
        kind: StateEventType,
        key: &str,
    ) -> StoreResult<Option<Arc<StoredEvent>>> {
        let id = match &view.after {
            Some((entry, id)) if entry.0 == kind && entry.1 == key => Some(id.clone()),
            _ => self.core.store.state_get(view.root, kind, key).await?,
        };
        match id {
            Some(id) => self.core.store.event(&id).await,
            None => Ok(None),
        }
    }

    /// The events of these entries, in the order of `keys`, those that are set.
    pub(super) async fn state_events(
        &self,
        view: &StateView,
        keys: &[StateKey],
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let ids = self.core.store.state_get_many(view.root, keys).await?;
        let ids: Vec<OwnedEventId> = keys
            .iter()
            .zip(ids)
            .filter_map(|(key, id)| match &view.after {
                Some((entry, after)) if entry == key => Some(after.clone()),
                _ => id,
            })
            .collect();
        self.events_in_order(&ids).await
    }

    /// The events of all entries.
    pub(super) async fn whole_state(&self, view: &StateView) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let entries = self.core.store.state_entries(view.root).await?;
        let mut entries: BTreeMap<StateKey, OwnedEventId> = entries.into_iter().collect();
        entries.extend(view.after.clone());
        let ids: Vec<OwnedEventId> = entries.into_values().collect();
        self.events_in_order(&ids).await
    }

    /// The events of all entries of one type.
    pub(super) async fn state_of_type(
        &self,
        view: &StateView,
        kind: &StateEventType,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let entries = self.core.store.state_of_type(view.root, kind).await?;
        let mut entries: BTreeMap<String, OwnedEventId> = entries.into_iter().collect();
        if let Some(((other, key), id)) = &view.after
            && other == kind
        {
            entries.insert(key.clone(), id.clone());
        }
        let ids: Vec<OwnedEventId> = entries.into_values().collect();
        self.events_in_order(&ids).await
    }

    /// Those of `ids` that are known, in their order.
    pub(super) async fn events_in_order(&self, ids: &[OwnedEventId]) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let events = self.core.store.events(ids).await?;
        Ok(ids.iter().filter_map(|id| events.get(id).cloned()).collect())
    }
}
