//! Events that are sent later (MSC4140).

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};

statements! {
    INSERT = "INSERT INTO delayed_events (delay_id, user_id, device_id, appservice, room_id, kind, state_key, content, sticky_ms, delay, running_since, due) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    LOAD = "SELECT delay_id, user_id, device_id, appservice, room_id, kind, state_key, content, sticky_ms, delay, running_since FROM delayed_events WHERE delay_id = $1";
    OF_USER = "SELECT delay_id, user_id, device_id, appservice, room_id, kind, state_key, content, sticky_ms, delay, running_since FROM delayed_events WHERE user_id = $1 ORDER BY due, delay_id LIMIT $2";
    DUE = "SELECT delay_id, user_id, device_id, appservice, room_id, kind, state_key, content, sticky_ms, delay, running_since FROM delayed_events WHERE due <= $1 ORDER BY due, delay_id LIMIT $2";
    NEXT = "SELECT MIN(due) FROM delayed_events";
    COUNT = "SELECT COUNT(*) FROM delayed_events WHERE user_id = $1";
    OF_STATE = "SELECT delay_id FROM delayed_events WHERE room_id = $1 AND kind = $2 AND state_key = $3 AND user_id <> $4 LIMIT 1";
    RESTART = "UPDATE delayed_events SET running_since = $2, due = $2 + delay WHERE delay_id = $1";
    TAKE = "DELETE FROM delayed_events WHERE delay_id = $1 AND due <= $2";
    REMOVE_OF_STATE = "DELETE FROM delayed_events WHERE room_id = $1 AND kind = $2 AND state_key = $3 AND user_id <> $4";
    REMOVE_OF_USER = "DELETE FROM delayed_events WHERE user_id = $1";
}

/// An event that is sent later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayedRow {
    /// Names it; whoever knows it may put it off, cancel or send it.
    pub delay_id: String,
    /// Its sender.
    pub user: OwnedUserId,
    /// The sender's device; empty without one.
    pub device: String,
    /// The application service that speaks for the sender.
    pub appservice: Option<String>,
    /// Where.
    pub room: OwnedRoomId,
    /// The event type.
    pub kind: String,
    /// The state key of a state event.
    pub state_key: Option<String>,
    /// The content, JSON.
    pub content: String,
    /// For how long the event will be sticky, milliseconds (MSC4354).
    pub sticky_ms: Option<i64>,
    /// How long it waits, milliseconds.
    pub delay: i64,
    /// Since when, milliseconds since the epoch.
    pub running_since: i64,
}

type Columns =
    (String, String, String, Option<String>, String, String, Option<String>, String, Option<i64>, i64, i64);

fn decode(columns: Columns) -> StoreResult<DelayedRow> {
    let (delay_id, user, device, appservice, room, kind, state_key, content, sticky_ms, delay, running_since) =
        columns;
    let corrupt = |why: String| StoreError::corrupt("delayed_events", delay_id.clone(), why);
    Ok(DelayedRow {
        user: user.try_into().map_err(|error: ruma::IdParseError| corrupt(error.to_string()))?,
        room: room.try_into().map_err(|error: ruma::IdParseError| corrupt(error.to_string()))?,
        delay_id,
        device,
        appservice,
        kind,
        state_key,
        content,
        sticky_ms,
        delay,
        running_since,
    })
}

impl Conn {
    /// One of them.
    pub async fn delayed_event(&mut self, id: &str) -> StoreResult<Option<DelayedRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(id).fetch_optional(c).await)?;
        found.map(decode).transpose()
    }

    /// A user's, the next one first, at most `limit`.
    pub async fn delayed_events_of(&mut self, user: &UserId, limit: i64) -> StoreResult<Vec<DelayedRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(OF_USER).bind(user.as_str()).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// Those whose time has come, in order, at most `limit`.
    pub async fn delayed_events_due(&mut self, now: u64, limit: i64) -> StoreResult<Vec<DelayedRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(DUE).bind(now as i64).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// When the time of the next one comes.
    pub async fn delayed_event_next(&mut self) -> StoreResult<Option<i64>> {
        let (next,): (Option<i64>,) = on_engine!(self, |c| sqlx::query_as(NEXT).fetch_one(c).await)?;
        Ok(next)
    }

    /// How many wait of a user's.
    pub async fn delayed_events_count(&mut self, user: &UserId) -> StoreResult<i64> {
        let (count,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(COUNT).bind(user.as_str()).fetch_one(c).await)?;
        Ok(count)
    }
}

impl crate::Tx {
    /// Keeps an event for later.
    pub async fn delayed_event_add(&mut self, row: &DelayedRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(INSERT)
            .bind(&row.delay_id)
            .bind(row.user.as_str())
            .bind(&row.device)
            .bind(row.appservice.as_deref())
            .bind(row.room.as_str())
            .bind(&row.kind)
            .bind(row.state_key.as_deref())
            .bind(&row.content)
            .bind(row.sticky_ms)
            .bind(row.delay)
            .bind(row.running_since)
            .bind(row.running_since.saturating_add(row.delay))
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Lets it wait from `now` on. Whether it was there.
    pub async fn delayed_event_restart(&mut self, id: &str, now: u64) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let changed = on_engine!(conn, |c| sqlx::query(RESTART)
            .bind(id)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(changed > 0)
    }

    /// Takes it out, if its time has come by `by`. Whether it was there: only one who asks gets it.
    pub async fn delayed_event_take(&mut self, id: &str, by: i64) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let taken = on_engine!(conn, |c| sqlx::query(TAKE)
            .bind(id)
            .bind(by)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(taken > 0)
    }

    /// Cancels what other users than `user` want to set this state entry to.
    pub async fn delayed_events_overtaken(
        &mut self,
        room: &RoomId,
        kind: &str,
        key: &str,
        user: &UserId,
    ) -> StoreResult<()> {
        // Nearly always there is none: asking costs less than a write.
        let found: Option<(String,)> = on_engine!(&mut self.conn, |c| sqlx::query_as(OF_STATE)
            .bind(room.as_str())
            .bind(kind)
            .bind(key)
            .bind(user.as_str())
            .fetch_optional(c)
            .await)?;
        if found.is_none() {
            return Ok(());
        }
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REMOVE_OF_STATE)
            .bind(room.as_str())
            .bind(kind)
            .bind(key)
            .bind(user.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Cancels all of a user's.
    pub async fn delayed_events_remove_of(&mut self, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REMOVE_OF_USER).bind(user.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
