//! Which node sends to which destination: destinations are divided into shards, and each shard has a lease. On SQLite
//! there is one node, which has the only shard.

use crate::Core;
use parking_lot::Mutex;
use ruma::ServerName;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use waxwing_model::{LogPosition, opaque_id};
use waxwing_storage::{Engine, LEASE_LASTS, StoreError};

/// Shards where several nodes share the work: enough that they share it evenly, few enough to renew all in one write.
const SHARDS: u64 = 16;
/// Ours ends before the database's, whatever the delay of the answer.
const MARGIN: u64 = 500;

/// A shard that this node holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    until: u64,
    epoch: i64,
}

/// The shards of this node.
pub(super) struct Shards {
    core: Core,
    owner: Arc<str>,
    held: Mutex<BTreeMap<u64, Held>>,
}

fn lease_name(shard: u64) -> String {
    format!("federation-sender-{shard}")
}

/// How many shards there are.
pub(super) fn count(core: &Core) -> u64 {
    if core.store.engine() == Engine::Postgres { SHARDS } else { 1 }
}

/// The cursor of a shard: every destination of it that did not fail has everything up to there.
pub(super) fn cursor_name(shard: u64) -> String {
    format!("federation-sender-{shard}")
}

impl Shards {
    pub(super) fn new(core: Core) -> Shards {
        Shards { core, owner: opaque_id(16).into(), held: Mutex::default() }
    }

    /// Names this node as the holder of leases.
    pub(super) fn owner(&self) -> Arc<str> {
        Arc::clone(&self.owner)
    }

    fn shared(&self) -> bool {
        self.core.store.engine() == Engine::Postgres
    }

    /// The shard of a destination.
    pub(super) fn of(&self, destination: &ServerName) -> u64 {
        let mut hasher = DefaultHasher::new();
        destination.as_str().hash(&mut hasher);
        hasher.finish() % count(&self.core)
    }

    /// The shards that this node holds now.
    pub(super) fn ours(&self) -> BTreeSet<u64> {
        let now = self.core.now();
        let held = self.held.lock();
        held.iter().filter(|(_, held)| !self.shared() || held.until > now).map(|(shard, _)| *shard).collect()
    }

    /// Whether this node sends to the destination.
    pub(super) fn owns(&self, destination: &ServerName) -> bool {
        let held = self.held.lock();
        held.get(&self.of(destination)).is_some_and(|held| !self.shared() || held.until > self.core.now())
    }

    /// Takes and renews leases. Gives the shards that were gained.
    pub(super) async fn renew(&self) -> Result<BTreeSet<u64>, StoreError> {
        let now = self.core.now();
        let taken: BTreeMap<u64, i64> = if self.shared() { self.take(now).await? } else { [(0, 0)].into() };
        let mut held = self.held.lock();
        let gained = taken.iter().filter(|(shard, epoch)| {
            held.get(shard)
                .is_none_or(|before| before.epoch != **epoch || self.shared() && before.until <= now)
        });
        let gained = gained.map(|(shard, _)| *shard).collect();
        let until = now + LEASE_LASTS - MARGIN;
        *held = taken.into_iter().map(|(shard, epoch)| (shard, Held { until, epoch })).collect();
        Ok(gained)
    }

    async fn take(&self, now: u64) -> Result<BTreeMap<u64, i64>, StoreError> {
        let names = (0..SHARDS).map(lease_name).collect();
        let taken = self.core.store.leases_share(names, Arc::clone(&self.owner), now, LEASE_LASTS).await?;
        let taken: BTreeMap<String, i64> = taken.into_iter().collect();
        let epoch = |shard| taken.get(&lease_name(shard)).map(|epoch| (shard, *epoch));
        Ok((0..SHARDS).filter_map(epoch).collect())
    }

    /// Keeps the cursors of shards, those apart that fell to another node meanwhile.
    pub(super) async fn save(&self, cursors: BTreeMap<u64, i64>) -> Result<(), StoreError> {
        let epochs: BTreeMap<u64, i64> =
            self.held.lock().iter().map(|(shard, held)| (*shard, held.epoch)).collect();
        let input = Arc::new((Arc::clone(&self.owner), epochs, cursors, self.shared()));
        self.core
            .store
            .write("sender cursors", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (owner, epochs, cursors, shared) = &*input;
                    for (shard, position) in cursors {
                        let Some(epoch) = epochs.get(shard) else { continue };
                        if !shared || tx.lease_hold(&lease_name(*shard), owner, *epoch).await? {
                            tx.cursor_save(&cursor_name(*shard), LogPosition(*position)).await?;
                        }
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Lets other nodes have the shards at once.
    pub(super) async fn give_back(&self) -> Result<(), StoreError> {
        let shards: Vec<u64> = std::mem::take(&mut *self.held.lock()).into_keys().collect();
        if shards.is_empty() || !self.shared() {
            return Ok(());
        }
        let owner = Arc::clone(&self.owner);
        self.core
            .store
            .write("sender leases", Vec::new(), move |tx| {
                let (owner, shards) = (Arc::clone(&owner), shards.clone());
                Box::pin(async move {
                    for shard in shards {
                        tx.lease_give_back(&lease_name(shard), &owner).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}
