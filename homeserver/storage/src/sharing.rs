//! Who of the nodes does what: leased work is shared out among those that are there.
//!
//! Each node has a row among the leases, which it renews with those of its work. Of the nodes whose rows stand, each piece
//! of work chooses one (the highest hash of both names), so that all nodes agree without asking each other, and few pieces
//! move when a node comes or goes. Who holds what another is chosen for lets go of it. A node that is chosen and does not
//! ask (it is not set up to do such work) is passed over after a while.

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use waxwing_model::opaque_id;

/// What the rows of nodes are called, before their ids.
pub(crate) const NODE: &str = "node/";
/// A piece of work that nobody has is taken by a node that is not chosen for it after this time, milliseconds: a chosen
/// one asks every second.
const PASSED_OVER: u64 = 5_000;
/// A node's row is written again when so much time has passed, milliseconds: a little less than the second after which
/// leases are renewed, so that each round of them carries it.
const RENEWED: u64 = 800;
/// Pieces of work that are remembered as waiting or kept; there are some dozens. Beyond it they are forgotten, which
/// costs a moment's delay.
const REMEMBERED: usize = 4096;

#[derive(Default)]
struct Memory {
    /// Since when nobody has it, as far as this node saw.
    free_since: HashMap<String, u64>,
    /// What this node does in place of a node that does not ask for it.
    kept: HashSet<(String, String)>,
}

/// This node among others.
pub(crate) struct Sharing {
    node: Arc<str>,
    leaving: AtomicBool,
    renewed: AtomicU64,
    memory: Mutex<Memory>,
}

/// What a node is to do about leases.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be taken, or renewed.
    pub take: Vec<String>,
    /// To be given back to those who are chosen.
    pub let_go: Vec<String>,
}

impl Default for Sharing {
    fn default() -> Sharing {
        Sharing {
            node: opaque_id(16).into(),
            leaving: AtomicBool::new(false),
            renewed: AtomicU64::new(0),
            memory: Mutex::default(),
        }
    }
}

/// Who of `nodes` a piece of work chooses.
fn chosen<'a>(name: &str, nodes: &BTreeSet<&'a str>) -> Option<&'a str> {
    let weight = |node: &str| -> [u8; 32] {
        Sha256::new().chain_update(name).chain_update([0]).chain_update(node).finalize().into()
    };
    nodes.iter().copied().max_by_key(|node| weight(node))
}

impl Sharing {
    /// The name of this node's row.
    pub fn row(&self) -> String {
        format!("{NODE}{}", self.node)
    }

    /// Names this node in its row.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// From now on nothing chooses this node.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Whether the node's row is to be written again, at `now` (milliseconds). Counts as done.
    pub fn renews(&self, now: u64) -> bool {
        if self.leaving.load(Ordering::SeqCst) {
            return false;
        }
        let before = self.renewed.load(Ordering::SeqCst);
        now.saturating_sub(before) >= RENEWED
            && self.renewed.compare_exchange(before, now, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// What to do about the leases `names` as `owner`, where those in `standing` have owners.
    pub fn plan(
        &self,
        names: Vec<String>,
        owner: &str,
        standing: &BTreeMap<String, String>,
        now: u64,
    ) -> Plan {
        let mut nodes: BTreeSet<&str> = standing
            .keys()
            .filter_map(|name| name.strip_prefix(NODE))
            .filter(|node| *node != self.node())
            .collect();
        if !self.leaving.load(Ordering::SeqCst) {
            nodes.insert(self.node());
        }
        let mut memory = self.memory.lock();
        memory.kept.retain(|(_, node)| nodes.contains(node.as_str()));
        if memory.free_since.len() > REMEMBERED || memory.kept.len() > REMEMBERED {
            *memory = Memory::default();
        }
        let mut plan = Plan::default();
        for name in names {
            let holder = standing.get(&name).map(String::as_str);
            if holder.is_some() {
                memory.free_since.remove(&name);
            }
            if holder.is_some_and(|holder| holder != owner) {
                continue;
            }
            let node = match chosen(&name, &nodes) {
                Some(node) if node != self.node() => node,
                _ => {
                    plan.take.push(name);
                    continue;
                }
            };
            let key = (name, node.to_owned());
            if memory.kept.contains(&key) {
                plan.take.push(key.0);
            } else if holder.is_some() {
                plan.let_go.push(key.0);
            } else if now.saturating_sub(*memory.free_since.entry(key.0.clone()).or_insert(now)) > PASSED_OVER
            {
                memory.free_since.remove(&key.0);
                plan.take.push(key.0.clone());
                memory.kept.insert(key);
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
        rows.iter().map(|(name, owner)| ((*name).to_owned(), (*owner).to_owned())).collect()
    }

    fn names() -> Vec<String> {
        (0..64).map(|number| format!("work-{number}")).collect()
    }

    #[test]
    fn who_is_alone_does_everything() {
        let sharing = Sharing::default();
        assert_eq!(sharing.plan(names(), "me", &standing(&[]), 0).take, names());
        sharing.leave();
        assert_eq!(sharing.plan(names(), "me", &standing(&[]), 0).take, names(), "nobody else is there");
    }

    #[test]
    fn two_share_and_few_pieces_move_for_a_third() {
        let all = [Sharing::default(), Sharing::default(), Sharing::default()];
        let rows: Vec<String> = all.iter().map(Sharing::row).collect();
        let of = |node: usize, count: usize| {
            let there: Vec<(&str, &str)> = rows[..count].iter().map(|row| (row.as_str(), "")).collect();
            all[node].plan(names(), "me", &standing(&there), 0).take
        };
        let (first, second) = (of(0, 2), of(1, 2));
        assert_eq!(first.len() + second.len(), names().len());
        assert!(first.iter().all(|name| !second.contains(name)));
        assert!(first.len() > 16 && second.len() > 16, "{} and {}", first.len(), second.len());
        let after = of(0, 3);
        assert!(after.iter().all(|name| first.contains(name)), "the third takes, the second does not");
    }

    #[test]
    fn what_another_is_chosen_for_is_let_go_and_not_taken_back_at_once() {
        let (me, other) = (Sharing::default(), Sharing::default());
        let row = other.row();
        let mut rows = standing(&[(&row, "")]);
        rows.extend(names().into_iter().map(|name| (name, "me".to_owned())));
        let plan = me.plan(names(), "me", &rows, 0);
        assert_eq!(plan.take.len() + plan.let_go.len(), names().len());
        assert!(!plan.let_go.is_empty());
        // It is free now. The other one does not come for it: in the end it is done here, and stays here.
        let free = standing(&[(&row, "")]);
        assert_eq!(me.plan(plan.let_go.clone(), "me", &free, 0), Plan::default());
        assert_eq!(me.plan(plan.let_go.clone(), "me", &free, PASSED_OVER), Plan::default());
        let kept = me.plan(plan.let_go.clone(), "me", &free, PASSED_OVER + 1).take;
        assert_eq!(kept, plan.let_go);
        assert_eq!(me.plan(kept.clone(), "me", &rows, PASSED_OVER + 2).take, kept);
        // Until a node comes that has not been waited for.
        let newcomer = Sharing::default();
        let rows = standing(&[(&newcomer.row(), "")]);
        assert!(me.plan(kept.clone(), "me", &rows, PASSED_OVER + 3).take.len() < kept.len());
    }
}
