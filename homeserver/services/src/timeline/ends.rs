//! Rooms with more ends than one event can follow.
//!
//! The state before an event is what follows from its `prev_events`, for every server. Where a room has more ends than
//! fit, the state of the room is not the state before the next event, and an event that was built as if it were would
//! be judged otherwise elsewhere. So ends are joined first, by events that say nothing, until they fit.

use super::Timeline;
use super::append::{
    Draft, MAX_PREV_EVENTS, append_at, context_at, deepest_first, raw, room_row, state_events,
};
use super::error::TimelineError;
use super::persist::state_moved;
use super::policy::{self, Approvals};
use super::resolve::{resolve_roots, state_after};
use crate::Core;
use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, RoomId};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::state_tree::NodeId;
use waxwing_rooms::{auth, build};
use waxwing_storage::{RoomRow, StoreError, Tx};

/// Events that join ends before one that somebody wants to send: each takes nineteen away. What is left then is left to
/// the next.
const MAX_JOINTS: usize = 50;
/// Users of ours who are tried: who may speak at all may speak these.
const MAX_SPEAKERS: usize = 20;
/// An event that says nothing, under the name that other servers give it.
const NOTHING: &str = "org.matrix.dummy_event";

/// What is found out before the transaction that joins ends.
struct Joint {
    revision: i64,
    /// The state after the ends that are joined.
    before: NodeId,
    /// The state of the room with them joined.
    after: NodeId,
    /// What the room's policy server says.
    approvals: Approvals,
}

impl Timeline {
    /// Joins ends of the room until an event can follow all of them. Does nothing in almost every room.
    pub(crate) async fn join_ends(&self, room: &RoomId) -> Result<(), TimelineError> {
        let approvals = Approvals::default();
        for _ in 0..MAX_JOINTS {
            let Some(row) = self.core.store.read().await?.room_load(room).await? else { return Ok(()) };
            if row.extremities.len() <= MAX_PREV_EVENTS {
                return Ok(());
            }
            let joint = Arc::new(self.joint(&row, approvals.clone()).await?);
            let (core, rooms) = (self.core.clone(), vec![room.to_owned()]);
            let room = room.to_owned();
            let joined = self.core.store.write("join ends", rooms, move |tx| {
                let (core, room, joint) = (core.clone(), room.clone(), Arc::clone(&joint));
                Box::pin(async move { joint.commit(&core, tx, &room).await })
            });
            match joined.await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(TimelineError::Unapproved(unapproved)) => self.ask_policy(&unapproved).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn joint(&self, row: &RoomRow, approvals: Approvals) -> Result<Joint, TimelineError> {
        let mut ends: Vec<OwnedEventId> = deepest_first(row).into_iter().map(|(id, _)| id).collect();
        let others = ends.split_off(MAX_PREV_EVENTS);
        let before = resolve_roots(&self.core, row, &self.after_each(&ends).await?, None).await?;
        let mut roots = self.after_each(&others).await?;
        roots.insert(before);
        let after = resolve_roots(&self.core, row, &roots, None).await?;
        Ok(Joint { revision: row.revision, before, after, approvals })
    }

    async fn after_each(&self, ids: &[OwnedEventId]) -> Result<BTreeSet<NodeId>, TimelineError> {
        let mut roots = BTreeSet::new();
        for stored in self.core.store.events(ids).await?.values() {
            roots.extend(state_after(&self.core, stored).await?);
        }
        Ok(roots)
    }
}

impl Joint {
    /// Whether it is worth another look: ends were joined, or the room has changed.
    async fn commit(&self, core: &Core, tx: &mut Tx, room: &RoomId) -> Result<bool, TimelineError> {
        let mut row = room_row(tx, room).await?;
        if row.revision != self.revision {
            return Ok(true);
        }
        let Some(event) = self.build(core, tx, &row).await? else {
            tracing::info!(%room, ends = row.extremities.len(), "nobody of ours may join the ends of a room");
            return Ok(false);
        };
        let event = policy::approved(core, tx, &row, &self.approvals, event).await?;
        // Both are what follows from the same ends, resolved in another order: they may differ.
        for change in tx.state().diff(row.state_root, self.after).await? {
            state_moved(core, tx, &mut row, change.key, change.after).await?;
        }
        row.state_root = self.after;
        append_at(core, tx, row, event, self.before).await?;
        Ok(true)
    }

    /// The event, by the first of our users who may send it.
    async fn build(
        &self,
        core: &Core,
        tx: &mut Tx,
        row: &RoomRow,
    ) -> Result<Option<Arc<Event>>, TimelineError> {
        let content = raw(&serde_json::Map::new())?;
        let speakers = tx.local_members_of(&row.room_id, "join").await?;
        for user in speakers.into_iter().take(MAX_SPEAKERS) {
            let draft =
                Draft::message(user, TimelineEventType::from(NOTHING), content.clone()).event_draft(core);
            let context = context_at(tx, row, &draft, self.before).await?;
            let event = Arc::new(build::build_event(draft, &context, &core.server_name, &core.key)?);
            let keys = auth::state_to_load_for(&event, &row.version)?;
            let now = state_events(tx, self.after, &keys).await?;
            let allowed = [&context.state, &now]
                .into_iter()
                .all(|state| auth::check_state_dependent(&event, &row.version, state).is_ok());
            if allowed {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

/// Says in the log that a failure to join ends keeps nobody from speaking.
pub(super) fn note(room: &RoomId, joined: Result<(), TimelineError>) -> Result<(), StoreError> {
    match joined {
        Err(TimelineError::Store(error)) => Err(error),
        Err(error) => {
            tracing::warn!(%room, %error, "the ends of a room could not be joined");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
