//! A room is one row that changes.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use ruma::{OwnedEventId, OwnedRoomId, RoomId, RoomVersionId};
use sqlx::AssertSqlSafe;
use std::collections::BTreeMap;
use waxwing_rooms::state_tree::NodeId;

statements! {
    LOAD = "SELECT room_id, version, state_root, extremities, revision, published, encrypted, partial, newest_ts FROM rooms WHERE room_id IN ($list) ORDER BY room_id";
    INSERT = "INSERT INTO rooms (room_id, version, state_root, extremities, revision, published, encrypted, partial, newest_ts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (room_id) DO NOTHING";
    REPLACE = "INSERT INTO rooms (room_id, version, state_root, extremities, revision, published, encrypted, partial, newest_ts) VALUES $rows ON CONFLICT (room_id) DO UPDATE SET version = excluded.version, state_root = excluded.state_root, extremities = excluded.extremities, revision = excluded.revision, published = excluded.published, encrypted = excluded.encrypted, partial = excluded.partial, newest_ts = excluded.newest_ts";
    PUBLISHED = "SELECT room_id FROM rooms WHERE published";
    ALL = "SELECT room_id FROM rooms WHERE room_id > $1 ORDER BY room_id LIMIT $2";
}

/// A room's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomRow {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its version.
    pub version: RoomVersionId,
    /// The root of the current state.
    pub state_root: NodeId,
    /// The forward extremities with their depths.
    pub extremities: Vec<(OwnedEventId, u64)>,
    /// Grows with each change: what a compare-and-set compares.
    pub revision: i64,
    /// Listed in the public room directory.
    pub published: bool,
    /// Its state has `m.room.encryption`.
    pub encrypted: bool,
    /// Its state lacks members: they are being fetched.
    pub partial: bool,
    /// The latest time (milliseconds, by the senders' clocks) of the events of the timeline that stand in the order of
    /// their times. Kept by [`crate::Store::write`].
    pub newest_ts: i64,
}

impl RoomRow {
    /// The depth of the next event: one more than the deepest extremity.
    pub fn next_depth(&self) -> u64 {
        self.extremities.iter().map(|(_, depth)| *depth).max().unwrap_or(0) + 1
    }
}

type Columns = (String, String, Vec<u8>, String, i64, bool, bool, bool, i64);

fn decode(columns: Columns) -> StoreResult<RoomRow> {
    let (room_id, version, root, extremities, revision, published, encrypted, partial, newest_ts) = columns;
    let corrupt = |why: String| StoreError::corrupt("rooms", room_id.clone(), why);
    Ok(RoomRow {
        room_id: OwnedRoomId::try_from(room_id.as_str()).map_err(|error| corrupt(error.to_string()))?,
        version: RoomVersionId::try_from(version.as_str()).map_err(|error| corrupt(error.to_string()))?,
        state_root: NodeId::try_from(root.as_slice()).map_err(|_| corrupt("state_root".to_owned()))?,
        extremities: serde_json::from_str(&extremities).map_err(|error| corrupt(error.to_string()))?,
        revision,
        published,
        encrypted,
        partial,
        newest_ts,
    })
}

impl Conn {
    /// The rows of those of `ids` that are rooms here.
    pub async fn rooms_load(&mut self, ids: &[OwnedRoomId]) -> StoreResult<BTreeMap<OwnedRoomId, RoomRow>> {
        self.rooms_load_with(ids, "").await
    }

    /// One room's row.
    pub async fn room_load(&mut self, id: &RoomId) -> StoreResult<Option<RoomRow>> {
        Ok(self.rooms_load(&[id.to_owned()]).await?.remove(id))
    }

    pub(crate) async fn rooms_load_with(
        &mut self,
        ids: &[OwnedRoomId],
        lock: &'static str,
    ) -> StoreResult<BTreeMap<OwnedRoomId, RoomRow>> {
        let mut loaded = BTreeMap::new();
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(LOAD, 1, chunk.len()) + lock;
            let found: Vec<Columns> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.fetch_all(c).await
            })?;
            for columns in found {
                let row = decode(columns)?;
                loaded.insert(row.room_id.clone(), row);
            }
        }
        Ok(loaded)
    }

    /// The rooms in the public directory.
    pub async fn rooms_published(&mut self) -> StoreResult<Vec<OwnedRoomId>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(PUBLISHED).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// All rooms after `after` in order of their ids, at most `limit`.
    pub async fn rooms_scan(&mut self, after: &str, limit: i64) -> StoreResult<Vec<OwnedRoomId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(ALL).bind(after).bind(limit).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// Makes a room. False when there is one already.
    pub(crate) async fn room_insert(&mut self, row: &RoomRow) -> StoreResult<bool> {
        let extremities = extremities(row)?;
        let affected = on_engine!(self, |c| sqlx::query(INSERT)
            .bind(row.room_id.as_str())
            .bind(row.version.as_str())
            .bind(row.state_root.as_bytes().to_vec())
            .bind(&extremities)
            .bind(row.revision)
            .bind(row.published)
            .bind(row.encrypted)
            .bind(row.partial)
            .bind(row.newest_ts)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(affected > 0)
    }

    /// Replaces the rows of rooms that there are, and that are locked.
    pub(crate) async fn rooms_replace(&mut self, all: &[&RoomRow]) -> StoreResult<()> {
        for piece in pieces(all) {
            let texts = piece.iter().map(|row| extremities(row)).collect::<StoreResult<Vec<String>>>()?;
            let text = rows(REPLACE, 9, piece.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for (row, extremities) in piece.iter().zip(&texts) {
                    query = query
                        .bind(row.room_id.as_str())
                        .bind(row.version.as_str())
                        .bind(row.state_root.as_bytes().to_vec())
                        .bind(extremities)
                        .bind(row.revision)
                        .bind(row.published)
                        .bind(row.encrypted)
                        .bind(row.partial)
                        .bind(row.newest_ts);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}

fn extremities(row: &RoomRow) -> StoreResult<String> {
    serde_json::to_string(&row.extremities)
        .map_err(|error| StoreError::corrupt("rooms", row.room_id.as_str(), error))
}
