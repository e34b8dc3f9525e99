//! State resolution: one state out of several.
//!
//! Version 1 is ours (`resolve_v1`); versions 2 and 2.1 are ruma's algorithm, which this module feeds.
//! Full states are never walked where they agree: only entries in conflict, what authorises them, and the stretch of
//! the auth chains on which the sides differ.
//! <https://spec.matrix.org/v1.19/rooms/v2/#state-resolution>
//! <https://spec.matrix.org/v1.19/rooms/v12/#state-resolution>

#[cfg(test)]
mod fixtures;
pub(crate) mod loaded;
mod memory;
#[cfg(test)]
mod plain;
#[cfg(test)]
mod tests;

use ruma::events::{StateEventType, TimelineEventType};
use ruma::room_version_rules::{RoomVersionRules, StateResolutionVersion};
use ruma::state_res::utils::event_id_set::EventIdSet;
use ruma::{EventId, OwnedEventId, RoomVersionId, state_res};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::{Event, StateKey, state_key};

use crate::auth::{PduView, create_event_id, state_to_load_for};
use crate::auth_chain::{Agreed, conflicted_subgraph, difference};
use crate::owned as owned_state;
use crate::resolve_v1;
use crate::version::rules_or_unknown;

pub use loaded::{AuthNode, Loaded, Need};
pub use memory::Memory;

/// A room's state: which event holds each entry.
pub type StateMap = BTreeMap<StateKey, OwnedEventId>;

/// More sides than any event has predecessors: a room with more forward extremities is joined in steps.
pub const MAX_SIDES: usize = 100;

/// Resolves the states after an event's predecessors, or after a room's forward extremities, where they differ.
///
/// `sides` holds for each state its entries at the keys at which not all states are the same, as
/// [`crate::state_tree::conflicts`] tells. Returns the resolved entries at these keys; the others stand as they are. The
/// order of `sides` does not matter. Errors: what to add to `loaded` before calling again.
pub fn resolve_conflicts(
    version: &RoomVersionId,
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
    let agreed = Agreed::new(sides, loaded);
    match rules.state_res {
        StateResolutionVersion::V1 => resolve_v1::resolve(version, &agreed, sides, loaded),
        _ => Conflict { version, rules, agreed, sides, loaded }.resolve(),
    }
}

struct Conflict<'a> {
    version: &'a RoomVersionId,
    rules: &'a RoomVersionRules,
    agreed: Agreed<'a>,
    sides: &'a [StateMap],
    loaded: &'a Loaded,
}

type View = Arc<PduView<Arc<Event>>>;
/// Entries on which all states agree.
type AgreedEntries<'a> = BTreeMap<StateKey, &'a EventId>;

impl<'a> Conflict<'a> {
    fn resolve(self) -> Result<StateMap, Need> {
        let Some(v2) = self.rules.state_res.v2_rules() else {
            return Err(Need::Impossible("unknown algorithm".to_owned()));
        };
        let conflicted: BTreeSet<&EventId> =
            self.sides.iter().flat_map(BTreeMap::values).map(|id| &**id).collect();
        let witnesses = self.agreed_for(&conflicted)?.into_values().collect();
        let difference = self.ids(&difference(self.sides, witnesses, &self.agreed)?);
        let subgraph = if v2.consider_conflicted_state_subgraph {
            self.ids(&conflicted_subgraph(self.sides, self.loaded)?)
        } else {
            BTreeSet::new()
        };
        let full: BTreeSet<&EventId> =
            conflicted.iter().chain(&difference).chain(&subgraph).copied().collect();

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
            .filter(|(key, _)| self.agreed.keys.contains(key))
            .collect())
    }

    fn ids(&self, numbers: &BTreeSet<u64>) -> BTreeSet<&'a EventId> {
        numbers.iter().filter_map(|number| Some(&*self.loaded.node(*number)?.event_id)).collect()
    }

    /// The agreed entries at the keys by which these events are authorised, and the power levels.
    fn agreed_for(&self, events: &BTreeSet<&EventId>) -> Result<AgreedEntries<'a>, Need> {
        let (mut missing, mut entries) = (BTreeSet::new(), BTreeSet::new());
        let mut agreed = AgreedEntries::new();
        let mut keys = BTreeSet::from([state_key(StateEventType::RoomPowerLevels, "")]);
        for id in events {
            let Some(judged) = self.loaded.event_or_need(id, &mut missing) else { continue };
            keys.extend(state_to_load_for(&judged.event, self.version).unwrap_or_default());
        }
        if !missing.is_empty() {
            return Err(Need::Events(missing));
        }
        for key in keys {
            if let Some(id) = self.agreed.entry(&key, &mut entries) {
                agreed.insert(key, id);
            }
        }
        if entries.is_empty() { Ok(agreed) } else { Err(Need::Entries(entries)) }
    }

    /// Everything that the algorithm will look at, and the agreed entries among that: the full conflicted set, its
    /// auth events, the agreed entries by which its events are authorised, and the lines of power levels events.
    ///
    /// Agreed entries of other keys can't matter: the algorithm reads the state only at the keys by which events of
    /// the full conflicted set are authorised (the power levels are among them), and restores them all at its end.
    fn load(
        &self,
        full: &BTreeSet<&'a EventId>,
    ) -> Result<(HashMap<OwnedEventId, View>, AgreedEntries<'a>), Need> {
        let agreed = self.agreed_for(full)?;
        let mut missing = BTreeSet::new();
        let mut used: HashSet<&EventId> = HashSet::new();
        let mut starts: Vec<&EventId> = Vec::new();
        for id in full {
            let Some(judged) = self.loaded.event_or_need(id, &mut missing) else { continue };
            starts.push(*id);
            for auth in &judged.event.auth_events {
                used.extend(self.loaded.event_or_need(auth, &mut missing).map(|auth| &*auth.event.event_id));
            }
            if let Some(create) = create_event_id(&judged.event.room_id, self.version)
                && let Some(judged) = self.loaded.event_or_need(&create, &mut missing)
            {
                used.insert(&judged.event.event_id);
            }
        }
        for (key, id) in &agreed {
            if self.loaded.event_or_need(id, &mut missing).is_some() {
                used.insert(*id);
                if key.0 == StateEventType::RoomPowerLevels {
                    starts.push(*id);
                }
            }
        }
        if !missing.is_empty() {
            return Err(Need::Events(missing));
        }
        let end = self.follow_lines(starts, full, &mut used)?;
        used.extend(full);
        let known: HashSet<&EventId> = used.into_iter().filter(|id| self.is_usable(id)).collect();
        if self.has_circle(&known, end) {
            return Err(Need::Impossible("power levels that authorise themselves".to_owned()));
        }
        let views = known.iter().filter_map(|id| self.view(id, &known, end == Some(*id))).collect();
        Ok((views, agreed))
    }

    /// Follows the power levels among the auth events of events until the lines are one, and notes the auth events of
    /// what was followed. Gives where they are one: all that matters of a line is where it meets the line of the
    /// resolved power levels, so what is below there does not.
    /// <https://spec.matrix.org/v1.19/rooms/v2/#definitions> (mainline ordering)
    fn follow_lines(
        &self,
        starts: Vec<&'a EventId>,
        full: &BTreeSet<&'a EventId>,
        used: &mut HashSet<&'a EventId>,
    ) -> Result<Option<&'a EventId>, Need> {
        let (mut missing, mut unplaced) = (BTreeSet::new(), BTreeSet::new());
        let mut lines: BTreeSet<(u64, &EventId)> = BTreeSet::new();
        let mut followed: HashSet<&EventId> = HashSet::new();
        let mut next: Vec<&EventId> = Vec::new();
        for id in starts {
            match self.loaded.event(id) {
                Some(judged) if is_levels(&judged.event) => next.push(id),
                Some(_) => next.extend(self.levels_before(id, used, &mut missing)),
                None => {}
            }
        }
        loop {
            for id in next.drain(..).filter(|id| followed.insert(*id)) {
                lines.insert((self.loaded.number_or_need(id, &mut unplaced).unwrap_or_default(), id));
            }
            if !missing.is_empty() {
                return Err(Need::Events(missing));
            }
            if !unplaced.is_empty() {
                return Err(Need::NodesOf(unplaced));
            }
            let only = lines.len() == 1;
            let Some((_, highest)) = lines.pop_last() else { return Ok(None) };
            if only && !full.contains(highest) {
                used.insert(highest);
                return Ok(Some(highest));
            }
            next.extend(self.levels_before(highest, used, &mut missing));
        }
    }

    /// The power levels among an event's auth events, all of which are noted.
    fn levels_before(
        &self,
        id: &EventId,
        used: &mut HashSet<&'a EventId>,
        missing: &mut BTreeSet<OwnedEventId>,
    ) -> Vec<&'a EventId> {
        let mut levels = Vec::new();
        let auth_events = self.loaded.event(id).map(|judged| &judged.event.auth_events);
        for auth in auth_events.into_iter().flatten() {
            let Some(auth) = self.loaded.event_or_need(auth, missing) else { continue };
            used.insert(&auth.event.event_id);
            if is_levels(&auth.event) {
                levels.push(&*auth.event.event_id);
            }
        }
        levels
    }

    /// Whether some power levels lead back to themselves: ruma would follow them for ever. No hash can be in its own
    /// input, but in room versions 1 and 2 senders choose the ids of their events.
    fn has_circle(&self, known: &HashSet<&EventId>, end: Option<&EventId>) -> bool {
        let levels = |id: &&EventId| self.loaded.event(id).is_some_and(|judged| is_levels(&judged.event));
        let mut ending: HashSet<&EventId> = end.into_iter().collect();
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

    /// `ends`: its auth events are not to be looked at.
    fn view(&self, id: &EventId, known: &HashSet<&EventId>, ends: bool) -> Option<(OwnedEventId, View)> {
        let judged = self.loaded.event(id)?;
        let auth = judged.event.auth_events.iter().filter(|id| !ends && known.contains(&***id));
        let view = PduView::new(judged.event.clone(), judged.rejected, self.version)
            .with_auth_events(auth.cloned().collect());
        Some((id.to_owned(), Arc::new(view)))
    }

    fn maps_for_ruma(
        &self,
        agreed: &AgreedEntries<'_>,
        views: &HashMap<OwnedEventId, View>,
    ) -> Vec<state_res::StateMap<OwnedEventId>> {
        let disguised =
            |key: &StateKey, id: &EventId| (owned_state::disguised_entry(key, self.version), id.to_owned());
        let map = |side: &StateMap| {
            let own = side.iter().map(|(key, id)| (key, &**id));
            let entries = own.chain(agreed.iter().map(|(key, id)| (key, *id)));
            let usable = entries.filter(|(_, id)| views.contains_key(*id));
            usable.map(|(key, id)| disguised(key, id)).collect()
        };
        self.sides.iter().map(map).collect()
    }
}

fn is_levels(event: &Event) -> bool {
    event.is_state_of(&StateEventType::RoomPowerLevels, "")
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
