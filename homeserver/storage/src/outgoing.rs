//! Events that other servers get, and news of devices. An event is one row, with the name of the set of servers that were in its room; how
//! far each destination has come is a cursor. So a message costs the same in a room of two servers and of two thousand.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use crate::tx::Slot;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, ServerName};
use sha2::{Digest, Sha256};
use sqlx::AssertSqlSafe;
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::LogPosition;

statements! {
    INSERT = "INSERT INTO outgoing (position, room_id, event_id, servers_id, edu) VALUES $rows";
    TOUCH = "UPDATE server_sets SET used_at = $2 WHERE id = $1";
    PUT = "INSERT INTO server_sets (id, servers, used_at) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET used_at = excluded.used_at";
    SETS = "SELECT id, servers FROM server_sets WHERE id IN ($list)";
    RANGE = "SELECT position, room_id, event_id, servers_id, edu FROM outgoing WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3";
    NEWEST = "SELECT o.position, o.room_id, o.event_id, o.servers_id, o.edu FROM (SELECT MAX(position) AS position FROM outgoing WHERE position > $1 AND position <= $2 AND edu IS NULL GROUP BY room_id UNION ALL SELECT position FROM outgoing WHERE position > $1 AND position <= $2 AND edu IS NOT NULL) n JOIN outgoing o ON o.position = n.position ORDER BY o.position LIMIT $3";
    LOWEST = "SELECT MIN(delivered_upto) FROM destinations WHERE failing_since IS NULL OR failing_since > $1";
    PRUNE_DELIVERED = "DELETE FROM outgoing WHERE position <= $1";
    PRUNE_SUPERSEDED = "DELETE FROM outgoing WHERE position <= $1 AND edu IS NULL AND EXISTS (SELECT 1 FROM outgoing newer WHERE newer.room_id = outgoing.room_id AND newer.position > outgoing.position AND newer.position <= $1)";
    PRUNE_SETS = "DELETE FROM server_sets WHERE used_at <= $1 AND NOT EXISTS (SELECT 1 FROM outgoing WHERE outgoing.servers_id = server_sets.id)";
}

/// The servers that get an event, without this one. The same servers have the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSet {
    id: Arc<str>,
    names: Arc<[OwnedServerName]>,
}

impl ServerSet {
    /// The set of these servers.
    pub fn new(names: impl IntoIterator<Item = OwnedServerName>) -> ServerSet {
        let mut names: Vec<OwnedServerName> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        // Server names have no line breaks.
        let joined = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join("\n");
        ServerSet {
            id: STANDARD_NO_PAD.encode(Sha256::digest(joined.as_bytes())).into(),
            names: names.into(),
        }
    }

    /// The same set but for one server.
    pub fn without(&self, name: &ServerName) -> ServerSet {
        ServerSet::new(self.names.iter().filter(|other| **other != *name).cloned())
    }

    /// Its members, in order.
    pub fn names(&self) -> &[OwnedServerName] {
        &self.names
    }

    /// Whether the server is one of them.
    pub fn contains(&self, name: &ServerName) -> bool {
        self.names.binary_search_by(|other| (**other).cmp(name)).is_ok()
    }
}

/// A row to be written.
pub(crate) struct NewOutgoing {
    pub slot: Slot,
    pub what: Outgoing,
    pub servers: ServerSet,
}

/// What other servers get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// An event. After a long outage the newest of each room is enough.
    Event {
        /// Its room.
        room: OwnedRoomId,
        /// Its id.
        event: OwnedEventId,
    },
    /// An EDU that must arrive, `{edu_type, content}`.
    Edu(Arc<str>),
}

/// What other servers get, and who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingRow {
    /// Its place in the log.
    pub position: i64,
    /// What it is.
    pub what: Outgoing,
    /// The id of the set of servers that get it.
    pub servers: Arc<str>,
}

impl OutgoingRow {
    /// The event, if it is one.
    pub fn event(&self) -> Option<&OwnedEventId> {
        match &self.what {
            Outgoing::Event { event, .. } => Some(event),
            Outgoing::Edu(_) => None,
        }
    }
}

type Columns = (i64, String, String, String, Option<String>);

fn decode(columns: Columns) -> StoreResult<OutgoingRow> {
    let (position, room, event, servers, edu) = columns;
    let corrupt = |why: String| StoreError::corrupt("outgoing", position.to_string(), why);
    let what = match edu {
        Some(edu) => Outgoing::Edu(edu.into()),
        None => Outgoing::Event {
            room: room.try_into().map_err(|error: ruma::IdParseError| corrupt(error.to_string()))?,
            event: event.try_into().map_err(|error: ruma::IdParseError| corrupt(error.to_string()))?,
        },
    };
    Ok(OutgoingRow { position, what, servers: servers.into() })
}

impl Conn {
    pub(crate) async fn outgoing_insert(
        &mut self,
        all: &[NewOutgoing],
        position: impl Fn(Slot) -> i64,
    ) -> StoreResult<()> {
        let mut sets: BTreeMap<&str, (&ServerSet, i64)> = BTreeMap::new();
        for row in all {
            sets.insert(&row.servers.id, (&row.servers, position(row.slot)));
        }
        for (id, (set, at)) in sets {
            self.server_set_put(id, set, at).await?;
        }
        for chunk in pieces(all) {
            let text = rows(INSERT, 5, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for row in chunk {
                    let (room, event, edu) = match &row.what {
                        Outgoing::Event { room, event } => (room.as_str(), event.as_str(), None),
                        Outgoing::Edu(edu) => ("", "", Some(&**edu)),
                    };
                    query = query
                        .bind(position(row.slot))
                        .bind(room)
                        .bind(event)
                        .bind(&*row.servers.id)
                        .bind(edu);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// Makes sure that the set is there when the rows that name it are. Most sets are: their names need not travel.
    async fn server_set_put(&mut self, id: &str, set: &ServerSet, at: i64) -> StoreResult<()> {
        let touched = on_engine!(self, |c| sqlx::query(TOUCH)
            .bind(id)
            .bind(at)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        if touched > 0 {
            return Ok(());
        }
        let names = serde_json::to_string(&set.names)
            .map_err(|error| StoreError::corrupt("server_sets", id, error.to_string()))?;
        on_engine!(self, |c| sqlx::query(PUT).bind(id).bind(&names).bind(at).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// The server sets with these ids.
    pub async fn server_sets(&mut self, ids: &[Arc<str>]) -> StoreResult<BTreeMap<Arc<str>, ServerSet>> {
        let mut sets = BTreeMap::new();
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(SETS, 1, chunk.len());
            let found: Vec<(String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for id in &chunk {
                    query = query.bind(&**id);
                }
                query.fetch_all(c).await
            })?;
            for (id, servers) in found {
                let names: Vec<OwnedServerName> = serde_json::from_str(&servers)
                    .map_err(|error| StoreError::corrupt("server_sets", id.as_str(), error.to_string()))?;
                let id: Arc<str> = id.into();
                sets.insert(Arc::clone(&id), ServerSet { id, names: names.into() });
            }
        }
        Ok(sets)
    }

    /// What goes out after `after` up to `upto`, in order, at most `limit`.
    pub async fn outgoing_range(
        &mut self,
        after: i64,
        upto: i64,
        limit: i64,
    ) -> StoreResult<Vec<OutgoingRow>> {
        self.outgoing_of(RANGE, after, upto, limit).await
    }

    /// Of what goes out after `after` up to `upto` the newest event of each room and every EDU, in order, at most
    /// `limit`.
    pub async fn outgoing_newest(
        &mut self,
        after: i64,
        upto: i64,
        limit: i64,
    ) -> StoreResult<Vec<OutgoingRow>> {
        self.outgoing_of(NEWEST, after, upto, limit).await
    }

    async fn outgoing_of(
        &mut self,
        text: &'static str,
        after: i64,
        upto: i64,
        limit: i64,
    ) -> StoreResult<Vec<OutgoingRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(text).bind(after).bind(upto).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// How far the failing destination that is furthest behind has come, of those that fail since a time after
    /// `since` (milliseconds since the epoch).
    pub async fn destinations_lowest(&mut self, since: u64) -> StoreResult<Option<i64>> {
        let since = i64::try_from(since).unwrap_or(i64::MAX);
        let (lowest,): (Option<i64>,) =
            on_engine!(self, |c| sqlx::query_as(LOWEST).bind(since).fetch_one(c).await)?;
        Ok(lowest)
    }
}

impl crate::Tx {
    /// Forgets what every destination has: all up to `delivered`. Of what lies before `recent`, which only
    /// destinations lack that get the newest event of each room, the older events go too.
    pub async fn outgoing_prune(&mut self, delivered: LogPosition, recent: LogPosition) -> StoreResult<u64> {
        let conn = self.writing().await?;
        let mut gone = 0;
        for (text, upto) in [(PRUNE_DELIVERED, delivered), (PRUNE_SUPERSEDED, recent), (PRUNE_SETS, recent)] {
            gone += on_engine!(conn, |c| sqlx::query(text)
                .bind(upto.0)
                .execute(c)
                .await
                .map(|done| done.rows_affected()))?;
        }
        Ok(gone)
    }
}
