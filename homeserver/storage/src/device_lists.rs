//! Device lists as a whole: which changes were told to whom, and which copies of other servers' lists still hold.
//! <https://spec.matrix.org/v1.19/server-server-api/#device-management>

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use sqlx::AssertSqlSafe;
use waxwing_model::LogPosition;

statements! {
    CHANGES = "SELECT l.user_id, l.room_id, l.reference, l.data FROM log l WHERE l.kind = 7 AND l.position > $1 AND l.position <= $2 AND (l.user_id = $3 OR (l.room_id IS NULL AND l.reference IS NULL) OR l.room_id IN (SELECT m.room_id FROM members m WHERE m.user_id = $3)) ORDER BY l.position";
    STREAM = "SELECT stream_id FROM device_list_streams WHERE user_id = $1";
    STREAM_NEXT = "INSERT INTO device_list_streams (user_id, stream_id) VALUES ($1, 1) ON CONFLICT (user_id) DO UPDATE SET stream_id = device_list_streams.stream_id + 1 RETURNING stream_id";
    COPIES = "SELECT l.user_id, l.stream_id FROM remote_device_lists l WHERE NOT l.stale AND EXISTS (SELECT 1 FROM members r WHERE r.user_id = l.user_id AND r.membership = 'join' AND r.sn <= l.since AND EXISTS (SELECT 1 FROM members o WHERE o.server = $1 AND o.membership = 'join' AND o.room_id = r.room_id AND o.sn <= l.since)) AND l.user_id IN ($list)";
    KNOWN = "SELECT DISTINCT r.user_id FROM members r WHERE r.membership = 'join' AND EXISTS (SELECT 1 FROM members o WHERE o.server = $1 AND o.membership = 'join' AND o.room_id = r.room_id) AND r.user_id IN ($list)";
    COPY_GENERATION = "SELECT generation FROM remote_device_lists WHERE user_id = $1";
    COPY_FRESH = "SELECT stream_id FROM remote_device_lists WHERE user_id = $1 AND NOT stale";
    COPY_PUT = "INSERT INTO remote_device_lists (user_id, stream_id, stale, since, generation) VALUES ($1, $2, FALSE, $3, $4) ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id, stale = remote_device_lists.generation <> excluded.generation, since = excluded.since";
    COPY_ADVANCE = "UPDATE remote_device_lists SET stream_id = $2, generation = generation + 1 WHERE user_id = $1";
    COPY_STALE = "INSERT INTO remote_device_lists (user_id, stream_id, stale, since, generation) VALUES ($1, 0, TRUE, 0, 1) ON CONFLICT (user_id) DO UPDATE SET stale = TRUE, generation = remote_device_lists.generation + 1";
    // From each server to the next by the index, not from member to member.
    SERVERS_ELSEWHERE = "WITH RECURSIVE present(room_id, server) AS (SELECT a.room_id, (SELECT MIN(b.server) FROM members b WHERE b.room_id = a.room_id AND b.membership = 'join') FROM members a WHERE a.user_id = $1 AND a.room_id <> $2 AND a.membership = 'join' UNION ALL SELECT present.room_id, (SELECT MIN(b.server) FROM members b WHERE b.room_id = present.room_id AND b.membership = 'join' AND b.server > present.server) FROM present WHERE present.server IS NOT NULL) SELECT server FROM present WHERE server IS NOT NULL UNION SELECT p.server FROM members m JOIN partial_servers p ON p.room_id = m.room_id WHERE m.user_id = $1 AND m.room_id <> $2 AND m.membership = 'join'";
}

/// One row of the log that matters to device lists; see [`crate::Fact::DeviceList`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceListRow {
    /// Whose list changed, or who began or ceased to be in a room.
    pub user: OwnedUserId,
    /// The room.
    pub room: Option<OwnedRoomId>,
    /// The other user, if only `user` sees a change of that one's keys.
    pub reference: Option<String>,
    /// `join` or `leave`, with a room.
    pub data: Option<String>,
}

impl Conn {
    /// What happened to device lists after `after` and up to `upto` that may concern `user`, oldest first. (What
    /// happened in rooms that the user is or was in, and every change of anyone's list.)
    pub async fn device_list_rows(
        &mut self,
        user: &UserId,
        after: LogPosition,
        upto: LogPosition,
    ) -> StoreResult<Vec<DeviceListRow>> {
        let found: Vec<(Option<String>, Option<String>, Option<String>, Option<String>)> =
            on_engine!(self, |c| sqlx::query_as(CHANGES)
                .bind(after.0)
                .bind(upto.0)
                .bind(user.as_str())
                .fetch_all(c)
                .await)?;
        Ok(found
            .into_iter()
            .filter_map(|(user, room, reference, data)| {
                let room = room.map(OwnedRoomId::try_from).transpose().ok()?;
                Some(DeviceListRow { user: user?.try_into().ok()?, room, reference, data })
            })
            .collect())
    }

    /// The number of the last change of our user's list that other servers were told of; zero before the first.
    pub async fn device_list_stream(&mut self, user: &UserId) -> StoreResult<i64> {
        let found: Option<(i64,)> =
            on_engine!(self, |c| sqlx::query_as(STREAM).bind(user.as_str()).fetch_optional(c).await)?;
        Ok(found.map_or(0, |(stream,)| stream))
    }

    /// Those of `users` (of other servers) of whose lists the kept copy holds, with the last change that it has. A copy
    /// holds while `server` (we) has shared a room with the user ever since it was made.
    pub async fn remote_lists_valid(
        &mut self,
        server: &ServerName,
        users: &[OwnedUserId],
    ) -> StoreResult<Vec<(OwnedUserId, i64)>> {
        let mut all = Vec::new();
        for chunk in users.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(COPIES, 2, chunk.len());
            let found: Vec<(String, i64)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(server.as_str());
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.fetch_all(c).await
            })?;
            all.extend(found.into_iter().filter_map(|(user, stream)| Some((user.try_into().ok()?, stream))));
        }
        Ok(all)
    }

    /// How often the user's server told us of changes; to be read before the list is asked for.
    pub async fn remote_list_generation(&mut self, user: &UserId) -> StoreResult<i64> {
        let found: Option<(i64,)> = on_engine!(self, |c| sqlx::query_as(COPY_GENERATION)
            .bind(user.as_str())
            .fetch_optional(c)
            .await)?;
        Ok(found.map_or(0, |(generation,)| generation))
    }

    /// Whether the list was fetched after the last change that we were told of, so that clients may have what it said.
    pub async fn remote_list_fresh(&mut self, user: &UserId) -> StoreResult<bool> {
        let found: Option<(i64,)> =
            on_engine!(self, |c| sqlx::query_as(COPY_FRESH).bind(user.as_str()).fetch_optional(c).await)?;
        Ok(found.is_some())
    }

    /// The servers of the users who share a room other than `room` with `user`.
    pub async fn servers_sharing_elsewhere(
        &mut self,
        user: &UserId,
        room: &RoomId,
    ) -> StoreResult<Vec<OwnedServerName>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(SERVERS_ELSEWHERE)
            .bind(user.as_str())
            .bind(room.as_str())
            .fetch_all(c)
            .await)?;
        Ok(found.into_iter().filter_map(|(server,)| server.try_into().ok()).collect())
    }

    /// Those of `users` who share a room with any user of `server`.
    pub async fn users_known_to(
        &mut self,
        server: &ServerName,
        users: &[OwnedUserId],
    ) -> StoreResult<Vec<OwnedUserId>> {
        let mut all = Vec::new();
        for chunk in users.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(KNOWN, 2, chunk.len());
            let found: Vec<(String,)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(server.as_str());
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.fetch_all(c).await
            })?;
            all.extend(found.into_iter().filter_map(|(user,)| OwnedUserId::try_from(user).ok()));
        }
        Ok(all)
    }
}

impl crate::Tx {
    /// The number of the next change of our user's list.
    pub async fn device_list_stream_next(&mut self, user: &UserId) -> StoreResult<i64> {
        let conn = self.writing().await?;
        let (stream,): (i64,) =
            on_engine!(conn, |c| sqlx::query_as(STREAM_NEXT).bind(user.as_str()).fetch_one(c).await)?;
        Ok(stream)
    }

    /// The whole list of a user of another server was fetched. `since` and `generation`: the head of the log, and
    /// [`Conn::remote_list_generation`], before it was asked for.
    pub async fn remote_list_put(
        &mut self,
        user: &UserId,
        stream_id: i64,
        since: LogPosition,
        generation: i64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(COPY_PUT)
            .bind(user.as_str())
            .bind(stream_id)
            .bind(since.0)
            .bind(generation)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The copy now has this change too.
    pub async fn remote_list_advance(&mut self, user: &UserId, stream_id: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(COPY_ADVANCE)
            .bind(user.as_str())
            .bind(stream_id)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The copy is behind: it must be fetched again.
    pub async fn remote_list_stale(&mut self, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(COPY_STALE).bind(user.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
