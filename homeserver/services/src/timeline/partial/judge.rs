//! The events that came since the join, judged again with the members: a slice at a time, in the order in which they came.
//! What is worked out of a slice is written with it, so that whoever goes on after a crash begins where it ended, and
//! no more than a slice is in memory.
//!
//! Meanwhile the room goes on. An event that comes is judged by what is known when it comes, and again in its turn.

use crate::timeline::Timeline;
use crate::timeline::error::TimelineError;
use crate::timeline::resolve::{resolve_roots, state_after, update};
use ruma::{EventId, OwnedEventId, RoomId, RoomVersionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::Judged;
use waxwing_rooms::auth::{
    check_state_dependent, check_state_independent, create_event_id, state_of_auth_events,
};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{
    EventFlags, Fact, NewRow, PartialEvent, PartialJudged, PartialVerdict, RoomRow, StoredEvent, Tx,
};

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
    pub verdict: PartialVerdict,
}

impl Again {
    /// The flags that are right until the end: what had been kept back stays so.
    fn flags(&self) -> EventFlags {
        match self.verdict {
            PartialVerdict::Shown => EventFlags::NONE,
            PartialVerdict::Rejected => EventFlags { rejected: true, ..EventFlags::NONE },
            PartialVerdict::Pending => self.stored.flags,
        }
    }
}

impl Timeline {
    /// Judges the next events and writes what they turned out to be. `false` when there are none, or the next is a join
    /// before which the state is not here yet.
    pub(super) async fn judge_slice(&self, row: &RoomRow) -> Result<bool, TimelineError> {
        let (store, room) = (&self.core.store, &row.room_id);
        let mut noted =
            store.read().await?.partial_unjudged(room, i64::from(self.patience.slice.max(1))).await?;
        if let Some(wanted) = noted.iter().position(|noted| noted.wanted) {
            noted.truncate(wanted);
        }
        if noted.is_empty() {
            return Ok(false);
        }
        let ids: Vec<OwnedEventId> = noted.iter().map(|noted| noted.event_id.clone()).collect();
        let stored = store.events(&ids).await?;
        let mut work = Work { timeline: self, row, done: BTreeMap::new() };
        let mut slice: Vec<(OwnedEventId, Option<Again>)> = Vec::with_capacity(noted.len());
        for noted in noted {
            let again = match stored.get(&noted.event_id).filter(|stored| !stored.flags.outlier) {
                Some(stored) => Some(work.judge(Arc::clone(stored), &noted).await?),
                None => None,
            };
            slice.push((noted.event_id, again));
        }
        let input = Arc::new((room.to_owned(), slice));
        store
            .write("judge again", vec![room.to_owned()], move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { write_slice(tx, &input.0, &input.1).await })
            })
            .await?;
        metrics::counter!("waxwing_partial_events_judged_total").increment(ids.len() as u64);
        Ok(true)
    }
}

async fn write_slice(
    tx: &mut Tx,
    room: &RoomId,
    slice: &[(OwnedEventId, Option<Again>)],
) -> Result<(), TimelineError> {
    if tx.room(room).await?.is_none_or(|row| !row.partial) {
        return Ok(());
    }
    for (id, again) in slice {
        let judged = again.as_ref().map(|again| (again.verdict, again.after));
        tx.partial_judged(room, id, judged).await?;
        let Some(again) = again else { continue };
        if again.stored.state_before != Some(again.before) || again.stored.flags != again.flags() {
            tx.event_set_state(id, again.before, again.flags()).await?;
            tx.log_append(NewRow::new(Fact::EventChanged).room(room.to_owned()).reference(id.as_str()));
        }
    }
    Ok(())
}

struct Work<'a> {
    timeline: &'a Timeline,
    row: &'a RoomRow,
    /// What was judged of this slice, with the state after it.
    done: BTreeMap<OwnedEventId, (PartialVerdict, NodeId)>,
}

impl Work<'_> {
    async fn judge(
        &mut self,
        stored: Arc<StoredEvent>,
        noted: &PartialEvent,
    ) -> Result<Again, TimelineError> {
        let core = &self.timeline.core;
        let event = Arc::clone(&stored.event);
        let mut near = event.prev_events.clone();
        near.extend(event.auth_events.iter().cloned());
        let before_us = core.store.read().await?.partial_known(&self.row.room_id, &near).await?;
        let before = self.before(&stored, noted, &before_us).await?;
        // Who let us in said that the join is allowed.
        let rejected = !noted.joined && self.is_rejected(&event, before, &before_us).await?;
        let entry = event.state_entry().filter(|_| !rejected);
        let change = entry.map(|entry| (entry, Some(event.event_id.clone())));
        let after = update(core, before, change.into_iter().collect()).await?;
        let verdict = match (rejected, stored.flags.visible() || noted.joined) {
            (true, _) => PartialVerdict::Rejected,
            (false, true) => PartialVerdict::Shown,
            (false, false) => PartialVerdict::Pending,
        };
        self.done.insert(event.event_id.clone(), (verdict, after));
        Ok(Again { stored, before, after, verdict })
    }

    /// The state before an event: what came from elsewhere stands for those that it follows and we lacked.
    async fn before(
        &self,
        stored: &StoredEvent,
        noted: &PartialEvent,
        judged: &BTreeMap<OwnedEventId, PartialJudged>,
    ) -> Result<NodeId, TimelineError> {
        let core = &self.timeline.core;
        if noted.joined && !noted.fetched.is_empty() {
            let whole = noted.fetched.iter().copied().collect();
            return resolve_roots(core, self.row, &whole, None).await;
        }
        let known = core.store.events(&stored.event.prev_events).await?;
        let mut roots: BTreeSet<NodeId> = BTreeSet::new();
        for id in &stored.event.prev_events {
            let ours = self.done.get(id).map(|(_, after)| *after);
            let root = match (ours.or_else(|| judged.get(id).map(|row| row.after)), known.get(id)) {
                (Some(after), _) => Some(after),
                (None, Some(prev)) => state_after(core, prev).await?,
                (None, None) => None,
            };
            match root {
                Some(root) => drop(roots.insert(root)),
                None => roots.extend(noted.fetched.iter().copied()),
            }
        }
        match (roots.is_empty(), stored.state_before) {
            (true, Some(before)) => Ok(before),
            _ => resolve_roots(core, self.row, &roots, None).await,
        }
    }

    /// Checks 4 and 5.
    async fn is_rejected(
        &self,
        event: &Event,
        before: NodeId,
        judged: &BTreeMap<OwnedEventId, PartialJudged>,
    ) -> Result<bool, TimelineError> {
        let mut ids = event.auth_events.clone();
        ids.extend(create_event_id(&event.room_id, &self.row.version));
        let known = self.timeline.core.store.events(&ids).await?;
        let fetch = |id: &EventId| {
            let stored = known.get(id)?;
            let ours = self.done.get(id).map(|(verdict, _)| *verdict);
            let again = ours.or_else(|| judged.get(id).map(|row| row.verdict));
            let rejected = again.map_or(stored.flags.rejected, |verdict| verdict == PartialVerdict::Rejected);
            Some(Judged { event: Arc::clone(&stored.event), rejected })
        };
        let by_auth = check_state_independent(event, &self.row.version, fetch).and_then(|()| {
            check_state_dependent(
                event,
                &self.row.version,
                &state_of_auth_events(event, &self.row.version, fetch),
            )
        });
        Ok(by_auth.is_err() || !self.timeline.allows(event, &self.row.version, before).await?)
    }
}

impl Timeline {
    /// Whether the whole state at `root` allows an event.
    pub(super) async fn allows(
        &self,
        event: &Event,
        version: &RoomVersionId,
        root: NodeId,
    ) -> Result<bool, TimelineError> {
        let map = self.judges(event, version, root, false).await?;
        Ok(map.and_then(|map| check_state_dependent(event, version, &map)).is_ok())
    }
}
