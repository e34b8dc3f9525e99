//! Rooms that were joined without their members, until the whole state is here.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{pieces, rows, statements};
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use sqlx::AssertSqlSafe;
use waxwing_rooms::state_tree::NodeId;

statements! {
    ROOMS = "SELECT room_id FROM rooms WHERE partial";
    PUT = "INSERT INTO partial_rooms (room_id, join_id, resident, since, attempts, next_try) VALUES ($1, $2, $3, $4, 0, 0) ON CONFLICT (room_id) DO UPDATE SET join_id = excluded.join_id, resident = excluded.resident, attempts = 0, next_try = 0";
    LOAD = "SELECT room_id, join_id, resident, since, attempts FROM partial_rooms WHERE room_id = $1";
    // A number, not EXISTS: PostgreSQL would take all local members together, for a table that is nearly always empty.
    DUE = "SELECT room_id, join_id, resident, since, attempts FROM partial_rooms WHERE next_try <= $1 AND (SELECT 1 FROM members m WHERE m.room_id = partial_rooms.room_id AND m.local AND m.membership = 'join' LIMIT 1) = 1 ORDER BY next_try LIMIT $2";
    RETRY = "UPDATE partial_rooms SET attempts = $2, next_try = $3 WHERE room_id = $1";
    REMOVE = "DELETE FROM partial_rooms WHERE room_id = $1";
    SERVERS_PUT = "INSERT INTO partial_servers (room_id, server) VALUES $rows ON CONFLICT DO NOTHING";
    SERVERS = "SELECT server FROM partial_servers WHERE room_id = $1 ORDER BY server";
    SERVERS_REMOVE = "DELETE FROM partial_servers WHERE room_id = $1";
    OF_SERVER = "SELECT room_id FROM partial_servers WHERE server = $1";
    EVENTS_REMOVE = "DELETE FROM partial_events WHERE room_id = $1";
    HOLD = "INSERT INTO held_device_lists (room_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    HELD = "SELECT user_id FROM held_device_lists WHERE room_id = $1";
    HELD_REMOVE = "DELETE FROM held_device_lists WHERE room_id = $1";
    LISTS_CHANGED = "SELECT DISTINCT user_id FROM log WHERE kind = 7 AND position > $1 AND room_id IS NULL AND reference IS NULL AND user_id IN (SELECT m.user_id FROM members m WHERE m.room_id = $2 AND m.local AND m.membership = 'join')";
    COMPLETED = "SELECT COUNT(*) FROM log WHERE room_id = $1 AND position > $2 AND position <= $3 AND kind = 12 AND data = 'complete'";
    STATE_SET = "UPDATE events SET state_before = $2, flags = $3 WHERE event_id = $1";
}

/// A room whose members are being fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialRow {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The newest join of ours through another server.
    pub join_id: OwnedEventId,
    /// The server that let us in.
    pub resident: OwnedServerName,
    /// About the log position of the first such join.
    pub since: i64,
    /// How many servers have been asked in vain.
    pub attempts: i64,
}

type Columns = (String, String, String, i64, i64);

fn decode(columns: Columns) -> StoreResult<PartialRow> {
    let (room_id, join_id, resident, since, attempts) = columns;
    let corrupt = |why: String| StoreError::corrupt("partial_rooms", room_id.clone(), why);
    Ok(PartialRow {
        room_id: OwnedRoomId::try_from(room_id.as_str()).map_err(|error| corrupt(error.to_string()))?,
        join_id: OwnedEventId::try_from(join_id).map_err(|error| corrupt(error.to_string()))?,
        resident: OwnedServerName::try_from(resident).map_err(|error| corrupt(error.to_string()))?,
        since,
        attempts,
    })
}

impl Conn {
    /// All rooms whose state lacks members.
    pub async fn partial_rooms(&mut self) -> StoreResult<Vec<OwnedRoomId>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(ROOMS).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// What is to be done for a room, if its state lacks members.
    pub async fn partial_room(&mut self, room: &RoomId) -> StoreResult<Option<PartialRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(room.as_str()).fetch_optional(c).await)?;
        found.map(decode).transpose()
    }

    /// Rooms that users of this server are joined to whose state may be asked for at `now` (milliseconds since the
    /// epoch), at most `limit`.
    pub async fn partial_rooms_due(&mut self, now: u64, limit: i64) -> StoreResult<Vec<PartialRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(DUE).bind(now as i64).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// The servers in the room, as we were told when we joined it.
    pub async fn partial_servers(&mut self, room: &RoomId) -> StoreResult<Vec<OwnedServerName>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(SERVERS).bind(room.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(name,)| name.try_into().ok()).collect())
    }

    /// The rooms of which we were told that `server` is in them.
    pub async fn partial_rooms_of(&mut self, server: &ServerName) -> StoreResult<Vec<OwnedRoomId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(OF_SERVER).bind(server.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// Users who told of changed devices while it was not known whether they are in the room.
    pub async fn device_lists_held(&mut self, room: &RoomId) -> StoreResult<Vec<OwnedUserId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(HELD).bind(room.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// This server's users in the room whose devices changed after `since`, a log position.
    pub async fn device_lists_changed_in(
        &mut self,
        room: &RoomId,
        since: i64,
    ) -> StoreResult<Vec<OwnedUserId>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(LISTS_CHANGED)
            .bind(since)
            .bind(room.as_str())
            .fetch_all(c)
            .await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// Whether the room's members arrived after `after` and up to `upto`.
    pub async fn room_completed(&mut self, room: &RoomId, after: i64, upto: i64) -> StoreResult<bool> {
        let (count,): (i64,) = on_engine!(self, |c| sqlx::query_as(COMPLETED)
            .bind(room.as_str())
            .bind(after)
            .bind(upto)
            .fetch_one(c)
            .await)?;
        Ok(count > 0)
    }
}

impl crate::Tx {
    /// The room's members are missing from now on, or were already: then what came since an earlier join is still judged
    /// by the state before that one. `before`: the whole state before the join, if it is known.
    pub async fn partial_begin(
        &mut self,
        room: &RoomId,
        join: &EventId,
        resident: &ServerName,
        servers: &[OwnedServerName],
        before: Option<NodeId>,
    ) -> StoreResult<()> {
        self.partial_join_put(room, join, before).await?;
        let since = self.position_hint();
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PUT)
            .bind(room.as_str())
            .bind(join.as_str())
            .bind(resident.as_str())
            .bind(since)
            .execute(c)
            .await
            .map(|_| ()))?;
        for piece in pieces(servers) {
            let text = rows(SERVERS_PUT, 2, piece.len());
            on_engine!(conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for server in piece {
                    query = query.bind(room.as_str()).bind(server.as_str());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// The room's members are here, or no longer wanted: what was noted for their arrival goes.
    pub async fn partial_end(&mut self, room: &RoomId) -> StoreResult<()> {
        let conn = self.writing().await?;
        for text in [REMOVE, SERVERS_REMOVE, EVENTS_REMOVE, HELD_REMOVE] {
            on_engine!(conn, |c| sqlx::query(text).bind(room.as_str()).execute(c).await.map(|_| ()))?;
        }
        Ok(())
    }

    /// Another server is to be asked at `next_try` (milliseconds since the epoch).
    pub async fn partial_retry(&mut self, room: &RoomId, attempts: i64, next_try: u64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(RETRY)
            .bind(room.as_str())
            .bind(attempts)
            .bind(next_try as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Notes that the devices of `user`, who may be in the room, changed.
    pub async fn device_list_hold(&mut self, room: &RoomId, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(HOLD)
            .bind(room.as_str())
            .bind(user.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Changes the state before a stored event, and the verdict on it. The caller appends
    /// [`crate::Fact::EventChanged`].
    pub async fn event_set_state(
        &mut self,
        id: &EventId,
        before: NodeId,
        flags: crate::EventFlags,
    ) -> StoreResult<()> {
        self.event_changed(id);
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(STATE_SET)
            .bind(id.as_str())
            .bind(before.as_bytes().to_vec())
            .bind(flags.bits())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
