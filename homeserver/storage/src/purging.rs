//! What a purge deletes, in slices: events with what hangs on them, rows that name a room, and nodes of states.

use crate::engine::{Conn, Engine, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::events::{Columns, StoredEvent, decode};
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{OwnedEventId, RoomId};
use sqlx::AssertSqlSafe;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use waxwing_model::media_named;
use waxwing_rooms::state_tree::NodeId;

statements! {
    BY_NUMBER = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND sn > $2 AND sn < $3 ORDER BY sn LIMIT $4";
    ROOTS = "SELECT sn, state_before FROM events WHERE room_id = $1 AND sn > $2 AND state_before IS NOT NULL ORDER BY sn LIMIT $3";
    GRAPH = "DELETE FROM auth_graph WHERE room_key = $1 AND number IN (SELECT auth_number FROM events WHERE auth_number > 0 AND sn IN ($list))";
    EVENTS = "DELETE FROM events WHERE sn IN ($list)";
    OUTLIERS = "UPDATE events SET flags = flags + 1, state_before = NULL WHERE flags % 2 = 0 AND sn IN ($list)";
    WORDS = "DELETE FROM search_index WHERE rowid IN ($list)";
    LOG_OF_EVENTS = "DELETE FROM log WHERE kind = 1 AND position IN ($list)";
    RELATIONS_OF_CHILDREN = "DELETE FROM relations WHERE child_id IN ($list)";
    RELATIONS_OF_PARENTS = "DELETE FROM relations WHERE parent_id IN ($list)";
    REDACTIONS = "DELETE FROM pending_redactions WHERE target_id IN ($list)";
    STICKY = "DELETE FROM sticky_events WHERE event_id IN ($list)";
    CLAIMS = "DELETE FROM relation_claims WHERE event_id IN ($list)";
    ENDS = "DELETE FROM backward_extremities WHERE room_id = $1 AND event_id IN ($list)";
    OUTGOING = "SELECT event_id FROM outgoing WHERE room_id = $1 AND position > (SELECT COALESCE(MIN(position), 0) FROM log_cursors WHERE name LIKE 'federation-sender-%') LIMIT 1";
    ROOM = "DELETE FROM rooms WHERE room_id = $1";
    LOG = "DELETE FROM log WHERE position IN (SELECT position FROM log WHERE room_id = $1 AND kind <> 1 ORDER BY position LIMIT $2)";
    MEMBERS = "DELETE FROM members WHERE room_id = $1 AND user_id IN (SELECT user_id FROM members WHERE room_id = $1 ORDER BY user_id LIMIT $2)";
    RECEIPTS = "DELETE FROM receipts WHERE room_id = $1 AND user_id IN (SELECT user_id FROM receipts WHERE room_id = $1 ORDER BY user_id LIMIT $2)";
    RELATIONS = "DELETE FROM relations WHERE child_id IN (SELECT child_id FROM relations WHERE room_id = $1 ORDER BY sn LIMIT $2)";
    BACKWARD = "DELETE FROM backward_extremities WHERE room_id = $1";
    PENDING = "DELETE FROM pending_redactions WHERE room_id = $1";
    ALIASES = "DELETE FROM aliases WHERE room_id = $1";
    ACCOUNT_DATA = "DELETE FROM account_data WHERE room_id = $1";
    DELAYED = "DELETE FROM delayed_events WHERE room_id = $1";
    THREADS = "DELETE FROM thread_subscriptions WHERE room_id = $1";
    STICKY_OF_ROOM = "DELETE FROM sticky_events WHERE room_id = $1";
    SLIDING = "DELETE FROM sliding_rooms WHERE room_id = $1";
    NETWORKS = "DELETE FROM appservice_rooms WHERE room_id = $1";
    PARTIAL = "DELETE FROM partial_rooms WHERE room_id = $1";
    PARTIAL_SERVERS = "DELETE FROM partial_servers WHERE room_id = $1";
    PARTIAL_EVENTS = "DELETE FROM partial_events WHERE room_id = $1";
    HELD_LISTS = "DELETE FROM held_device_lists WHERE room_id = $1";
    STAGED = "DELETE FROM staged_pdus WHERE room_id = $1";
    OUTGOING_OF_ROOM = "DELETE FROM outgoing WHERE room_id = $1";
    NODES_COUNT = "SELECT COUNT(*) FROM state_nodes";
    NODE_ADD = "INSERT INTO purge_nodes (purge_id, node) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    NODES_TAKE = "SELECT node FROM purge_nodes WHERE purge_id = $1 ORDER BY node LIMIT $2";
    NODE_DONE = "DELETE FROM purge_nodes WHERE purge_id = $1 AND node = $2";
    NODE_DELETE = "DELETE FROM state_nodes WHERE id = $1 AND written_at < $2";
}

/// What names a room beside its events, in the order in which it goes. Those with a limit ($2) may have many rows.
const REST: [(&str, bool); 19] = [
    (MEMBERS, true),
    (RECEIPTS, true),
    (RELATIONS, true),
    (LOG, true),
    (BACKWARD, false),
    (PENDING, false),
    (ALIASES, false),
    (ACCOUNT_DATA, false),
    (DELAYED, false),
    (THREADS, false),
    (STICKY_OF_ROOM, false),
    (SLIDING, false),
    (NETWORKS, false),
    (PARTIAL, false),
    (PARTIAL_SERVERS, false),
    (PARTIAL_EVENTS, false),
    (HELD_LISTS, false),
    (STAGED, false),
    (OUTGOING_OF_ROOM, false),
];

/// The time by which nodes are written, milliseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as i64)
}

impl Conn {
    /// Events of a room with numbers between two, both excluded, whatever their flags, in order, at most `limit`.
    pub async fn events_between(
        &mut self,
        room: &RoomId,
        after: i64,
        before: i64,
        limit: i64,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(BY_NUMBER)
            .bind(room.as_str())
            .bind(after)
            .bind(before)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(|columns| decode(columns).map(Arc::new)).collect()
    }

    /// Whether events of the room wait for other servers, those aside that fail.
    pub async fn outgoing_has_room(&mut self, room: &RoomId) -> StoreResult<bool> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(OUTGOING).bind(room.as_str()).fetch_optional(c).await)?;
        Ok(found.is_some())
    }

    /// Roots of the states before a room's events after a number, at most `limit`; with the last number that was looked
    /// at, if there were any.
    pub async fn state_roots(
        &mut self,
        room: &RoomId,
        after: i64,
        limit: i64,
    ) -> StoreResult<(BTreeSet<NodeId>, Option<i64>)> {
        let found: Vec<(i64, Vec<u8>)> = on_engine!(self, |c| sqlx::query_as(ROOTS)
            .bind(room.as_str())
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        let last = found.last().map(|(sn, _)| *sn);
        let corrupt = |_| StoreError::corrupt("events", room.as_str(), "state_before is no node id");
        let roots = found.iter().map(|(_, bytes)| NodeId::try_from(bytes.as_slice()).map_err(corrupt));
        Ok((roots.collect::<StoreResult<_>>()?, last))
    }

    /// Adds to `reached` every node of these trees.
    pub async fn state_reach(
        &mut self,
        roots: impl IntoIterator<Item = NodeId>,
        reached: &mut HashSet<NodeId>,
    ) -> StoreResult<()> {
        let mut next: Vec<NodeId> =
            roots.into_iter().filter(|id| *id != NodeId::EMPTY && reached.insert(*id)).collect();
        while !next.is_empty() {
            let rest = next.split_off(next.len().min(CHUNK));
            let loaded = self.state_nodes_load(&next).await?;
            next = rest;
            next.extend(loaded.values().flat_map(|node| node.children()).filter(|id| reached.insert(*id)));
        }
        Ok(())
    }

    /// How many of these nodes are stored.
    pub async fn state_nodes_present(&mut self, ids: &[NodeId]) -> StoreResult<usize> {
        Ok(self.state_nodes_load(ids).await?.len())
    }

    /// How many nodes of states are stored.
    pub async fn state_nodes_count(&mut self) -> StoreResult<i64> {
        let (count,): (i64,) = on_engine!(self, |c| sqlx::query_as(NODES_COUNT).fetch_one(c).await)?;
        Ok(count)
    }

    /// Nodes that a purge has not looked at, at most `limit`.
    pub async fn purge_nodes(&mut self, purge: &str, limit: i64) -> StoreResult<Vec<NodeId>> {
        let found: Vec<(Vec<u8>,)> =
            on_engine!(self, |c| sqlx::query_as(NODES_TAKE).bind(purge).bind(limit).fetch_all(c).await)?;
        let corrupt = |_| StoreError::corrupt("purge_nodes", purge, "no node id");
        found.iter().map(|(bytes,)| NodeId::try_from(bytes.as_slice()).map_err(corrupt)).collect()
    }

    async fn delete_numbers(&mut self, statement: &str, numbers: &[i64]) -> StoreResult<()> {
        for chunk in numbers.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(statement, 1, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for number in &chunk {
                    query = query.bind(*number);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    async fn delete_nodes(&mut self, room: &RoomId, numbers: &[i64]) -> StoreResult<()> {
        for chunk in numbers.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(GRAPH, 2, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text)).bind(crate::auth_graph::room_key(room));
                for number in &chunk {
                    query = query.bind(*number);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    async fn delete_ids(&mut self, statement: &str, ids: &[OwnedEventId]) -> StoreResult<()> {
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(statement, 1, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}

impl crate::Tx {
    /// Forgets events of one room: those of `gone` with all that hangs on them; those of `kept` stay, without a place in the graph.
    /// Readers see neither any more.
    pub async fn purge_events(
        &mut self,
        gone: &[Arc<StoredEvent>],
        kept: &[Arc<StoredEvent>],
    ) -> StoreResult<()> {
        for stored in gone.iter().chain(kept) {
            self.event_changed(&stored.event.event_id);
        }
        let numbers =
            |events: &[Arc<StoredEvent>]| events.iter().map(|stored| stored.sn).collect::<Vec<i64>>();
        let ids: Vec<OwnedEventId> = gone.iter().map(|stored| stored.event.event_id.clone()).collect();
        let both: Vec<i64> = numbers(gone).into_iter().chain(numbers(kept)).collect();
        let conn = self.writing().await?;
        if let Some(first) = gone.first() {
            conn.delete_nodes(&first.event.room_id, &numbers(gone)).await?;
        }
        conn.delete_numbers(EVENTS, &numbers(gone)).await?;
        conn.delete_numbers(OUTLIERS, &numbers(kept)).await?;
        conn.delete_numbers(WORDS, &both).await?;
        // Rows of state events stay: they say what changed to a client that was away for long.
        conn.delete_numbers(LOG_OF_EVENTS, &numbers(gone)).await?;
        for stored in gone {
            conn.media_uses_drop(&stored.event.event_id, media_named(stored.event.content.get())).await?;
        }
        for statement in [RELATIONS_OF_CHILDREN, RELATIONS_OF_PARENTS, REDACTIONS, STICKY, CLAIMS] {
            conn.delete_ids(statement, &ids).await?;
        }
        Ok(())
    }

    /// History no longer ends before these events of the room: it ends after them.
    pub async fn backward_extremities_drop(
        &mut self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(ENDS, 2, chunk.len());
            on_engine!(conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text)).bind(room.as_str());
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// The room is not known here any more. The last that a write does to the room.
    pub async fn room_remove(&mut self, room: &RoomId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(ROOM).bind(room.as_str()).execute(c).await.map(|_| ()))?;
        self.rooms.remove(room);
        Ok(())
    }

    /// Deletes some of the rows that name a room beside its events: those of the table with this number, at most
    /// `limit` where there may be many. Gives how many went; `None` beyond the last table.
    pub async fn purge_rest(&mut self, table: usize, room: &RoomId, limit: i64) -> StoreResult<Option<u64>> {
        let Some((statement, limited)) = REST.get(table) else { return Ok(None) };
        let conn = self.writing().await?;
        let gone = on_engine!(conn, |c| {
            let mut query = sqlx::query(*statement).bind(room.as_str());
            if *limited {
                query = query.bind(limit);
            }
            query.execute(c).await.map(|done| done.rows_affected())
        })?;
        Ok(Some(gone))
    }

    /// Whether the table with this number may have more rows of a room than go at once.
    pub fn purge_is_limited(table: usize) -> bool {
        REST.get(table).is_some_and(|(_, limited)| *limited)
    }

    /// Notes nodes for a purge to look at.
    pub async fn purge_nodes_add(
        &mut self,
        purge: &str,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        for node in nodes.into_iter().filter(|node| *node != NodeId::EMPTY) {
            on_engine!(conn, |c| sqlx::query(NODE_ADD)
                .bind(purge)
                .bind(node.as_bytes().to_vec())
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }

    /// Looks at nodes: those that are not `needed` and were not written since `since` (milliseconds since the epoch) go,
    /// and what is below them is to be looked at next. Gives how many went.
    pub async fn purge_nodes_sweep(
        &mut self,
        purge: &str,
        nodes: &[NodeId],
        needed: &HashSet<NodeId>,
        since: i64,
    ) -> StoreResult<u64> {
        let mut gone = 0;
        let loaded = self.conn.state_nodes_load(nodes).await?;
        for id in nodes {
            let node = loaded.get(id).filter(|_| !needed.contains(id));
            let conn = self.writing().await?;
            on_engine!(conn, |c| sqlx::query(NODE_DONE)
                .bind(purge)
                .bind(id.as_bytes().to_vec())
                .execute(c)
                .await
                .map(|_| ()))?;
            let Some(node) = node else { continue };
            let deleted = on_engine!(conn, |c| sqlx::query(NODE_DELETE)
                .bind(id.as_bytes().to_vec())
                .bind(since)
                .execute(c)
                .await
                .map(|done| done.rows_affected()))?;
            if deleted > 0 {
                gone += deleted;
                let below = node.children().into_iter().filter(|child| !needed.contains(child));
                self.purge_nodes_add(purge, below).await?;
            }
        }
        Ok(gone)
    }

    /// Gives free pages of the database's file back to the file system, at most `pages`. Gives how many are still
    /// free. PostgreSQL does this on its own terms.
    pub async fn shrink(&mut self, pages: u32) -> StoreResult<i64> {
        if self.conn.engine() == Engine::Postgres {
            return Ok(0);
        }
        crate::dialect::shrink(&mut self.conn, pages).await
    }
}
