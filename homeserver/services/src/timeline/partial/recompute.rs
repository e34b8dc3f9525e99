//! What a room becomes with its members: the states before the events that came since the join, and the verdicts on
//! them, worked out again.

use crate::timeline::Timeline;
use crate::timeline::error::TimelineError;
use crate::timeline::resolve::{resolve_roots, state_after, update};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{EventId, OwnedEventId, OwnedServerName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::Judged;
use waxwing_rooms::auth::{
    check_state_dependent, check_state_independent, create_event_id, state_of_auth_events,
};
use waxwing_rooms::state_tree::{Change, NodeId};
use waxwing_storage::{EventFlags, PartialEvent, PartialRow, RoomRow, StoredEvent};

/// An event that was judged again.
#[derive(Clone, Debug)]
pub(super) struct Again {
    /// As it is stored.
    pub stored: Arc<StoredEvent>,
    /// The state before it.
    pub before: NodeId,
    /// The state after it.
    pub after: NodeId,
    /// The new verdict.
    pub flags: EventFlags,
}

impl Again {
    fn event(&self) -> &Event {
        &self.stored.event
    }

    /// Something of it is to be written.
    pub fn changed(&self) -> bool {
        self.stored.state_before != Some(self.before) || self.stored.flags != self.flags
    }

    /// It was not shown, and is to be now.
    pub fn appears(&self) -> bool {
        self.flags.visible() && !self.stored.flags.visible()
    }
}

/// What is to be committed.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The room as it was.
    pub row: RoomRow,
    /// The join before which the members were missing, and the events since, each after those that it follows.
    pub events: Vec<Again>,
    /// The forward extremities.
    pub extremities: Vec<(OwnedEventId, u64)>,
    /// The current state.
    pub current: NodeId,
    /// What changes in it.
    pub changes: Vec<Change>,
    /// The events of members that are in the table already.
    pub members: BTreeSet<OwnedEventId>,
    /// The servers that were in the room before the join.
    pub servers_before: BTreeSet<OwnedServerName>,
    /// Those that came since.
    pub servers_since: BTreeSet<OwnedServerName>,
}

fn is_join(event: &Event) -> bool {
    event.kind == TimelineEventType::RoomMember && event.content_str("membership").as_deref() == Some("join")
}

fn server_of(event: &Event) -> Option<OwnedServerName> {
    let user = ruma::UserId::parse(event.state_key.as_deref()?).ok()?;
    Some(user.server_name().to_owned())
}

impl Timeline {
    /// Works it out: `full` is the whole state before the join.
    pub(super) async fn plan(
        &self,
        row: &RoomRow,
        partial: &PartialRow,
        full: NodeId,
    ) -> Result<Plan, TimelineError> {
        let store = &self.core.store;
        let join = store.event(&partial.join_id).await?;
        let join = join.ok_or_else(|| TimelineError::Internal("the join of a room is gone".to_owned()))?;
        let since = store.read().await?.partial_events(&row.room_id).await?;
        let ids: Vec<OwnedEventId> = since.iter().map(|noted| noted.event_id.clone()).collect();
        let fetched: BTreeMap<OwnedEventId, PartialEvent> =
            since.into_iter().map(|noted| (noted.event_id.clone(), noted)).collect();
        let known = store.events(&ids).await?;
        let stored = known.into_values().filter(|stored| !stored.flags.outlier).collect();
        let entry = join.event.state_entry().map(|entry| (entry, Some(join.event.event_id.clone())));
        let after = update(&self.core, full, entry.into_iter().collect()).await?;
        let first = Again { stored: join, before: full, after, flags: EventFlags::NONE };
        let mut work = Work { timeline: self, row, done: Vec::new(), places: BTreeMap::new() };
        work.push(first);
        for stored in in_order(stored) {
            let roots = fetched.get(&stored.event.event_id).map(|noted| noted.fetched.as_slice());
            let again = work.judge(stored, roots.unwrap_or_default()).await?;
            work.push(again);
        }
        let (extremities, current) = work.finish().await?;
        let joins = work.done.iter().filter(|again| again.flags.visible() && is_join(again.event()));
        let servers_since = joins.filter_map(|again| server_of(again.event())).collect();
        Ok(Plan {
            row: row.clone(),
            extremities,
            current,
            changes: store.state_diff(row.state_root, current).await?,
            members: BTreeSet::new(),
            servers_before: self.servers_at(full).await?,
            servers_since,
            events: work.done,
        })
    }

    /// The servers with a joined user in a state.
    async fn servers_at(&self, root: NodeId) -> Result<BTreeSet<OwnedServerName>, TimelineError> {
        let members = self.core.store.state_of_type(root, &StateEventType::RoomMember).await?;
        let ids: Vec<OwnedEventId> = members.into_iter().map(|(_, id)| id).collect();
        let events = self.core.store.events(&ids).await?;
        let joined = events.values().filter(|stored| is_join(&stored.event));
        Ok(joined.filter_map(|stored| server_of(&stored.event)).collect())
    }
}

struct Work<'a> {
    timeline: &'a Timeline,
    row: &'a RoomRow,
    done: Vec<Again>,
    places: BTreeMap<OwnedEventId, usize>,
}

impl Work<'_> {
    fn push(&mut self, again: Again) {
        self.places.insert(again.event().event_id.clone(), self.done.len());
        self.done.push(again);
    }

    fn of(&self, id: &EventId) -> Option<&Again> {
        self.places.get(id).map(|place| &self.done[*place])
    }

    /// `fetched`: the states that came from elsewhere for what it follows and we lack.
    async fn judge(&self, stored: Arc<StoredEvent>, fetched: &[NodeId]) -> Result<Again, TimelineError> {
        let core = &self.timeline.core;
        let event = Arc::clone(&stored.event);
        let known = core.store.events(&event.prev_events).await?;
        let mut roots = BTreeSet::new();
        for id in &event.prev_events {
            let root = match (self.of(id), known.get(id)) {
                (Some(again), _) => Some(again.after),
                (None, Some(stored)) => state_after(core, stored).await?,
                (None, None) => None,
            };
            match root {
                Some(root) => drop(roots.insert(root)),
                None => roots.extend(fetched.iter().copied()),
            }
        }
        let before = match (roots.is_empty(), stored.state_before) {
            (true, Some(before)) => before,
            _ => resolve_roots(core, self.row, &roots, None).await?,
        };
        let rejected = self.is_rejected(&event, before).await?;
        let entry = event.state_entry().filter(|_| !rejected);
        let change = entry.map(|entry| (entry, Some(event.event_id.clone())));
        let after = update(core, before, change.into_iter().collect()).await?;
        // Whether one that was kept back may be shown is decided by the current state, at the end.
        let soft_failed = stored.flags.soft_failed && !rejected;
        let flags = EventFlags { outlier: false, rejected, soft_failed };
        Ok(Again { stored, before, after, flags })
    }

    /// Checks 4 and 5.
    async fn is_rejected(&self, event: &Event, before: NodeId) -> Result<bool, TimelineError> {
        let mut ids = event.auth_events.clone();
        ids.extend(create_event_id(&event.room_id, &self.row.version));
        let known = self.timeline.core.store.events(&ids).await?;
        let fetch = |id: &EventId| {
            let stored = known.get(id)?;
            let flags = self.of(id).map_or(stored.flags, |again| again.flags);
            Some(Judged { event: Arc::clone(&stored.event), rejected: flags.rejected })
        };
        let by_auth = check_state_independent(event, &self.row.version, fetch).and_then(|()| {
            check_state_dependent(
                event,
                &self.row.version,
                &state_of_auth_events(event, &self.row.version, fetch),
            )
        });
        Ok(by_auth.is_err() || !self.is_allowed(event, before).await?)
    }

    async fn is_allowed(&self, event: &Event, state: NodeId) -> Result<bool, TimelineError> {
        let map = self.timeline.judges(event, &self.row.version, state, false).await?;
        Ok(map.and_then(|map| check_state_dependent(event, &self.row.version, &map)).is_ok())
    }

    /// The end of the room. What had been kept back is shown now if the current state allows it.
    async fn finish(&mut self) -> Result<(Vec<(OwnedEventId, u64)>, NodeId), TimelineError> {
        let (mut extremities, mut current) = self.end().await?;
        let mut again = false;
        for place in 0..self.done.len() {
            let Again { stored, flags, .. } = &self.done[place];
            if stored.flags.visible() || flags.rejected {
                continue;
            }
            let event = Arc::clone(&stored.event);
            let soft_failed = !self.is_allowed(&event, current).await?;
            again |= soft_failed != self.done[place].flags.soft_failed;
            self.done[place].flags.soft_failed = soft_failed;
        }
        if again {
            (extremities, current) = self.end().await?;
        }
        Ok((extremities, current))
    }

    /// The accepted events that no accepted one follows, and the state after them.
    async fn end(&self) -> Result<(Vec<(OwnedEventId, u64)>, NodeId), TimelineError> {
        let mut followed: BTreeSet<&OwnedEventId> = BTreeSet::new();
        for again in self.done.iter().rev() {
            // What follows a rejected event follows what that one follows.
            if again.flags.visible() || followed.contains(&again.event().event_id) {
                followed.extend(&again.event().prev_events);
            }
        }
        let last: Vec<&Again> = self
            .done
            .iter()
            .filter(|again| again.flags.visible() && !followed.contains(&again.event().event_id))
            .collect();
        let roots = last.iter().map(|again| again.after).collect();
        let current = resolve_roots(&self.timeline.core, self.row, &roots, None).await?;
        let place = |again: &&Again| (again.event().event_id.clone(), u64::from(again.event().depth));
        Ok((last.iter().map(place).collect(), current))
    }
}

/// Sorts events so that each comes after those of its `prev_events` that are among them.
fn in_order(events: Vec<Arc<StoredEvent>>) -> Vec<Arc<StoredEvent>> {
    let by_id: BTreeMap<OwnedEventId, Arc<StoredEvent>> =
        events.into_iter().map(|stored| (stored.event.event_id.clone(), stored)).collect();
    let mut waiting: BTreeMap<&OwnedEventId, usize> = BTreeMap::new();
    let mut followers: BTreeMap<&OwnedEventId, Vec<&OwnedEventId>> = BTreeMap::new();
    for (id, stored) in &by_id {
        let prev: BTreeSet<&OwnedEventId> =
            stored.event.prev_events.iter().filter(|prev| by_id.contains_key(*prev)).collect();
        waiting.insert(id, prev.len());
        for prev in prev {
            followers.entry(prev).or_default().push(id);
        }
    }
    let mut free: BTreeSet<(u64, &OwnedEventId)> = BTreeSet::new();
    let place = |id: &OwnedEventId| u64::from(by_id[id].event.depth);
    free.extend(waiting.iter().filter(|(_, count)| **count == 0).map(|(id, _)| (place(id), *id)));
    let mut order = Vec::with_capacity(by_id.len());
    while let Some((_, id)) = free.pop_first() {
        order.push(Arc::clone(&by_id[id]));
        for follower in followers.remove(id).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(follower) {
                *count -= 1;
                if *count == 0 {
                    free.insert((place(follower), follower));
                }
            }
        }
    }
    order
}
