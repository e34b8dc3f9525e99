use super::node::{Entry, Kind};
use super::{Missing, NeedNodes, NodeId, Nodes, Path, TYPE_LEVELS};
use ruma::OwnedEventId;
use ruma::events::StateEventType;
use std::collections::BTreeMap;
use waxwing_model::StateKey;

/// The event at `key`.
pub fn get(
    nodes: &(impl Nodes + ?Sized),
    root: NodeId,
    key: &StateKey,
) -> Result<Option<OwnedEventId>, NeedNodes> {
    Ok(get_many(nodes, root, std::slice::from_ref(key))?.remove(key))
}

/// The events at those of `keys` that are set.
pub fn get_many(
    nodes: &(impl Nodes + ?Sized),
    root: NodeId,
    keys: &[StateKey],
) -> Result<BTreeMap<StateKey, OwnedEventId>, NeedNodes> {
    let mut missing = Missing::default();
    let mut found = BTreeMap::new();
    if root == NodeId::EMPTY {
        return Ok(found);
    }
    let keys = keys.iter().map(|key| (Path::of(key), key)).collect();
    let mut todo: Vec<(NodeId, u32, Vec<(Path, &StateKey)>)> = vec![(root, 0, keys)];
    while let Some((id, depth, keys)) = todo.pop() {
        if keys.is_empty() {
            continue;
        }
        let Some(node) = missing.load(nodes, &id) else { continue };
        match &node.0 {
            Kind::Leaf(entries) => {
                for (_, key) in keys {
                    if let Some(entry) = entries.iter().find(|entry| entry.key == *key) {
                        found.insert(key.clone(), entry.event_id.clone());
                    }
                }
            }
            Kind::Branch(branch) => {
                for (slot, child) in branch.children.iter().enumerate() {
                    let Some(child) = child else { continue };
                    let below = keys.iter().copied().filter(|(path, _)| path.slot(depth) == slot);
                    todo.push((*child, depth + 1, below.collect()));
                }
            }
        }
    }
    missing.result(found)
}

/// The whole state.
pub fn entries(
    nodes: &(impl Nodes + ?Sized),
    root: NodeId,
) -> Result<BTreeMap<StateKey, OwnedEventId>, NeedNodes> {
    let mut missing = Missing::default();
    let mut all = Vec::new();
    if root != NodeId::EMPTY {
        collect(nodes, root, &mut missing, &mut all);
    }
    missing.result(all.into_iter().map(|entry| (entry.key, entry.event_id)).collect())
}

/// All entries of one event type: state key and event.
pub fn entries_of_type(
    nodes: &(impl Nodes + ?Sized),
    root: NodeId,
    kind: &StateEventType,
) -> Result<BTreeMap<String, OwnedEventId>, NeedNodes> {
    let mut missing = Missing::default();
    let mut all = Vec::new();
    let path = Path::of_type(kind);
    let mut at = Some(root).filter(|root| *root != NodeId::EMPTY);
    for depth in 0..TYPE_LEVELS {
        let Some(node) = at.and_then(|id| missing.load(nodes, &id)) else { break };
        let Kind::Branch(branch) = &node.0 else { break };
        at = branch.children[path.slot(depth)];
    }
    if let Some(id) = at {
        collect(nodes, id, &mut missing, &mut all);
    }
    let own = all.into_iter().filter(|entry| entry.key.0 == *kind);
    missing.result(own.map(|entry| (entry.key.1, entry.event_id)).collect())
}

/// All entries but those of one event type, of which the state has `own`: where the type's part of the tree holds no
/// more than that, nothing else lies there, and it is left out unread.
pub fn entries_besides(
    nodes: &(impl Nodes + ?Sized),
    root: NodeId,
    kind: &StateEventType,
    own: u64,
) -> Result<BTreeMap<StateKey, OwnedEventId>, NeedNodes> {
    let mut missing = Missing::default();
    let mut all = Vec::new();
    let path = Path::of_type(kind);
    let mut at = Some(root).filter(|root| *root != NodeId::EMPTY);
    for depth in 0..TYPE_LEVELS {
        let Some(node) = at.take().and_then(|id| missing.load(nodes, &id)) else { break };
        all.extend_from_slice(node.own_entries());
        let Kind::Branch(branch) = &node.0 else { break };
        for (slot, child) in branch.children.iter().enumerate() {
            match child {
                Some(child) if slot == path.slot(depth) => at = Some(*child),
                Some(child) => collect(nodes, *child, &mut missing, &mut all),
                None => {}
            }
        }
    }
    if let Some(id) = at
        && let Some(node) = missing.load(nodes, &id)
        && node.count() != own
    {
        collect(nodes, id, &mut missing, &mut all);
    }
    let others = all.into_iter().filter(|entry| entry.key.0 != *kind);
    missing.result(others.map(|entry| (entry.key, entry.event_id)).collect())
}

/// How many entries the state has.
pub fn count(nodes: &(impl Nodes + ?Sized), root: NodeId) -> Result<u64, NeedNodes> {
    if root == NodeId::EMPTY {
        return Ok(0);
    }
    nodes.node(&root).map(|node| node.count()).ok_or_else(|| NeedNodes(vec![root]))
}

/// Adds all entries below `id` to `into`.
pub(super) fn collect(
    nodes: &(impl Nodes + ?Sized),
    id: NodeId,
    missing: &mut Missing,
    into: &mut Vec<Entry>,
) {
    let mut todo = vec![id];
    while let Some(id) = todo.pop() {
        let Some(node) = missing.load(nodes, &id) else { continue };
        into.extend_from_slice(node.own_entries());
        todo.extend(node.children());
    }
}
