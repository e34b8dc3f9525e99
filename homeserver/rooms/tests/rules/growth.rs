//! What a change of a room's state costs as the room grows: nodes and bytes are counted, nothing is timed.

use ruma::events::StateEventType;
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_rooms::state_tree::{Node, NodeId, build, update};

/// Changes that are averaged.
const CHANGES: usize = 50;

/// O(log members): ten times the members add at most two nodes to what a change writes.
#[test]
fn a_change_grows_with_the_logarithm_of_the_members() {
    let mut costs = Vec::new();
    for size in [200, 2_000, 20_000] {
        let member = |n: usize| (StateEventType::RoomMember, format!("@user{n}:example.org"));
        let built = build((0..size).map(|n| (member(n), format!("$e{n}:x").try_into().unwrap())));
        let tree: HashMap<NodeId, Arc<Node>> = built.new_nodes.iter().cloned().collect();
        let (mut nodes, mut bytes) = (0, 0);
        for n in 0..CHANGES {
            let id = format!("$new{n}:x").try_into().unwrap();
            let after = update(&tree, built.root, &[(member(n * size / CHANGES), Some(id))]).unwrap();
            nodes += after.new_nodes.len();
            bytes += after.new_nodes.iter().map(|(_, node)| node.encode().len()).sum::<usize>();
        }
        costs.push((size, nodes as f64 / CHANGES as f64, bytes as f64 / CHANGES as f64));
    }
    println!("members, nodes and bytes that one change writes: {costs:?}");
    for pair in costs.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        assert!(after.1 - before.1 <= 2.0, "nodes: {costs:?}");
        assert!(after.2 - before.2 <= 600.0, "bytes: {costs:?}");
    }
}
