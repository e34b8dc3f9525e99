//! State resolution of room version 1.
//! <https://spec.matrix.org/v1.19/rooms/v1/#state-resolution>

use ruma::events::StateEventType;
use ruma::{OwnedEventId, RoomVersionId};
use sha1::{Digest, Sha1};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::{Event, StateKey};

use crate::auth::{AuthMap, check_state_dependent, state_to_load_for};
use crate::auth_chain::Agreed;
use crate::resolve::{Loaded, Need, StateMap};

/// The events in conflict, by the entry that they are in conflict over, lowest depth first.
type Conflicts = BTreeMap<StateKey, Vec<Arc<Event>>>;

/// Resolves entries in conflict; `sides` as for [`crate::resolve::resolve_conflicts`].
pub(crate) fn resolve(
    version: &RoomVersionId,
    agreed: &Agreed<'_>,
    sides: &[StateMap],
    loaded: &Loaded,
) -> Result<StateMap, Need> {
    let mut candidates: BTreeMap<&StateKey, BTreeSet<&OwnedEventId>> = BTreeMap::new();
    for (key, id) in sides.iter().flatten() {
        candidates.entry(key).or_default().insert(id);
    }
    // An entry that some states lack and no two states dispute is no conflict here: it belongs to the result.
    let mut result = StateMap::new();
    let mut disputed: BTreeMap<&StateKey, BTreeSet<&OwnedEventId>> = BTreeMap::new();
    for (key, ids) in candidates {
        match ids.first() {
            Some(only) if ids.len() == 1 => {
                result.insert(key.clone(), (*only).clone());
            }
            _ => {
                disputed.insert(key, ids);
            }
        }
    }
    let conflicts = load(&disputed, loaded)?;
    let state = auth_state(version, &conflicts, agreed, &result)?;
    let mut passes = Passes { version, state, result };
    passes.run(conflicts);
    Ok(passes.result)
}

fn load(disputed: &BTreeMap<&StateKey, BTreeSet<&OwnedEventId>>, loaded: &Loaded) -> Result<Conflicts, Need> {
    let mut missing = BTreeSet::new();
    let mut conflicts = Conflicts::new();
    for (key, ids) in disputed {
        let found = ids.iter().filter_map(|id| loaded.event_or_need(id, &mut missing));
        let mut events: Vec<Arc<Event>> = found.map(|judged| judged.event.clone()).collect();
        events
            .sort_by_cached_key(|event| (event.depth, Reverse(sha1(event)), Reverse(event.event_id.clone())));
        conflicts.insert((*key).clone(), events);
    }
    if missing.is_empty() { Ok(conflicts) } else { Err(Need::Events(missing)) }
}

/// The undisputed state by which the events in conflict are authorised: agreed entries, and those of `result`.
fn auth_state(
    version: &RoomVersionId,
    conflicts: &Conflicts,
    agreed: &Agreed<'_>,
    result: &StateMap,
) -> Result<AuthMap, Need> {
    let (mut missing, mut entries) = (BTreeSet::new(), BTreeSet::new());
    let mut state = AuthMap::new();
    for event in conflicts.values().flatten() {
        for key in state_to_load_for(event, version).unwrap_or_default() {
            let id = result.get(&key).map(|id| &**id).or_else(|| agreed.entry(&key, &mut entries));
            if let Some(judged) = id.and_then(|id| agreed.loaded.event_or_need(id, &mut missing)) {
                state.insert(key, judged.event.clone());
            }
        }
    }
    match (entries.is_empty(), missing.is_empty()) {
        (true, true) => Ok(state),
        (true, false) => Err(Need::Events(missing)),
        (false, _) => Err(Need::Entries(entries)),
    }
}

fn sha1(event: &Event) -> [u8; 20] {
    Sha1::digest(event.event_id.as_str()).into()
}

struct Passes<'a> {
    version: &'a RoomVersionId,
    /// What events are authorised by; grows from pass to pass.
    state: AuthMap,
    result: StateMap,
}

impl Passes<'_> {
    fn run(&mut self, mut conflicts: Conflicts) {
        for kind in
            [StateEventType::RoomPowerLevels, StateEventType::RoomJoinRules, StateEventType::RoomMember]
        {
            let pass: Conflicts = conflicts
                .iter()
                .filter(|(key, _)| key.0 == kind)
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            let chosen: Vec<_> = pass
                .iter()
                .filter_map(|(key, events)| Some((key.clone(), self.last_of_line(key, events)?)))
                .collect();
            // Entries of one pass don't authorise each other, so that their order does not matter.
            for (key, event) in chosen {
                self.result.insert(key.clone(), event.event_id.clone());
                self.state.insert(key, event);
            }
            conflicts.retain(|key, _| key.0 != kind);
        }
        for (key, events) in conflicts {
            // When none is allowed other servers take the one with the least depth.
            let allowed = events.iter().rev().find(|event| self.allows(event, &self.state));
            if let Some(event) = allowed.or(events.first()) {
                self.result.insert(key, event.event_id.clone());
            }
        }
    }

    /// The first event is taken as it is, each later one as long as the one before it allows it.
    fn last_of_line(&self, key: &StateKey, events: &[Arc<Event>]) -> Option<Arc<Event>> {
        let (first, rest) = events.split_first()?;
        let mut state = self.state.clone();
        let mut last = first;
        for event in rest {
            state.insert(key.clone(), last.clone());
            if !self.allows(event, &state) {
                break;
            }
            last = event;
        }
        Some(last.clone())
    }

    fn allows(&self, event: &Event, state: &AuthMap) -> bool {
        check_state_dependent(event, self.version, state).is_ok()
    }
}
