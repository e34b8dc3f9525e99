//! Connections of sliding sync: what each has sent of which room, as versions, of which the newest two can be read.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, rows, statements};
use ruma::{OwnedRoomId, UserId};
use sqlx::AssertSqlSafe;

statements! {
    LOAD = "SELECT connection, version, previous FROM sliding_connections WHERE user_id = $1 AND device_id = $2 AND conn_id = $3";
    ROOMS = "SELECT room_id, version, data FROM sliding_rooms WHERE connection = $1 AND version <= $2 ORDER BY room_id, version";
    CONFIGS = "SELECT config, json FROM sliding_configs WHERE connection = $1";
    SAVE = "INSERT INTO sliding_connections (user_id, device_id, conn_id, connection, version, previous, used_at) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (user_id, device_id, conn_id) DO UPDATE SET connection = excluded.connection, version = excluded.version, previous = excluded.previous, used_at = excluded.used_at";
    OF_DEVICE = "SELECT connection, conn_id FROM sliding_connections WHERE user_id = $1 AND device_id = $2 ORDER BY used_at DESC, conn_id";
    UNUSED = "SELECT connection FROM sliding_connections WHERE used_at < $1 LIMIT 20";
    REMOVE = "DELETE FROM sliding_connections WHERE connection IN ($list)";
    REMOVE_ROOMS = "DELETE FROM sliding_rooms WHERE connection IN ($list)";
    REMOVE_CONFIGS = "DELETE FROM sliding_configs WHERE connection IN ($list)";
    FORGET_AFTER = "DELETE FROM sliding_rooms WHERE connection = $1 AND version > $2";
    FORGET_BEFORE = "DELETE FROM sliding_rooms WHERE connection = $1 AND version < $2 AND EXISTS (SELECT 1 FROM sliding_rooms newer WHERE newer.connection = sliding_rooms.connection AND newer.room_id = sliding_rooms.room_id AND newer.version > sliding_rooms.version AND newer.version <= $2)";
    INSERT_ROOMS = "INSERT INTO sliding_rooms (connection, room_id, version, data) VALUES $rows";
    INSERT_CONFIGS = "INSERT INTO sliding_configs (connection, config, json) VALUES $rows ON CONFLICT (connection, config) DO NOTHING";
}

/// Connections that a device may have: more than any client opens; the one that was longest unused goes.
const MAX_CONNECTIONS: usize = 16;

/// Names one connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlidingKey {
    /// Whose.
    pub user: ruma::OwnedUserId,
    /// On which device.
    pub device: String,
    /// As the client calls it.
    pub conn_id: String,
}

/// What is written when a connection's state changes.
#[derive(Clone, Debug)]
pub struct SlidingChange {
    /// Which one.
    pub key: SlidingKey,
    /// Its name in positions; one that the table does not have begins anew.
    pub connection: i64,
    /// The version that the change builds upon; 0 for a connection that begins.
    pub base: i64,
    /// Rooms and what is now known of them, as JSON.
    pub rooms: Vec<(OwnedRoomId, String)>,
    /// Sets of required state that the rooms name, as JSON. Those that are there stay as they are.
    pub configs: Vec<(i64, String)>,
    /// Milliseconds since the Unix epoch.
    pub now: u64,
    /// Connections unused since then go (milliseconds since the Unix epoch).
    pub expired: u64,
}

/// A connection's state at one version.
#[derive(Clone, Debug, Default)]
pub struct SlidingState {
    /// Rooms and what is known of them, as JSON.
    pub rooms: Vec<(OwnedRoomId, String)>,
    /// Sets of required state, as JSON.
    pub configs: Vec<(i64, String)>,
}

impl Conn {
    /// The state of a connection at `version`; `None` when it has been dropped, or was never given out to this one.
    pub async fn sliding_load(
        &mut self,
        key: &SlidingKey,
        connection: i64,
        version: i64,
    ) -> StoreResult<Option<SlidingState>> {
        let Some((name, newest, previous)) = self.sliding_versions(key, "").await? else { return Ok(None) };
        if name != connection || (version != newest && version != previous) {
            return Ok(None);
        }
        let found: Vec<(String, i64, String)> =
            on_engine!(self, |c| sqlx::query_as(ROOMS).bind(connection).bind(version).fetch_all(c).await)?;
        let mut state = SlidingState::default();
        for (room, _, data) in found {
            let Ok(room) = OwnedRoomId::try_from(room) else { continue };
            match state.rooms.last_mut() {
                Some((last, older)) if *last == room => *older = data,
                _ => state.rooms.push((room, data)),
            }
        }
        state.configs = on_engine!(self, |c| sqlx::query_as(CONFIGS).bind(connection).fetch_all(c).await)?;
        Ok(Some(state))
    }

    async fn sliding_versions(
        &mut self,
        key: &SlidingKey,
        lock: &'static str,
    ) -> StoreResult<Option<(i64, i64, i64)>> {
        let text = format!("{LOAD}{lock}");
        Ok(on_engine!(self, |c| sqlx::query_as(AssertSqlSafe(text))
            .bind(key.user.as_str())
            .bind(&key.device)
            .bind(&key.conn_id)
            .fetch_optional(c)
            .await)?)
    }
}

impl crate::Tx {
    /// Writes a connection's next version and gives its number. What was built upon stays readable; what was given out
    /// after it, and never came back, goes. `None` when the version it builds upon is gone.
    pub async fn sliding_save(&mut self, change: &SlidingChange) -> StoreResult<Option<i64>> {
        let lock = crate::dialect::for_update(self.conn.engine());
        let known = self.sliding_versions(&change.key, lock).await?;
        let same = known.filter(|(name, _, _)| *name == change.connection);
        let version = match same {
            Some((_, newest, previous)) if change.base == newest || change.base == previous => newest + 1,
            None if change.base == 0 => 1,
            _ => return Ok(None),
        };
        if let Some((old, _, _)) = known.filter(|(name, _, _)| *name != change.connection) {
            self.sliding_remove(&[old]).await?;
        }
        if same.is_none() {
            self.sliding_make_room(change).await?;
        }
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FORGET_AFTER)
            .bind(change.connection)
            .bind(change.base)
            .execute(c)
            .await
            .map(|_| ()))?;
        on_engine!(conn, |c| sqlx::query(FORGET_BEFORE)
            .bind(change.connection)
            .bind(change.base)
            .execute(c)
            .await
            .map(|_| ()))?;
        conn.sliding_rooms_insert(change, version).await?;
        conn.sliding_configs_insert(change).await?;
        on_engine!(conn, |c| sqlx::query(SAVE)
            .bind(change.key.user.as_str())
            .bind(&change.key.device)
            .bind(&change.key.conn_id)
            .bind(change.connection)
            .bind(version)
            .bind(change.base)
            .bind(change.now as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(Some(version))
    }

    /// Removes what is in the way of one more connection: old ones of the device, and those that nobody uses.
    async fn sliding_make_room(&mut self, change: &SlidingChange) -> StoreResult<()> {
        let conn = self.writing().await?;
        let own: Vec<(i64, String)> = on_engine!(conn, |c| sqlx::query_as(OF_DEVICE)
            .bind(change.key.user.as_str())
            .bind(&change.key.device)
            .fetch_all(c)
            .await)?;
        let others = own.into_iter().filter(|(_, conn_id)| *conn_id != change.key.conn_id);
        let mut gone: Vec<i64> = others.map(|(name, _)| name).skip(MAX_CONNECTIONS - 1).collect();
        let unused: Vec<(i64,)> =
            on_engine!(conn, |c| sqlx::query_as(UNUSED).bind(change.expired as i64).fetch_all(c).await)?;
        gone.extend(unused.into_iter().map(|(name,)| name));
        self.sliding_remove(&gone).await
    }

    /// A device is gone: its connections go.
    pub async fn sliding_remove_device(&mut self, user: &UserId, device: &str) -> StoreResult<()> {
        let own: Vec<(i64, String)> = on_engine!(&mut self.conn, |c| sqlx::query_as(OF_DEVICE)
            .bind(user.as_str())
            .bind(device)
            .fetch_all(c)
            .await)?;
        let own: Vec<i64> = own.into_iter().map(|(name, _)| name).collect();
        self.sliding_remove(&own).await
    }

    async fn sliding_remove(&mut self, connections: &[i64]) -> StoreResult<()> {
        for chunk in connections.chunks(CHUNK) {
            let chunk = padded(chunk);
            let conn = self.writing().await?;
            for text in [REMOVE, REMOVE_ROOMS, REMOVE_CONFIGS] {
                let text = list(text, 1, chunk.len());
                on_engine!(conn, |c| {
                    let mut query = sqlx::query(AssertSqlSafe(text));
                    for name in &chunk {
                        query = query.bind(*name);
                    }
                    query.execute(c).await.map(|_| ())
                })?;
            }
        }
        Ok(())
    }
}

impl Conn {
    async fn sliding_rooms_insert(&mut self, change: &SlidingChange, version: i64) -> StoreResult<()> {
        for chunk in change.rooms.chunks(CHUNK) {
            let text = rows(INSERT_ROOMS, 4, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for (room, data) in chunk {
                    query = query.bind(change.connection).bind(room.as_str()).bind(version).bind(data);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    async fn sliding_configs_insert(&mut self, change: &SlidingChange) -> StoreResult<()> {
        for chunk in change.configs.chunks(CHUNK) {
            let text = rows(INSERT_CONFIGS, 3, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for (config, json) in chunk {
                    query = query.bind(change.connection).bind(*config).bind(json);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}
