//! Entries of the states before events. A state is looked up where a stretch of history begins; along the stretch the
//! entries are carried from each event to the one that follows it, so that a room in which many came and went one after
//! the other costs as little as one in which people talk.

use crate::Core;
use ruma::OwnedEventId;
use ruma::events::{StateEventType, TimelineEventType};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::StateKey;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{StateQuestion, StoreResult, StoredEvent};

/// For each of some keys the event that holds it.
pub(crate) type Holders = Vec<Option<OwnedEventId>>;

/// Whether the state before `next` is the one before `stored` with what `stored` changes: it follows that event and no
/// other, and the event counts.
fn follows(stored: &StoredEvent, next: &StoredEvent) -> bool {
    stored.flags.visible()
        && stored.event.room_id == next.event.room_id
        && next.event.prev_events.len() == 1
        && next.event.prev_events[0] == stored.event.event_id
        && stored.state_before.is_some()
        && next.state_before.is_some()
}

/// The holders of `keys` in the states before `events`, in their order; `None` for an event without a state.
pub(crate) async fn holders_before(
    core: &Core,
    events: &[Arc<StoredEvent>],
    keys: &[StateKey],
) -> StoreResult<Vec<Option<Holders>>> {
    let mut order: Vec<usize> = (0..events.len()).collect();
    order.sort_unstable_by_key(|index| (&events[*index].event.room_id, events[*index].sn));
    let linked = |at: usize| at > 0 && follows(&events[order[at - 1]], &events[order[at]]);
    let begin = order.iter().enumerate().filter(|(at, _)| !linked(*at));
    let roots: BTreeSet<NodeId> = begin.filter_map(|(_, index)| events[*index].state_before).collect();
    let questions: Vec<StateQuestion> = roots.into_iter().map(|root| (root, keys.to_vec())).collect();
    let answers = core.store.states_get_many(&questions).await?;
    let known: BTreeMap<NodeId, Holders> = questions.into_iter().map(|(root, _)| root).zip(answers).collect();
    let mut found: Vec<Option<Holders>> = vec![None; events.len()];
    for (at, index) in order.iter().enumerate() {
        let holders = if linked(at) {
            let before = order[at - 1];
            let mut holders = found[before].clone();
            if let (Some(holders), Some(entry)) = (&mut holders, events[before].event.state_entry()) {
                for (key, holder) in keys.iter().zip(holders) {
                    if *key == entry {
                        *holder = Some(events[before].event.event_id.clone());
                    }
                }
            }
            holders
        } else {
            events[*index].state_before.and_then(|root| known.get(&root).cloned())
        };
        found[*index] = holders;
    }
    Ok(found)
}

/// What each of `events` replaced, in their order: of a state event the one that held its entry before.
pub(crate) async fn replaced(core: &Core, events: &[Arc<StoredEvent>]) -> StoreResult<Holders> {
    let mut replaced: Holders = vec![None; events.len()];
    let mut by_root: HashMap<NodeId, Vec<StateKey>> = HashMap::new();
    let members = members_replaced(core, events).await?;
    for (index, stored) in events.iter().enumerate() {
        if let Some(known) = members.get(&index) {
            replaced[index].clone_from(known);
        } else if let (Some(root), Some(entry)) = (stored.state_before, stored.event.state_entry()) {
            by_root.entry(root).or_default().push(entry);
        }
    }
    let questions: Vec<StateQuestion> = by_root.into_iter().collect();
    let answers = core.store.states_get_many(&questions).await?;
    let mut found: HashMap<NodeId, HashMap<StateKey, OwnedEventId>> = HashMap::new();
    for ((root, keys), ids) in questions.into_iter().zip(answers) {
        let entries = keys.into_iter().zip(ids).filter_map(|(key, id)| Some((key, id?))).collect();
        found.insert(root, entries);
    }
    for (index, stored) in events.iter().enumerate() {
        if !members.contains_key(&index)
            && let (Some(root), Some(entry)) = (stored.state_before, stored.event.state_entry())
        {
            replaced[index] = found.get(&root).and_then(|entries| entries.get(&entry).cloned());
        }
    }
    Ok(replaced)
}

/// What member events of our own users replaced, by index: an event that this server made names it among the events that
/// allow it. <https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection>
async fn members_replaced(
    core: &Core,
    events: &[Arc<StoredEvent>],
) -> StoreResult<HashMap<usize, Option<OwnedEventId>>> {
    let ours = |stored: &StoredEvent| {
        stored.event.kind == TimelineEventType::RoomMember
            && stored.event.is_state()
            && stored.state_before.is_some()
            && core.is_local(&stored.event.sender)
    };
    let ours: Vec<(usize, &Arc<StoredEvent>)> =
        events.iter().enumerate().filter(|(_, stored)| ours(stored)).collect();
    let named: BTreeSet<&OwnedEventId> =
        ours.iter().flat_map(|(_, stored)| &stored.event.auth_events).collect();
    let named: Vec<OwnedEventId> = named.into_iter().cloned().collect();
    let named = core.store.events(&named).await?;
    let mut replaced = HashMap::with_capacity(ours.len());
    for (index, stored) in ours {
        let Some(key) = stored.event.state_key.as_deref() else { continue };
        let allowed: Option<Vec<&Arc<StoredEvent>>> =
            stored.event.auth_events.iter().map(|id| named.get(id)).collect();
        // One that is not here any more: the state is asked.
        let Some(allowed) = allowed else { continue };
        let before = allowed.iter().find(|it| it.event.is_state_of(&StateEventType::RoomMember, key));
        replaced.insert(index, before.map(|it| it.event.event_id.clone()));
    }
    Ok(replaced)
}
