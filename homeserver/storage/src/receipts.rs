//! Receipts: the newest for each (room, user, kind, thread).

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, statements};
use crate::{Fact, NewRow, Slot};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use sqlx::AssertSqlSafe;

statements! {
    ONE = "SELECT room_id, user_id, kind, thread, event_id, event_sn, data FROM receipts WHERE room_id = $1 AND user_id = $2 AND kind = $3 AND thread = $4";
    OF_ROOM = "SELECT room_id, user_id, kind, thread, event_id, event_sn, data FROM receipts WHERE room_id = $1 AND (kind = 'm.read' OR user_id = $2)";
    OF_ROOMS = "SELECT room_id, user_id, kind, thread, event_id, event_sn, data FROM receipts WHERE (kind = 'm.read' OR user_id = $1) AND room_id IN ($list)";
    AT = "SELECT room_id, user_id, kind, thread, event_id, event_sn, data FROM receipts WHERE room_id = $1 AND (user_id = $2 OR (kind = 'm.read' AND event_id IN ($list)))";
    OF_USER_IN_ROOM = "SELECT room_id, user_id, kind, thread, event_id, event_sn, data FROM receipts WHERE user_id = $1 AND room_id = $2";
    OF_USER = "SELECT room_id, user_id, kind, thread, event_id, event_sn, data FROM receipts WHERE user_id = $1";
    SET = "INSERT INTO receipts (room_id, user_id, kind, thread, event_id, event_sn, data) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (room_id, user_id, kind, thread) DO UPDATE SET event_id = excluded.event_id, event_sn = excluded.event_sn, data = excluded.data";
}

/// One receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptRow {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who has read.
    pub user_id: OwnedUserId,
    /// `m.read` or `m.read.private`.
    pub kind: String,
    /// Empty for an unthreaded receipt, `main`, or the id of the thread's root.
    pub thread: String,
    /// Up to which event: an id, as long as it came from here; what another server says may be none.
    pub event_id: String,
    /// The `sn` of that event, where the event was known when the receipt came.
    pub event_sn: Option<i64>,
    /// JSON object with `ts` (milliseconds since the Unix epoch), without `thread_id`.
    pub data: String,
}

type Columns = (String, String, String, String, String, Option<i64>, String);

fn decode(columns: Columns) -> StoreResult<ReceiptRow> {
    let (room, user, kind, thread, event, event_sn, data) = columns;
    let corrupt = |why: String| StoreError::corrupt("receipts", format!("{room} {user}"), why);
    Ok(ReceiptRow {
        room_id: OwnedRoomId::try_from(room.as_str()).map_err(|error| corrupt(error.to_string()))?,
        user_id: OwnedUserId::try_from(user.as_str()).map_err(|error| corrupt(error.to_string()))?,
        kind,
        thread,
        event_id: event,
        event_sn,
        data,
    })
}

impl Conn {
    /// The receipt that a log row names: `kind` is its reference, `thread` its data.
    pub async fn receipt_load(
        &mut self,
        room: &RoomId,
        user: &UserId,
        kind: &str,
        thread: &str,
    ) -> StoreResult<Option<ReceiptRow>> {
        let found: Option<Columns> = on_engine!(self, |c| sqlx::query_as(ONE)
            .bind(room.as_str())
            .bind(user.as_str())
            .bind(kind)
            .bind(thread)
            .fetch_optional(c)
            .await)?;
        found.map(decode).transpose()
    }

    /// The receipts of a room that `viewer` may see: the public ones, and the viewer's own private ones.
    pub async fn receipts_of_room(&mut self, room: &RoomId, viewer: &UserId) -> StoreResult<Vec<ReceiptRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(OF_ROOM)
            .bind(room.as_str())
            .bind(viewer.as_str())
            .fetch_all(c)
            .await)?;
        found.into_iter().map(decode).collect()
    }

    /// Like [`Conn::receipts_of_room`] for many rooms at once.
    pub async fn receipts_of_rooms(
        &mut self,
        rooms: &[OwnedRoomId],
        viewer: &UserId,
    ) -> StoreResult<Vec<ReceiptRow>> {
        let mut receipts = Vec::new();
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(OF_ROOMS, 2, chunk.len());
            let found: Vec<Columns> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(viewer.as_str());
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            for columns in found {
                receipts.push(decode(columns)?);
            }
        }
        Ok(receipts)
    }

    /// The public receipts at these events of a room, and all of `viewer`.
    pub async fn receipts_at(
        &mut self,
        room: &RoomId,
        viewer: &UserId,
        events: &[OwnedEventId],
    ) -> StoreResult<Vec<ReceiptRow>> {
        if events.is_empty() {
            return self.receipts_of_user_in_room(viewer, room).await;
        }
        let events = padded(&events[events.len().saturating_sub(CHUNK)..]);
        let text = list(AT, 3, events.len());
        let found: Vec<Columns> = on_engine!(self, |c| {
            let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(room.as_str()).bind(viewer.as_str());
            for id in &events {
                query = query.bind(id.as_str());
            }
            query.fetch_all(c).await
        })?;
        found.into_iter().map(decode).collect()
    }

    /// A user's own receipts of every kind and thread in one room: from where unread messages are counted.
    pub async fn receipts_of_user_in_room(
        &mut self,
        user: &UserId,
        room: &RoomId,
    ) -> StoreResult<Vec<ReceiptRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(OF_USER_IN_ROOM)
            .bind(user.as_str())
            .bind(room.as_str())
            .fetch_all(c)
            .await)?;
        found.into_iter().map(decode).collect()
    }

    /// A user's own receipts everywhere.
    pub async fn receipts_of_user(&mut self, user: &UserId) -> StoreResult<Vec<ReceiptRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(OF_USER).bind(user.as_str()).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }
}

impl crate::Tx {
    /// Sets a receipt, whatever was there, and announces it.
    pub async fn receipt_set(&mut self, receipt: &ReceiptRow) -> StoreResult<Slot> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SET)
            .bind(receipt.room_id.as_str())
            .bind(receipt.user_id.as_str())
            .bind(&receipt.kind)
            .bind(&receipt.thread)
            .bind(&receipt.event_id)
            .bind(receipt.event_sn)
            .bind(&receipt.data)
            .execute(c)
            .await
            .map(|_| ()))?;
        let row = NewRow::new(Fact::Receipt).room(receipt.room_id.clone()).user(receipt.user_id.clone());
        Ok(self.log_append(row.reference(&receipt.kind).data(&receipt.thread)))
    }
}
