//! The durable queues over the database. One node at a time sends to a destination: destinations are divided into
//! shards, and each shard has a lease. On SQLite there is one node, which owns all.

use crate::Core;
use async_trait::async_trait;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, ServerName};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use waxwing_federation::ports::{Batch, BatchLimits, DestinationState, Outbox, PortError, PortResult};
use waxwing_model::opaque_id;
use waxwing_storage::{DestinationRow, Engine, StoreError, Waiting};

/// Shards of destinations: enough that several nodes share them evenly, few enough to renew all in one write.
pub(super) const SHARDS: u64 = 16;
/// How long a lease lasts without being renewed, milliseconds: what a crashed node delays its destinations by.
const LEASE: u64 = 15_000;
/// Rows looked at for one batch. Only a catch-up skips rows, and it goes on with the next batch.
const SCAN: i64 = 2000;

/// The queues of this node.
#[derive(Clone)]
pub(crate) struct DurableOutbox {
    core: Core,
    owner: Arc<str>,
    /// Until when this node holds each shard, milliseconds since the epoch.
    held: Arc<Mutex<BTreeMap<u64, u64>>>,
}

fn shard(destination: &ServerName) -> u64 {
    let mut hasher = DefaultHasher::new();
    destination.as_str().hash(&mut hasher);
    hasher.finish() % SHARDS
}

fn lease_name(shard: u64) -> String {
    format!("federation-sender-{shard}")
}

/// A batch that was picked from the queue.
struct Picked {
    rows: Vec<Waiting>,
    upto: i64,
    skipped: Vec<i64>,
}

impl DurableOutbox {
    pub(super) fn new(core: Core) -> DurableOutbox {
        DurableOutbox { core, owner: opaque_id(16).into(), held: Arc::default() }
    }

    /// Names this node as the holder of leases.
    pub(super) fn owner(&self) -> Arc<str> {
        Arc::clone(&self.owner)
    }

    fn shared(&self) -> bool {
        self.core.store.engine() == Engine::Postgres
    }

    fn owns(&self, destination: &ServerName) -> bool {
        !self.shared()
            || self.held.lock().get(&shard(destination)).is_some_and(|until| *until > self.core.now())
    }

    /// Takes and renews leases. Gives whether shards were gained.
    pub(super) async fn renew(&self) -> Result<bool, StoreError> {
        if !self.shared() {
            return Ok(false);
        }
        let (owner, now) = (Arc::clone(&self.owner), self.core.now());
        let held: BTreeSet<u64> = self
            .core
            .store
            .write("sender leases", Vec::new(), move |tx| {
                let owner = Arc::clone(&owner);
                Box::pin(async move {
                    let mut held = BTreeSet::new();
                    for shard in 0..SHARDS {
                        if tx.lease_take(&lease_name(shard), &owner, now, now + LEASE).await?.is_some() {
                            held.insert(shard);
                        }
                    }
                    Ok::<_, StoreError>(held)
                })
            })
            .await?;
        let mut mine = self.held.lock();
        let gained = held.iter().any(|shard| !mine.contains_key(shard));
        // Ours ends before the database's, whatever the delay of the answer.
        *mine = held.into_iter().map(|shard| (shard, now + LEASE - 1000)).collect();
        Ok(gained)
    }

    /// Lets other nodes have the shards at once.
    pub(super) async fn give_back(&self) -> Result<(), StoreError> {
        let shards: Vec<u64> = std::mem::take(&mut *self.held.lock()).into_keys().collect();
        if shards.is_empty() {
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

    pub(super) async fn waiting(&self, limit: usize) -> Result<Vec<DestinationState>, StoreError> {
        let rows = self.core.store.read().await?.destinations_waiting(limit as i64).await?;
        Ok(rows
            .into_iter()
            .filter(|row| self.owns(&row.destination))
            .map(|row| DestinationState {
                destination: row.destination,
                failing_since: row.failing_since,
                retry_at: row.retry_at,
                interval: row.interval,
            })
            .collect())
    }

    async fn next(&self, destination: &ServerName, limits: BatchLimits) -> Result<Option<Batch>, StoreError> {
        if !self.owns(destination) {
            return Ok(None);
        }
        let mut conn = self.core.store.read().await?;
        let open = conn.outbox_open_upto(destination).await?;
        let upto = open.unwrap_or(i64::MAX);
        let rows = conn.outbox_rows(destination, -1, upto, SCAN).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let picked = if let Some(upto) = open {
            Picked { rows, upto, skipped: Vec::new() }
        } else {
            let newest = if limits.catch_up { Some(conn.outbox_newest(destination).await?) } else { None };
            pick(rows, limits, newest)
        };
        drop(conn);
        if open.is_none() {
            self.open(destination, picked.upto, picked.skipped).await?;
        }
        self.load(picked.rows, picked.upto).await.map(Some)
    }

    /// Remembers what the batch consists of, so that it is the same when it is tried again.
    async fn open(&self, destination: &ServerName, upto: i64, skipped: Vec<i64>) -> Result<(), StoreError> {
        let input = Arc::new((destination.to_owned(), skipped));
        self.core
            .store
            .write("open batch", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    tx.outbox_skip(&input.0, &input.1).await?;
                    tx.outbox_open(&input.0, upto).await
                })
            })
            .await
    }

    async fn load(&self, rows: Vec<Waiting>, upto: i64) -> Result<Batch, StoreError> {
        let ids: Vec<_> = rows.iter().filter_map(|row| row.reference.clone()).collect();
        let events = self.core.store.events(&ids).await?;
        let (mut pdus, mut edus) = (Vec::new(), Vec::new());
        for row in rows {
            if let Some(stored) = row.reference.and_then(|id| events.get(&id)) {
                pdus.push(Arc::clone(&stored.event.json));
            } else if let Some(json) = row.json.and_then(|json| RawValue::from_string(json).ok()) {
                edus.push(Arc::from(json));
            }
        }
        Ok(Batch { txn_id: upto.to_string().into(), pdus, edus, upto })
    }

    async fn write_destination<F>(&self, name: &'static str, change: F) -> Result<(), StoreError>
    where
        F: for<'t> Fn(
                &'t mut waxwing_storage::Tx,
            ) -> futures_util::future::BoxFuture<'t, Result<(), StoreError>>
            + Send
            + Sync
            + 'static,
    {
        self.core.store.write(name, Vec::new(), change).await
    }
}

/// Takes rows from the front of a queue as far as the limits go. `newest`: after a long outage, the position of each
/// room's newest PDU; older ones are skipped.
fn pick(rows: Vec<Waiting>, limits: BatchLimits, newest: Option<Vec<(OwnedRoomId, i64)>>) -> Picked {
    let newest: Option<BTreeMap<OwnedRoomId, i64>> = newest.map(|list| list.into_iter().collect());
    let mut picked = Picked { rows: Vec::new(), upto: 0, skipped: Vec::new() };
    let (mut pdus, mut edus) = (0, 0);
    for row in rows {
        if row.reference.is_some() {
            let old = newest.as_ref().zip(row.room.as_ref()).is_some_and(|(newest, room)| {
                newest.get(room).is_some_and(|position| *position > row.position)
            });
            if old {
                picked.upto = row.position;
                picked.skipped.push(row.position);
                continue;
            }
            if pdus == limits.pdus {
                break;
            }
            pdus += 1;
        } else {
            if edus == limits.edus {
                break;
            }
            edus += 1;
        }
        picked.upto = row.position;
        picked.rows.push(row);
    }
    picked
}

#[async_trait]
impl Outbox for DurableOutbox {
    async fn destinations_waiting(&self, limit: usize) -> PortResult<Vec<DestinationState>> {
        self.waiting(limit).await.map_err(PortError::new)
    }

    async fn next_batch(&self, destination: &ServerName, limits: BatchLimits) -> PortResult<Option<Batch>> {
        self.next(destination, limits).await.map_err(PortError::new)
    }

    async fn batch_done(&self, destination: &ServerName, upto: i64) -> PortResult<()> {
        let destination = destination.to_owned();
        self.write_destination("batch done", move |tx| {
            let destination = destination.clone();
            Box::pin(async move { tx.outbox_done(&destination, upto).await })
        })
        .await
        .map_err(PortError::new)
    }

    async fn destination_failed(&self, state: &DestinationState) -> PortResult<()> {
        let row = DestinationRow {
            destination: state.destination.clone(),
            failing_since: state.failing_since,
            retry_at: state.retry_at,
            interval: state.interval,
        };
        self.write_destination("destination failed", move |tx| {
            let row = row.clone();
            Box::pin(async move { tx.destination_failed(&row).await })
        })
        .await
        .map_err(PortError::new)
    }

    async fn destination_recovered(&self, destination: &ServerName) -> PortResult<()> {
        let destination: OwnedServerName = destination.to_owned();
        self.write_destination("destination recovered", move |tx| {
            let destination = destination.clone();
            Box::pin(async move { tx.destination_recovered(&destination).await })
        })
        .await
        .map_err(PortError::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{event_id, room_id};

    fn pdu(position: i64, room: &ruma::RoomId) -> Waiting {
        Waiting {
            position,
            room: Some(room.to_owned()),
            reference: Some(event_id!("$e").to_owned()),
            json: None,
        }
    }

    fn edu(position: i64) -> Waiting {
        Waiting { position, room: None, reference: None, json: Some("{}".to_owned()) }
    }

    #[test]
    fn a_batch_ends_at_the_first_row_beyond_its_limits() {
        let room = room_id!("!a:x");
        let limits = BatchLimits { pdus: 2, edus: 1, catch_up: false };
        let picked = pick(vec![pdu(1, room), edu(2), pdu(3, room), edu(4), pdu(5, room)], limits, None);
        assert_eq!((picked.rows.len(), picked.upto, picked.skipped.len()), (3, 3, 0));
    }

    #[test]
    fn after_an_outage_only_the_newest_of_each_room_goes() {
        let (a, b) = (room_id!("!a:x"), room_id!("!b:x"));
        let limits = BatchLimits { pdus: 50, edus: 50, catch_up: true };
        let rows = vec![pdu(1, a), edu(2), pdu(3, b), pdu(4, a)];
        let newest = vec![(a.to_owned(), 4), (b.to_owned(), 3)];
        let picked = pick(rows, limits, Some(newest));
        assert_eq!(picked.rows.iter().map(|row| row.position).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!((picked.upto, picked.skipped), (4, vec![1]));
    }
}
