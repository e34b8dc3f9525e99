//! Resolution over events that are all in memory.

use super::{AuthNode, Loaded, Need, StateMap, resolve_conflicts};
use ruma::{OwnedEventId, RoomVersionId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::Event;

use crate::auth::Judged;
use crate::invariants::resolution_is_sound;

/// The state events of a room, all in memory: for simulations, and to compare with. A server asks its database for what
/// [`resolve_conflicts`] needs, since rooms may be larger than memory.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    events: BTreeMap<OwnedEventId, Judged>,
    numbers: HashMap<OwnedEventId, u64>,
    nodes: BTreeMap<u64, AuthNode>,
}

impl Memory {
    /// Takes events, each with whether it was rejected. What they name and is not among them can't be had.
    pub fn new(events: impl IntoIterator<Item = (Arc<Event>, bool)>) -> Memory {
        let judged =
            |(event, rejected): (Arc<Event>, bool)| (event.event_id.clone(), Judged { event, rejected });
        let mut memory = Memory { events: events.into_iter().map(judged).collect(), ..Memory::default() };
        let ids: Vec<OwnedEventId> = memory.events.keys().cloned().collect();
        let mut entered = HashSet::new();
        for id in ids {
            memory.place(id, &mut entered);
        }
        memory
    }

    /// Numbers an event after its auth events. An event that authorises itself, by whatever way round, is not taken
    /// to do so.
    fn place(&mut self, id: OwnedEventId, entered: &mut HashSet<OwnedEventId>) {
        let mut stack = vec![id];
        while let Some(id) = stack.last().cloned() {
            let auth_events = match self.events.get(&id) {
                Some(judged) if judged.event.is_state() && !self.numbers.contains_key(&id) => {
                    judged.event.auth_events.clone()
                }
                _ => {
                    stack.pop();
                    continue;
                }
            };
            if entered.insert(id.clone()) {
                stack.extend(auth_events.into_iter().filter(|auth| !entered.contains(auth)));
                continue;
            }
            stack.pop();
            let number = self.nodes.len() as u64 + 1;
            let auth = auth_events.iter().filter_map(|auth| self.numbers.get(auth).copied()).collect();
            self.nodes.insert(number, AuthNode { number, event_id: id.clone(), auth });
            self.numbers.insert(id, number);
        }
    }

    /// An event.
    pub fn event(&self, id: &OwnedEventId) -> Option<&Judged> {
        self.events.get(id)
    }

    /// The auth graph, in the order of its numbers.
    pub fn nodes(&self) -> impl Iterator<Item = &AuthNode> {
        self.nodes.values()
    }

    /// Resolves full states to one.
    ///
    /// # Errors
    /// [`Need::Impossible`].
    pub fn resolve(&self, version: &RoomVersionId, states: &[StateMap]) -> Result<StateMap, Need> {
        let Some((agreed, sides)) = split(states) else { return Ok(StateMap::new()) };
        let mut loaded = Loaded::new();
        loop {
            match resolve_conflicts(version, &sides, &loaded) {
                Ok(resolved) => {
                    let resolved = agreed.into_iter().chain(resolved).collect();
                    debug_assert_eq!(resolution_is_sound(states, &resolved), Ok(()));
                    return Ok(resolved);
                }
                Err(need) => self.answer(need, &agreed, &mut loaded)?,
            }
        }
    }

    /// Loads what was asked for, and nothing else. `agreed` holds the entries that all states have.
    ///
    /// # Errors
    /// [`Need::Impossible`], as it was given.
    pub fn answer(&self, need: Need, agreed: &StateMap, loaded: &mut Loaded) -> Result<(), Need> {
        match need {
            Need::Events(ids) => {
                for id in ids {
                    match self.events.get(&id) {
                        Some(judged) => loaded.insert(Arc::clone(&judged.event), judged.rejected),
                        None => loaded.insert_absent(id),
                    }
                }
            }
            Need::Entries(keys) => {
                for key in keys {
                    let event = agreed.get(&key).cloned();
                    loaded.insert_entry(key, event);
                }
            }
            Need::NodesOf(ids) => {
                for id in ids {
                    match self.numbers.get(&id).and_then(|number| self.nodes.get(number)) {
                        Some(node) => loaded.insert_node(node.clone()),
                        None => loaded.insert_outside(id),
                    }
                }
            }
            Need::Nodes(numbers) => {
                for number in numbers {
                    let node = self.nodes.get(&number).cloned();
                    let lost = || Need::Impossible(format!("there is no node {number}"));
                    loaded.insert_node(node.ok_or_else(lost)?);
                }
            }
            Need::Later { of, after } => {
                let nodes: Vec<AuthNode> =
                    self.nodes.range(after + 1..).take(STRETCH).map(|(_, node)| node.clone()).collect();
                let complete = nodes.len() < STRETCH;
                loaded.insert_later(of, after, nodes, complete);
            }
            Need::Impossible(_) => return Err(need),
        }
        Ok(())
    }
}

/// Nodes that are looked through at once: few, so that tests see that one stretch follows the other.
const STRETCH: usize = 4;

/// The entries on which all states agree, and what is left of each; nothing where there is no state.
pub(super) fn split(states: &[StateMap]) -> Option<(StateMap, Vec<StateMap>)> {
    let (first, rest) = states.split_first()?;
    let agreed: StateMap = first
        .iter()
        .filter(|(key, id)| rest.iter().all(|state| state.get(*key) == Some(id)))
        .map(|(key, id)| (key.clone(), id.clone()))
        .collect();
    let left = |state: &StateMap| {
        let differing = state.iter().filter(|(key, _)| !agreed.contains_key(*key));
        differing.map(|(key, id)| (key.clone(), id.clone())).collect()
    };
    let sides = states.iter().map(left).collect();
    Some((agreed, sides))
}
