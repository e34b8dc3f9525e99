//! Walks along auth chains that stop where all sides agree.
//!
//! Auth edges never change, and an event's rank (see [`crate::resolve::rank`]) is above that of everything in its
//! auth chain. So an event can only be reached from events of higher rank, which bounds every walk below. Where a
//! rank is not known the walk runs on to the room's beginning and finds the same.

use ruma::{EventId, OwnedEventId};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use crate::resolve::{Loaded, Need, StateMap};

/// One bit per side.
type Sides = u128;

/// The auth difference: what is in the auth chain of some sides but not of all, apart from the entries in conflict.
///
/// `sides` are the entries in conflict per side, `agreed` the events that all sides have. As in the implementations
/// that rooms live on, an event counts to its own chain: what all sides have is in all chains. (By the letter of the
/// specification an agreed entry that only one side's chains mention would be in the difference; it is in the
/// resolved state in either reading.)
///
/// First only the entries in conflict are followed. What they reach that is not agreed, mostly nothing, may still be
/// in the chain of something that all sides have; only then the agreed events are followed, down to the lowest rank
/// in question.
pub(crate) fn difference<'a>(
    sides: &'a [StateMap],
    agreed: impl Iterator<Item = &'a OwnedEventId>,
    loaded: &'a Loaded,
) -> Result<BTreeSet<&'a EventId>, Need> {
    let mut walk = Walk { loaded, all: (1 << sides.len()) - 1, marks: HashMap::new() };
    for id in agreed {
        walk.marks.insert(id, walk.all);
    }
    let conflicted: HashSet<&EventId> = sides.iter().flat_map(BTreeMap::values).map(|id| &**id).collect();
    walk.follow_sides(sides)?;
    let mut partial: BTreeSet<&EventId> = walk
        .marks
        .iter()
        .filter(|(id, mark)| **mark != walk.all && !conflicted.contains(**id) && !loaded.is_absent(id))
        .map(|(id, _)| *id)
        .collect();
    if !partial.is_empty() {
        walk.follow_agreed(&mut partial)?;
    }
    Ok(partial)
}

struct Walk<'a> {
    loaded: &'a Loaded,
    all: Sides,
    /// From which sides an event is reached.
    marks: HashMap<&'a EventId, Sides>,
}

impl<'a> Walk<'a> {
    /// Follows the entries in conflict, highest rank first. Marks only grow, and an event whose mark grew is followed
    /// again, so the outcome does not depend on the order; with ranks hardly anything is visited twice. An event that
    /// all sides reach is not followed, unless it was before that was known.
    fn follow_sides(&mut self, sides: &'a [StateMap]) -> Result<(), Need> {
        let mut queue = BinaryHeap::new();
        for (number, side) in sides.iter().enumerate() {
            for id in side.values() {
                self.mark(id, 1 << number, &mut queue);
            }
        }
        let mut followed: HashSet<&EventId> = HashSet::new();
        let mut missing = BTreeSet::new();
        while let Some((_, id)) = queue.pop() {
            let mark = self.marks.get(id).copied().unwrap_or_default();
            if mark == self.all && !followed.contains(id) {
                continue;
            }
            match self.loaded.edges(id) {
                Some(edges) => {
                    followed.insert(id);
                    for auth in &edges.auth_events {
                        self.mark(auth, mark, &mut queue);
                    }
                }
                None if self.loaded.is_absent(id) => {}
                None => {
                    missing.insert(id.to_owned());
                }
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(Need::Edges(missing)) }
    }

    fn mark(&mut self, id: &'a EventId, mark: Sides, queue: &mut BinaryHeap<(u64, &'a EventId)>) {
        let marked = self.marks.entry(id).or_default();
        if *marked | mark != *marked {
            *marked |= mark;
            queue.push((self.loaded.edges(id).and_then(|edges| edges.rank).unwrap_or(0), id));
        }
    }

    /// Takes out of `partial` what is in the chain of an event that all sides have. Asks for more only if what is
    /// loaded does not settle it.
    fn follow_agreed(&mut self, partial: &mut BTreeSet<&'a EventId>) -> Result<(), Need> {
        let floor = lowest_rank(partial.iter().copied(), self.loaded);
        let all = self.all;
        let mut stack: Vec<&EventId> =
            self.marks.iter().filter(|(_, mark)| **mark == all).map(|(id, _)| *id).collect();
        let mut missing = BTreeSet::new();
        while let Some(id) = stack.pop() {
            if partial.is_empty() {
                return Ok(());
            }
            let Some(edges) = self.loaded.edges(id) else {
                if !self.loaded.is_absent(id) {
                    missing.insert(id.to_owned());
                }
                continue;
            };
            if edges.rank.is_some_and(|rank| rank <= floor) {
                continue;
            }
            for auth in &edges.auth_events {
                let marked = self.marks.entry(auth).or_default();
                if *marked != all {
                    *marked = all;
                    partial.remove(&**auth);
                    stack.push(auth);
                }
            }
        }
        if missing.is_empty() || partial.is_empty() { Ok(()) } else { Err(Need::Edges(missing)) }
    }
}

/// The lowest rank of some events, zero when one is not known.
fn lowest_rank<'a>(events: impl Iterator<Item = &'a EventId>, loaded: &Loaded) -> u64 {
    events.map(|id| loaded.edges(id).and_then(|edges| edges.rank).unwrap_or(0)).min().unwrap_or(0)
}

/// The conflicted state subgraph of version 2.1: everything on an auth path from one entry in conflict to another,
/// ends included.
///
/// Walks down from all of them, not below the lowest; then up again from those that were met.
/// <https://spec.matrix.org/v1.19/rooms/v12/#state-resolution>
pub(crate) fn conflicted_subgraph<'a>(
    conflicted: &BTreeSet<&'a EventId>,
    loaded: &'a Loaded,
) -> Result<BTreeSet<&'a EventId>, Need> {
    let floor = lowest_rank(conflicted.iter().copied().filter(|id| !loaded.is_absent(id)), loaded);
    let mut referrers: HashMap<&EventId, Vec<&EventId>> = HashMap::new();
    let mut seen: HashSet<&EventId> = conflicted.iter().copied().collect();
    let mut stack: Vec<&EventId> = conflicted.iter().copied().collect();
    let mut missing = BTreeSet::new();
    while let Some(id) = stack.pop() {
        let Some(edges) = loaded.edges(id) else {
            if !loaded.is_absent(id) {
                missing.insert(id.to_owned());
            }
            continue;
        };
        if edges.rank.is_some_and(|rank| rank <= floor) {
            continue;
        }
        for auth in &edges.auth_events {
            referrers.entry(auth).or_default().push(id);
            if seen.insert(auth) {
                stack.push(auth);
            }
        }
    }
    if !missing.is_empty() {
        return Err(Need::Edges(missing));
    }
    let mut subgraph = BTreeSet::new();
    let mut stack: Vec<&EventId> = conflicted.iter().copied().collect();
    let mut climbed: HashSet<&EventId> = HashSet::new();
    while let Some(id) = stack.pop() {
        if !climbed.insert(id) {
            continue;
        }
        for referrer in referrers.get(id).into_iter().flatten() {
            subgraph.insert(id);
            subgraph.insert(*referrer);
            stack.push(referrer);
        }
    }
    Ok(subgraph)
}
