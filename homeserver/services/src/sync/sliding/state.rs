//! The state of a room that an answer has: what changed of what the client asked for.

use super::super::state::fold;
use super::super::timeline::Stretch;
use super::answer::StateNews;
use super::config::RequiredState;
use super::list::Relevant;
use super::slide::{Base, Slide};
use crate::render::{Shown, Viewer};
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use std::collections::{BTreeMap, BTreeSet};
use waxwing_model::{StateKey, state_key};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::StoreResult;

/// Entries that changed and the events that hold them now; `None`: nothing holds them any more.
pub(super) type Changes = BTreeMap<StateKey, Option<OwnedEventId>>;

impl Slide<'_> {
    /// Everything that changed in the room's state since the client had it; of a room that it does not have, nothing.
    pub(super) async fn changes_of(&self, room: &OwnedRoomId, base: &Base<'_>) -> StoreResult<Changes> {
        match (base, self.root(room)) {
            (Base::Rows(rows), _) => Ok(fold(rows)),
            (Base::Upto(floor), Some(root)) => self.difference(room, *floor, root).await,
            _ => Ok(Changes::new()),
        }
    }

    /// What differs between the state after the event with the number `floor` and the one at `root`.
    pub(super) async fn difference(&self, room: &RoomId, floor: i64, root: NodeId) -> StoreResult<Changes> {
        let store = &self.build.core().store;
        let first = store.read().await?.events_forward(room, floor, 1).await?;
        let Some(before) = first.first().and_then(|stored| stored.state_before) else {
            return Ok(Changes::new());
        };
        let changes = store.state_diff(before, root).await?;
        Ok(changes.into_iter().map(|change| (change.key, change.after)).collect())
    }

    /// What is shown of the room's state: what is new to the client of what it asked for, and members that it needs.
    pub(super) async fn state_of(
        &self,
        room: &OwnedRoomId,
        relevant: &Relevant,
        base: &Base<'_>,
        mut changes: Changes,
        stretch: &Stretch,
    ) -> StoreResult<Changes> {
        let wanted = &relevant.state;
        let lazy = wanted.lazy_members();
        // Without a gap the client may keep what it knows of members, so it gets all changes of them.
        let members = lazy && !stretch.limited;
        changes.retain(|key, _| wanted.wants(key) || (members && key.0 == StateEventType::RoomMember));
        let root = self.root(room);
        if let Some(root) = root {
            let old = self.sent(room).map(|sent| sent.config).filter(|config| *config != relevant.config);
            if matches!(base, Base::Nothing) {
                changes = self.select(room, root, wanted).await?;
            } else if let Some(old) = old {
                let old = self.state.configs.get(&old);
                let all = self.select(room, root, wanted).await?;
                let new = all.into_iter().filter(|(key, _)| !old.is_some_and(|old| old.wants(key)));
                changes.extend(new);
            }
        }
        if lazy {
            self.add_members(room, &mut changes, stretch, root, matches!(base, Base::Nothing)).await?;
        }
        Ok(changes)
    }

    /// The entries of a state that are wanted.
    pub(super) async fn select(
        &self,
        room: &RoomId,
        root: NodeId,
        wanted: &RequiredState,
    ) -> StoreResult<Changes> {
        let store = &self.build.core().store;
        let reach = wanted.reach();
        let mut found = Changes::new();
        if reach.besides_members && reach.members {
            let all = store.state_entries(root).await?;
            found.extend(all.into_iter().map(|(key, id)| (key, Some(id))));
        } else {
            if reach.besides_members {
                let others = self.build.state_besides_members(room, root).await?;
                found.extend(others.into_iter().map(|(key, id)| (key, Some(id))));
            }
            for kind in &reach.types {
                let of_type = store.state_of_type(root, kind).await?;
                found.extend(of_type.into_iter().map(|(key, id)| (state_key(kind.clone(), key), Some(id))));
            }
            let keys: Vec<StateKey> = reach.keys.into_iter().filter(|key| !found.contains_key(key)).collect();
            let ids = store.state_get_many(root, &keys).await?;
            found.extend(keys.into_iter().zip(ids).filter(|(_, id)| id.is_some()));
        }
        found.retain(|key, _| wanted.wants(key));
        Ok(found)
    }

    /// Adds the member events of those who sent what is shown, and of those whom it is about, that the client does not
    /// have yet.
    async fn add_members(
        &self,
        room: &OwnedRoomId,
        changes: &mut Changes,
        stretch: &Stretch,
        root: Option<NodeId>,
        anew: bool,
    ) -> StoreResult<()> {
        let mut users: BTreeSet<&str> = BTreeSet::new();
        for stored in &stretch.events {
            users.insert(stored.event.sender.as_str());
            if stored.event.kind.to_string() == "m.room.member" {
                users.extend(stored.event.state_key.as_deref());
            }
        }
        let keys: Vec<StateKey> = users
            .into_iter()
            .map(|user| state_key(StateEventType::RoomMember, user))
            .filter(|key| !changes.contains_key(key))
            .collect();
        let root = root.or_else(|| stretch.events.last().and_then(|stored| stored.state_before));
        let viewer = self.connection_viewer();
        if let (Some(root), false) = (root, keys.is_empty()) {
            let found = self.build.core().store.state_get_many(root, &keys).await?;
            let since = self.build.since.filter(|_| !anew);
            let lazy = &self.build.sync.lazy;
            let is_new =
                |id: &OwnedEventId| since.is_none_or(|since| !lazy.was_sent(&viewer, room, id, since));
            let found = keys.into_iter().zip(found).filter(|(_, id)| id.as_ref().is_some_and(is_new));
            changes.extend(found);
        }
        let sent = changes.iter().filter(|((kind, _), _)| *kind == StateEventType::RoomMember);
        let sent = sent.filter_map(|(_, id)| id.as_ref());
        self.build.sync.lazy.sent(&viewer, room, sent, self.build.upto, anew);
        Ok(())
    }

    /// The connection, as one of several of a device that members are sent to.
    fn connection_viewer(&self) -> Viewer {
        let viewer = &self.request.viewer;
        let device = viewer.device.as_deref().unwrap_or_default();
        Viewer { user: viewer.user.clone(), device: Some(format!("{device}\n{}", self.request.conn_id)) }
    }

    /// The events of these entries.
    pub(super) async fn show_changes(&self, changes: Changes) -> StoreResult<Vec<StateNews>> {
        let ids: Vec<OwnedEventId> = changes.values().flatten().cloned().collect();
        let loaded = self.build.core().store.events(&ids).await?;
        let events: Vec<_> = ids.iter().filter_map(|id| loaded.get(id).cloned()).collect();
        let shown = self.build.show(&events, Shown::SYNC_STATE).await?;
        let gone = changes.into_iter().filter(|(_, id)| id.is_none());
        let gone = gone.map(|((kind, key), _)| StateNews::Gone(kind.to_string(), key));
        Ok(shown.into_iter().map(StateNews::Event).chain(gone).collect())
    }
}
