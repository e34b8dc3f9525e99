//! Pushers: where notifications of a user go.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use crate::{Fact, NewRow};
use ruma::{OwnedUserId, UserId};

statements! {
    OF_USER = "SELECT user_id, app_id, pushkey, device_id, json, position, failing_since FROM pushers WHERE user_id = $1 ORDER BY app_id, pushkey";
    ALL = "SELECT user_id, app_id, pushkey, device_id, json, position, failing_since FROM pushers ORDER BY user_id, app_id, pushkey";
    SET = "INSERT INTO pushers (user_id, app_id, pushkey, device_id, json, position, failing_since) VALUES ($1, $2, $3, $4, $5, $6, NULL) ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET device_id = excluded.device_id, json = excluded.json, failing_since = NULL";
    REMOVE = "DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3";
    REMOVE_OTHERS = "DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id <> $3";
    REMOVE_OF_DEVICE = "DELETE FROM pushers WHERE user_id = $1 AND device_id = $2";
    REMOVE_EXCEPT = "DELETE FROM pushers WHERE user_id = $1 AND (device_id IS NULL OR device_id <> $2)";
    REMOVE_OF_USER = "DELETE FROM pushers WHERE user_id = $1";
    PROGRESS = "UPDATE pushers SET position = $4, failing_since = $5 WHERE user_id = $1 AND app_id = $2 AND pushkey = $3";
}

/// A pusher. (user, app id, pushkey) is its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PusherRow {
    /// Whose notifications.
    pub user_id: OwnedUserId,
    /// The app.
    pub app_id: String,
    /// The device's key at the gateway.
    pub pushkey: String,
    /// The device that made it; it dies with it.
    pub device_id: Option<String>,
    /// The pusher as clients see it, JSON.
    pub json: String,
    /// Notifications of events up to this log position are delivered.
    pub position: i64,
    /// Since when its gateway fails, milliseconds since the Unix epoch.
    pub failing_since: Option<i64>,
}

type Columns = (String, String, String, Option<String>, String, i64, Option<i64>);

fn decode(columns: Columns) -> StoreResult<PusherRow> {
    let (user, app_id, pushkey, device_id, json, position, failing_since) = columns;
    let user_id = OwnedUserId::try_from(user.as_str())
        .map_err(|error| StoreError::corrupt("pushers", user.clone(), error))?;
    Ok(PusherRow { user_id, app_id, pushkey, device_id, json, position, failing_since })
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
    /// Tells the nodes that deliver that this user's pushers changed.
    fn pushers_announce(&mut self, user: &UserId) {
        self.log_append(NewRow::new(Fact::Other).user(user.to_owned()).reference("pushers"));
    }

    /// Makes or changes a pusher and announces it. A changed one goes on where it stood.
    pub async fn pusher_set(&mut self, pusher: &PusherRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SET)
            .bind(pusher.user_id.as_str())
            .bind(&pusher.app_id)
            .bind(&pusher.pushkey)
            .bind(pusher.device_id.as_deref())
            .bind(&pusher.json)
            .bind(pusher.position)
            .execute(c)
            .await
            .map(|_| ()))?;
        self.pushers_announce(&pusher.user_id);
        Ok(())
    }

    /// Removes a pusher and announces it. Returns whether it was there.
    pub async fn pusher_remove(&mut self, user: &UserId, app_id: &str, pushkey: &str) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let removed = on_engine!(conn, |c| sqlx::query(REMOVE)
            .bind(user.as_str())
            .bind(app_id)
            .bind(pushkey)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        self.pushers_announce(user);
        Ok(removed > 0)
    }

    /// Removes the pushers of other users with this app and key.
    pub async fn pushers_remove_others(
        &mut self,
        app_id: &str,
        pushkey: &str,
        user: &UserId,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REMOVE_OTHERS)
            .bind(app_id)
            .bind(pushkey)
            .bind(user.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
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

    /// Notifications up to `position` are delivered; `failing_since` when the gateway fails.
    pub async fn pusher_progress(
        &mut self,
        pusher: &PusherRow,
        position: i64,
        failing_since: Option<i64>,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PROGRESS)
            .bind(pusher.user_id.as_str())
            .bind(&pusher.app_id)
            .bind(&pusher.pushkey)
            .bind(position)
            .bind(failing_since)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
