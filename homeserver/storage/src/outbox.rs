//! The durable queue of each destination, and what is known of the destination. Rows are added by
//! [`crate::Tx::outbox_put`]; here they are read and taken away.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, ServerName};
use sqlx::AssertSqlSafe;
use waxwing_model::LogPosition;

statements! {
    WAITING = "SELECT o.destination, d.failing_since, d.retry_at, d.retry_interval FROM (SELECT DISTINCT destination FROM outbox) o LEFT JOIN destinations d ON d.destination = o.destination ORDER BY COALESCE(d.retry_at, 0), o.destination LIMIT $1";
    OPEN_UPTO = "SELECT open_upto FROM destinations WHERE destination = $1";
    ROWS = "SELECT position, room_id, reference, json FROM outbox WHERE destination = $1 AND position > $2 AND position <= $3 ORDER BY position LIMIT $4";
    NEWEST = "SELECT room_id, MAX(position) FROM outbox WHERE destination = $1 AND reference IS NOT NULL AND room_id IS NOT NULL GROUP BY room_id";
    BETWEEN = "SELECT DISTINCT destination FROM outbox WHERE position > $1 AND position <= $2";
    OPEN = "INSERT INTO destinations (destination, open_upto) VALUES ($1, $2) ON CONFLICT (destination) DO UPDATE SET open_upto = excluded.open_upto";
    DELETE_ROWS = "DELETE FROM outbox WHERE destination = $1 AND position IN ($list)";
    DONE_ROWS = "DELETE FROM outbox WHERE destination = $1 AND position <= $2";
    DONE = "DELETE FROM destinations WHERE destination = $1";
    FAILED = "INSERT INTO destinations (destination, failing_since, retry_at, retry_interval) VALUES ($1, $2, $3, $4) ON CONFLICT (destination) DO UPDATE SET failing_since = excluded.failing_since, retry_at = excluded.retry_at, retry_interval = excluded.retry_interval";
    RECOVERED = "UPDATE destinations SET failing_since = NULL, retry_at = NULL, retry_interval = NULL WHERE destination = $1";
}

/// What is known of a destination that has not accepted everything yet. Times are milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRow {
    /// The server.
    pub destination: OwnedServerName,
    /// When the present row of failures began.
    pub failing_since: Option<u64>,
    /// Not to be tried before.
    pub retry_at: Option<u64>,
    /// The wait that led there, milliseconds.
    pub interval: Option<u64>,
}

/// One waiting PDU or EDU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the queue.
    pub position: i64,
    /// The room of a PDU.
    pub room: Option<OwnedRoomId>,
    /// The event of a PDU.
    pub reference: Option<OwnedEventId>,
    /// An EDU: `{edu_type, content}`.
    pub json: Option<String>,
}

fn millis(value: Option<i64>) -> Option<u64> {
    value.and_then(|value| u64::try_from(value).ok())
}

impl Conn {
    /// Destinations with waiting rows, those to be tried first first, at most `limit`.
    pub async fn destinations_waiting(&mut self, limit: i64) -> StoreResult<Vec<DestinationRow>> {
        type Columns = (String, Option<i64>, Option<i64>, Option<i64>);
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(WAITING).bind(limit).fetch_all(c).await)?;
        Ok(found
            .into_iter()
            .filter_map(|(destination, since, at, interval)| {
                Some(DestinationRow {
                    destination: destination.try_into().ok()?,
                    failing_since: millis(since),
                    retry_at: millis(at),
                    interval: millis(interval),
                })
            })
            .collect())
    }

    /// The last row of the transaction that is being tried, if one is.
    pub async fn outbox_open_upto(&mut self, destination: &ServerName) -> StoreResult<Option<i64>> {
        let found: Option<(Option<i64>,)> = on_engine!(self, |c| sqlx::query_as(OPEN_UPTO)
            .bind(destination.as_str())
            .fetch_optional(c)
            .await)?;
        Ok(found.and_then(|(upto,)| upto))
    }

    /// Rows of a queue after `after` up to `upto`, in order, at most `limit`.
    pub async fn outbox_rows(
        &mut self,
        destination: &ServerName,
        after: i64,
        upto: i64,
        limit: i64,
    ) -> StoreResult<Vec<Waiting>> {
        type Columns = (i64, Option<String>, Option<String>, Option<String>);
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(ROWS)
            .bind(destination.as_str())
            .bind(after)
            .bind(upto)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        Ok(found
            .into_iter()
            .map(|(position, room, reference, json)| Waiting {
                position,
                room: room.and_then(|id| id.try_into().ok()),
                reference: reference.and_then(|id| id.try_into().ok()),
                json,
            })
            .collect())
    }

    /// The position of the newest waiting PDU of each room.
    pub async fn outbox_newest(&mut self, destination: &ServerName) -> StoreResult<Vec<(OwnedRoomId, i64)>> {
        let found: Vec<(String, i64)> =
            on_engine!(self, |c| sqlx::query_as(NEWEST).bind(destination.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(room, position)| Some((room.try_into().ok()?, position))).collect())
    }

    /// Destinations that got rows after `after` up to `upto`.
    pub async fn outbox_destinations(
        &mut self,
        after: LogPosition,
        upto: LogPosition,
    ) -> StoreResult<Vec<OwnedServerName>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(BETWEEN).bind(after.0).bind(upto.0).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(name,)| name.try_into().ok()).collect())
    }
}

impl crate::Tx {
    /// A transaction with everything up to `upto` is about to be tried.
    pub async fn outbox_open(&mut self, destination: &ServerName, upto: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(OPEN)
            .bind(destination.as_str())
            .bind(upto)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Rows that will not be sent: newer ones of their rooms say more.
    pub async fn outbox_skip(&mut self, destination: &ServerName, positions: &[i64]) -> StoreResult<()> {
        for chunk in positions.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(DELETE_ROWS, 2, chunk.len());
            let conn = self.writing().await?;
            on_engine!(conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text)).bind(destination.as_str());
                for position in &chunk {
                    query = query.bind(*position);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// The destination has everything up to `upto`; its failures are forgotten.
    pub async fn outbox_done(&mut self, destination: &ServerName, upto: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DONE_ROWS)
            .bind(destination.as_str())
            .bind(upto)
            .execute(c)
            .await
            .map(|_| ()))?;
        on_engine!(conn, |c| sqlx::query(DONE).bind(destination.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// Keeps what is known of a failing destination.
    pub async fn destination_failed(&mut self, row: &DestinationRow) -> StoreResult<()> {
        let value = |time: Option<u64>| time.and_then(|time| i64::try_from(time).ok());
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FAILED)
            .bind(row.destination.as_str())
            .bind(value(row.failing_since))
            .bind(value(row.retry_at))
            .bind(value(row.interval))
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The destination is back.
    pub async fn destination_recovered(&mut self, destination: &ServerName) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(RECOVERED).bind(destination.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
