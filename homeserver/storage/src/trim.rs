//! What of the log goes, and when.
//!
//! A row is kept for as long as somebody may yet need what it says. Whoever comes back with a token of long ago is answered from
//! the rows since, so none goes that would change that answer. But most rows say nothing any more after a while:
//!
//! - a letter to a device is found in the device's queue, and a message in the room's timeline (only events that change a
//!   membership are found by whom they name);
//! - what told caches to drop something has told them;
//! - of receipts, account data, key counts and device lists the newest row of each says all that older ones said.
//!
//! So the log grows with memberships and with what people have, not with what they say. Rows go when they are two days
//! old and every reader with a cursor has passed them. A node whose memory ends before what is gone (it was stopped for
//! days) finds a gap, and stops: see [`crate::StoreError::GoneBack`].

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, statements};
use crate::store::Store;
use sqlx::AssertSqlSafe;
use std::sync::Arc;
use std::time::Duration;
use waxwing_model::LogPosition;

/// The log is kept whole for so long: clients repeat requests within that time, and nodes that were stopped go on.
const KEPT_WHOLE: Duration = Duration::from_hours(48);
/// A cursor of push notifications that is older is that of a server which does not push any more.
const PUSH_WAITS: Duration = Duration::from_hours(14 * 24);
/// An application service that has been away for longer is not waited for.
const APPSERVICE_WAITS: Duration = Duration::from_hours(90 * 24);
/// How long it is remembered where the log ended when: longer than anybody is waited for.
const AGES_KEPT: Duration = Duration::from_hours(100 * 24);
/// Positions that are looked through at a time: some ten milliseconds, of which the writer of SQLite is taken for a part.
const SLICE: i64 = 500;
/// Slices of one turn: ten million rows, after which others have theirs.
const SLICES: usize = 20_000;
/// Up to where rows are gone, among the cursors.
pub(crate) const TRIMMED: &str = "log-trimmed";

statements! {
    AGE_NOTE = "INSERT INTO log_ages (noted_at, position) SELECT CAST($1 AS BIGINT), position FROM log_head WHERE id = 1 ON CONFLICT (noted_at) DO NOTHING";
    AGES_FORGET = "DELETE FROM log_ages WHERE noted_at < $1";
    AGE = "SELECT MAX(position) FROM log_ages WHERE noted_at <= $1";
    // What push notifications have yet to read, what application services have yet to be told, and the changes of device
    // lists since a join whose members are not here yet. Requests that may be repeated are younger than all that goes.
    NEEDED = "SELECT MIN(position) FROM (SELECT position FROM log_cursors WHERE name = 'push' AND position >= $1 UNION ALL SELECT position FROM appservice_cursors WHERE position >= $2 UNION ALL SELECT since AS position FROM partial_rooms) AS needed";
    SPENT = "SELECT position FROM log WHERE position > $1 AND position <= $2 AND (kind IN (6, 9, 10, 13, 14) OR (kind = 1 AND user_id IS NULL) OR (kind = 15 AND (reference IS NULL OR reference <> 'thread_subscription'))) ORDER BY position";
    SUPERSEDED = "SELECT DISTINCT o.position FROM log n JOIN log o ON o.user_id = n.user_id AND o.kind <> 6 AND o.kind = n.kind AND o.position < n.position AND COALESCE(o.room_id, '') = COALESCE(n.room_id, '') AND COALESCE(o.reference, '') = COALESCE(n.reference, '') AND COALESCE(o.data, '') = COALESCE(n.data, '') WHERE n.position > $1 AND n.position <= $2 AND n.user_id IS NOT NULL AND (n.kind IN (3, 5, 8) OR (n.kind = 7 AND n.room_id IS NULL) OR (n.kind = 15 AND n.reference = 'thread_subscription')) ORDER BY o.position";
    GO = "DELETE FROM log WHERE position IN ($list)";
}

impl Conn {
    /// Up to where rows of the log may be gone.
    pub async fn log_trimmed(&mut self) -> StoreResult<LogPosition> {
        Ok(self.cursor_load(TRIMMED).await?.unwrap_or(LogPosition::START))
    }

    /// Where the log ended at `then` (milliseconds since the epoch), or a little before; its start where that is not known.
    async fn log_age(&mut self, then: u64) -> StoreResult<LogPosition> {
        let (found,): (Option<i64>,) =
            on_engine!(self, |c| sqlx::query_as(AGE).bind(then as i64).fetch_one(c).await)?;
        Ok(found.map_or(LogPosition::START, LogPosition))
    }

    /// Up to where every reader has passed what is old enough at `now`.
    async fn log_passed(&mut self, now: u64) -> StoreResult<LogPosition> {
        let ago = |time: Duration| now.saturating_sub(time.as_millis() as u64);
        let old = self.log_age(ago(KEPT_WHOLE)).await?;
        let push = self.log_age(ago(PUSH_WAITS)).await?;
        let appservices = self.log_age(ago(APPSERVICE_WAITS)).await?;
        let (needed,): (Option<i64>,) =
            on_engine!(self, |c| sqlx::query_as(NEEDED).bind(push.0).bind(appservices.0).fetch_one(c).await)?;
        Ok(needed.map_or(old, |needed| old.min(LogPosition(needed))))
    }

    /// Rows that nobody needs, among those after `after` and up to `upto` and those that these replace.
    async fn log_spent(&mut self, after: LogPosition, upto: LogPosition) -> StoreResult<Vec<i64>> {
        let mut spent = Vec::new();
        for statement in [SPENT, SUPERSEDED] {
            let found: Vec<(i64,)> = on_engine!(self, |c| sqlx::query_as(statement)
                .bind(after.0)
                .bind(upto.0)
                .fetch_all(c)
                .await)?;
            spent.extend(found.into_iter().map(|(position,)| position));
        }
        spent.sort_unstable();
        spent.dedup();
        Ok(spent)
    }

    async fn log_delete(&mut self, positions: &[i64]) -> StoreResult<()> {
        for chunk in positions.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(GO, 1, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for position in &chunk {
                    query = query.bind(*position);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    async fn log_age_note(&mut self, now: u64) -> StoreResult<()> {
        on_engine!(self, |c| sqlx::query(AGE_NOTE).bind(now as i64).execute(c).await.map(|_| ()))?;
        let before = now.saturating_sub(AGES_KEPT.as_millis() as u64);
        on_engine!(self, |c| sqlx::query(AGES_FORGET).bind(before as i64).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}

impl Store {
    /// Notes where the log ends at `now` (milliseconds since the epoch), and lets go of rows that nobody needs any more,
    /// some at a time; gives how many. To be called every hour or so, by one node: two do no harm.
    ///
    /// # Errors
    /// The database failed; what was done until then is done.
    pub async fn log_trim(&self, now: u64) -> StoreResult<u64> {
        self.write("log age", Vec::new(), move |tx| {
            Box::pin(async move { tx.writing().await?.log_age_note(now).await })
        })
        .await?;
        let mut conn = self.read().await?;
        let (mut trimmed, upto) = (conn.log_trimmed().await?, conn.log_passed(now).await?);
        drop(conn);
        let mut gone = 0;
        for _ in 0..SLICES {
            if trimmed >= upto {
                break;
            }
            let next = LogPosition(upto.0.min(trimmed.0 + SLICE));
            let spent = Arc::new(self.read().await?.log_spent(trimmed, next).await?);
            gone += spent.len() as u64;
            metrics::counter!("waxwing_log_rows_trimmed_total").increment(spent.len() as u64);
            self.write("log trim", Vec::new(), move |tx| {
                let spent = Arc::clone(&spent);
                Box::pin(async move {
                    let conn = tx.writing().await?;
                    conn.log_delete(&spent).await?;
                    conn.cursor_move(TRIMMED, next).await
                })
            })
            .await?;
            trimmed = next;
        }
        metrics::gauge!("waxwing_log_trimmed_position").set(trimmed.0 as f64);
        Ok(gone)
    }
}
