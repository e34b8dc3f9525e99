//! Nodes of the state trees: immutable, named by their content, so any node of the cluster may cache them for ever.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use crate::store::Store;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::OwnedEventId;
use ruma::events::StateEventType;
use sqlx::AssertSqlSafe;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use waxwing_model::StateKey;
use waxwing_rooms::state_tree::{self, Change, NeedNodes, Node, NodeId, Nodes};

statements! {
    LOAD = "SELECT id, bytes FROM state_nodes WHERE id IN ($list)";
    INSERT = "INSERT INTO state_nodes (id, bytes, written_at) VALUES $rows ON CONFLICT (id) DO UPDATE SET written_at = excluded.written_at";
}

/// Bytes of state nodes that a node of the cluster keeps in memory.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// A guess of the nodes in that many bytes, for the cache's tables.
const CACHE_ITEMS: usize = 40_000;

#[derive(Clone)]
pub(crate) struct NodeWeight;

impl Weighter<NodeId, Arc<Node>> for NodeWeight {
    fn weight(&self, _: &NodeId, node: &Arc<Node>) -> u64 {
        64 + node.own_entries().len() as u64 * 200 + node.children().len() as u64 * 40
    }
}

/// Nodes that wait for the next group to write them, at most: then one is made for them. Some five megabytes.
const UNWRITTEN_MOST: usize = 10_000;

/// Decoded nodes. Names are hashes of what they name, so nothing in it can be wrong.
pub(crate) struct NodeCache {
    cache: Cache<NodeId, Arc<Node>, NodeWeight>,
    /// Of states that were made outside of a transaction: whoever refers to one commits after that, and the group of
    /// that commit writes them first. So a state that is only a step on the way to another waits for no disk.
    unwritten: Mutex<HashMap<NodeId, Arc<Node>>>,
}

impl NodeCache {
    pub(crate) fn new() -> NodeCache {
        let cache = Cache::with_weighter(CACHE_ITEMS, CACHE_BYTES, NodeWeight);
        NodeCache { cache, unwritten: Mutex::default() }
    }
    pub(crate) fn insert(&self, id: NodeId, node: Arc<Node>) {
        self.cache.insert(id, node);
    }
    fn get(&self, id: &NodeId) -> Option<Arc<Node>> {
        self.cache.get(id).or_else(|| self.unwritten.lock().get(id).cloned())
    }
    /// Keeps nodes until they are written. Gives how many wait.
    fn keep(&self, new: Vec<(NodeId, Arc<Node>)>) -> usize {
        let mut unwritten = self.unwritten.lock();
        for (id, node) in new {
            self.cache.insert(id, Arc::clone(&node));
            unwritten.insert(id, node);
        }
        unwritten.len()
    }
    /// What is to be written with the next group.
    pub(crate) fn unwritten(&self) -> Vec<(NodeId, Arc<Node>)> {
        self.unwritten.lock().iter().map(|(id, node)| (*id, Arc::clone(node))).collect()
    }
    /// These were written.
    pub(crate) fn written(&self, ids: &[NodeId]) {
        let mut unwritten = self.unwritten.lock();
        for id in ids {
            unwritten.remove(id);
        }
    }
}

/// The cache, with what was just loaded held fast: an eviction between two steps must not make us load for ever.
struct View<'a> {
    cache: &'a NodeCache,
    held: HashMap<NodeId, Arc<Node>>,
}

impl Nodes for View<'_> {
    fn node(&self, id: &NodeId) -> Option<Arc<Node>> {
        self.held.get(id).cloned().or_else(|| self.cache.get(id))
    }
}

async fn with_nodes<T>(
    conn: &mut Conn,
    cache: &NodeCache,
    held: HashMap<NodeId, Arc<Node>>,
    work: impl Fn(&dyn Nodes) -> Result<T, NeedNodes>,
) -> StoreResult<T> {
    let mut view = View { cache, held };
    loop {
        let NeedNodes(ids) = match work(&view) {
            Ok(done) => return Ok(done),
            Err(need) => need,
        };
        let loaded = conn.state_nodes_load(&ids).await?;
        for id in &ids {
            let Some(node) = loaded.get(id) else {
                return Err(StoreError::corrupt("state_nodes", id.to_string(), "it is missing"));
            };
            cache.insert(*id, Arc::clone(node));
            view.held.insert(*id, Arc::clone(node));
        }
    }
}

/// Reads state trees through the cache. Obtained from [`crate::Store::state`] or [`crate::Tx::state`].
pub struct StateReader<'a> {
    pub(crate) conn: &'a mut Conn,
    pub(crate) cache: &'a NodeCache,
    pub(crate) held: HashMap<NodeId, Arc<Node>>,
}

impl StateReader<'_> {
    /// The entries of `keys`, in their order.
    pub async fn get_many(
        &mut self,
        root: NodeId,
        keys: &[StateKey],
    ) -> StoreResult<Vec<Option<OwnedEventId>>> {
        let found = with_nodes(self.conn, self.cache, self.held.clone(), |nodes| {
            state_tree::get_many(nodes, root, keys)
        })
        .await?;
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }
    /// One entry.
    pub async fn get(
        &mut self,
        root: NodeId,
        kind: StateEventType,
        key: &str,
    ) -> StoreResult<Option<OwnedEventId>> {
        Ok(self.get_many(root, &[(kind, key.to_owned())]).await?.pop().flatten())
    }
    /// All entries.
    pub async fn entries(&mut self, root: NodeId) -> StoreResult<Vec<(StateKey, OwnedEventId)>> {
        with_nodes(self.conn, self.cache, self.held.clone(), |nodes| {
            Ok(state_tree::entries(nodes, root)?.into_iter().collect())
        })
        .await
    }
    /// All entries of one event type, by state key.
    pub async fn entries_of_type(
        &mut self,
        root: NodeId,
        kind: &StateEventType,
    ) -> StoreResult<Vec<(String, OwnedEventId)>> {
        with_nodes(self.conn, self.cache, self.held.clone(), |nodes| {
            Ok(state_tree::entries_of_type(nodes, root, kind)?.into_iter().collect())
        })
        .await
    }
    /// What differs between two states.
    pub async fn diff(&mut self, a: NodeId, b: NodeId) -> StoreResult<Vec<Change>> {
        with_nodes(self.conn, self.cache, self.held.clone(), |nodes| state_tree::diff(nodes, a, b)).await
    }
}

/// What one state is asked for.
pub type StateQuestion = (NodeId, Vec<StateKey>);

/// All answers, or the nodes that all of them lack.
fn together<A, B: FromIterator<A>>(
    answers: impl Iterator<Item = Result<impl IntoIterator<Item = A>, NeedNodes>>,
) -> Result<Vec<B>, NeedNodes> {
    let mut all = Vec::new();
    let mut missing = std::collections::BTreeSet::new();
    for answer in answers {
        match answer {
            Ok(found) => all.push(found.into_iter().collect()),
            Err(NeedNodes(ids)) => missing.extend(ids),
        }
    }
    if missing.is_empty() { Ok(all) } else { Err(NeedNodes(missing.into_iter().collect())) }
}

/// Answers each question, or says which nodes all of them lack.
fn answer_all(
    nodes: &dyn Nodes,
    questions: &[StateQuestion],
) -> Result<Vec<Vec<Option<OwnedEventId>>>, NeedNodes> {
    together(questions.iter().map(|(root, keys)| {
        let found = state_tree::get_many(nodes, *root, keys)?;
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect::<Vec<_>>())
    }))
}

impl Store {
    /// Runs `work` over the nodes in memory, and asks the database only for what they lack.
    async fn with_state<T>(&self, work: impl Fn(&dyn Nodes) -> Result<T, NeedNodes>) -> StoreResult<T> {
        let view = View { cache: self.nodes(), held: HashMap::new() };
        if let Ok(done) = work(&view) {
            return Ok(done);
        }
        let mut conn = self.read().await?;
        with_nodes(&mut conn, self.nodes(), HashMap::new(), work).await
    }

    /// The entries of `keys` in one state, in their order. Asks the database only for what memory lacks.
    pub async fn state_get_many(
        &self,
        root: NodeId,
        keys: &[StateKey],
    ) -> StoreResult<Vec<Option<OwnedEventId>>> {
        let found = self.with_state(|nodes| state_tree::get_many(nodes, root, keys)).await?;
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    /// One entry of one state.
    pub async fn state_get(
        &self,
        root: NodeId,
        kind: StateEventType,
        key: &str,
    ) -> StoreResult<Option<OwnedEventId>> {
        Ok(self.state_get_many(root, &[(kind, key.to_owned())]).await?.pop().flatten())
    }

    /// Entries of many states at once: the nodes that they need are loaded together.
    pub async fn states_get_many(
        &self,
        questions: &[StateQuestion],
    ) -> StoreResult<Vec<Vec<Option<OwnedEventId>>>> {
        self.with_state(|nodes| answer_all(nodes, questions)).await
    }

    /// All entries of one event type, by state key.
    pub async fn state_of_type(
        &self,
        root: NodeId,
        kind: &StateEventType,
    ) -> StoreResult<Vec<(String, OwnedEventId)>> {
        let found = self.with_state(|nodes| state_tree::entries_of_type(nodes, root, kind)).await?;
        Ok(found.into_iter().collect())
    }

    /// All entries but those of one event type, of which the state has `count`: where that many entries are all that
    /// lies in the type's part of the tree, that part is not read.
    pub async fn state_besides(
        &self,
        root: NodeId,
        kind: &StateEventType,
        count: u64,
    ) -> StoreResult<Vec<(StateKey, OwnedEventId)>> {
        let found = self.with_state(|nodes| state_tree::entries_besides(nodes, root, kind, count)).await?;
        Ok(found.into_iter().collect())
    }

    /// Like [`Store::state_besides`] for many states, each with how many entries of the type it has.
    pub async fn states_besides(
        &self,
        states: &[(NodeId, u64)],
        kind: &StateEventType,
    ) -> StoreResult<Vec<Vec<(StateKey, OwnedEventId)>>> {
        self.with_state(|nodes| {
            let of = |(root, count): &(NodeId, u64)| state_tree::entries_besides(nodes, *root, kind, *count);
            together(states.iter().map(of))
        })
        .await
    }

    /// Like [`Store::state_entries`] for many states.
    pub async fn states_entries(&self, roots: &[NodeId]) -> StoreResult<Vec<Vec<(StateKey, OwnedEventId)>>> {
        self.with_state(|nodes| together(roots.iter().map(|root| state_tree::entries(nodes, *root)))).await
    }

    /// Changes entries of a state. Returns the new root. What is new of its tree is written with the next group at the
    /// latest, before anything of that group that may refer to it.
    pub async fn state_update(
        &self,
        root: NodeId,
        changes: &[(StateKey, Option<OwnedEventId>)],
    ) -> StoreResult<NodeId> {
        if changes.is_empty() {
            return Ok(root);
        }
        let update = self.with_state(|nodes| state_tree::update(nodes, root, changes)).await?;
        if self.nodes().keep(update.new_nodes) > UNWRITTEN_MOST {
            self.write("states", Vec::new(), |_| Box::pin(async { Ok::<_, StoreError>(()) })).await?;
        }
        Ok(update.root)
    }

    /// Where states are not all the same: for each its entries at those keys, in the order of `roots`.
    pub async fn state_conflicts(
        &self,
        roots: &[NodeId],
    ) -> StoreResult<Vec<BTreeMap<StateKey, OwnedEventId>>> {
        self.with_state(|nodes| state_tree::conflicts(nodes, roots)).await
    }

    /// What differs between two states.
    pub async fn state_diff(&self, a: NodeId, b: NodeId) -> StoreResult<Vec<Change>> {
        self.with_state(|nodes| state_tree::diff(nodes, a, b)).await
    }

    /// All entries of a state.
    pub async fn state_entries(&self, root: NodeId) -> StoreResult<Vec<(StateKey, OwnedEventId)>> {
        Ok(self.with_state(|nodes| state_tree::entries(nodes, root)).await?.into_iter().collect())
    }
}

impl Conn {
    pub(crate) async fn state_nodes_load(
        &mut self,
        ids: &[NodeId],
    ) -> StoreResult<HashMap<NodeId, Arc<Node>>> {
        let mut loaded = HashMap::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(LOAD, 1, chunk.len());
            let found: Vec<(Vec<u8>, Vec<u8>)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for id in &chunk {
                    query = query.bind(id.as_bytes().to_vec());
                }
                query.fetch_all(c).await
            })?;
            for (id, bytes) in found {
                let id = NodeId::try_from(id.as_slice())
                    .map_err(|error| StoreError::corrupt("state_nodes", "", error))?;
                let node = Node::decode(&bytes)
                    .map_err(|error| StoreError::corrupt("state_nodes", id.to_string(), error))?;
                loaded.insert(id, Arc::new(node));
            }
        }
        Ok(loaded)
    }

    pub(crate) async fn state_nodes_insert(&mut self, all: &[(NodeId, Arc<Node>)]) -> StoreResult<()> {
        // Each once, in one order: another node of the cluster may write some of the same.
        let all: Vec<(&NodeId, &Arc<Node>)> =
            all.iter().map(|(id, node)| (id, node)).collect::<BTreeMap<_, _>>().into_iter().collect();
        let now = crate::purging::now();
        for chunk in pieces(&all) {
            let text = rows(INSERT, 3, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for (id, node) in chunk {
                    query = query.bind(id.as_bytes().to_vec()).bind(node.encode()).bind(now);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}

impl crate::Tx {
    /// Reads state trees, those that this group makes among them.
    pub fn state(&mut self) -> StateReader<'_> {
        let held = self.buffers.nodes.iter().map(|(id, node)| (*id, Arc::clone(node))).collect();
        StateReader { conn: &mut self.conn, cache: &self.nodes, held }
    }

    /// Changes entries of a state and keeps the new nodes. Returns the new root.
    pub async fn state_update(
        &mut self,
        root: NodeId,
        changes: &[(StateKey, Option<OwnedEventId>)],
    ) -> StoreResult<NodeId> {
        let reader = self.state();
        let update = with_nodes(reader.conn, reader.cache, reader.held, |nodes| {
            state_tree::update(nodes, root, changes)
        })
        .await?;
        self.nodes_keep(update.new_nodes);
        Ok(update.root)
    }

    /// Keeps a whole state. Returns its root.
    pub fn state_build(&mut self, entries: impl IntoIterator<Item = (StateKey, OwnedEventId)>) -> NodeId {
        let update = state_tree::build(entries);
        self.nodes_keep(update.new_nodes);
        update.root
    }

    fn nodes_keep(&mut self, new: Vec<(NodeId, Arc<Node>)>) {
        for (id, node) in new {
            self.nodes.insert(id, Arc::clone(&node));
            self.buffers.nodes.push((id, node));
        }
    }
}
