//! The auth graph: what state events are authorised by, as numbers. Written with the events; nodes never change.

mod places;

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::events::{Columns, StoredEvent, decode};
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use crate::store::Store;
use crate::tx::NewEvent;
use places::{Known, NodeColumns, Places, arrange, encode, node_of};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use sha2::{Digest, Sha256};
use sqlx::AssertSqlSafe;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::resolve::AuthNode;

statements! {
    NUMBERS = "SELECT event_id, auth_number FROM events WHERE event_id IN ($list)";
    INSERT = "INSERT INTO auth_graph (room_key, number, event_id, auth) VALUES $rows";
    NODES = "SELECT number, event_id, auth FROM auth_graph WHERE room_key = $1 AND number IN ($list)";
    LATER = "SELECT number, event_id, auth FROM auth_graph WHERE room_key = $1 AND number > $2 ORDER BY number LIMIT $3";
    IS_UNPLACED = "SELECT sn FROM events WHERE room_id = $1 AND auth_number IS NULL LIMIT 1";
    UNPLACED = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND auth_number IS NULL AND sn > $2 ORDER BY sn LIMIT $3";
    ROOM_UNPLACED = "SELECT room_id FROM events WHERE auth_number IS NULL AND room_id > $1 ORDER BY room_id LIMIT 1";
    PLACE = "UPDATE events SET auth_number = $2 WHERE event_id = $1 AND auth_number IS NULL";
}

/// Bytes of nodes that a node of the cluster keeps in memory: some thirty thousand, what the forks of a few rooms lead to.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
/// A guess of the nodes in that many bytes.
const CACHE_ITEMS: usize = 30_000;

#[derive(Clone)]
pub(crate) struct GraphWeight;

impl Weighter<u64, Arc<AuthNode>> for GraphWeight {
    fn weight(&self, _: &u64, node: &Arc<AuthNode>) -> u64 {
        120 + node.auth.len() as u64 * 8
    }
}

/// Nodes by number.
pub(crate) type GraphCache = Cache<u64, Arc<AuthNode>, GraphWeight>;

/// Nothing cached.
pub(crate) fn cache() -> GraphCache {
    Cache::with_weighter(CACHE_ITEMS, CACHE_BYTES, GraphWeight)
}

/// Under which the nodes of a room are kept together.
pub(crate) fn room_key(room: &RoomId) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(room.as_str())[..8]);
    i64::from_be_bytes(first)
}

impl Conn {
    /// What is known of these events' numbers; nothing of those that are not here.
    async fn auth_known(&mut self, ids: &[OwnedEventId]) -> StoreResult<HashMap<OwnedEventId, Known>> {
        let mut known = HashMap::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(NUMBERS, 1, chunk.len());
            let found: Vec<(String, Option<i64>)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.fetch_all(c).await
            })?;
            for (id, number) in found {
                if let Ok(id) = OwnedEventId::try_from(id) {
                    known.insert(id, number.map_or(Known::Unplaced, Known::Number));
                }
            }
        }
        Ok(known)
    }

    /// Where new events stand, most of which are no state events.
    pub(crate) async fn auth_places(&mut self, events: &[NewEvent]) -> StoreResult<Places> {
        let events: Vec<&Arc<Event>> = events.iter().map(|new| &new.event).collect();
        let state = || events.iter().filter(|event| event.is_state());
        let own = state().map(|event| &event.event_id);
        let ids: HashSet<&OwnedEventId> = own.chain(state().flat_map(|event| &event.auth_events)).collect();
        let ids: Vec<OwnedEventId> = ids.into_iter().cloned().collect();
        let known = self.auth_known(&ids).await?;
        Ok(arrange(&events, &known, false))
    }

    pub(crate) async fn auth_nodes_insert(&mut self, all: &[(i64, AuthNode)]) -> StoreResult<()> {
        for chunk in pieces(all) {
            let text = rows(INSERT, 4, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for (room, node) in chunk {
                    query = query
                        .bind(*room)
                        .bind(node.number as i64)
                        .bind(node.event_id.as_str())
                        .bind(encode(node.number, &node.auth));
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// Whether a stored event of the room has no place in the graph yet.
    pub async fn auth_graph_lacks(&mut self, room: &RoomId) -> StoreResult<bool> {
        let found: Option<(i64,)> =
            on_engine!(self, |c| sqlx::query_as(IS_UNPLACED).bind(room.as_str()).fetch_optional(c).await)?;
        Ok(found.is_some())
    }

    /// The first room after `after`, in the order of their ids, that has an event without a place in the graph.
    pub async fn auth_graph_next(&mut self, after: &str) -> StoreResult<Option<OwnedRoomId>> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(ROOM_UNPLACED).bind(after).fetch_optional(c).await)?;
        let corrupt = |_| StoreError::corrupt("events", "", "no room id");
        found.map(|(room,)| OwnedRoomId::try_from(room).map_err(corrupt)).transpose()
    }
}

impl Store {
    /// The nodes with these numbers.
    pub async fn auth_nodes(&self, room: &RoomId, numbers: &[u64]) -> StoreResult<Vec<Arc<AuthNode>>> {
        let mut nodes = Vec::with_capacity(numbers.len());
        let mut missing = Vec::new();
        for number in numbers {
            match self.inner.graph.get(number) {
                Some(node) => nodes.push(node),
                None => missing.push(*number as i64),
            }
        }
        if missing.is_empty() {
            return Ok(nodes);
        }
        let mut conn = self.read().await?;
        for chunk in missing.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(NODES, 2, chunk.len());
            let found: Vec<NodeColumns> = on_engine!(&mut conn, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(room_key(room));
                for number in &chunk {
                    query = query.bind(*number);
                }
                query.fetch_all(c).await
            })?;
            for columns in found {
                let node = Arc::new(node_of(columns)?);
                self.inner.graph.insert(node.number, Arc::clone(&node));
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    /// The nodes of these events, and those of the events that are stored but have no place yet. The others are no state
    /// events, or not here.
    pub async fn auth_nodes_of(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> StoreResult<(Vec<Arc<AuthNode>>, Vec<OwnedEventId>)> {
        let known = self.read().await?.auth_known(ids).await?;
        let (mut numbers, mut unplaced) = (Vec::new(), Vec::new());
        for (id, known) in known {
            match known {
                Known::Number(0) => {}
                Known::Number(number) => numbers.push(number as u64),
                Known::Unplaced => unplaced.push(id),
            }
        }
        Ok((self.auth_nodes(room, &numbers).await?, unplaced))
    }

    /// The room's nodes with numbers above `after`, in order, at most `limit`. (Another room whose nodes are kept with
    /// this one's may have some among them, which leads nowhere.)
    pub async fn auth_nodes_later(
        &self,
        room: &RoomId,
        after: u64,
        limit: i64,
    ) -> StoreResult<Vec<AuthNode>> {
        let mut conn = self.read().await?;
        let found: Vec<NodeColumns> = on_engine!(&mut conn, |c| sqlx::query_as(LATER)
            .bind(room_key(room))
            .bind(after as i64)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(node_of).collect()
    }
}

impl crate::Tx {
    /// Gives some of the room's events their place in the graph that have none: those with numbers above `after`, at
    /// most `limit`, and what authorises them. Gives the number of the last that was looked at; none when there was
    /// none. One that still lacks an auth event stays as it is.
    pub async fn auth_graph_fill(
        &mut self,
        room: &RoomId,
        after: i64,
        limit: i64,
    ) -> StoreResult<Option<i64>> {
        let conn = self.writing().await?;
        let found: Vec<Columns> = on_engine!(conn, |c| sqlx::query_as(UNPLACED)
            .bind(room.as_str())
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        let found = found.into_iter().map(|columns| decode(columns).map(Arc::new));
        let events = found.collect::<StoreResult<Vec<Arc<StoredEvent>>>>()?;
        let last = events.last().map(|stored| stored.sn);
        self.auth_graph_place(events, false).await?;
        Ok(last)
    }

    /// Gives these events their place even if an auth event of theirs is not here.
    pub async fn auth_graph_force(&mut self, ids: &[OwnedEventId]) -> StoreResult<()> {
        let events = self.conn.events_load(ids).await?;
        self.auth_graph_place(events, true).await
    }

    async fn auth_graph_place(&mut self, mut events: Vec<Arc<StoredEvent>>, forced: bool) -> StoreResult<()> {
        let conn = self.writing().await?;
        let mut known: HashMap<OwnedEventId, Known> = HashMap::new();
        let mut here: HashSet<OwnedEventId> =
            events.iter().map(|stored| stored.event.event_id.clone()).collect();
        let mut from = 0;
        // What authorises them, until all of it is placed.
        while from < events.len() {
            let new = events[from..].iter().filter(|stored| stored.event.is_state());
            let mut ids: Vec<OwnedEventId> =
                new.flat_map(|stored| stored.event.auth_events.iter()).cloned().collect();
            ids.sort_unstable();
            ids.dedup();
            ids.retain(|id| !known.contains_key(id));
            let found = conn.auth_known(&ids).await?;
            let open = found.iter().filter(|(_, known)| **known == Known::Unplaced);
            let mut open: Vec<OwnedEventId> = open.map(|(id, _)| id.clone()).collect();
            open.retain(|id| here.insert(id.clone()));
            known.extend(found);
            from = events.len();
            events.extend(conn.events_load(&open).await?);
        }
        let all: Vec<&Arc<Event>> = events.iter().map(|stored| &stored.event).collect();
        let places = arrange(&all, &known, forced);
        let count = places.new_ones();
        let (_, _, last) = conn.log_advance(0, 0, count).await?;
        let numbered = places.number_from(last - count + 1);
        conn.auth_nodes_insert(&numbered.new).await?;
        for (event, number) in all.iter().zip(&numbered.of_events) {
            let Some(number) = number else { continue };
            on_engine!(conn, |c| sqlx::query(PLACE)
                .bind(event.event_id.as_str())
                .bind(*number)
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }
}
