//! To-device messages: a queue for each device, emptied when the client shows that it has what it was given.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{OwnedUserId, UserId};
use serde_json::value::RawValue;
use sqlx::AssertSqlSafe;
use waxwing_model::LogPosition;

statements! {
    LOAD = "SELECT position, content FROM to_device WHERE user_id = $1 AND device_id = $2 AND position > $3 AND position <= $4 ORDER BY position LIMIT $5";
    DELETE_UPTO = "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND position <= $3";
    DELETE_ONE = "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND position = $3";
    DELETE_ALL = "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2";
    HANDED_OUT = "SELECT position FROM to_device_handed_out WHERE user_id = $1 AND device_id = $2";
    HAND_OUT = "INSERT INTO to_device_handed_out (user_id, device_id, position) VALUES ($1, $2, $3) ON CONFLICT (user_id, device_id) DO UPDATE SET position = excluded.position WHERE to_device_handed_out.position < excluded.position";
    DELETE_HANDED_OUT = "DELETE FROM to_device_handed_out WHERE user_id = $1 AND device_id = $2";
    DEVICES = "SELECT user_id, device_id FROM devices WHERE user_id IN ($list) ORDER BY user_id, device_id";
    SEEN = "INSERT INTO to_device_seen (sender, message_id, seen_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    SEEN_PRUNE = "DELETE FROM to_device_seen WHERE seen_at < $1";
}

impl Conn {
    /// The messages that wait for a device after `after` and up to `upto`, oldest first, at most `limit`: each a whole
    /// event `{type, sender, content}` with the position to acknowledge it by.
    /// <https://spec.matrix.org/v1.19/client-server-api/#extensions-to-sync>
    pub async fn to_device_load(
        &mut self,
        user: &UserId,
        device: &str,
        after: LogPosition,
        upto: LogPosition,
        limit: i64,
    ) -> StoreResult<Vec<(LogPosition, Box<RawValue>)>> {
        let found: Vec<(i64, String)> = on_engine!(self, |c| sqlx::query_as(LOAD)
            .bind(user.as_str())
            .bind(device)
            .bind(after.0)
            .bind(upto.0)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found
            .into_iter()
            .map(|(position, content)| {
                let json = RawValue::from_string(content).map_err(|error| {
                    StoreError::corrupt("to_device", format!("{user} {device} {position}"), error)
                })?;
                Ok((LogPosition(position), json))
            })
            .collect()
    }

    /// Every message that waits for a device up to this position has been in an answer to it.
    pub async fn to_device_handed_out(&mut self, user: &UserId, device: &str) -> StoreResult<LogPosition> {
        let found: Option<(i64,)> = on_engine!(self, |c| sqlx::query_as(HANDED_OUT)
            .bind(user.as_str())
            .bind(device)
            .fetch_optional(c)
            .await)?;
        Ok(found.map_or(LogPosition::START, |(position,)| LogPosition(position)))
    }

    /// The devices of each of `users`, as (user, device) in order.
    pub async fn device_ids_of(&mut self, users: &[OwnedUserId]) -> StoreResult<Vec<(OwnedUserId, String)>> {
        let mut all = Vec::new();
        for chunk in users.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(DEVICES, 1, chunk.len());
            let found: Vec<(String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.fetch_all(c).await
            })?;
            all.extend(
                found
                    .into_iter()
                    .filter_map(|(user, device)| Some((OwnedUserId::try_from(user).ok()?, device))),
            );
        }
        Ok(all)
    }
}

impl crate::Tx {
    /// The client has what was sent to this device up to `position`: it goes.
    pub async fn to_device_delete_upto(
        &mut self,
        user: &UserId,
        device: &str,
        position: LogPosition,
    ) -> StoreResult<u64> {
        let conn = self.writing().await?;
        Ok(on_engine!(conn, |c| sqlx::query(DELETE_UPTO)
            .bind(user.as_str())
            .bind(device)
            .bind(position.0)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?)
    }

    /// The message at this position goes: an application service is given it in another way.
    pub async fn to_device_delete_one(
        &mut self,
        user: &UserId,
        device: &str,
        position: LogPosition,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DELETE_ONE)
            .bind(user.as_str())
            .bind(device)
            .bind(position.0)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Notes that an answer with every message up to `position` is about to leave.
    pub async fn to_device_hand_out(
        &mut self,
        user: &UserId,
        device: &str,
        position: LogPosition,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(HAND_OUT)
            .bind(user.as_str())
            .bind(device)
            .bind(position.0)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The device is gone: what waits for it goes.
    pub async fn to_device_delete_all(&mut self, user: &UserId, device: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        for text in [DELETE_ALL, DELETE_HANDED_OUT] {
            on_engine!(&mut *conn, |c| sqlx::query(text)
                .bind(user.as_str())
                .bind(device)
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }

    /// Notes that this message of another server was taken; `false` when it had been taken before.
    pub async fn to_device_seen(&mut self, sender: &UserId, message: &str, now: u64) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let new = on_engine!(conn, |c| sqlx::query(SEEN)
            .bind(sender.as_str())
            .bind(message)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(new > 0)
    }

    /// Forgets what was taken before `before` (milliseconds since the epoch).
    pub async fn to_device_seen_prune(&mut self, before: u64) -> StoreResult<u64> {
        let conn = self.writing().await?;
        Ok(on_engine!(conn, |c| sqlx::query(SEEN_PRUNE)
            .bind(before as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?)
    }
}
