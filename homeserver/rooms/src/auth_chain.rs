//! Walks along auth chains that stop where all sides agree.
//!
//! They go over the numbers of [`AuthNode`]: an event can only be reached from events of higher numbers. So a walk that
//! always follows the highest number first knows all that leads to an event when it comes to it.

use ruma::events::StateEventType;
use ruma::{EventId, OwnedEventId};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use waxwing_model::StateKey;

use crate::resolve::loaded::{AuthNode, Later, Loaded};
use crate::resolve::{Need, StateMap};

/// One bit per side.
type Sides = u128;

/// Events that are asked for at once to find out whether they are part of all states: mostly the first one is.
const LOOK_AT_ONCE: usize = 256;

/// What all states have.
pub(crate) struct Agreed<'a> {
    /// Where they differ.
    pub(crate) keys: BTreeSet<&'a StateKey>,
    pub(crate) loaded: &'a Loaded,
}

impl<'a> Agreed<'a> {
    pub(crate) fn new(sides: &'a [StateMap], loaded: &'a Loaded) -> Agreed<'a> {
        Agreed { keys: sides.iter().flat_map(BTreeMap::keys).collect(), loaded }
    }

    /// The event that all states have at a key, or a note in `missing` that it must be loaded.
    pub(crate) fn entry(&self, key: &StateKey, missing: &mut BTreeSet<StateKey>) -> Option<&'a EventId> {
        if self.keys.contains(key) {
            return None;
        }
        match self.loaded.entry(key) {
            Some(found) => found,
            None => {
                missing.insert(key.clone());
                None
            }
        }
    }
}

/// What a walk lacks. Events first: what they are says which entries and nodes are needed.
#[derive(Default)]
struct Missing {
    events: BTreeSet<OwnedEventId>,
    entries: BTreeSet<StateKey>,
    nodes_of: BTreeSet<OwnedEventId>,
    nodes: BTreeSet<u64>,
}

impl Missing {
    fn result(self) -> Result<(), Need> {
        if !self.nodes.is_empty() {
            Err(Need::Nodes(self.nodes))
        } else if !self.events.is_empty() {
            Err(Need::Events(self.events))
        } else if !self.entries.is_empty() {
            Err(Need::Entries(self.entries))
        } else if !self.nodes_of.is_empty() {
            Err(Need::NodesOf(self.nodes_of))
        } else {
            Ok(())
        }
    }
}

/// The auth difference: what is in the auth chain of some sides but not of all, apart from the entries in conflict.
///
/// `sides` are the entries in conflict per side, `witnesses` agreed events that authorise them: those that they will meet
/// first. As in the implementations that rooms live on, an event counts to its own chain: what all sides have is in all
/// chains. (By the letter of the specification an agreed entry that only one side's chains mention would be in the
/// difference; it is in the resolved state in either reading.)
///
/// Three steps, each of which is rarely followed by the next:
/// 1. The entries in conflict and the witnesses are followed together, highest number first, until all that is left is reached
///    by all sides.
/// 2. What only some sides reach is compared with what all states have at its own key: mostly a later event of the same
///    line (a new name of the same user), which joins the witnesses. So no line is followed to the room's beginning that
///    another would have met.
/// 3. What then is left may still be in the chain of any agreed event, which must have come later: the room's later nodes
///    are looked through for its descendants, as far as it takes to find an agreed one.
pub(crate) fn difference<'a>(
    sides: &'a [StateMap],
    witnesses: BTreeSet<&'a EventId>,
    agreed: &Agreed<'a>,
) -> Result<BTreeSet<u64>, Need> {
    let loaded = agreed.loaded;
    let mut missing = BTreeSet::new();
    let mut starts: BTreeMap<u64, Sides> = BTreeMap::new();
    for (side, entries) in sides.iter().enumerate() {
        for id in entries.values() {
            if let Some(number) = loaded.number_or_need(id, &mut missing) {
                *starts.entry(number).or_default() |= 1 << side;
            }
        }
    }
    let all = if sides.len() >= Sides::BITS as usize { Sides::MAX } else { (1 << sides.len()) - 1 };
    let conflicted: BTreeSet<u64> = starts.keys().copied().collect();
    for id in witnesses {
        if let Some(number) = loaded.number_or_need(id, &mut missing) {
            starts.insert(number, all);
        }
    }
    if !missing.is_empty() {
        return Err(Need::NodesOf(missing));
    }
    let walk = Walk { agreed, loaded, all, conflicted: &conflicted };
    loop {
        let (mut some, further) = walk.down(&starts)?;
        if further.is_empty() {
            walk.take_out_agreed(&mut some)?;
            return Ok(some);
        }
        starts.extend(further.into_iter().map(|number| (number, all)));
    }
}

struct Walk<'a> {
    agreed: &'a Agreed<'a>,
    loaded: &'a Loaded,
    all: Sides,
    conflicted: &'a BTreeSet<u64>,
}

impl Walk<'_> {
    /// What is reached from some sides only, and further witnesses.
    fn down(&self, starts: &BTreeMap<u64, Sides>) -> Result<(BTreeSet<u64>, BTreeSet<u64>), Need> {
        let mut marks: HashMap<u64, Sides> = starts.iter().map(|(number, mark)| (*number, *mark)).collect();
        let mut queue: BinaryHeap<u64> = starts.keys().copied().collect();
        // How many in the queue are not reached from all sides.
        let mut open = starts.values().filter(|mark| **mark != self.all).count();
        let (mut some, mut further) = (BTreeSet::new(), BTreeSet::new());
        let mut missing = Missing::default();
        while open > 0 {
            let Some(number) = queue.pop() else { break };
            let mark = marks.get(&number).copied().unwrap_or_default();
            if mark != self.all {
                open -= 1;
            }
            let Some(node) = self.loaded.node(number) else {
                missing.nodes.insert(number);
                continue;
            };
            if mark != self.all && !self.conflicted.contains(&number) {
                match self.witness(node, starts, &mut missing) {
                    Witness::None => drop(some.insert(number)),
                    Witness::New(witness) => {
                        further.insert(witness);
                        continue;
                    }
                    Witness::Unknown => continue,
                }
            }
            for auth in &node.auth {
                let known = marks.get(auth).copied();
                let before = known.unwrap_or_default();
                let after = before | mark;
                marks.insert(*auth, after);
                if known.is_none() {
                    queue.push(*auth);
                    open += usize::from(after != self.all);
                } else if before != self.all && after == self.all {
                    open -= 1;
                }
            }
        }
        missing.result()?;
        Ok((some, further))
    }

    /// The agreed event at an event's own key, if it came later and was not followed yet.
    fn witness(&self, node: &AuthNode, starts: &BTreeMap<u64, Sides>, missing: &mut Missing) -> Witness {
        if self.loaded.is_absent(&node.event_id) {
            return Witness::None;
        }
        let Some(judged) = self.loaded.event_or_need(&node.event_id, &mut missing.events) else {
            return Witness::Unknown;
        };
        let Some(key) = judged.event.state_entry() else { return Witness::None };
        let before = missing.entries.len();
        let found = self.agreed.entry(&key, &mut missing.entries);
        if missing.entries.len() > before {
            return Witness::Unknown;
        }
        let Some(id) = found else { return Witness::None };
        let before = missing.nodes_of.len();
        let witness = self.loaded.number_or_need(id, &mut missing.nodes_of);
        match witness {
            None if missing.nodes_of.len() > before => Witness::Unknown,
            Some(witness) if witness >= node.number && starts.get(&witness) != Some(&self.all) => {
                Witness::New(witness)
            }
            _ => Witness::None,
        }
    }

    /// Takes out of `some` what is in the chain of an event that all states have.
    fn take_out_agreed(&self, some: &mut BTreeSet<u64>) -> Result<(), Need> {
        while let Some(first) = some.first().copied() {
            let Some(later) = self.loaded.later(some) else {
                return Err(Need::Later { of: some.clone(), after: first });
            };
            let mut missing = Missing::default();
            if self.take_out_known(some, later, &mut missing) {
                continue;
            }
            missing.result()?;
            if later.complete {
                break;
            }
            return Err(Need::Later { of: some.clone(), after: later.upto.max(first) });
        }
        Ok(())
    }

    /// Whether something was taken out.
    fn take_out_known(&self, some: &mut BTreeSet<u64>, later: &Later, missing: &mut Missing) -> bool {
        let mut kin: HashSet<u64> = HashSet::new();
        for node in later.kin.values() {
            if !node.auth.iter().any(|auth| some.contains(auth) || kin.contains(auth)) {
                continue;
            }
            kin.insert(node.number);
            if missing.events.len() >= LOOK_AT_ONCE {
                break;
            }
            if !self.conflicted.contains(&node.number) && self.is_agreed(node, missing) {
                let before = some.len();
                let mut stack = vec![node];
                let mut seen: HashSet<u64> = HashSet::new();
                while let Some(node) = stack.pop() {
                    for auth in &node.auth {
                        some.remove(auth);
                        stack.extend(later.kin.get(auth).filter(|_| seen.insert(*auth)));
                    }
                }
                debug_assert!(some.len() < before, "a descendant that leads to none of its ancestors");
                return some.len() < before;
            }
        }
        false
    }

    fn is_agreed(&self, node: &AuthNode, missing: &mut Missing) -> bool {
        let Some(judged) = self.loaded.event_or_need(&node.event_id, &mut missing.events) else {
            return false;
        };
        let entry = judged.event.state_entry();
        entry.and_then(|key| self.agreed.entry(&key, &mut missing.entries)) == Some(&*node.event_id)
    }
}

enum Witness {
    /// There is none.
    None,
    /// Its number.
    New(u64),
    /// What says so is not loaded.
    Unknown,
}

/// Whether events of this kind can authorise others. One that names another kind of event among its auth events is
/// rejected, and neither is in a state nor authorises anything that is.
/// <https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection>
fn can_authorise(kind: &StateEventType) -> bool {
    matches!(
        kind,
        StateEventType::RoomCreate
            | StateEventType::RoomPowerLevels
            | StateEventType::RoomJoinRules
            | StateEventType::RoomMember
            | StateEventType::RoomThirdPartyInvite
    )
}

/// The conflicted state subgraph of version 2.1: everything on an auth path from one entry in conflict to another,
/// ends included.
///
/// Walks down from all of them, not below the lowest at which a path can end; then up again from those that were met.
/// <https://spec.matrix.org/v1.19/rooms/v12/#state-resolution>
pub(crate) fn conflicted_subgraph(sides: &[StateMap], loaded: &Loaded) -> Result<BTreeSet<u64>, Need> {
    let mut missing = BTreeSet::new();
    let (mut ends, mut floor) = (BTreeSet::new(), u64::MAX);
    for (key, id) in sides.iter().flatten() {
        let Some(number) = loaded.number_or_need(id, &mut missing) else { continue };
        ends.insert(number);
        if can_authorise(&key.0) {
            floor = floor.min(number);
        }
    }
    if !missing.is_empty() {
        return Err(Need::NodesOf(missing));
    }
    let mut referrers: HashMap<u64, Vec<u64>> = HashMap::new();
    let mut seen: HashSet<u64> = ends.iter().copied().collect();
    let mut stack: Vec<u64> = ends.iter().copied().filter(|number| *number > floor).collect();
    let mut missing = BTreeSet::new();
    while let Some(number) = stack.pop() {
        let Some(node) = loaded.node(number) else {
            missing.insert(number);
            continue;
        };
        for auth in node.auth.iter().filter(|auth| **auth >= floor) {
            referrers.entry(*auth).or_default().push(number);
            if seen.insert(*auth) && *auth > floor {
                stack.push(*auth);
            }
        }
    }
    if !missing.is_empty() {
        return Err(Need::Nodes(missing));
    }
    let mut subgraph = BTreeSet::new();
    let mut stack: Vec<u64> = ends.into_iter().collect();
    let mut climbed: HashSet<u64> = HashSet::new();
    while let Some(number) = stack.pop() {
        if !climbed.insert(number) {
            continue;
        }
        for referrer in referrers.get(&number).into_iter().flatten() {
            subgraph.insert(number);
            subgraph.insert(*referrer);
            stack.push(*referrer);
        }
    }
    Ok(subgraph)
}
