//! What a resolution has been given so far, and what it lacks.

use ruma::{EventId, OwnedEventId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::{Event, StateKey};

use crate::auth::Judged;

/// A state event as a part of the auth graph. The numbers of a room's events are given once and never change, and each event's
/// is higher than those of its auth events: so it can only be reached from events of higher numbers, which bounds every
/// walk. (`depth` can't serve, because it is the sender's claim.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthNode {
    /// Its number, above zero.
    pub number: u64,
    /// The event.
    pub event_id: OwnedEventId,
    /// The numbers of its auth events.
    pub auth: Vec<u64>,
}

/// What [`crate::resolve::resolve_conflicts`] lacks, or why it can't be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Need {
    /// Whole events: [`Loaded::insert`], or [`Loaded::insert_absent`]. It saves rounds to insert the auth events of
    /// power levels too.
    #[error("{} events are not loaded", .0.len())]
    Events(BTreeSet<OwnedEventId>),
    /// Entries on which all states agree: [`Loaded::insert_entry`].
    #[error("{} entries are not loaded", .0.len())]
    Entries(BTreeSet<StateKey>),
    /// The nodes of these events: [`Loaded::insert_node`], or [`Loaded::insert_outside`] for those without one.
    #[error("the nodes of {} events are not loaded", .0.len())]
    NodesOf(BTreeSet<OwnedEventId>),
    /// The nodes with these numbers: [`Loaded::insert_node`]. It saves rounds to insert some of their auth events' too.
    #[error("{} nodes are not loaded", .0.len())]
    Nodes(BTreeSet<u64>),
    /// The room's nodes with numbers above `after`, in order, some at a time: [`Loaded::insert_later`].
    #[error("nodes after {after} are not loaded")]
    Later {
        /// Whose descendants are looked for.
        of: BTreeSet<u64>,
        /// The last number that is known already.
        after: u64,
    },
    /// No answer is possible: the room version is unknown, or an event in the auth chains is malformed.
    #[error("state can't be resolved: {0}")]
    Impossible(String),
}

/// What the caller has loaded so far, for one resolution.
#[derive(Debug, Default, Clone)]
pub struct Loaded {
    events: HashMap<OwnedEventId, Judged>,
    absent: HashSet<OwnedEventId>,
    entries: BTreeMap<StateKey, Option<OwnedEventId>>,
    numbers: HashMap<OwnedEventId, Option<u64>>,
    nodes: HashMap<u64, AuthNode>,
    later: Option<Later>,
}

/// The descendants of some nodes among those that came later.
#[derive(Debug, Clone)]
pub(crate) struct Later {
    /// Whose descendants they are: those who were asked for first, some of whom were found to be agreed since.
    pub(crate) of: BTreeSet<u64>,
    /// How far the room's nodes were looked through.
    pub(crate) upto: u64,
    /// There are no more.
    pub(crate) complete: bool,
    /// The descendants' auth events.
    pub(crate) kin: BTreeMap<u64, AuthNode>,
}

impl Loaded {
    /// Nothing loaded.
    pub fn new() -> Loaded {
        Loaded::default()
    }

    /// Adds an event.
    pub fn insert(&mut self, event: Arc<Event>, rejected: bool) {
        self.events.insert(event.event_id.clone(), Judged { event, rejected });
    }

    /// Says that an event can't be had. It is left out of account.
    pub fn insert_absent(&mut self, id: OwnedEventId) {
        self.absent.insert(id);
    }

    /// Says which event all states have at a key. What is said of keys at which they differ does not count.
    pub fn insert_entry(&mut self, key: StateKey, event: Option<OwnedEventId>) {
        self.entries.insert(key, event);
    }

    /// Adds the node of an event.
    pub fn insert_node(&mut self, node: AuthNode) {
        self.numbers.insert(node.event_id.clone(), Some(node.number));
        self.nodes.entry(node.number).or_insert(node);
    }

    /// Says that an event has no place in the auth graph.
    pub fn insert_outside(&mut self, id: OwnedEventId) {
        self.numbers.entry(id).or_insert(None);
    }

    /// Adds what was asked for by [`Need::Later`]: all of the room's nodes with numbers above `after` and up to the
    /// last of `nodes`, in order; `complete` says that no more follow. Only descendants of `of` are kept.
    pub fn insert_later(
        &mut self,
        of: BTreeSet<u64>,
        after: u64,
        nodes: impl IntoIterator<Item = AuthNode>,
        complete: bool,
    ) {
        let mut later = match self.later.take() {
            Some(later) if of.is_subset(&later.of) && later.upto <= after => later,
            _ => Later { of: of.clone(), upto: after, complete: false, kin: BTreeMap::new() },
        };
        let of_kin = |node: &AuthNode, kin: &HashSet<u64>| {
            node.auth.iter().any(|auth| of.contains(auth) || kin.contains(auth))
        };
        // What only led from those of whom nothing is asked any more is not followed further.
        let mut kin = HashSet::new();
        for node in later.kin.values() {
            if of_kin(node, &kin) {
                kin.insert(node.number);
            }
        }
        later.upto = later.upto.max(after);
        later.complete = complete;
        for node in nodes {
            later.upto = later.upto.max(node.number);
            if of_kin(&node, &kin) {
                kin.insert(node.number);
                later.kin.insert(node.number, node);
            }
        }
        self.later = Some(later);
    }

    /// An event, if it is loaded.
    pub fn event(&self, id: &EventId) -> Option<&Judged> {
        self.events.get(id)
    }

    /// Whether the node with this number is loaded.
    pub fn has_node(&self, number: u64) -> bool {
        self.nodes.contains_key(&number)
    }

    pub(crate) fn is_absent(&self, id: &EventId) -> bool {
        self.absent.contains(id)
    }

    /// What was said of an entry: nothing yet, or which event holds it.
    pub(crate) fn entry(&self, key: &StateKey) -> Option<Option<&EventId>> {
        self.entries.get(key).map(Option::as_deref)
    }

    /// What was said of an event's number: nothing yet, or what it is.
    fn number(&self, id: &EventId) -> Option<Option<u64>> {
        self.numbers.get(id).copied()
    }

    /// The number of an event in the auth graph, if it is loaded and has one.
    pub fn number_of(&self, id: &EventId) -> Option<u64> {
        self.number(id).flatten()
    }

    pub(crate) fn node(&self, number: u64) -> Option<&AuthNode> {
        self.nodes.get(&number)
    }

    pub(crate) fn later(&self, of: &BTreeSet<u64>) -> Option<&Later> {
        self.later.as_ref().filter(|later| of.is_subset(&later.of))
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

    /// The number of an event in the auth graph, or a note in `missing` that it must be loaded, unless it has none.
    pub(crate) fn number_or_need(&self, id: &EventId, missing: &mut BTreeSet<OwnedEventId>) -> Option<u64> {
        match self.number(id) {
            Some(number) => number,
            None => {
                missing.insert(id.to_owned());
                None
            }
        }
    }
}
