//! A room's state as an immutable hash trie.
//!
//! A node is named by the SHA-256 of its bytes, and the shape of a tree depends on its entries alone, so equal states
//! have equal roots and a comparison skips equal subtrees. One change writes one leaf and the few branches above it.
//!
//! Nothing here loads anything. Every function works on the nodes at hand ([`Nodes`]) and answers [`NeedNodes`] with
//! the ids that are missing; the caller loads that batch and calls again.
//!
//! A key's path is 128 bits, three of them per level: the first six come from the event type alone, so all entries of
//! one type lie in one subtree two levels down; the rest come from type and state key together.

mod codec;
mod diff;
mod node;
mod read;
mod update;

#[cfg(test)]
mod tests;

pub use codec::Corrupt;
pub use diff::{Change, conflicts, diff};
pub use node::{BadNodeId, Entry, Node, NodeId};
pub use read::{count, entries, entries_besides, entries_of_type, get, get_many};
pub use update::{Update, build, update};

use ruma::events::StateEventType;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::StateKey;

/// How many entries a leaf holds before it becomes a branch. A change rewrites one leaf (about 65 bytes an entry) and
/// the branches above it: small leaves keep that cheap, smaller ones would cost more nodes than they save bytes.
pub const LEAF_ENTRIES: usize = 8;

/// Bits of path per level. Eight children of 32 bytes each: sixteen would write half as much again per change, four
/// would take half as many rounds again to read, for the same bytes once a database row's overhead is counted.
const LEVEL_BITS: u32 = 3;

/// Children of a branch.
const FAN_OUT: usize = 1 << LEVEL_BITS;

/// Levels of path that the event type alone decides.
const TYPE_LEVELS: u32 = 2;

/// Where paths end: a leaf at this depth holds whatever shares the whole path.
const MAX_DEPTH: u32 = 128 / LEVEL_BITS;

/// The nodes at hand.
pub trait Nodes {
    /// The node with this id, if it is at hand.
    fn node(&self, id: &NodeId) -> Option<Arc<Node>>;
}

impl Nodes for HashMap<NodeId, Arc<Node>> {
    fn node(&self, id: &NodeId) -> Option<Arc<Node>> {
        self.get(id).cloned()
    }
}

impl<N: Nodes + ?Sized> Nodes for &N {
    fn node(&self, id: &NodeId) -> Option<Arc<Node>> {
        (**self).node(id)
    }
}

/// Nodes that must be at hand before the question can be answered, each once, in order. Never empty. More may turn out
/// to be missing below them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} state nodes are not at hand", .0.len())]
pub struct NeedNodes(pub Vec<NodeId>);

/// Collects the ids of missing nodes during one walk.
#[derive(Default)]
struct Missing(BTreeSet<NodeId>);

impl Missing {
    fn load(&mut self, nodes: &(impl Nodes + ?Sized), id: &NodeId) -> Option<Arc<Node>> {
        let node = nodes.node(id);
        if node.is_none() {
            self.0.insert(*id);
        }
        node
    }

    fn result<T>(self, value: T) -> Result<T, NeedNodes> {
        if self.0.is_empty() { Ok(value) } else { Err(NeedNodes(self.0.into_iter().collect())) }
    }
}

/// The place of a key in every tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Path(u128);

impl Path {
    fn of(key: &StateKey) -> Path {
        let kind = key.0.to_string();
        let hash = Sha256::new()
            .chain_update((kind.len() as u64).to_be_bytes())
            .chain_update(kind.as_bytes())
            .chain_update(key.1.as_bytes())
            .finalize();
        let rest = high_bits(&hash) >> (TYPE_LEVELS * LEVEL_BITS);
        Path(Path::of_type(&key.0).0 | rest)
    }

    /// The part of the path that all keys of one event type share; the rest is zero.
    fn of_type(kind: &StateEventType) -> Path {
        let keep = 128 - TYPE_LEVELS * LEVEL_BITS;
        Path((high_bits(&Sha256::digest(kind.to_string().as_bytes())) >> keep) << keep)
    }

    /// Which child of a branch at `depth` the path goes through. (No branch is as deep as `MAX_DEPTH`.)
    fn slot(self, depth: u32) -> usize {
        let shift = 128_u32.saturating_sub((depth + 1) * LEVEL_BITS);
        ((self.0 >> shift) as usize) & (FAN_OUT - 1)
    }
}

fn high_bits(hash: &[u8]) -> u128 {
    hash.iter().take(16).fold(0, |bits, byte| (bits << 8) | u128::from(*byte))
}
