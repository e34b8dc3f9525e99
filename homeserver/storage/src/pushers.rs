//! Pushers: where notifications of a user go, and what is still owed to them.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, statements};
use crate::{Fact, NewRow};
use ruma::{OwnedUserId, UserId};
use sqlx::AssertSqlSafe;

statements! {
    OF_USER = "SELECT user_id, app_id, pushkey, device_id, json, enabled, updated_at, position, marked, badge, failing_since, retry_at, retry_interval FROM pushers WHERE user_id = $1 ORDER BY app_id, pushkey";
    ALL = "SELECT user_id, app_id, pushkey, device_id, json, enabled, updated_at, position, marked, badge, failing_since, retry_at, retry_interval FROM pushers ORDER BY user_id, app_id, pushkey";
    SET = "INSERT INTO pushers (user_id, app_id, pushkey, device_id, json, enabled, updated_at, position, marked, badge, failing_since, retry_at, retry_interval) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULL, NULL, NULL) ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET device_id = excluded.device_id, json = excluded.json, enabled = excluded.enabled, updated_at = excluded.updated_at, position = excluded.position, marked = excluded.marked, badge = excluded.badge, failing_since = NULL, retry_at = NULL, retry_interval = NULL";
    REMOVE = "DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3";
    REMOVE_OTHERS = "DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id <> $3 RETURNING user_id";
    REMOVE_OF_DEVICE = "DELETE FROM pushers WHERE user_id = $1 AND device_id = $2";
    REMOVE_EXCEPT = "DELETE FROM pushers WHERE user_id = $1 AND (device_id IS NULL OR device_id <> $2)";
    REMOVE_OF_USER = "DELETE FROM pushers WHERE user_id = $1";
    MARK = "UPDATE pushers SET marked = $1 WHERE marked < $1 AND enabled AND user_id IN ($list)";
    DELIVERED = "UPDATE pushers SET position = $4, badge = $5, failing_since = NULL, retry_at = NULL, retry_interval = NULL WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND position <= $4";
    FAILED = "UPDATE pushers SET position = $4, failing_since = $5, retry_at = $6, retry_interval = $7 WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND position <= $4";
}

/// What names a pusher: an app has at most one of a user for a pushkey.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PusherKey {
    /// Whose notifications.
    pub user_id: OwnedUserId,
    /// The app.
    pub app_id: String,
    /// The device's key at the gateway.
    pub pushkey: String,
}

/// A gateway that fails. Times in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PusherTry {
    /// Since when.
    pub failing_since: u64,
    /// When it is tried next.
    pub retry_at: u64,
    /// How long was waited for that, in milliseconds.
    pub interval: u64,
}

/// A pusher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PusherRow {
    /// Its key.
    pub key: PusherKey,
    /// The device that made it; it dies with it.
    pub device_id: Option<String>,
    /// The pusher as clients see it, JSON.
    pub json: String,
    /// Whether it is switched on.
    pub enabled: bool,
    /// When a client set it last, milliseconds since the Unix epoch.
    pub updated_at: u64,
    /// Notifications of events up to this log position are delivered.
    pub position: i64,
    /// The newest log position at which there was something to deliver.
    pub marked: i64,
    /// The number of unread messages that the gateway was told last.
    pub badge: Option<u64>,
    /// Its gateway fails.
    pub failing: Option<PusherTry>,
}

impl PusherRow {
    /// Whether there may be something to deliver.
    pub fn owes(&self) -> bool {
        self.enabled && self.marked > self.position
    }
}

type Columns = (
    String,
    String,
    String,
    Option<String>,
    String,
    bool,
    i64,
    i64,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

fn decode(columns: Columns) -> StoreResult<PusherRow> {
    let (user, app_id, pushkey, device_id, json, enabled, updated_at, position, marked, badge, ..) = columns;
    let (failing_since, retry_at, interval) = (columns.10, columns.11, columns.12);
    let user_id = OwnedUserId::try_from(user.as_str())
        .map_err(|error| StoreError::corrupt("pushers", user.clone(), error))?;
    let failing = failing_since.map(|since| PusherTry {
        failing_since: since as u64,
        retry_at: retry_at.unwrap_or(since) as u64,
        interval: interval.unwrap_or_default() as u64,
    });
    Ok(PusherRow {
        key: PusherKey { user_id, app_id, pushkey },
        device_id,
        json,
        enabled,
        updated_at: updated_at as u64,
        position,
        marked,
        badge: badge.map(|badge| badge as u64),
        failing,
    })
}

impl Conn {
    /// The pushers of one user.
    pub async fn pushers_of(&mut self, user: &UserId) -> StoreResult<Vec<PusherRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(OF_USER).bind(user.as_str()).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// Every pusher: what the delivering task starts from.
    pub async fn pushers_all(&mut self) -> StoreResult<Vec<PusherRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(ALL).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }
}

impl crate::Tx {
    /// Tells the node that delivers that this user's pushers changed.
    fn pushers_announce(&mut self, user: &UserId) {
        self.log_append(NewRow::new(Fact::Other).user(user.to_owned()).reference("pushers"));
    }

    /// Makes or changes a pusher and announces it. Its gateway counts as one that does not fail.
    pub async fn pusher_set(&mut self, pusher: &PusherRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SET)
            .bind(pusher.key.user_id.as_str())
            .bind(&pusher.key.app_id)
            .bind(&pusher.key.pushkey)
            .bind(pusher.device_id.as_deref())
            .bind(&pusher.json)
            .bind(pusher.enabled)
            .bind(pusher.updated_at as i64)
            .bind(pusher.position)
            .bind(pusher.marked)
            .bind(pusher.badge.map(|badge| badge as i64))
            .execute(c)
            .await
            .map(|_| ()))?;
        self.pushers_announce(&pusher.key.user_id);
        Ok(())
    }

    /// Removes a pusher and announces it. Returns whether it was there.
    pub async fn pusher_remove(&mut self, key: &PusherKey) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let removed = on_engine!(conn, |c| sqlx::query(REMOVE)
            .bind(key.user_id.as_str())
            .bind(&key.app_id)
            .bind(&key.pushkey)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        self.pushers_announce(&key.user_id);
        Ok(removed > 0)
    }

    /// Removes the pushers of other users with this app and pushkey.
    pub async fn pushers_remove_others(&mut self, key: &PusherKey) -> StoreResult<()> {
        let conn = self.writing().await?;
        let found: Vec<(String,)> = on_engine!(conn, |c| sqlx::query_as(REMOVE_OTHERS)
            .bind(&key.app_id)
            .bind(&key.pushkey)
            .bind(key.user_id.as_str())
            .fetch_all(c)
            .await)?;
        for user in found.into_iter().filter_map(|(user,)| OwnedUserId::try_from(user).ok()) {
            self.pushers_announce(&user);
        }
        Ok(())
    }

    /// Removes the pushers that a device made: it is gone.
    pub async fn pushers_remove_of_device(&mut self, user: &UserId, device: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REMOVE_OF_DEVICE)
            .bind(user.as_str())
            .bind(device)
            .execute(c)
            .await
            .map(|_| ()))?;
        self.pushers_announce(user);
        Ok(())
    }

    /// Removes a user's pushers but those of the device that is kept (none: all): the password changed.
    pub async fn pushers_remove_except(&mut self, user: &UserId, kept: Option<&str>) -> StoreResult<()> {
        let conn = self.writing().await?;
        match kept {
            Some(kept) => on_engine!(conn, |c| sqlx::query(REMOVE_EXCEPT)
                .bind(user.as_str())
                .bind(kept)
                .execute(c)
                .await
                .map(|_| ())),
            None => on_engine!(conn, |c| sqlx::query(REMOVE_OF_USER)
                .bind(user.as_str())
                .execute(c)
                .await
                .map(|_| ())),
        }?;
        self.pushers_announce(user);
        Ok(())
    }

    /// There is something to deliver to these users' pushers, at `position` or before.
    pub async fn pushers_mark(&mut self, users: &[OwnedUserId], position: i64) -> StoreResult<()> {
        for chunk in users.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(MARK, 2, chunk.len());
            let conn = self.writing().await?;
            on_engine!(conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text)).bind(position);
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// Everything up to `position` is delivered, and the gateway knows `badge`.
    pub async fn pusher_delivered(
        &mut self,
        key: &PusherKey,
        position: i64,
        badge: Option<u64>,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DELIVERED)
            .bind(key.user_id.as_str())
            .bind(&key.app_id)
            .bind(&key.pushkey)
            .bind(position)
            .bind(badge.map(|badge| badge as i64))
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The gateway failed. What is past `position` stays owed.
    pub async fn pusher_failed(
        &mut self,
        key: &PusherKey,
        position: i64,
        failing: PusherTry,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FAILED)
            .bind(key.user_id.as_str())
            .bind(&key.app_id)
            .bind(&key.pushkey)
            .bind(position)
            .bind(failing.failing_since as i64)
            .bind(failing.retry_at as i64)
            .bind(failing.interval as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
