//! The durable queues over the database. An event that other servers get is one row for all of them, and so is news of
//! devices; each destination has a cursor, which is a row only when it fails (see `lanes`). What is for one destination
//! alone (messages between devices, the news that one was put out) has rows of its own.

use super::lanes::{Lanes, Look};
use super::shards::{self, Shards};
use crate::Core;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedServerName, ServerName};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_federation::outbound::CATCH_UP_AFTER;
use waxwing_federation::ports::{Batch, BatchLimits, DestinationState, Outbox, PortError, PortResult};
use waxwing_model::LogPosition;
use waxwing_storage::{DestinationRow, Outgoing, OutgoingRow, ServerSet, StoreError, Waiting};

/// Rows looked at for one batch.
const SCAN: i64 = 2000;
/// Events dealt out at once: while they are, nobody else looks at the lanes.
const DEALT: i64 = 500;
/// Destinations with rows of their own that are noticed at a start.
const MAX_DESTINATIONS: i64 = 100_000;
/// Server sets kept in memory: those of the rooms that are talked in at the same time.
const SETS: usize = 4096;

/// The queues of this node. A handle: clones share everything.
#[derive(Clone)]
pub(crate) struct DurableOutbox {
    core: Core,
    pub(super) shards: Arc<Shards>,
    lanes: Arc<Mutex<Lanes>>,
    sets: Arc<Cache<Arc<str>, ServerSet>>,
    /// Held by who deals out events: they are dealt in order.
    dealing: Arc<tokio::sync::Mutex<()>>,
    /// The cursors of shards as they were saved last.
    saved: Arc<Mutex<BTreeMap<u64, i64>>>,
}

/// What may go into a batch: rows in order, and up to where nothing is left out.
struct Gathered {
    rows: Vec<Waiting>,
    bound: i64,
}

impl DurableOutbox {
    pub(super) fn new(core: Core) -> DurableOutbox {
        DurableOutbox {
            shards: Arc::new(Shards::new(core.clone())),
            core,
            lanes: Arc::default(),
            sets: Arc::new(Cache::new(SETS)),
            dealing: Arc::default(),
            saved: Arc::default(),
        }
    }

    /// Names this node as the holder of leases.
    pub(super) fn owner(&self) -> Arc<str> {
        self.shards.owner()
    }

    /// Takes shards and reads what waits for their destinations.
    pub(super) async fn begin(&self) -> Result<(), StoreError> {
        self.lanes.lock().start(self.core.store.tail().head().0);
        self.renew().await?;
        Ok(())
    }

    /// Takes and renews leases. Gives whether shards were gained.
    pub(super) async fn renew(&self) -> Result<bool, StoreError> {
        let gained = self.shards.renew().await?;
        let ours = self.shards.ours();
        self.lanes.lock().retain(|name| ours.contains(&self.shards.of(name)));
        if !gained.is_empty() {
            self.take_over(&gained).await?;
        }
        Ok(!gained.is_empty())
    }

    /// Reads what the destinations of these shards lack.
    async fn take_over(&self, gained: &BTreeSet<u64>) -> Result<(), StoreError> {
        let _one = self.dealing.lock().await;
        let of_gained = |name: &ServerName| gained.contains(&self.shards.of(name));
        self.lanes.lock().retain(|name| !of_gained(name));
        let mut floors = BTreeMap::new();
        let mut conn = self.core.store.read().await?;
        for shard in gained {
            let floor = conn.cursor_load(&shards::cursor_name(*shard)).await?;
            floors.insert(*shard, floor.map_or(0, |position| position.0));
        }
        let behind = conn.destinations_behind().await?;
        let own = conn.destinations_waiting(MAX_DESTINATIONS).await?;
        drop(conn);
        let head = {
            let mut lanes = self.lanes.lock();
            for row in behind.iter().filter(|row| of_gained(&row.destination)) {
                lanes.resume(&row.destination, row.delivered_upto);
            }
            own.iter().filter(|name| of_gained(name)).for_each(|name| lanes.own_rows(name));
            lanes.read()
        };
        let mut after = floors.values().copied().min().unwrap_or(head);
        while after < head {
            let (rows, upto) = self.read_rows(after, head).await?;
            let mut lanes = self.lanes.lock();
            for (row, set) in &rows {
                for name in set.names() {
                    if floors.get(&self.shards.of(name)).is_some_and(|floor| row.position > *floor) {
                        lanes.deal(name, row);
                    }
                }
            }
            after = upto;
        }
        Ok(())
    }

    /// Some of the events after `after` with who gets them, and up to where these are all.
    async fn read_rows(
        &self,
        after: i64,
        head: i64,
    ) -> Result<(Vec<(Arc<OutgoingRow>, ServerSet)>, i64), StoreError> {
        let rows = self.core.store.read().await?.outgoing_range(after, head, DEALT).await?;
        let upto =
            if (rows.len() as i64) < DEALT { head } else { rows.last().map_or(head, |row| row.position) };
        Ok((self.with_sets(rows).await?, upto))
    }

    /// Deals out what was committed since the last call. Gives who got something.
    pub(super) async fn follow(&self) -> Result<BTreeSet<OwnedServerName>, StoreError> {
        let _one = self.dealing.lock().await;
        let head = self.core.store.tail().head().0;
        let mut woken = BTreeSet::new();
        loop {
            let read = self.lanes.lock().read();
            if read >= head {
                return Ok(woken);
            }
            let (rows, upto) = self.read_rows(read, head).await?;
            let ours = self.shards.ours();
            let mut lanes = self.lanes.lock();
            for (row, set) in &rows {
                for name in set.names().iter().filter(|name| ours.contains(&self.shards.of(name))) {
                    lanes.deal(name, row);
                    woken.insert(name.clone());
                }
            }
            lanes.advance(upto);
        }
    }

    /// These destinations got rows of their own, none of them newer than what was dealt out. Gives those of this node.
    pub(super) fn own_rows(&self, destinations: BTreeSet<OwnedServerName>) -> BTreeSet<OwnedServerName> {
        let ours = self.shards.ours();
        let mut lanes = self.lanes.lock();
        let mine = destinations.into_iter().filter(|name| ours.contains(&self.shards.of(name)));
        mine.inspect(|name| lanes.own_rows(name)).collect()
    }

    async fn with_sets(
        &self,
        rows: Vec<OutgoingRow>,
    ) -> Result<Vec<(Arc<OutgoingRow>, ServerSet)>, StoreError> {
        let unknown: BTreeSet<Arc<str>> = rows
            .iter()
            .filter(|row| self.sets.get(&row.servers).is_none())
            .map(|row| Arc::clone(&row.servers))
            .collect();
        let mut found = BTreeMap::new();
        if !unknown.is_empty() {
            let unknown: Vec<Arc<str>> = unknown.into_iter().collect();
            found = self.core.store.read().await?.server_sets(&unknown).await?;
            for (id, set) in &found {
                self.sets.insert(Arc::clone(id), set.clone());
            }
        }
        let set_of =
            |row: &OutgoingRow| found.get(&row.servers).cloned().or_else(|| self.sets.get(&row.servers));
        let mut with_sets = Vec::with_capacity(rows.len());
        for row in rows {
            let set = match set_of(&row) {
                Some(set) => set,
                // It was pushed out of memory just now.
                None => {
                    let id = [Arc::clone(&row.servers)];
                    let found = self.core.store.read().await?.server_sets(&id).await?.remove(&row.servers);
                    let why = "no such server set";
                    found.ok_or_else(|| StoreError::corrupt("outgoing", row.position.to_string(), why))?
                }
            };
            with_sets.push((Arc::new(row), set));
        }
        Ok(with_sets)
    }

    async fn next(&self, destination: &ServerName, limits: BatchLimits) -> Result<Option<Batch>, StoreError> {
        if !self.shards.owns(destination) {
            return Ok(None);
        }
        loop {
            let look = self.lanes.lock().look(destination, limits.pdus);
            let Some(look) = look else { return Ok(None) };
            let gathered = match self.gather(destination, &look, limits).await {
                Ok(gathered) => gathered,
                Err(error) => {
                    self.lanes.lock().look_again(destination);
                    return Err(error);
                }
            };
            let (picked, cut) = pick(gathered.rows, limits);
            let upto = cut.unwrap_or(gathered.bound);
            if upto < look.upto {
                self.lanes.lock().look_again(destination);
            }
            if !picked.is_empty() {
                self.lanes.lock().opened(destination, look.own);
                return self.load(picked, upto).await.map(Some);
            }
            self.done(destination, upto).await?;
            if upto >= look.upto {
                return Ok(None);
            }
        }
    }

    async fn gather(
        &self,
        destination: &ServerName,
        look: &Look,
        limits: BatchLimits,
    ) -> Result<Gathered, StoreError> {
        let (mut rows, mut bound) = (Vec::new(), look.upto);
        if look.own {
            rows = self.core.store.read().await?.outbox_rows(destination, -1, look.upto, SCAN).await?;
            if rows.len() as i64 == SCAN {
                bound = rows.last().map_or(bound, |row| row.position);
            }
        }
        let events = match &look.held {
            Some(held) => {
                if held.len() > limits.pdus {
                    bound = bound.min(held.last().map_or(bound, |row| row.position));
                }
                held.clone()
            }
            None => {
                let (events, upto) = self.read_again(destination, look, limits.catch_up).await?;
                bound = bound.min(upto);
                events
            }
        };
        let own: BTreeSet<OwnedEventId> = rows.iter().filter_map(|row| row.reference.clone()).collect();
        let is_new = |row: &&Arc<OutgoingRow>| row.event().is_none_or(|event| !own.contains(event));
        rows.extend(events.iter().filter(is_new).map(|row| waiting(row)));
        rows.retain(|row| row.position <= bound);
        rows.sort_by_key(|row| row.position);
        Ok(Gathered { rows, bound })
    }

    /// Events for a destination that is behind, from the database; after a long outage the newest of each room.
    async fn read_again(
        &self,
        destination: &ServerName,
        look: &Look,
        catch_up: bool,
    ) -> Result<(Vec<Arc<OutgoingRow>>, i64), StoreError> {
        let mut conn = self.core.store.read().await?;
        let found = if catch_up {
            conn.outgoing_newest(look.after, look.upto, SCAN).await?
        } else {
            conn.outgoing_range(look.after, look.upto, SCAN).await?
        };
        drop(conn);
        let full = found.len() as i64 == SCAN;
        let bound = if full { found.last().map_or(look.upto, |row| row.position) } else { look.upto };
        let with_sets = self.with_sets(found).await?;
        let theirs = with_sets.into_iter().filter(|(_, set)| set.contains(destination));
        Ok((theirs.map(|(row, _)| row).collect(), bound))
    }

    async fn load(&self, rows: Vec<Waiting>, upto: i64) -> Result<Batch, StoreError> {
        let ids: Vec<_> = rows.iter().filter_map(|row| row.reference.clone()).collect();
        let events = self.core.store.events(&ids).await?;
        let (mut pdus, mut edus, mut name) = (Vec::new(), Vec::new(), Sha256::new());
        for row in rows {
            if let Some(stored) = row.reference.as_ref().and_then(|id| events.get(id)) {
                name.update(stored.event.event_id.as_bytes());
                pdus.push(Arc::clone(&stored.event.json));
            } else if let Some(json) = row.json.and_then(|json| RawValue::from_string(json).ok()) {
                name.update(row.position.to_be_bytes());
                edus.push(Arc::from(json));
            }
        }
        Ok(Batch { txn_id: URL_SAFE_NO_PAD.encode(name.finalize()).into(), pdus, edus, upto })
    }

    /// The destination has everything up to `upto`.
    async fn done(&self, destination: &ServerName, upto: i64) -> Result<(), StoreError> {
        let delivered = self.lanes.lock().delivered(destination, upto);
        if !delivered.own && !delivered.kept {
            return Ok(());
        }
        let input = Arc::new((destination.to_owned(), delivered));
        let written = self
            .core
            .store
            .write("batch done", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (destination, delivered) = &*input;
                    if delivered.own {
                        tx.outbox_done(destination, upto).await?;
                    }
                    if delivered.kept {
                        tx.destination_advanced(destination, upto, delivered.caught_up).await?;
                    }
                    Ok(())
                })
            })
            .await;
        if written.is_err() {
            self.lanes.lock().look_again(destination);
        }
        written
    }

    async fn waiting(&self, limit: usize) -> Result<Vec<DestinationState>, StoreError> {
        let mut conn = self.core.store.read().await?;
        let own = conn.destinations_waiting(MAX_DESTINATIONS).await?;
        let behind = conn.destinations_behind().await?;
        drop(conn);
        // Rows that are newer than what was dealt out are looked for again when that is.
        self.own_rows(own.into_iter().collect());
        let behind: BTreeMap<OwnedServerName, DestinationRow> =
            behind.into_iter().map(|row| (row.destination.clone(), row)).collect();
        let waiting = self.lanes.lock().waiting();
        let state = |destination: OwnedServerName| {
            let row = behind.get(&destination);
            DestinationState {
                failing_since: row.and_then(|row| row.failing_since),
                retry_at: row.and_then(|row| row.retry_at),
                interval: row.and_then(|row| row.interval),
                destination,
            }
        };
        let mut states: Vec<DestinationState> = waiting.into_iter().map(state).collect();
        states.sort_by_key(|state| state.retry_at);
        states.truncate(limit);
        Ok(states)
    }

    /// Keeps how far the shards of this node have come. A crash repeats what was sent since.
    pub(super) async fn save_cursors(&self) -> Result<(), StoreError> {
        let mut cursors = BTreeMap::new();
        {
            let (lanes, saved) = (self.lanes.lock(), self.saved.lock());
            for shard in self.shards.ours() {
                let floor = lanes.floor(|name| self.shards.of(name) == shard);
                if saved.get(&shard) != Some(&floor) {
                    cursors.insert(shard, floor);
                }
            }
        }
        if cursors.is_empty() {
            return Ok(());
        }
        self.shards.save(cursors.clone()).await?;
        self.saved.lock().extend(cursors);
        Ok(())
    }

    async fn failed(&self, state: &DestinationState) -> Result<(), StoreError> {
        let delivered_upto = self.lanes.lock().failed(&state.destination);
        let row = DestinationRow {
            destination: state.destination.clone(),
            failing_since: state.failing_since,
            retry_at: state.retry_at,
            interval: state.interval,
            delivered_upto,
        };
        let written = self.core.store.write("destination failed", Vec::new(), move |tx| {
            let row = row.clone();
            Box::pin(async move { tx.destination_failed(&row).await })
        });
        written.await?;
        self.lanes.lock().remembered(&state.destination);
        Ok(())
    }

    async fn recovered(&self, destination: &ServerName) -> Result<(), StoreError> {
        let destination: OwnedServerName = destination.to_owned();
        self.core
            .store
            .write("destination recovered", Vec::new(), move |tx| {
                let destination = destination.clone();
                Box::pin(async move { tx.destination_recovered(&destination).await })
            })
            .await
    }
}

/// Forgets events that every destination has, and those that only destinations lack that will get a newer one.
pub(crate) async fn prune(core: &Core) -> Result<u64, StoreError> {
    let mut conn = core.store.read().await?;
    let mut cursor = i64::MAX;
    for shard in 0..shards::count(core) {
        let saved = conn.cursor_load(&shards::cursor_name(shard)).await?;
        cursor = cursor.min(saved.map_or(0, |position| position.0));
    }
    let lowest = |found: Option<i64>| LogPosition(found.map_or(cursor, |found| found.min(cursor)));
    let delivered = lowest(conn.destinations_lowest(0).await?);
    let recent = lowest(conn.destinations_lowest(core.now().saturating_sub(CATCH_UP_AFTER)).await?);
    drop(conn);
    core.store
        .write("prune outgoing", Vec::new(), move |tx| {
            Box::pin(async move { tx.outgoing_prune(delivered, recent).await })
        })
        .await
}

/// A row for many, as it waits for one of them.
fn waiting(row: &OutgoingRow) -> Waiting {
    let (room, reference, json) = match &row.what {
        Outgoing::Event { room, event } => (Some(room.clone()), Some(event.clone()), None),
        Outgoing::Edu(edu) => (None, None, Some(edu.to_string())),
    };
    Waiting { position: row.position, room, reference, json }
}

/// Takes rows from the front of a queue as far as the limits go. Gives the position of the last row that was taken,
/// unless all were.
fn pick(mut rows: Vec<Waiting>, limits: BatchLimits) -> (Vec<Waiting>, Option<i64>) {
    let (mut pdus, mut edus) = (0, 0);
    let full = rows.iter().position(|row| {
        let (count, most) =
            if row.reference.is_some() { (&mut pdus, limits.pdus) } else { (&mut edus, limits.edus) };
        *count += 1;
        *count > most
    });
    let Some(full) = full else { return (rows, None) };
    rows.truncate(full);
    let cut = rows.last().map(|row| row.position);
    (rows, cut)
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
        self.done(destination, upto).await.map_err(PortError::new)
    }

    async fn destination_failed(&self, state: &DestinationState) -> PortResult<()> {
        self.failed(state).await.map_err(PortError::new)
    }

    async fn destination_recovered(&self, destination: &ServerName) -> PortResult<()> {
        self.recovered(destination).await.map_err(PortError::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{event_id, room_id};

    fn pdu(position: i64) -> Waiting {
        let (room, event) = (room_id!("!a:x").to_owned(), event_id!("$e").to_owned());
        Waiting { position, room: Some(room), reference: Some(event), json: None }
    }

    fn edu(position: i64) -> Waiting {
        Waiting { position, room: None, reference: None, json: Some("{}".to_owned()) }
    }

    #[test]
    fn a_batch_ends_at_the_first_row_beyond_its_limits() {
        let limits = BatchLimits { pdus: 2, edus: 1, catch_up: false };
        let (rows, cut) = pick(vec![pdu(1), edu(2), pdu(3), edu(4), pdu(5)], limits);
        assert_eq!((rows.len(), cut), (3, Some(3)));
        let (rows, cut) = pick(vec![pdu(1), edu(2), pdu(3)], limits);
        assert_eq!((rows.len(), cut), (3, None));
    }
}
