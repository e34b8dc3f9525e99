//! The state sections: from the last answer to the start of the timeline, or to its end.
//!
//! What changed is read from the rows of the log, never worked out from timeline events alone: state resolution may
//! let an old event win, and a row of its own says so.
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>

use super::build::Build;
use super::response::StateWanted;
use super::timeline::Stretch;
use super::window::RoomRows;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedUserId, RoomId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::{StateKey, state_key};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{Fact, LogRow, StoreResult};

/// Entries of a state and the events that hold them.
pub(super) type Entries = BTreeMap<StateKey, OwnedEventId>;

/// What rows change in a room's state, the last change of each entry. `None`: nothing holds the entry any more.
pub(super) fn fold(rows: &[Arc<LogRow>]) -> BTreeMap<StateKey, Option<OwnedEventId>> {
    let mut changes = BTreeMap::new();
    for row in rows {
        match row.fact {
            Fact::Event => {
                let Some(event) = row.event.as_ref().map(|stored| &stored.event) else { continue };
                if let Some(entry) = event.state_entry() {
                    changes.insert(entry, Some(event.event_id.clone()));
                }
            }
            Fact::State => {
                let named = row.data.as_deref().map(serde_json::from_str::<(String, String)>);
                if let Some(Ok((kind, key))) = named {
                    changes.insert((StateEventType::from(kind), key), row.event_id());
                }
            }
            _ => {}
        }
    }
    changes
}

impl Build<'_> {
    fn after(&self) -> bool {
        self.request.state != StateWanted::Before
    }

    /// What the rows change up to the start of the timeline, or its end.
    pub fn state_of_rows(&self, rows: &[Arc<LogRow>], stretch: &Stretch) -> Entries {
        let mut last = fold(rows);
        if !self.after() {
            let start = rows.partition_point(|row| row.position.0 <= stretch.start);
            let early = fold(&rows[..start]);
            for (key, holder) in &mut last {
                if holder.as_ref().is_some_and(|id| stretch.contains(id)) {
                    *holder = early.get(key).cloned().flatten();
                }
            }
        }
        last.into_iter().filter_map(|(key, holder)| Some((key, holder?))).collect()
    }

    /// What changed since the last answer, by comparing whole states: for windows too large to list.
    pub async fn state_by_difference(
        &self,
        room: &RoomId,
        current: NodeId,
        since: i64,
        stretch: &Stretch,
    ) -> StoreResult<Entries> {
        let first = self.core().store.read().await?.events_forward(room, since, 1).await?;
        let Some(before) = first.first().and_then(|stored| stored.state_before) else {
            return Ok(Entries::new());
        };
        let changes = self.core().store.state_diff(before, current).await?;
        let changed = changes.into_iter().filter_map(|change| Some((change.key, change.after?)));
        self.up_to_timeline(changed.collect(), stretch).await
    }

    /// The whole state, but for member events when those are loaded lazily.
    pub async fn state_whole(
        &self,
        room: &RoomId,
        current: NodeId,
        stretch: &Stretch,
    ) -> StoreResult<Entries> {
        let ahead = self.ahead().state.get(room).cloned();
        let entries = if let Some(entries) = ahead.filter(|_| self.since.is_none()) {
            entries
        } else if self.request.filter.lazy_load().is_some() {
            self.state_besides_members(room, current).await?
        } else {
            self.core().store.state_entries(current).await?
        };
        self.up_to_timeline(entries.into_iter().collect(), stretch).await
    }

    /// A state without member events, which are not read where it is known how many there are.
    pub async fn state_besides_members(
        &self,
        room: &RoomId,
        root: NodeId,
    ) -> StoreResult<Vec<(StateKey, OwnedEventId)>> {
        let members = self.member_counts(room).await?.all;
        self.core().store.state_besides(root, &StateEventType::RoomMember, members).await
    }

    /// Entries as they are at the end of the timeline, taken back to its start if the client wants that: where an
    /// event of the timeline holds one, what held it before.
    async fn up_to_timeline(&self, mut entries: Entries, stretch: &Stretch) -> StoreResult<Entries> {
        if self.after() {
            return Ok(entries);
        }
        let shown: BTreeSet<&OwnedEventId> =
            stretch.events.iter().map(|stored| &stored.event.event_id).collect();
        let moved: Vec<StateKey> =
            entries.iter().filter(|(_, id)| shown.contains(id)).map(|(key, _)| key.clone()).collect();
        if moved.is_empty() {
            return Ok(entries);
        }
        let mut before = vec![None; moved.len()];
        if let Some(root) = stretch.events.first().and_then(|stored| stored.state_before) {
            before = self.core().store.state_get_many(root, &moved).await?;
        }
        for (key, held) in moved.into_iter().zip(before) {
            match held {
                Some(id) => drop(entries.insert(key, id)),
                None => drop(entries.remove(&key)),
            }
        }
        Ok(entries)
    }

    /// Adds the member events that a client which loads members lazily needs: of those who sent something that is
    /// shown, and of `more`; at the first sight of a room also the user's own.
    pub async fn add_members(
        &self,
        room: &RoomId,
        entries: &mut Entries,
        stretch: &Stretch,
        whole: bool,
        more: &[OwnedUserId],
        current: Option<NodeId>,
    ) -> StoreResult<()> {
        let Some(redundant) = self.request.filter.lazy_load() else { return Ok(()) };
        let mut users: BTreeSet<&OwnedUserId> =
            stretch.events.iter().map(|stored| &stored.event.sender).collect();
        users.extend(more);
        let own = self.user().to_owned();
        if whole {
            users.insert(&own);
        }
        let keys: Vec<StateKey> = users
            .into_iter()
            .map(|user| state_key(StateEventType::RoomMember, user.as_str()))
            .filter(|key| !entries.contains_key(key))
            .collect();
        let last = stretch.events.last();
        let root = current.or_else(|| last.and_then(|stored| stored.state_before));
        let sent = (!whole && !redundant).then_some(self.since).flatten();
        if let (Some(root), false) = (root, keys.is_empty()) {
            let found = self.core().store.state_get_many(root, &keys).await?;
            let mut members: Entries =
                keys.iter().cloned().zip(found).filter_map(|(key, id)| Some((key, id?))).collect();
            if members.len() < keys.len() && self.partial.contains(room) {
                self.add_claimed(&keys, &mut members, stretch).await?;
            }
            if let Some(since) = sent {
                let known =
                    |id: &OwnedEventId| self.sync.lazy.was_sent(&self.request.viewer, room, id, since);
                members.retain(|_, id| !known(id));
            }
            if whole {
                members = self.up_to_timeline(members, stretch).await?;
            } else if !self.after() {
                members.retain(|_, id| !stretch.contains(id));
            }
            entries.extend(members);
        }
        self.remember_members(room, entries, stretch, whole);
        Ok(())
    }

    /// While the members of a room are missing: those that the events of the timeline name as authorising them.
    async fn add_claimed(
        &self,
        keys: &[StateKey],
        members: &mut Entries,
        stretch: &Stretch,
    ) -> StoreResult<()> {
        let named: Vec<OwnedEventId> =
            stretch.events.iter().flat_map(|stored| stored.event.auth_events.iter().cloned()).collect();
        for (id, stored) in self.core().store.events(&named).await? {
            let Some(key) = stored.event.state_entry().filter(|_| !stored.flags.rejected) else { continue };
            if keys.contains(&key) {
                members.entry(key).or_insert(id);
            }
        }
        Ok(())
    }

    fn remember_members(&self, room: &RoomId, entries: &Entries, stretch: &Stretch, whole: bool) {
        let of_state = entries.iter().filter(|((kind, _), _)| *kind == StateEventType::RoomMember);
        let of_timeline = stretch.events.iter().filter(|stored| {
            stored.event.kind == ruma::events::TimelineEventType::RoomMember && stored.event.is_state()
        });
        let ids = of_state.map(|(_, id)| id).chain(of_timeline.map(|stored| &stored.event.event_id));
        self.sync.lazy.sent(&self.request.viewer, room, ids, self.upto, whole);
    }

    /// The events of these entries, those that the filter lets through.
    pub async fn show_state(&self, entries: Entries) -> StoreResult<Vec<Box<serde_json::value::RawValue>>> {
        let ids: Vec<OwnedEventId> = entries.into_values().collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let loaded = self.core().store.events(&ids).await?;
        let mut events: Vec<_> = ids.iter().filter_map(|id| loaded.get(id).cloned()).collect();
        events.retain(|stored| self.request.filter.state(&stored.event));
        self.show(&events, crate::render::Shown::SYNC_STATE).await
    }

    /// The state that rows, or too many of them to list, change.
    pub async fn state_changed(
        &self,
        room: &RoomId,
        rows: &RoomRows,
        current: Option<NodeId>,
        stretch: &Stretch,
    ) -> StoreResult<Entries> {
        match (rows, current, self.since) {
            (RoomRows::Many, Some(current), Some(since)) => {
                self.state_by_difference(room, current, since.0, stretch).await
            }
            (rows, _, _) => Ok(self.state_of_rows(rows.rows(), stretch)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::room_id;
    use waxwing_model::LogPosition;

    #[test]
    fn the_last_row_of_an_entry_counts() {
        let row = |position, reference: Option<&str>| {
            Arc::new(LogRow {
                position: LogPosition(position),
                fact: Fact::State,
                room: Some(room_id!("!r:x").to_owned()),
                user: None,
                reference: reference.map(str::to_owned),
                data: Some(r#"["m.room.name",""]"#.to_owned()),
                event: None,
            })
        };
        let key = state_key(StateEventType::RoomName, "");
        let changes = fold(&[row(1, Some("$a")), row(2, Some("$b"))]);
        assert_eq!(changes[&key].as_ref().unwrap(), "$b");
        assert_eq!(fold(&[row(1, Some("$a")), row(2, None)])[&key], None);
    }
}
