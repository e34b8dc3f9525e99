//! State resolution: one state out of several.
//!
//! Version 1 is ours (`resolve_v1`); versions 2 and 2.1 are ruma's algorithm, which this module feeds.
//! Full states are never walked where they agree: only entries in conflict, what authorises them, and the stretch of
//! the auth chains on which the sides differ.
//! <https://spec.matrix.org/v1.19/rooms/v2/#state-resolution>
//! <https://spec.matrix.org/v1.19/rooms/v12/#state-resolution>

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use ruma::events::{StateEventType, TimelineEventType};
use ruma::room_version_rules::{RoomVersionRules, StateResolutionVersion};
use ruma::state_res::utils::event_id_set::EventIdSet;
use ruma::{EventId, OwnedEventId, RoomVersionId, state_res};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::{Event, StateKey, state_key};

use crate::auth::{Judged, PduView, create_event_id, state_to_load_for};
use crate::auth_chain::{conflicted_subgraph, difference};
use crate::invariants::resolution_is_sound;
use crate::owned as owned_state;
use crate::resolve_v1;
use crate::version::rules_or_unknown;

/// A room's state: which event holds each entry.
pub type StateMap = BTreeMap<StateKey, OwnedEventId>;

/// More sides than any event has predecessors: a room with more forward extremities is joined in steps.
pub const MAX_SIDES: usize = 100;

/// What [`resolve`] lacks, or why it can't be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Need {
    /// Whole events. It saves rounds to insert their auth chains too, at least along the power levels.
    #[error("{} events are not loaded", .0.len())]
    Events(BTreeSet<OwnedEventId>),
    /// Auth events and rank of these events; [`Loaded::insert_edges`] suffices, whole events do too.
    #[error("auth edges of {} events are not loaded", .0.len())]
    Edges(BTreeSet<OwnedEventId>),
    /// No answer is possible: the room version is unknown, or an event in the auth chains is malformed.
    #[error("state can't be resolved: {0}")]
    Impossible(String),
}

/// What the caller has loaded so far. Everything in it is immutable, so it may be kept for the next resolution of
/// the room.
#[derive(Debug, Default, Clone)]
pub struct Loaded {
    events: HashMap<OwnedEventId, Judged>,
    edges: HashMap<OwnedEventId, Edges>,
    absent: HashSet<OwnedEventId>,
}

#[derive(Debug, Clone)]
pub(crate) struct Edges {
    pub(crate) auth_events: Vec<OwnedEventId>,
    pub(crate) rank: Option<u64>,
}

/// The rank of an event from the ranks of its auth events: one more than the highest, zero without any. Stored with
/// the event it bounds every walk along auth chains. `depth` can't serve, because it is the sender's claim.
pub fn rank(auth_ranks: impl IntoIterator<Item = u64>) -> u64 {
    auth_ranks.into_iter().max().map_or(0, |highest| highest + 1)
}

impl Loaded {
    /// Nothing loaded.
    pub fn new() -> Loaded {
        Loaded::default()
    }

    /// Adds an event whose [`rank`] is not known. Walks over it can't stop early, but find the same.
    pub fn insert(&mut self, event: Arc<Event>, rejected: bool) {
        self.insert_with(event, rejected, None);
    }

    /// Adds an event with its [`rank`].
    pub fn insert_ranked(&mut self, event: Arc<Event>, rejected: bool, rank: u64) {
        self.insert_with(event, rejected, Some(rank));
    }

    fn insert_with(&mut self, event: Arc<Event>, rejected: bool, rank: Option<u64>) {
        let edges = Edges { auth_events: event.auth_events.clone(), rank };
        self.edges.insert(event.event_id.clone(), edges);
        self.events.insert(event.event_id.clone(), Judged { event, rejected });
    }

    /// Adds only the auth events of an event, and its [`rank`] where it is known.
    pub fn insert_edges(&mut self, id: OwnedEventId, auth_events: Vec<OwnedEventId>, rank: Option<u64>) {
        self.edges.entry(id).or_insert(Edges { auth_events, rank });
    }

    /// Says that an event can't be had. It is left out of account.
    pub fn insert_absent(&mut self, id: OwnedEventId) {
        self.absent.insert(id);
    }

    /// An event, if it is loaded.
    pub fn event(&self, id: &EventId) -> Option<&Judged> {
        self.events.get(id)
    }

    pub(crate) fn is_absent(&self, id: &EventId) -> bool {
        self.absent.contains(id)
    }

    pub(crate) fn edges(&self, id: &EventId) -> Option<&Edges> {
        self.edges.get(id)
    }

    /// The event, or a note in `missing` that it must be loaded, unless it can't be.
    pub(crate) fn event_or_need(
        &self,
        id: &EventId,
        missing: &mut BTreeSet<OwnedEventId>,
    ) -> Option<&Judged> {
        let found = self.events.get(id);
        if found.is_none() && !self.absent.contains(id) {
            missing.insert(id.to_owned());
        }
        found
    }
}

/// Resolves the full states after an event's predecessors, or after a room's forward extremities, to one.
///
/// The order of `states` does not matter. Errors: [`Need::Events`] and [`Need::Edges`] say what to add to `loaded`
/// before calling again.
pub fn resolve(version: &RoomVersionId, states: &[StateMap], loaded: &Loaded) -> Result<StateMap, Need> {
    let Some((first, rest)) = states.split_first() else { return Ok(StateMap::new()) };
    if rest.iter().all(|state| state == first) {
        return Ok(first.clone());
    }
    let (mut resolved, sides) = split(states);
    let conflicts = resolve_conflicts(version, &resolved, &sides, loaded)?;
    for (key, id) in conflicts {
        resolved.entry(key).or_insert(id);
    }
    debug_assert_eq!(resolution_is_sound(states, &resolved), Ok(()));
    Ok(resolved)
}

/// The entries on which all states agree, and what is left of each.
fn split(states: &[StateMap]) -> (StateMap, Vec<StateMap>) {
    let (first, rest) = (&states[0], &states[1..]);
    let agreed: StateMap = first
        .iter()
        .filter(|(key, id)| rest.iter().all(|state| state.get(*key) == Some(id)))
        .map(|(key, id)| (key.clone(), id.clone()))
        .collect();
    let left = |state: &StateMap| {
        state
            .iter()
            .filter(|(key, _)| !agreed.contains_key(*key))
            .map(|(k, id)| (k.clone(), id.clone()))
            .collect()
    };
    let sides = states.iter().map(left).collect();
    (agreed, sides)
}

/// As [`resolve`], for callers that know where the states differ, as [`crate::state_tree::conflicts`] tells.
///
/// `agreed` holds every entry that all states have in common, `sides` per state the entries that are not. Returns the
/// resolved entries for keys outside `agreed`; entries of `agreed` stand as they are.
pub fn resolve_conflicts(
    version: &RoomVersionId,
    agreed: &StateMap,
    sides: &[StateMap],
    loaded: &Loaded,
) -> Result<StateMap, Need> {
    let rules = rules_or_unknown(version).map_err(|error| Need::Impossible(error.to_string()))?;
    if sides.iter().all(BTreeMap::is_empty) {
        return Ok(StateMap::new());
    }
    if sides.len() > MAX_SIDES {
        return Err(Need::Impossible(format!("{} states at once", sides.len())));
    }
    match rules.state_res {
        StateResolutionVersion::V1 => resolve_v1::resolve(version, agreed, sides, loaded),
        _ => Conflict { version, rules, agreed, sides, loaded }.resolve(),
    }
}

struct Conflict<'a> {
    version: &'a RoomVersionId,
    rules: &'a RoomVersionRules,
    agreed: &'a StateMap,
    sides: &'a [StateMap],
    loaded: &'a Loaded,
}

type View = Arc<PduView<Arc<Event>>>;

impl Conflict<'_> {
    fn resolve(self) -> Result<StateMap, Need> {
        let Some(v2) = self.rules.state_res.v2_rules() else {
            return Err(Need::Impossible("unknown algorithm".to_owned()));
        };
        let difference = difference(self.sides, self.agreed.values(), self.loaded)?;
        let conflicted: BTreeSet<&EventId> =
            self.sides.iter().flat_map(BTreeMap::values).map(|id| &**id).collect();
        let subgraph = if v2.consider_conflicted_state_subgraph {
            conflicted_subgraph(&conflicted, self.loaded)?
        } else {
            BTreeSet::new()
        };
        let full: BTreeSet<&EventId> = conflicted
            .iter()
            .copied()
            .chain(difference.iter().copied())
            .chain(subgraph.iter().copied())
            .collect();

        let (views, agreed) = self.load(&full)?;
        let maps = self.maps_for_ruma(&agreed, &views);
        // ruma uses the chains for nothing but their union without their intersection, which we have.
        let chains = vec![owned(&difference), EventIdSet::new()];
        let auth = &self.rules.authorization;
        let resolved = state_res::resolve(
            auth,
            v2,
            &maps,
            chains,
            |id| views.get(id).cloned(),
            |_| Some(owned(&subgraph)),
        )
        .map_err(|error| Need::Impossible(error.to_string()))?;
        Ok(resolved
            .into_iter()
            .map(|(key, id)| (owned_state::revealed(key, self.version), id))
            .filter(|(key, _)| !self.agreed.contains_key(key))
            .collect())
    }

    /// Everything that the algorithm will look at, and the agreed entries among that: the full conflicted set, its
    /// auth events, the agreed entries by which its events are authorised, and the lines of power levels events.
    ///
    /// Agreed entries of other keys can't matter: the algorithm reads the state only at the keys by which events of
    /// the full conflicted set are authorised (the power levels are among them), and restores them all at its end.
    fn load(&self, full: &BTreeSet<&EventId>) -> Result<(HashMap<OwnedEventId, View>, StateMap), Need> {
        let mut missing = BTreeSet::new();
        let mut agreed = StateMap::new();
        let mut used: HashSet<&EventId> = HashSet::new();
        let mut lines: Vec<&EventId> = Vec::new();
        self.agree(&mut agreed, state_key(StateEventType::RoomPowerLevels, ""));
        for id in full {
            let Some(judged) = self.loaded.event_or_need(id, &mut missing) else { continue };
            let Ok(keys) = state_to_load_for(&judged.event, self.version) else { continue };
            for key in keys {
                self.agree(&mut agreed, key);
            }
            lines.push(id);
            if let Some(create) = create_event_id(&judged.event.room_id, self.version)
                && let Some(judged) = self.loaded.event_or_need(&create, &mut missing)
            {
                used.insert(&judged.event.event_id);
            }
        }
        for (key, id) in &agreed {
            if let Some(judged) = self.loaded.event_or_need(id, &mut missing) {
                used.insert(&judged.event.event_id);
                if key.0 == StateEventType::RoomPowerLevels {
                    lines.push(&judged.event.event_id);
                }
            }
        }
        self.follow_lines(lines, &mut used, &mut missing);
        if !missing.is_empty() {
            return Err(Need::Events(missing));
        }
        used.extend(full);
        let known: HashSet<&EventId> = used.into_iter().filter(|id| self.is_usable(id)).collect();
        if self.has_circle(&known) {
            return Err(Need::Impossible("power levels that authorise themselves".to_owned()));
        }
        let views = known.iter().filter_map(|id| self.view(id, &known)).collect();
        Ok((views, agreed))
    }

    fn agree(&self, agreed: &mut StateMap, key: StateKey) {
        if let Some(id) = self.agreed.get(&key) {
            agreed.insert(key, id.clone());
        }
    }

    /// Notes the auth events of each event, and follows the power levels event among them to the room's beginning.
    fn follow_lines<'b>(
        &'b self,
        mut lines: Vec<&'b EventId>,
        used: &mut HashSet<&'b EventId>,
        missing: &mut BTreeSet<OwnedEventId>,
    ) {
        let mut followed: HashSet<&EventId> = HashSet::new();
        while let Some(id) = lines.pop() {
            if !followed.insert(id) {
                continue;
            }
            let Some(judged) = self.loaded.event_or_need(id, missing) else { continue };
            for auth in &judged.event.auth_events {
                let Some(auth) = self.loaded.event_or_need(auth, missing) else { continue };
                used.insert(&auth.event.event_id);
                if auth.event.is_state_of(&StateEventType::RoomPowerLevels, "") {
                    lines.push(&auth.event.event_id);
                }
            }
        }
    }

    /// Whether some power levels lead back to themselves: ruma would follow them for ever. No hash can be in its own
    /// input, but in room versions 1 and 2 senders choose the ids of their events.
    fn has_circle(&self, known: &HashSet<&EventId>) -> bool {
        let levels = |id: &&EventId| {
            let judged = self.loaded.event(id);
            judged.is_some_and(|judged| judged.event.is_state_of(&StateEventType::RoomPowerLevels, ""))
        };
        let mut ending: HashSet<&EventId> = HashSet::new();
        for start in known {
            let mut line: HashSet<&EventId> = HashSet::new();
            let mut next = Some(*start);
            while let Some(id) = next
                && !ending.contains(id)
            {
                if !line.insert(id) {
                    return true;
                }
                let auth_events = self.loaded.event(id).map(|judged| &judged.event.auth_events);
                let mut usable =
                    auth_events.into_iter().flatten().map(|id| &**id).filter(|id| known.contains(id));
                next = usable.find(levels);
            }
            ending.extend(line);
        }
        false
    }

    /// An event without a state key has no business in an auth chain; ruma would give up on it.
    fn is_usable(&self, id: &EventId) -> bool {
        self.loaded.event(id).is_some_and(|judged| judged.event.is_state())
    }

    fn view(&self, id: &EventId, known: &HashSet<&EventId>) -> Option<(OwnedEventId, View)> {
        let judged = self.loaded.event(id)?;
        let auth = judged.event.auth_events.iter().filter(|id| known.contains(&***id)).cloned().collect();
        let view = PduView::new(judged.event.clone(), judged.rejected, self.version).with_auth_events(auth);
        Some((id.to_owned(), Arc::new(view)))
    }

    fn maps_for_ruma(
        &self,
        agreed: &StateMap,
        views: &HashMap<OwnedEventId, View>,
    ) -> Vec<state_res::StateMap<OwnedEventId>> {
        let usable = |(_, id): &(&StateKey, &OwnedEventId)| views.contains_key(*id);
        let owned = |(key, id): (&StateKey, &OwnedEventId)| {
            (owned_state::disguised_entry(key, self.version), id.clone())
        };
        self.sides.iter().map(|side| side.iter().chain(agreed).filter(usable).map(owned).collect()).collect()
    }
}

fn owned(ids: &BTreeSet<&EventId>) -> EventIdSet<OwnedEventId> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

/// The state after an event, given the state before it: its own entry replaced if it is an accepted state event.
pub fn state_after(mut before: StateMap, event: &Event, rejected: bool) -> StateMap {
    if let (false, Some(entry)) = (rejected, event.state_entry()) {
        before.insert(entry, event.event_id.clone());
    }
    before
}

/// Whether an event can remove someone's ability to do something, by the definition of state resolution.
pub fn is_power_event(event: &Event) -> bool {
    let empty = event.state_key.as_deref() == Some("");
    match &event.kind {
        TimelineEventType::RoomPowerLevels | TimelineEventType::RoomJoinRules => empty,
        TimelineEventType::RoomMember => {
            let membership = event.content_str("membership");
            matches!(membership.as_deref(), Some("leave" | "ban"))
                && event.state_key.as_deref() != Some(event.sender.as_str())
        }
        _ => false,
    }
}
