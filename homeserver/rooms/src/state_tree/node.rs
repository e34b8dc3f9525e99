use super::{Corrupt, FAN_OUT, codec};
use ruma::OwnedEventId;
use sha2::{Digest, Sha256};
use std::fmt;
use waxwing_model::StateKey;

/// The name of a node: the SHA-256 of its encoded bytes. The name of a root is the name of a whole state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

/// Bytes that are not a node id: there are not 32 of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a state node id has 32 bytes, this has {0}")]
pub struct BadNodeId(pub usize);

impl NodeId {
    /// The root of the state without entries. No node has this id: there is nothing to load.
    pub const EMPTY: NodeId = NodeId([0; 32]);

    /// The id whose bytes these are.
    pub const fn from_bytes(bytes: [u8; 32]) -> NodeId {
        NodeId(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of the node with this encoding.
    pub(super) fn of_encoded(bytes: &[u8]) -> NodeId {
        NodeId(Sha256::digest(bytes).into())
    }
}

impl TryFrom<&[u8]> for NodeId {
    type Error = BadNodeId;

    fn try_from(bytes: &[u8]) -> Result<NodeId, BadNodeId> {
        bytes.try_into().map(NodeId).map_err(|_| BadNodeId(bytes.len()))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One entry of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Event type and state key.
    pub key: StateKey,
    /// The event.
    pub event_id: OwnedEventId,
}

/// A node of a state tree: a leaf with entries, or a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node(pub(super) Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Entries ordered by type, then state key; at least one.
    Leaf(Vec<Entry>),
    Branch(Box<Branch>),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Branch {
    /// Entries below; what tells that a subtree has become small enough for one leaf.
    pub count: u64,
    /// At least one is set.
    pub children: [Option<NodeId>; FAN_OUT],
}

impl Node {
    /// The node's bytes, which its id is the hash of.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads what [`Node::encode`] wrote, and nothing else: whatever decodes, encodes to the same bytes.
    pub fn decode(bytes: &[u8]) -> Result<Node, Corrupt> {
        codec::decode(bytes)
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        NodeId::of_encoded(&self.encode())
    }

    /// The ids of the nodes right below: none for a leaf.
    pub fn children(&self) -> Vec<NodeId> {
        match &self.0 {
            Kind::Leaf(_) => Vec::new(),
            Kind::Branch(branch) => branch.children.iter().flatten().copied().collect(),
        }
    }

    /// The entries in this node itself: none for a branch. (What mark and sweep needs to find referenced events.)
    pub fn own_entries(&self) -> &[Entry] {
        match &self.0 {
            Kind::Leaf(entries) => entries,
            Kind::Branch(_) => &[],
        }
    }

    /// How many entries there are in the whole subtree.
    pub fn count(&self) -> u64 {
        match &self.0 {
            Kind::Leaf(entries) => entries.len() as u64,
            Kind::Branch(branch) => branch.count,
        }
    }
}
