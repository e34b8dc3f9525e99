use super::codec::entry_order;
use super::node::{Branch, Entry, Kind};
use super::read::collect;
use super::{FAN_OUT, LEAF_ENTRIES, MAX_DEPTH, Missing, NeedNodes, Node, NodeId, Nodes, Path};
use ruma::OwnedEventId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::StateKey;

/// What a change of a state makes: the new root, and the nodes below it that the old tree did not have where they are
/// now. (They may be known from another state: store them where they do not exist yet.) Children come before parents.
#[derive(Debug, Clone)]
pub struct Update {
    /// The root of the new state.
    pub root: NodeId,
    /// The nodes to store.
    pub new_nodes: Vec<(NodeId, Arc<Node>)>,
}

/// Sets (`Some`) or removes (`None`) entries of the state at `root`. Of two changes to one key the last one counts.
pub fn update(
    nodes: &(impl Nodes + ?Sized),
    root: NodeId,
    changes: &[(StateKey, Option<OwnedEventId>)],
) -> Result<Update, NeedNodes> {
    let by_key: BTreeMap<&StateKey, &Option<OwnedEventId>> =
        changes.iter().map(|(key, event_id)| (key, event_id)).collect();
    let changes = by_key
        .into_iter()
        .map(|(key, event_id)| Edit { path: Path::of(key), key: key.clone(), event_id: event_id.clone() })
        .collect();
    let mut writer =
        Writer { nodes, missing: Missing::default(), read: BTreeSet::new(), made: HashMap::new() };
    let old = Some(root).filter(|root| *root != NodeId::EMPTY);
    let new = writer.apply(old, 0, changes);
    let Writer { missing, made, .. } = writer;
    missing.result(finish(new, &made))
}

/// The tree of a whole state. Of two entries with one key the last one counts.
pub fn build(entries: impl IntoIterator<Item = (StateKey, OwnedEventId)>) -> Update {
    let entries: BTreeMap<StateKey, OwnedEventId> = entries.into_iter().collect();
    let entries = entries.into_iter().map(|(key, event_id)| Entry { key, event_id });
    let nodes = HashMap::new();
    let mut writer =
        Writer { nodes: &nodes, missing: Missing::default(), read: BTreeSet::new(), made: HashMap::new() };
    let root = writer.make(entries.map(|entry| (Path::of(&entry.key), entry)).collect(), 0);
    finish(root.map(|(id, _)| id), &writer.made)
}

/// Keeps what is part of the new tree: nodes made on the way and merged again are dropped.
fn finish(root: Option<NodeId>, made: &HashMap<NodeId, Arc<Node>>) -> Update {
    let mut new_nodes = Vec::new();
    let mut seen = BTreeSet::new();
    let mut todo: Vec<NodeId> = root.into_iter().collect();
    while let Some(id) = todo.pop() {
        if let Some(node) = made.get(&id)
            && seen.insert(id)
        {
            todo.extend(node.children());
            new_nodes.push((id, node.clone()));
        }
    }
    new_nodes.reverse();
    Update { root: root.unwrap_or(NodeId::EMPTY), new_nodes }
}

struct Edit {
    path: Path,
    key: StateKey,
    event_id: Option<OwnedEventId>,
}

struct Writer<'a, N: ?Sized> {
    nodes: &'a N,
    missing: Missing,
    /// Nodes of the old tree on the way to a change. A node at hand that is not among them may be of another state, and
    /// need not be stored for ever: if it becomes part of the new tree, it counts as new.
    read: BTreeSet<NodeId>,
    made: HashMap<NodeId, Arc<Node>>,
}

impl<N: Nodes + ?Sized> Writer<'_, N> {
    /// The subtree at `depth` after the edits; `None` when nothing is left of it. Meaningless once a node is missing.
    fn apply(&mut self, id: Option<NodeId>, depth: u32, edits: Vec<Edit>) -> Option<NodeId> {
        if edits.is_empty() {
            return id;
        }
        let Some(id) = id else { return self.merge(Vec::new(), edits, depth).map(|(id, _)| id) };
        let node = self.missing.load(self.nodes, &id)?;
        self.read.insert(id);
        match &node.0 {
            Kind::Leaf(entries) => self.merge(entries.clone(), edits, depth).map(|(id, _)| id),
            Kind::Branch(branch) => self.apply_to_branch(branch, depth, edits),
        }
    }

    fn apply_to_branch(&mut self, branch: &Branch, depth: u32, edits: Vec<Edit>) -> Option<NodeId> {
        let mut changed = branch.clone();
        let mut parts: [Vec<Edit>; FAN_OUT] = Default::default();
        for edit in edits {
            parts[edit.path.slot(depth)].push(edit);
        }
        for (slot, edits) in parts.into_iter().enumerate().filter(|(_, edits)| !edits.is_empty()) {
            let before = branch.children[slot];
            let after = self.apply(before, depth + 1, edits);
            changed.children[slot] = after;
            if before != after {
                changed.count += self.count(after);
                changed.count = changed.count.saturating_sub(self.count(before));
            }
        }
        if !self.missing.0.is_empty() {
            return None;
        }
        if changed.count > LEAF_ENTRIES as u64 {
            return Some(self.keep(Node(Kind::Branch(Box::new(changed)))));
        }
        let mut left = Vec::new();
        for child in changed.children.iter().flatten() {
            let both = Both { made: &self.made, old: self.nodes };
            collect(&both, *child, &mut self.missing, &mut left);
        }
        self.merge(left, Vec::new(), depth).map(|(id, _)| id)
    }

    fn merge(&mut self, old: Vec<Entry>, edits: Vec<Edit>, depth: u32) -> Option<(NodeId, u64)> {
        let mut entries: BTreeMap<StateKey, OwnedEventId> =
            old.into_iter().map(|entry| (entry.key, entry.event_id)).collect();
        for edit in edits {
            match edit.event_id {
                Some(event_id) => entries.insert(edit.key, event_id),
                None => entries.remove(&edit.key),
            };
        }
        let entries = entries.into_iter().map(|(key, event_id)| Entry { key, event_id });
        self.make(entries.map(|entry| (Path::of(&entry.key), entry)).collect(), depth)
    }

    /// The subtree at `depth` with exactly these entries, and their number.
    fn make(&mut self, entries: Vec<(Path, Entry)>, depth: u32) -> Option<(NodeId, u64)> {
        let count = entries.len();
        if count == 0 {
            return None;
        }
        if count <= LEAF_ENTRIES || depth >= MAX_DEPTH {
            let mut entries: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
            entries.sort_by(entry_order);
            return Some((self.keep(Node(Kind::Leaf(entries))), count as u64));
        }
        let mut parts: [Vec<(Path, Entry)>; FAN_OUT] = Default::default();
        for (path, entry) in entries {
            parts[path.slot(depth)].push((path, entry));
        }
        let children = parts.map(|part| self.make(part, depth + 1).map(|(id, _)| id));
        let branch = Branch { count: count as u64, children };
        Some((self.keep(Node(Kind::Branch(Box::new(branch)))), count as u64))
    }

    fn keep(&mut self, node: Node) -> NodeId {
        let id = node.id();
        if !self.read.contains(&id) {
            self.made.entry(id).or_insert_with(|| Arc::new(node));
        }
        id
    }

    fn count(&mut self, id: Option<NodeId>) -> u64 {
        let Some(id) = id else { return 0 };
        let both = Both { made: &self.made, old: self.nodes };
        self.missing.load(&both, &id).map_or(0, |node| node.count())
    }
}

/// The nodes just made, and the nodes at hand.
struct Both<'a, N: ?Sized> {
    made: &'a HashMap<NodeId, Arc<Node>>,
    old: &'a N,
}

impl<N: Nodes + ?Sized> Nodes for Both<'_, N> {
    fn node(&self, id: &NodeId) -> Option<Arc<Node>> {
        self.made.get(id).cloned().or_else(|| self.old.node(id))
    }
}
