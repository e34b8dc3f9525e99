//! Which events of a room's timeline are shown.

use super::build::Build;
use super::response::Timeline;
use crate::render::{Shown, render};
use crate::rooms_read::{PageToken, TimelineToken};
use crate::visibility::{LastJoined, visible_to};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, RoomId};
use serde_json::value::RawValue;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_storage::{Fact, LogRow, StoreResult, StoredEvent};

/// Events looked at for one room at most, when a filter or the history's visibility leaves many out.
const MAX_SCAN: usize = 1000;

/// A stretch of a timeline, oldest first.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    pub events: Vec<Arc<StoredEvent>>,
    pub limited: bool,
    /// Where it begins.
    pub start: i64,
}

impl Stretch {
    /// With its events as they are shown, in an answer that has seen everything up to `seen`.
    pub fn timeline(&self, events: Vec<Box<RawValue>>, seen: i64) -> Timeline {
        let prev_batch = Some(self.prev_batch(seen));
        Timeline { events, limited: self.limited, prev_batch }
    }

    /// From where `/messages` goes on backwards.
    pub fn prev_batch(&self, seen: i64) -> String {
        TimelineToken { start: self.start, seen }.to_string()
    }

    pub fn contains(&self, id: &ruma::EventId) -> bool {
        self.events.iter().any(|stored| stored.event.event_id == id)
    }
}

/// Takes events, newest first, until there are enough.
struct Picker<'a> {
    build: &'a Build<'a>,
    limit: usize,
    /// Events that are not here: one that follows them stands behind a gap.
    missing: HashSet<OwnedEventId>,
    picked: Vec<Arc<StoredEvent>>,
    limited: bool,
    /// The newest of the events that were left out although one that came before it is shown.
    left: i64,
}

impl Picker<'_> {
    /// Takes of these, the newest first; whether to go on.
    fn take_of(&mut self, events: &[Arc<StoredEvent>]) -> bool {
        for (index, stored) in events.iter().enumerate() {
            if !self.take(stored) {
                let shown = self.picked.last().map(|picked| picked.sn);
                let left = events[index..].iter().map(|stored| stored.sn).filter(|sn| Some(*sn) != shown);
                self.left = left.max().unwrap_or(self.left);
                return false;
            }
        }
        true
    }

    /// Whether to go on.
    fn take(&mut self, stored: &Arc<StoredEvent>) -> bool {
        let event = &stored.event;
        if !self.build.is_ignored(event) && self.build.request.filter.timeline(event) {
            if self.picked.len() >= self.limit {
                self.limited = true;
                return false;
            }
            self.picked.push(Arc::clone(stored));
        }
        // A client must not think that what comes before the gap is followed directly by what comes after.
        if event.prev_events.iter().any(|id| self.missing.contains(id)) {
            self.limited = true;
            return false;
        }
        true
    }

    fn done(mut self, else_start: i64) -> Stretch {
        self.picked.sort_unstable_by_key(|stored| stored.sn);
        let first = self.picked.first().map_or(else_start, |stored| PageToken::before(stored.sn).0);
        // `/messages` must have what is not here, were it for the price of showing something twice.
        let start = first.max(self.left);
        Stretch { events: self.picked, limited: self.limited, start }
    }
}

impl Build<'_> {
    async fn picker(&self, room: &RoomId, limit: usize, may_have_gaps: bool) -> StoreResult<Picker<'_>> {
        let ahead = self.ahead();
        let missing = match (may_have_gaps, ahead.rows.contains_key(room)) {
            (false, _) => Vec::new(),
            (true, true) => ahead.extremities.get(room).cloned().unwrap_or_default(),
            (true, false) => self.core().store.read().await?.backward_extremities(room).await?,
        };
        Ok(Picker {
            build: self,
            limit,
            missing: missing.into_iter().collect(),
            picked: Vec::new(),
            limited: false,
            left: i64::MIN,
        })
    }

    /// Only what comes from elsewhere, or brings us in, can follow events that are not here; what follows events that
    /// memory has does not.
    fn may_follow_gap(&self, event: &Event) -> bool {
        let from_here = self.core().is_local(&event.sender) && event.kind != TimelineEventType::RoomMember;
        !from_here && !self.core().store.has_in_memory(&event.prev_events)
    }

    /// The stretch that these rows announce, `limit` events at most. With `last`, what the user may not see is left
    /// out.
    pub async fn stretch_of_rows(
        &self,
        room: &RoomId,
        rows: &[Arc<LogRow>],
        last: Option<LastJoined>,
        limit: usize,
    ) -> StoreResult<Stretch> {
        let events = rows.iter().filter(|row| row.fact == Fact::Event).filter_map(|row| row.event.clone());
        let mut events: Vec<Arc<StoredEvent>> = events.filter(|stored| stored.flags.visible()).collect();
        if let Some(last) = last {
            let visible = visible_to(self.core(), self.user(), last, events.clone()).await?;
            let visible: HashSet<i64> = visible.iter().map(|stored| stored.sn).collect();
            // What became of oneself is always seen: a rejected invitation, a ban.
            let own = |event: &Event| event.is_state_of(&StateEventType::RoomMember, self.user().as_str());
            events.retain(|stored| visible.contains(&stored.sn) || own(&stored.event));
        }
        let events = self.with_children(events).await?;
        let gaps = events.iter().any(|stored| self.may_follow_gap(&stored.event));
        let mut picker = self.picker(room, limit, gaps).await?;
        let newest_first: Vec<Arc<StoredEvent>> = events.into_iter().rev().collect();
        picker.take_of(&newest_first);
        Ok(picker.done(self.upto.0))
    }

    /// The stretch that ends with the events below `before` and goes no further back than `floor`, `limit` events at
    /// most. To a client that begins it is the end of the graph, not what came last: what another server had
    /// long ago and was late to send is part of what came before.
    pub async fn stretch_backward(
        &self,
        room: &RoomId,
        before: i64,
        floor: Option<i64>,
        last: LastJoined,
        limit: usize,
    ) -> StoreResult<Stretch> {
        let mut picker = self.picker(room, limit, true).await?;
        if picker.limit == 0 {
            picker.limited = true;
            return Ok(picker.done(before - 1));
        }
        let mut scanned = 0;
        let mut at = before;
        loop {
            let chunk = (picker.limit + 1).max(20);
            let newest = self.ahead().newest(room).filter(|_| at == self.upto.0 + 1);
            let (events, complete) = if let Some(newest) = newest {
                (newest.events, newest.complete)
            } else {
                let events = self.core().store.timeline_backward(room, at, chunk).await?;
                let complete = events.len() < chunk;
                (events, complete)
            };
            let at_end = scanned == 0;
            scanned += events.len();
            at = events.last().map_or(at, |stored| stored.sn);
            let below = |stored: &Arc<StoredEvent>| floor.is_some_and(|floor| stored.sn <= floor);
            let reached = events.iter().any(below);
            let events = events.into_iter().filter(|stored| !below(stored)).collect();
            let visible = visible_to(self.core(), self.user(), last, events).await?;
            let mut candidates = self.with_children(visible).await?;
            if self.since.is_none() && last == LastJoined::Now && at_end {
                candidates.sort_by_key(|stored| Reverse((stored.event.depth, stored.sn)));
            }
            if !picker.take_of(&candidates) || complete || reached {
                break;
            }
            if scanned >= MAX_SCAN {
                picker.limited = true;
                break;
            }
        }
        Ok(picker.done(before - 1))
    }

    /// Those to which the events that the filter names relate.
    async fn with_children(&self, events: Vec<Arc<StoredEvent>>) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let Some(filter) = self.request.filter.timeline_by_children() else { return Ok(events) };
        let mut conn = self.core().store.read().await?;
        let mut kept = Vec::with_capacity(events.len());
        for stored in events {
            let children = conn.relation_senders(&stored.event.event_id).await?;
            if children.iter().any(|(sender, rel_type)| filter.child_passes(sender, rel_type)) {
                kept.push(stored);
            }
        }
        Ok(kept)
    }

    /// As the client gets it.
    pub async fn show_timeline(&self, stretch: &Stretch) -> StoreResult<Timeline> {
        let bundles = stretch.limited || self.since.is_none();
        let shown = Shown { relations: bundles, ..Shown::TIMELINE };
        Ok(stretch.timeline(self.show(&stretch.events, shown).await?, self.upto.0))
    }

    /// Events in the format and with the fields that the filter asks for.
    pub async fn show(&self, events: &[Arc<StoredEvent>], shown: Shown) -> StoreResult<Vec<Box<RawValue>>> {
        let filter = &self.request.filter;
        let rendered = if filter.federation_format() {
            let whole = |stored: &Arc<StoredEvent>| RawValue::from_string(stored.event.json.get().to_owned());
            events.iter().filter_map(|stored| whole(stored).ok()).collect()
        } else {
            render(self.core(), &self.request.viewer, events, shown).await?
        };
        Ok(rendered.into_iter().map(|event| filter.shape(event)).collect())
    }
}
