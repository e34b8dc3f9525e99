//! Events of other servers that are still to be taken in.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId};
use sqlx::AssertSqlSafe;

statements! {
    PUT = "INSERT INTO staged_pdus (room_id, event_id, origin, json, place, attempts, next_try) VALUES $rows ON CONFLICT DO NOTHING";
    ROOMS = "SELECT room_id FROM staged_pdus WHERE next_try <= $1 GROUP BY room_id ORDER BY MIN(next_try) LIMIT $2";
    LOAD = "SELECT event_id, origin, json, attempts FROM staged_pdus WHERE room_id = $1 AND next_try <= $2 ORDER BY place LIMIT $3";
    COUNT = "SELECT COUNT(*) FROM staged_pdus WHERE room_id = $1";
    REMOVE = "DELETE FROM staged_pdus WHERE room_id = $1 AND event_id IN ($list)";
    LATER = "UPDATE staged_pdus SET attempts = attempts + 1, next_try = $2 WHERE room_id = $1 AND event_id IN ($list)";
}

/// An event that is still to be taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedRow {
    /// The event.
    pub event_id: OwnedEventId,
    /// The server that sent it.
    pub origin: OwnedServerName,
    /// As it came.
    pub json: String,
    /// How often it was tried in vain.
    pub attempts: i64,
}

impl Conn {
    /// Rooms with events that may be tried at `now` (milliseconds since the epoch), at most `limit`.
    pub async fn staged_rooms(&mut self, now: u64, limit: i64) -> StoreResult<Vec<OwnedRoomId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(ROOMS).bind(now as i64).bind(limit).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// The events of a room that may be tried at `now`, in the order in which they came.
    pub async fn staged_load(&mut self, room: &RoomId, now: u64, limit: i64) -> StoreResult<Vec<StagedRow>> {
        let found: Vec<(String, String, String, i64)> = on_engine!(self, |c| sqlx::query_as(LOAD)
            .bind(room.as_str())
            .bind(now as i64)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        let corrupt = |why: String| StoreError::corrupt("staged_pdus", room.as_str(), why);
        found
            .into_iter()
            .map(|(event_id, origin, json, attempts)| {
                Ok(StagedRow {
                    event_id: OwnedEventId::try_from(event_id).map_err(|error| corrupt(error.to_string()))?,
                    origin: OwnedServerName::try_from(origin).map_err(|error| corrupt(error.to_string()))?,
                    json,
                    attempts,
                })
            })
            .collect()
    }

    /// How many events of the room are still to be taken in.
    pub async fn staged_count(&mut self, room: &RoomId) -> StoreResult<i64> {
        let (count,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(COUNT).bind(room.as_str()).fetch_one(c).await)?;
        Ok(count)
    }
}

impl crate::Tx {
    /// Keeps events of a room for later; those that are kept already stay as they are. `place` orders the first of
    /// them, `next_try` is when they may be tried.
    pub async fn staged_put(
        &mut self,
        room: &RoomId,
        all: &[StagedRow],
        place: i64,
        next_try: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        let mut place = place;
        for piece in pieces(all) {
            let text = rows(PUT, 7, piece.len());
            on_engine!(conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for (index, row) in piece.iter().enumerate() {
                    query = query
                        .bind(room.as_str())
                        .bind(row.event_id.as_str())
                        .bind(row.origin.as_str())
                        .bind(&row.json)
                        .bind(place + index as i64)
                        .bind(row.attempts)
                        .bind(next_try as i64);
                }
                query.execute(c).await.map(|_| ())
            })?;
            place += piece.len() as i64;
        }
        Ok(())
    }

    /// These are taken in, or given up.
    pub async fn staged_remove(&mut self, room: &RoomId, ids: &[OwnedEventId]) -> StoreResult<()> {
        let conn = self.writing().await?;
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(REMOVE, 2, chunk.len());
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

    /// These are tried again at `next_try`, milliseconds since the epoch.
    pub async fn staged_later(
        &mut self,
        room: &RoomId,
        ids: &[OwnedEventId],
        next_try: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(LATER, 3, chunk.len());
            on_engine!(conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text)).bind(room.as_str()).bind(next_try as i64);
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}
