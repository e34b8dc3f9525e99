//! Leased work is shared out among the nodes of one PostgreSQL, and moves when they come and go.

use crate::Fresh;
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_storage::{LEASE_LASTS, Store};

/// A renewal every second, on a clock of the test's own.
const SECOND: u64 = 1000;

struct Node {
    store: Store,
    owner: Arc<str>,
}

fn names() -> Vec<String> {
    (0..32).map(|number| format!("work-{number}")).collect()
}

impl Node {
    async fn open(fresh: &Fresh, owner: &str) -> Node {
        Node { store: Store::open(&fresh.url).await.unwrap(), owner: owner.into() }
    }

    async fn has(&self, now: u64) -> BTreeSet<String> {
        let taken =
            self.store.leases_share(names(), Arc::clone(&self.owner), now, LEASE_LASTS).await.unwrap();
        taken.into_iter().map(|(name, _)| name).collect()
    }
}

/// What each has after a few rounds, in which nobody had what another had.
async fn settle(nodes: &[&Node], now: &mut u64) -> Vec<BTreeSet<String>> {
    let mut all = Vec::new();
    for _ in 0..4 {
        *now += SECOND;
        all.clear();
        for (number, node) in nodes.iter().enumerate() {
            all.push(node.has(*now + number as u64).await);
        }
        let count: usize = all.iter().map(BTreeSet::len).sum();
        let together: BTreeSet<&String> = all.iter().flatten().collect();
        assert_eq!(count, together.len(), "nothing is two nodes'");
    }
    let count: usize = all.iter().map(BTreeSet::len).sum();
    assert_eq!(count, names().len(), "everything is somebody's");
    all
}

#[tokio::test]
async fn nodes_share_work_and_take_over_from_each_other() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let mut now = 1_000_000;
    let first = Node::open(&fresh, "first").await;
    assert_eq!(first.has(now).await.len(), names().len(), "who is alone has everything at once");
    let second = Node::open(&fresh, "second").await;
    let two = settle(&[&first, &second], &mut now).await;
    assert!(two.iter().all(|has| has.len() > 6), "{two:?}");
    let third = Node::open(&fresh, "third").await;
    let three = settle(&[&first, &second, &third], &mut now).await;
    assert!(three.iter().all(|has| has.len() > 3), "{three:?}");
    for (before, after) in two.iter().zip(&three) {
        assert!(after.is_subset(before), "what the newcomer does not take stays where it is");
    }
    // One goes as it should: the others have everything a second later.
    second.store.leave_cluster().await.unwrap();
    now += SECOND;
    assert!(second.has(now).await.is_empty());
    let (one, other) = (first.has(now + 1).await, third.has(now + 2).await);
    assert_eq!(one.len() + other.len(), names().len());
    drop(second);
    // One is killed: the other has everything when its leases have run out.
    drop(first);
    now += LEASE_LASTS + 2 * SECOND;
    assert_eq!(third.has(now).await.len(), names().len());
    // A node that does not share (one of an older version has everything) is waited for, and does not wait.
    let old = third.store.leases_take(names(), "old".into(), now + 1, LEASE_LASTS).await.unwrap();
    assert!(old.is_empty());
    drop(third);
    fresh.drop_database().await;
}

#[tokio::test]
async fn on_sqlite_there_is_nobody_to_share_with() {
    let fresh = Fresh::sqlite();
    let node = Node::open(&fresh, "only").await;
    assert_eq!(node.has(1).await.len(), names().len());
    node.store.leave_cluster().await.unwrap();
    assert_eq!(node.has(2).await.len(), names().len());
}
