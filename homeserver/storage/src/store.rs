//! The store: one database, one writer of groups, one tail of the log.

use crate::auth_graph::GraphCache;
use crate::bus::{Lines, Nats};
use crate::current::Current;
use crate::engine::{Conn, Engine, Pools};
use crate::erased::ErasedUsers;
use crate::error::{StoreError, StoreResult};
use crate::events::StoredEvent;
use crate::group::{self, Answer, Job, Needs, QUEUE_LIMIT};
use crate::level::Ends;
use crate::log::LogRow;
use crate::outgoing::ServerSet;
use crate::repeats::Repeats;
use crate::sharing::Sharing;
use crate::state::{NodeCache, StateReader};
use crate::tail::Tail;
use crate::tx::Tx;
use crate::unfiled::Unfiled;
use crate::whispers::Whispers;
use futures_util::future::BoxFuture;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName};
use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use waxwing_model::LogPosition;
use waxwing_rooms::state_tree::NodeId;

/// Bytes of events kept in memory: what people who talk now look at, and the state of their rooms. Those of the tail are shared
/// with it.
const EVENT_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// A guess of the events in that many bytes.
const EVENT_CACHE_ITEMS: usize = 10_000;
/// Rows read at once when this node has to catch up with the log.
const CATCH_UP_ROWS: i64 = 1000;

/// A write waits so long for a place among those that wait; then there is more to do than this node can.
const PLACE: Duration = Duration::from_secs(5);

/// Rooms whose servers are kept: those that are talked in at the same time.
const SERVER_CACHE_ROOMS: usize = 4096;

/// The other servers in a room, by the root of its state.
pub(crate) type ServerCache = Cache<NodeId, ServerSet>;

/// Events by id, as long as there is room for them.
pub(crate) type EventCache = Cache<OwnedEventId, Arc<StoredEvent>, EventWeight>;

#[derive(Clone)]
pub(crate) struct EventWeight;

impl Weighter<OwnedEventId, Arc<StoredEvent>> for EventWeight {
    fn weight(&self, _: &OwnedEventId, stored: &Arc<StoredEvent>) -> u64 {
        700 + 2 * stored.event.json.get().len() as u64
    }
}

pub(crate) struct Inner {
    pub pools: Pools,
    pub tail: Tail,
    pub nodes: Arc<NodeCache>,
    pub events: Arc<EventCache>,
    pub graph: GraphCache,
    pub servers: Arc<ServerCache>,
    pub erased: ErasedUsers,
    pub current: Current,
    pub repeats: Arc<Repeats>,
    pub unfiled: Arc<Unfiled>,
    /// Destinations that committed rows of this node wait for, until somebody asks.
    outbox: parking_lot::Mutex<Option<BTreeSet<OwnedServerName>>>,
    outbox_changed: Notify,
    /// How often a connection for lookups was given out.
    lookups: AtomicU64,
    /// Changes when this node has committed rows of the log; closed with the store.
    pub committed: watch::Sender<()>,
    /// What nodes tell each other that is not in the log.
    pub whispers: Whispers,
    /// Over which lines this node hears of what others have committed.
    pub lines: Lines,
    /// Questions where the log ends.
    pub ends: Ends,
    /// This node among others.
    pub sharing: Sharing,
    /// Held while rows are added to the tail, so that they are added in order.
    publishing: Mutex<()>,
    /// When the database last answered.
    heard: parking_lot::Mutex<Instant>,
    /// Whether the database was found to lack what this node has read.
    gone_back: watch::Sender<bool>,
}

/// A handle to the database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    queue: mpsc::Sender<Job>,
}

impl Store {
    /// Opens the database at `address` (`sqlite:PATH` or `postgres://…`), applies the migrations and starts the
    /// task that commits groups. The task ends when the last handle is dropped.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for a database of a newer version, [`StoreError::Address`] for an unknown kind.
    pub async fn open(address: &str) -> StoreResult<Store> {
        Store::open_with(address, None).await
    }

    /// The same with hints between nodes over NATS. They go there with PostgreSQL only: a file has one node.
    pub async fn open_with(address: &str, nats: Option<Nats>) -> StoreResult<Store> {
        let pools = Pools::open(address).await?;
        crate::migrate::migrate(&pools).await?;
        let (repeats, unfiled) = (Repeats::default(), Unfiled::default());
        let head = {
            let mut conn = pools.reader().await?;
            repeats.recover(&mut conn).await?;
            let head = conn.log_head().await?;
            // What another process writes after this comes with its rows of the log.
            unfiled.recover(&mut conn).await?;
            head
        };
        let (whispers, to_whisper) = Whispers::new();
        let inner = Arc::new(Inner {
            pools,
            tail: Tail::new(head),
            nodes: Arc::new(NodeCache::new()),
            events: Arc::new(Cache::with_weighter(EVENT_CACHE_ITEMS, EVENT_CACHE_BYTES, EventWeight)),
            graph: crate::auth_graph::cache(),
            servers: Arc::new(Cache::new(SERVER_CACHE_ROOMS)),
            erased: ErasedUsers::default(),
            current: Current::default(),
            repeats: Arc::new(repeats),
            unfiled: Arc::new(unfiled),
            outbox: parking_lot::Mutex::default(),
            outbox_changed: Notify::new(),
            lookups: AtomicU64::new(0),
            committed: watch::Sender::new(()),
            whispers,
            lines: Lines::new(nats.is_some()),
            ends: Ends::default(),
            sharing: Sharing::default(),
            publishing: Mutex::new(()),
            heard: parking_lot::Mutex::new(Instant::now()),
            gone_back: watch::Sender::new(false),
        });
        let (queue, jobs) = mpsc::channel(QUEUE_LIMIT);
        tokio::spawn(group::commit_groups(Arc::clone(&inner), jobs));
        crate::bus::follow(&inner, to_whisper, nats);
        Ok(Store { inner, queue })
    }

    /// Which engine is behind it.
    pub fn engine(&self) -> Engine {
        self.inner.pools.engine()
    }

    /// The tail of the log on this node.
    pub fn tail(&self) -> &Tail {
        &self.inner.tail
    }

    /// A connection for lookups. Never hold it while waiting for the network or for a write.
    pub async fn read(&self) -> StoreResult<Conn> {
        self.inner.lookups.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("waxwing_database_lookups_total").increment(1);
        self.inner.pools.reader().await
    }

    /// Reads state trees over `conn` through the cache.
    pub fn state<'a>(&'a self, conn: &'a mut Conn) -> StateReader<'a> {
        StateReader { conn, cache: &self.inner.nodes, held: HashMap::new() }
    }

    /// How often the database was asked for something that memory did not have, since the start.
    pub fn lookups(&self) -> u64 {
        self.inner.lookups.load(Ordering::Relaxed)
    }

    /// How many writes wait for the next group, at most 4,096.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    pub(crate) fn erased_users(&self) -> &ErasedUsers {
        &self.inner.erased
    }

    pub(crate) fn nodes(&self) -> &NodeCache {
        &self.inner.nodes
    }

    /// Writes: `member` runs inside the next group's transaction, where its lookups see the group's earlier writes,
    /// and the call returns when the group is committed and on disk. When it answers an error, nothing that it wrote
    /// stays. It may run more than once; it must not wait for the network.
    ///
    /// `rooms` are the rooms whose rows it will change: their rows are locked before, in one order.
    pub async fn write<T, E, F>(&self, name: &'static str, rooms: Vec<OwnedRoomId>, member: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        self.write_needing(name, Needs { rooms, ..Needs::default() }, member).await
    }

    /// As [`Store::write`], for a write that needs more than rooms.
    pub async fn write_needing<T, E, F>(&self, name: &'static str, needs: Needs, member: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let run: group::Run = Box::new(move |tx| {
            let running = member(tx);
            Box::pin(async move {
                match running.await {
                    Ok(value) => Ok(Box::new(value) as Box<dyn Any + Send>),
                    Err(error) => Err(Box::new(error) as Box<dyn Any + Send>),
                }
            })
        });
        let (answer, answered) = oneshot::channel();
        let job = Job { name, needs, run, answer };
        self.queue.send_timeout(job, PLACE).await.map_err(|error| match error {
            SendTimeoutError::Timeout(_) => StoreError::Full,
            SendTimeoutError::Closed(_) => StoreError::Closed,
        })?;
        let answer: Answer = answered.await.map_err(|_| StoreError::Closed)??;
        match answer {
            Ok(value) => value.downcast::<T>().map(|value| *value).map_err(|_| StoreError::Closed.into()),
            Err(error) => {
                Err(error.downcast::<E>().map_or_else(|_| StoreError::Closed.into(), |error| *error))
            }
        }
    }

    /// Those of `ids` that are known, from memory where it has them.
    pub async fn events(&self, ids: &[OwnedEventId]) -> StoreResult<HashMap<OwnedEventId, Arc<StoredEvent>>> {
        let mut found = HashMap::with_capacity(ids.len());
        let mut missing = Vec::new();
        for id in ids {
            match self.inner.events.get(id) {
                Some(stored) => drop(found.insert(id.clone(), stored)),
                None => missing.push(id.clone()),
            }
        }
        if !missing.is_empty() {
            for stored in self.read().await?.events_load(&missing).await? {
                self.inner.event_cache_put(Arc::clone(&stored));
                found.insert(stored.event.event_id.clone(), stored);
            }
        }
        Ok(found)
    }

    /// Whether all of these are events that are here, as far as memory knows: `false` may be wrong.
    pub fn has_in_memory(&self, ids: &[OwnedEventId]) -> bool {
        ids.iter().all(|id| self.inner.events.peek(id).is_some_and(|stored| !stored.flags.outlier))
    }

    /// One event.
    pub async fn event(&self, id: &EventId) -> StoreResult<Option<Arc<StoredEvent>>> {
        Ok(self.events(&[id.to_owned()]).await?.remove(id))
    }

    /// Reads rows that other nodes or processes have committed. Called on a hint, and from time to time.
    pub async fn catch_up(&self) -> StoreResult<()> {
        self.inner.catch_up().await
    }

    /// How long ago the database last answered. It is asked every second.
    pub fn silent_for(&self) -> Duration {
        self.inner.heard.lock().elapsed()
    }

    /// Returns when the database was found to lack what this node has read ([`StoreError::GoneBack`]): nothing that
    /// this process remembers can be relied upon, and it must be started again.
    pub async fn gone_back(&self) {
        let mut gone = self.inner.gone_back.subscribe();
        if gone.wait_for(|gone| *gone).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this node has committed something for other servers since the last call; gives the destinations
    /// that have rows of their own. There are none when it was events, which have one row for all. For one caller:
    /// each destination is told once.
    pub async fn outbox_changed(&self) -> BTreeSet<OwnedServerName> {
        loop {
            if let Some(changed) = self.inner.outbox.lock().take() {
                return changed;
            }
            self.inner.outbox_changed.notified().await;
        }
    }

    /// Rows after `after` up to `upto`, from memory or from the database, oldest first. Those from the database come
    /// at most `limit` at a time and without their events.
    pub async fn log_rows(
        &self,
        after: LogPosition,
        upto: LogPosition,
        limit: i64,
    ) -> StoreResult<Vec<Arc<LogRow>>> {
        if let Some(rows) = self.inner.tail.range(after, upto) {
            return Ok(rows);
        }
        let rows = self.read().await?.log_range(after, upto, limit).await?;
        Ok(rows.into_iter().map(Arc::new).collect())
    }
}

impl Inner {
    /// Outbox rows for these destinations are committed, or rows for many at once.
    pub(crate) fn outbox_written(&self, destinations: BTreeSet<OwnedServerName>, outgoing: bool) {
        if outgoing || !destinations.is_empty() {
            self.outbox.lock().get_or_insert_default().extend(destinations);
            self.outbox_changed.notify_one();
        }
    }

    pub(crate) fn event_cache_put(&self, stored: Arc<StoredEvent>) {
        self.events.insert(stored.event.event_id.clone(), stored);
    }

    /// Adds the rows of a committed group to the tail; those of other nodes that come before them first.
    pub(crate) async fn publish(&self, rows: Vec<LogRow>) {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return };
        let (first, last) = (first.position, last.position);
        let _in_order = self.publishing.lock().await;
        let head = self.tail.head();
        if first == head.next() {
            self.append(rows);
        } else if last > head
            && let Err(error) = self.read_upto(None).await
        {
            tracing::warn!(%error, "cannot follow the log; trying again at the next hint");
        }
        // Only now: a hint says how far this node has come. Those of other nodes' rows are theirs to give.
        self.committed.send_replace(());
    }

    pub(crate) async fn catch_up(&self) -> StoreResult<()> {
        let _in_order = self.publishing.lock().await;
        self.read_upto(None).await
    }

    /// The same, unless `position` was reached while others were reading.
    pub(crate) async fn catch_up_to(&self, position: LogPosition) -> StoreResult<()> {
        let _in_order = self.publishing.lock().await;
        if self.tail.head() >= position {
            return Ok(());
        }
        self.read_upto(None).await
    }

    /// The database has answered.
    pub(crate) fn heard_now(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// Reads what follows the tail, if the database is the one that the tail is of.
    async fn read_upto(&self, upto: Option<LogPosition>) -> StoreResult<()> {
        let mut conn = self.pools.follower().await?;
        let upto = match upto {
            Some(upto) => upto,
            None => conn.log_head().await?,
        };
        self.heard_now();
        if upto < self.tail.head() {
            return Err(self.lacks(upto.next()));
        }
        while self.tail.head() < upto {
            let head = self.tail.head();
            // The newest row that this node has comes first, where it has any.
            let known = self.tail.row(head);
            let after = if known.is_some() { LogPosition(head.0 - 1) } else { head };
            let mut rows = conn.log_range(after, upto, CATCH_UP_ROWS).await?;
            // It may be gone, by a purge; but nothing else may stand in its place.
            if let Some(known) = known
                && rows.first().is_some_and(|first| first.position == known.position)
                && !rows.remove(0).says_the_same_as(&known)
            {
                return Err(self.lacks(head));
            }
            let last = rows.last().map_or(upto, |row| row.position);
            if last.0 - head.0 != rows.len() as i64 && conn.log_trimmed().await? > head {
                // This node was away for so long that what it has not read is gone.
                return Err(self.lacks(head.next()));
            }
            if rows.is_empty() {
                return Ok(());
            }
            let ids: Vec<OwnedEventId> = rows
                .iter()
                .filter(|row| row.fact == crate::Fact::Event)
                .filter_map(LogRow::event_id)
                .collect();
            let events: HashMap<OwnedEventId, Arc<StoredEvent>> = conn
                .events_load(&ids)
                .await?
                .into_iter()
                .map(|stored| (stored.event.event_id.clone(), stored))
                .collect();
            for row in rows.iter_mut().filter(|row| row.fact == crate::Fact::Event) {
                row.event = row.event_id().and_then(|id| events.get(&id).cloned());
            }
            self.append(rows);
        }
        Ok(())
    }

    /// The database has no more what this node has read, or something else in its place.
    fn lacks(&self, from: LogPosition) -> StoreError {
        self.gone_back.send_replace(true);
        StoreError::GoneBack(from)
    }

    /// Adds to the tail what follows it, dropping from the caches what the rows say has changed.
    fn append(&self, rows: Vec<LogRow>) {
        for row in &rows {
            if row.fact == crate::Fact::EventChanged
                && let Some(id) = row.event_id()
            {
                self.events.remove(&id);
            }
            if row.fact == crate::Fact::Room && row.data.as_deref() == Some(crate::PURGED) {
                self.events.retain(|_, stored| row.room.as_ref() != Some(&stored.event.room_id));
            }
        }
        self.unfiled.add(&rows);
        self.tail.append(rows);
    }
}
