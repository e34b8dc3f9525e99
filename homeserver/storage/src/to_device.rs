//! To-device messages: a queue for each device, emptied when the client shows that it has what it was given.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::log::NewRow;
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use crate::store::Store;
use crate::tx::{Slot, ToDeviceRow};
use crate::unfiled::Taken;
use ruma::{OwnedUserId, UserId};
use serde_json::value::RawValue;
use sqlx::AssertSqlSafe;
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::LogPosition;

statements! {
    LOAD = "SELECT position, content FROM to_device WHERE user_id = $1 AND device_id = $2 AND filed AND position > $3 AND position <= $4 ORDER BY position LIMIT $5";
    LOAD_LISTED = "SELECT position, content FROM to_device WHERE user_id = $1 AND device_id = $2 AND filed AND position > $3 AND position <= $4 UNION ALL SELECT position, content FROM to_device WHERE position IN ($list) AND user_id = $1 AND device_id = $2 AND NOT filed ORDER BY 1 LIMIT $5";
    DELETE_UPTO = "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND filed AND position <= $3";
    DELETE_LISTED = "DELETE FROM to_device WHERE (user_id = $1 AND device_id = $2 AND filed AND position <= $3) OR (position IN ($list) AND user_id = $1 AND device_id = $2 AND NOT filed)";
    DELETE_ONE = "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND position = $3";
    DELETE_ALL = "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND filed";
    DELETE_UNFILED = "DELETE FROM to_device WHERE position > $3 AND user_id = $1 AND device_id = $2 AND NOT filed";
    INSERT = "INSERT INTO to_device (user_id, device_id, position, content, filed) VALUES $rows";
    HANDED_OUT = "SELECT position FROM to_device_handed_out WHERE user_id = $1 AND device_id = $2";
    HAND_OUT = "INSERT INTO to_device_handed_out (user_id, device_id, position) VALUES ($1, $2, $3) ON CONFLICT (user_id, device_id) DO UPDATE SET position = excluded.position WHERE to_device_handed_out.position < excluded.position";
    DELETE_HANDED_OUT = "DELETE FROM to_device_handed_out WHERE user_id = $1 AND device_id = $2";
    DEVICES = "SELECT user_id, device_id FROM devices WHERE user_id IN ($list) ORDER BY user_id, device_id";
    SEEN = "INSERT INTO to_device_seen (sender, message_id, seen_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    SEEN_PRUNE = "DELETE FROM to_device_seen WHERE seen_at < $1";
}

impl Store {
    /// The messages that wait for a device after `after` and up to `upto`, oldest first, at most `limit`: each a whole
    /// event `{type, sender, content}` with the position to acknowledge it by.
    /// <https://spec.matrix.org/v1.19/client-server-api/#extensions-to-sync>
    pub async fn to_device_load(
        &self,
        user: &UserId,
        device: &str,
        after: LogPosition,
        upto: LogPosition,
        limit: usize,
    ) -> StoreResult<Vec<(LogPosition, Box<RawValue>)>> {
        let limit = limit.clamp(1, CHUNK);
        // First: what is filed from now on the database finds by the device.
        let listed = self.inner.unfiled.positions(user, device, after.0, upto.0, limit);
        let listed = padded(&listed);
        let listing = list(LOAD_LISTED, 6, listed.len());
        let text = if listed.is_empty() { LOAD } else { listing.as_str() };
        let mut conn = self.read().await?;
        let found: Vec<(i64, String)> = on_engine!(&mut conn, |c| {
            let mut query = sqlx::query_as(AssertSqlSafe(text))
                .bind(user.as_str())
                .bind(device)
                .bind(after.0)
                .bind(upto.0)
                .bind(limit as i64);
            for position in &listed {
                query = query.bind(*position);
            }
            query.fetch_all(c).await
        })?;
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
}

impl Conn {
    /// Every message that waits for a device up to this position has been in an answer to it.
    pub async fn to_device_handed_out(&mut self, user: &UserId, device: &str) -> StoreResult<LogPosition> {
        let found: Option<(i64,)> = on_engine!(self, |c| sqlx::query_as(HANDED_OUT)
            .bind(user.as_str())
            .bind(device)
            .fetch_optional(c)
            .await)?;
        Ok(found.map_or(LogPosition::START, |(position,)| LogPosition(position)))
    }

    pub(crate) async fn messages_insert(
        &mut self,
        all: &[ToDeviceRow],
        filed: bool,
        position: impl Fn(Slot) -> i64,
    ) -> StoreResult<()> {
        for chunk in pieces(all) {
            let text = rows(INSERT, 5, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for row in chunk {
                    query = query
                        .bind(row.user.as_str())
                        .bind(&row.device)
                        .bind(position(row.slot))
                        .bind(&*row.content)
                        .bind(filed);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
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
    /// Queues a to-device message for a device of this server and announces it.
    pub fn to_device_put(&mut self, user: OwnedUserId, device: String, content: Arc<str>) {
        let row = NewRow::new(crate::Fact::ToDevice).user(user.clone()).reference(device.clone());
        let slot = self.log_append(row);
        self.buffers.to_device.push(ToDeviceRow { user, device, slot, content });
    }

    /// The devices of each of `users`, as (user, device) in order; from what was looked up for the whole group, where a
    /// write named them ([`crate::Needs::devices_of`]) and the group has written nothing yet.
    pub async fn devices_of_all(&mut self, users: &[OwnedUserId]) -> StoreResult<Vec<(OwnedUserId, String)>> {
        if !users.iter().all(|user| self.devices.contains_key(user)) {
            return self.conn.device_ids_of(users).await;
        }
        let of = |user: &OwnedUserId| {
            let devices = self.devices.get(user).into_iter().flatten();
            devices.map(|device| (user.clone(), device.clone())).collect::<Vec<_>>()
        };
        Ok(users.iter().flat_map(of).collect())
    }

    /// Looks up the devices of all these, for [`crate::Tx::devices_of_all`].
    pub(crate) async fn devices_look_up(&mut self, users: BTreeSet<OwnedUserId>) -> StoreResult<()> {
        if users.is_empty() {
            return Ok(());
        }
        let users: Vec<OwnedUserId> = users.into_iter().collect();
        let found = self.conn.device_ids_of(&users).await?;
        self.devices = users.into_iter().map(|user| (user, Vec::new())).collect();
        for (user, device) in found {
            self.devices.entry(user).or_default().push(device);
        }
        Ok(())
    }

    /// The client has what was sent to this device up to `position`: it goes.
    pub async fn to_device_delete_upto(
        &mut self,
        user: &UserId,
        device: &str,
        position: LogPosition,
    ) -> StoreResult<u64> {
        let listed = self.unfiled.positions(user, device, 0, position.0, usize::MAX);
        let conn = self.writing().await?;
        let mut deleted = 0;
        // Once at least, for those that are filed.
        for chunk in listed.chunks(CHUNK).chain(listed.is_empty().then_some(&[][..])) {
            let chunk = padded(chunk);
            let listing = list(DELETE_LISTED, 4, chunk.len());
            let text = if chunk.is_empty() { DELETE_UPTO } else { listing.as_str() };
            deleted += on_engine!(&mut *conn, |c| {
                let mut query =
                    sqlx::query(AssertSqlSafe(text)).bind(user.as_str()).bind(device).bind(position.0);
                for position in &chunk {
                    query = query.bind(*position);
                }
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        self.taken(user, device, 0, position.0);
        Ok(deleted)
    }

    fn taken(&mut self, user: &UserId, device: &str, after: i64, upto: i64) {
        if self.unfiled.is_late() {
            let (user, device) = (user.to_owned(), device.to_owned());
            self.buffers.taken.push(Taken { user, device, after, upto });
        }
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
        self.taken(user, device, position.0 - 1, position.0);
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
        let (late, cursor) = (self.unfiled.is_late(), self.unfiled.cursor());
        let conn = self.writing().await?;
        for text in [DELETE_ALL, DELETE_HANDED_OUT] {
            on_engine!(&mut *conn, |c| sqlx::query(text)
                .bind(user.as_str())
                .bind(device)
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        if late {
            // All of them are looked through: memory may lack what another process has just written.
            on_engine!(conn, |c| sqlx::query(DELETE_UNFILED)
                .bind(user.as_str())
                .bind(device)
                .bind(cursor)
                .execute(c)
                .await
                .map(|_| ()))?;
            self.taken(user, device, 0, i64::MAX);
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
