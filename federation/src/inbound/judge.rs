//! Authorising events by their own auth events alone (check 4), many at a time: auth chains and states that come from
//! another server.

use ruma::{EventId, OwnedEventId, RoomVersionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::Judged;
use waxwing_rooms::auth::{
    check_state_dependent, check_state_independent, create_event_id, state_of_auth_events,
};

use crate::ports::Outlier;

/// Everything that an event names as authorising it, the create event of a version 12 room included.
pub(crate) fn authorisers(event: &Event, version: &RoomVersionId) -> Vec<OwnedEventId> {
    let mut ids = event.auth_events.clone();
    if event.kind != ruma::events::TimelineEventType::RoomCreate {
        ids.extend(create_event_id(&event.room_id, version).filter(|id| !event.auth_events.contains(id)));
    }
    ids
}

/// Check 4: the reason why the event is rejected, if it is. `fetch` finds its auth events.
pub(crate) fn by_auth_events(
    event: &Event,
    version: &RoomVersionId,
    fetch: impl Fn(&EventId) -> Option<Judged>,
) -> Option<String> {
    let checked = check_state_independent(event, version, &fetch)
        .and_then(|()| check_state_dependent(event, version, &state_of_auth_events(event, version, &fetch)));
    checked.err().map(|error| error.to_string())
}

/// Judges `events` in an order in which each comes after those that authorise it. `known` finds authorising events
/// that are not among them. An event that nobody can judge, because something that authorises it is nowhere to be
/// had (or it authorises itself in a circle), is left out, and so is everything that rests on it: an auth chain with a
/// hole must not be stored.
pub(crate) fn judge(
    events: Vec<Arc<Event>>,
    version: &RoomVersionId,
    known: impl Fn(&EventId) -> Option<Judged>,
) -> Vec<Outlier> {
    let mut judged: BTreeMap<OwnedEventId, Judged> = BTreeMap::new();
    let mut outliers = Vec::with_capacity(events.len());
    for event in in_auth_order(events, version) {
        let find = |id: &EventId| judged.get(id).cloned().or_else(|| known(id));
        if authorisers(&event, version).iter().any(|id| find(id).is_none()) {
            continue;
        }
        let rejected = by_auth_events(&event, version, find);
        let entry = Judged { event: Arc::clone(&event), rejected: rejected.is_some() };
        judged.insert(event.event_id.clone(), entry);
        outliers.push(Outlier { event, rejected });
    }
    outliers
}

/// Sorts so that authorising events come first. Iterative: an auth chain may be tens of thousands long.
fn in_auth_order(events: Vec<Arc<Event>>, version: &RoomVersionId) -> Vec<Arc<Event>> {
    let by_id: BTreeMap<OwnedEventId, Arc<Event>> =
        events.into_iter().map(|event| (event.event_id.clone(), event)).collect();
    let inside = |event: &Event| {
        let ids = authorisers(event, version);
        ids.into_iter().filter(|id| by_id.contains_key(id)).collect::<Vec<_>>()
    };
    let mut order = Vec::with_capacity(by_id.len());
    let mut seen = BTreeSet::new();
    for start in by_id.values() {
        let mut stack = vec![(Arc::clone(start), None::<Vec<OwnedEventId>>)];
        while let Some((event, pending)) = stack.pop() {
            let mut pending = match pending {
                Some(pending) => pending,
                None if seen.insert(event.event_id.clone()) => inside(&event),
                None => continue,
            };
            match pending.pop() {
                Some(next) => {
                    let next = Arc::clone(&by_id[&next]);
                    stack.push((event, Some(pending)));
                    stack.push((next, None));
                }
                None => order.push(event),
            }
        }
    }
    order
}
