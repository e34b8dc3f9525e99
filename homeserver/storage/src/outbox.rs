//! What waits for one destination alone, and what is known of destinations that fail. Rows are added by
//! [`crate::Tx::outbox_put`]; here they are read and taken away. What many destinations get is in `outgoing`.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, ServerName};
use waxwing_model::LogPosition;

statements! {
    WAITING = "SELECT DISTINCT destination FROM outbox ORDER BY destination LIMIT $1";
    FAILING = "SELECT destination, failing_since, retry_at, retry_interval, delivered_upto FROM destinations";
    ROWS = "SELECT position, room_id, reference, json FROM outbox WHERE destination = $1 AND position > $2 AND position <= $3 ORDER BY position LIMIT $4";
    BETWEEN = "SELECT DISTINCT destination FROM outbox WHERE position > $1 AND position <= $2";
    DONE_ROWS = "DELETE FROM outbox WHERE destination = $1 AND position <= $2";
    DONE = "DELETE FROM destinations WHERE destination = $1";
    ADVANCED = "UPDATE destinations SET failing_since = NULL, retry_at = NULL, retry_interval = NULL, delivered_upto = $2 WHERE destination = $1";
    FAILED = "INSERT INTO destinations (destination, failing_since, retry_at, retry_interval, delivered_upto) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (destination) DO UPDATE SET failing_since = excluded.failing_since, retry_at = excluded.retry_at, retry_interval = excluded.retry_interval, delivered_upto = excluded.delivered_upto";
    RECOVERED = "UPDATE destinations SET failing_since = NULL, retry_at = NULL, retry_interval = NULL WHERE destination = $1";
}

/// What is known of a destination that failed and has not caught up yet. Times are milliseconds since the epoch.
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
    /// It has every event up to here.
    pub delivered_upto: i64,
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
    /// Destinations with rows of their own, at most `limit`.
    pub async fn destinations_waiting(&mut self, limit: i64) -> StoreResult<Vec<OwnedServerName>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(WAITING).bind(limit).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(name,)| name.try_into().ok()).collect())
    }

    /// Destinations that failed and have not caught up yet.
    pub async fn destinations_behind(&mut self) -> StoreResult<Vec<DestinationRow>> {
        type Columns = (String, Option<i64>, Option<i64>, Option<i64>, i64);
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(FAILING).fetch_all(c).await)?;
        Ok(found
            .into_iter()
            .filter_map(|(destination, since, at, interval, delivered_upto)| {
                Some(DestinationRow {
                    destination: destination.try_into().ok()?,
                    failing_since: millis(since),
                    retry_at: millis(at),
                    interval: millis(interval),
                    delivered_upto,
                })
            })
            .collect())
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
    /// The destination has all of its own rows up to `upto`.
    pub async fn outbox_done(&mut self, destination: &ServerName, upto: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DONE_ROWS)
            .bind(destination.as_str())
            .bind(upto)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// A destination that was behind has every event up to `upto`. Its failures are forgotten, and with `caught_up`
    /// that there were any.
    pub async fn destination_advanced(
        &mut self,
        destination: &ServerName,
        upto: i64,
        caught_up: bool,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        if caught_up {
            on_engine!(conn, |c| sqlx::query(DONE).bind(destination.as_str()).execute(c).await.map(|_| ()))?;
        } else {
            on_engine!(conn, |c| sqlx::query(ADVANCED)
                .bind(destination.as_str())
                .bind(upto)
                .execute(c)
                .await
                .map(|_| ()))?;
        }
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
            .bind(row.delivered_upto)
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
