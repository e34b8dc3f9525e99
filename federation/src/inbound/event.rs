use ruma::events::StateEventType;
use ruma::{OwnedEventId, RoomId, RoomVersionId, ServerName};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::{Event, state_key};

use super::{Context, Trouble, parse, verify};
use crate::ports::{Known, PortResult};

/// How an event came to us: decides what may be assumed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Sent to us. It may become the only forward extremity, so its past must be known: the state that its sender
    /// claims would be the room's.
    Pushed,
    /// Fetched to fill a gap before a pushed one.
    Pulled,
    /// Fetched as history; with the number that places it in the room's timeline.
    History(i64),
}

impl Source {
    pub(super) fn is_history(self) -> bool {
        self.history().is_some()
    }

    pub(super) fn history(self) -> Option<i64> {
        match self {
            Source::History(number) => Some(number),
            Source::Pushed | Source::Pulled => None,
        }
    }

    /// The source of the event at this place of a list, oldest first.
    pub(super) fn nth(self, index: usize) -> Source {
        match self {
            Source::History(first) => Source::History(first + index as i64),
            other => other,
        }
    }
}

/// Work on one room with one server to ask. Whoever makes it holds the room's lock.
#[derive(Clone, Copy)]
pub(super) struct RoomWork<'a> {
    pub(super) context: &'a Context,
    pub(super) origin: &'a ServerName,
    pub(super) room: &'a RoomId,
    pub(super) version: &'a RoomVersionId,
}

impl RoomWork<'_> {
    /// Takes an event that has passed checks 1 to 3 through the others into the room. `Ok` when it is part of the
    /// graph afterwards, whatever the verdict.
    pub(super) async fn receive(&self, event: Arc<Event>, source: Source) -> Result<(), Trouble> {
        let flags =
            self.context.timeline.events_flags(self.room, std::slice::from_ref(&event.event_id)).await?;
        if flags.get(&event.event_id).is_some_and(|flags| !flags.outlier) {
            return Ok(());
        }
        if event.prev_events.is_empty() && !self.is_beginning(&event, source).await? {
            return Err(Trouble::dropped("an event without prev_events in a room that exists"));
        }
        let mut missing = self.missing_prev_events(&event).await?;
        if !missing.is_empty() && source == Source::Pushed {
            // Boxed: the events of the gap come back to this function.
            Box::pin(self.fill_gap(&event)).await?;
            missing = self.missing_prev_events(&event).await?;
            if !missing.is_empty() {
                return Err(Trouble::Stranded("prev_events are unknown and could not be fetched"));
            }
        }
        // The state first: at a gap it is asked for with its auth chain, which usually brings the auth events too.
        let (state_before, fetched) = self.state_before(&event, &missing).await?;
        self.fetch_missing_auth(&event).await?;
        let rejected = self.authorise(&event, state_before).await?;
        self.persist(event, state_before, rejected, source, fetched).await
    }

    /// Whether the event is the room's create event, which is known from the state already, and comes as history.
    async fn is_beginning(&self, event: &Event, source: Source) -> PortResult<bool> {
        if !source.is_history() || !event.is_state_of(&StateEventType::RoomCreate, "") {
            return Ok(false);
        }
        let key = state_key(StateEventType::RoomCreate, "");
        let Some(root) = self.context.timeline.state_current(self.room).await? else { return Ok(false) };
        let created =
            self.context.timeline.state_entries(self.room, root, std::slice::from_ref(&key)).await?;
        Ok(created.get(&key) == Some(&event.event_id))
    }

    /// Those of its `prev_events` that are not part of our graph.
    pub(super) async fn missing_prev_events(&self, event: &Event) -> PortResult<Vec<OwnedEventId>> {
        let flags = self.context.timeline.events_flags(self.room, &event.prev_events).await?;
        let in_graph = |id: &OwnedEventId| flags.get(id).is_some_and(|flags| !flags.outlier);
        Ok(event.prev_events.iter().filter(|id| !in_graph(id)).cloned().collect())
    }

    /// Those of `ids` that are not known at all.
    pub(super) async fn unknown(&self, ids: Vec<OwnedEventId>) -> PortResult<Vec<OwnedEventId>> {
        let flags = self.context.timeline.events_flags(self.room, &ids).await?;
        Ok(ids.into_iter().filter(|id| !flags.contains_key(id)).collect())
    }

    pub(super) async fn load(&self, ids: &[OwnedEventId]) -> PortResult<BTreeMap<OwnedEventId, Known>> {
        self.context.timeline.events_load(self.room, ids).await
    }

    /// Checks 1 to 3 for events that were fetched; what fails is left out.
    pub(super) async fn parse_and_verify(
        &self,
        events: Vec<Box<RawValue>>,
        source: Source,
    ) -> PortResult<Vec<Arc<Event>>> {
        let parse_one = if source == Source::Pushed { parse::parse } else { parse::parse_old };
        let pdus = events.iter().filter_map(|json| match parse_one(json, self.room, self.version) {
            Ok(pdu) => Some(pdu),
            Err(error) => {
                tracing::debug!(room = %self.room, origin = %self.origin, error, "a fetched event is dropped");
                None
            }
        });
        let verified = verify::verify_all(&self.context.ring, self.version, pdus.collect()).await?;
        let good = verified.into_iter().filter_map(|(id, result)| match result {
            Ok(event) => Some(event),
            Err(error) => {
                tracing::debug!(room = %self.room, event = %id, error, "a fetched event is dropped");
                None
            }
        });
        Ok(good.collect())
    }
}

/// Sorts events so that each comes after those of its `prev_events` that are among them. Depth is only another
/// server's claim.
pub(super) fn oldest_first(events: Vec<Arc<Event>>) -> Vec<Arc<Event>> {
    let mut left: BTreeMap<OwnedEventId, Arc<Event>> =
        events.into_iter().map(|event| (event.event_id.clone(), event)).collect();
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let free: Vec<OwnedEventId> = left
            .values()
            .filter(|event| !event.prev_events.iter().any(|id| left.contains_key(id)))
            .map(|event| event.event_id.clone())
            .collect();
        if free.is_empty() {
            // A circle cannot be built with hashes for ids; in room versions 1 and 2 it can be written. Leave it out.
            break;
        }
        order.extend(free.iter().filter_map(|id| left.remove(id)));
    }
    order
}
