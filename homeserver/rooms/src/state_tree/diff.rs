use super::node::{Entry, Kind};
use super::read::collect;
use super::{Missing, NeedNodes, NodeId, Nodes};
use ruma::OwnedEventId;
use std::collections::BTreeMap;
use waxwing_model::StateKey;

/// One entry in which two states differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Event type and state key.
    pub key: StateKey,
    /// The event in the first state.
    pub before: Option<OwnedEventId>,
    /// The event in the second state.
    pub after: Option<OwnedEventId>,
}

/// What turns the state at `a` into the state at `b`, ordered by key. Equal subtrees are neither read nor needed.
pub fn diff(nodes: &(impl Nodes + ?Sized), a: NodeId, b: NodeId) -> Result<Vec<Change>, NeedNodes> {
    let mut missing = Missing::default();
    let mut only_a = Vec::new();
    let mut only_b = Vec::new();
    let subtree = |id: NodeId| Some(id).filter(|id| *id != NodeId::EMPTY);
    let mut todo = vec![(subtree(a), subtree(b))];
    while let Some((a, b)) = todo.pop() {
        match (a, b) {
            (a, b) if a == b => {}
            (Some(a), Some(b)) => {
                let (Some(node_a), Some(node_b)) = (missing.load(nodes, &a), missing.load(nodes, &b)) else {
                    continue;
                };
                if let (Kind::Branch(branch_a), Kind::Branch(branch_b)) = (&node_a.0, &node_b.0) {
                    todo.extend(branch_a.children.into_iter().zip(branch_b.children));
                } else {
                    collect(nodes, a, &mut missing, &mut only_a);
                    collect(nodes, b, &mut missing, &mut only_b);
                }
            }
            (a, b) => {
                for (side, only) in [(a, &mut only_a), (b, &mut only_b)] {
                    if let Some(id) = side {
                        collect(nodes, id, &mut missing, only);
                    }
                }
            }
        }
    }
    missing.result(changes(only_a, only_b))
}

/// Where the states at `roots` are not all the same: per state its entries at those keys. This is what a resolution of
/// them starts from ([`crate::resolve::resolve_conflicts`]).
pub fn conflicts(
    nodes: &(impl Nodes + ?Sized),
    roots: &[NodeId],
) -> Result<Vec<BTreeMap<StateKey, OwnedEventId>>, NeedNodes> {
    let Some((first, others)) = roots.split_first() else { return Ok(Vec::new()) };
    let mut missing = Missing::default();
    let mut differences = Vec::new();
    for other in others {
        match diff(nodes, *first, *other) {
            Ok(changes) => differences.push(changes),
            Err(NeedNodes(ids)) => missing.0.extend(ids),
        }
    }
    let mut common = BTreeMap::new();
    for change in differences.iter().flatten() {
        common.insert(change.key.clone(), change.before.clone());
    }
    let mut sides = vec![common; roots.len()];
    for (side, changes) in sides.iter_mut().skip(1).zip(differences) {
        side.extend(changes.into_iter().map(|change| (change.key, change.after)));
    }
    let set = |side: BTreeMap<StateKey, Option<OwnedEventId>>| {
        side.into_iter().filter_map(|(key, event_id)| Some((key, event_id?))).collect()
    };
    missing.result(sides.into_iter().map(set).collect())
}

fn changes(before: Vec<Entry>, after: Vec<Entry>) -> Vec<Change> {
    let mut sides: BTreeMap<StateKey, (Option<OwnedEventId>, Option<OwnedEventId>)> = BTreeMap::new();
    for entry in before {
        sides.entry(entry.key).or_default().0 = Some(entry.event_id);
    }
    for entry in after {
        sides.entry(entry.key).or_default().1 = Some(entry.event_id);
    }
    let differing = sides.into_iter().filter(|(_, (before, after))| before != after);
    differing.map(|(key, (before, after))| Change { key, before, after }).collect()
}
