//! Reports of events, rooms and users, for administrators.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{RoomId, UserId};

statements! {
    ADD = "INSERT INTO reports (report_id, reporter, target, room_id, reason, created_at) VALUES ($1, $2, $3, $4, $5, $6)";
    NEWEST = "SELECT report_id, reporter, target, room_id, reason, created_at FROM reports ORDER BY created_at DESC, report_id LIMIT $1";
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRow {
    /// Names it.
    pub report_id: String,
    /// Who reported.
    pub reporter: String,
    /// The id of the event, room or user that is reported.
    pub target: String,
    /// The room of an event, or the room itself.
    pub room_id: Option<String>,
    /// The reporter's words.
    pub reason: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub created_at: i64,
}

impl Conn {
    /// The newest reports, at most `limit`.
    pub async fn reports_newest(&mut self, limit: i64) -> StoreResult<Vec<ReportRow>> {
        type Columns = (String, String, String, Option<String>, Option<String>, i64);
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(NEWEST).bind(limit).fetch_all(c).await)?;
        Ok(found
            .into_iter()
            .map(|(report_id, reporter, target, room_id, reason, created_at)| ReportRow {
                report_id,
                reporter,
                target,
                room_id,
                reason,
                created_at,
            })
            .collect())
    }
}

impl crate::Tx {
    /// Keeps a report.
    pub async fn report_add(
        &mut self,
        id: &str,
        reporter: &UserId,
        target: &str,
        room: Option<&RoomId>,
        reason: Option<&str>,
        now: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(ADD)
            .bind(id)
            .bind(reporter.as_str())
            .bind(target)
            .bind(room.map(RoomId::as_str))
            .bind(reason)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
