//! Cursors over the log that survive a restart: how far a reader has come.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use waxwing_model::LogPosition;

statements! {
    LOAD = "SELECT position FROM log_cursors WHERE name = $1";
    SAVE = "INSERT INTO log_cursors (name, position) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET position = excluded.position";
}

impl Conn {
    /// How far the reader `name` has come; `None` before its first step.
    pub async fn cursor_load(&mut self, name: &str) -> StoreResult<Option<LogPosition>> {
        let found: Option<(i64,)> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(name).fetch_optional(c).await)?;
        Ok(found.map(|(position,)| LogPosition(position)))
    }

    pub(crate) async fn cursor_move(&mut self, name: &str, position: LogPosition) -> StoreResult<()> {
        on_engine!(self, |c| sqlx::query(SAVE).bind(name).bind(position.0).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}

impl crate::Tx {
    /// The reader `name` has dealt with everything up to `position`.
    pub async fn cursor_save(&mut self, name: &str, position: LogPosition) -> StoreResult<()> {
        self.writing().await?.cursor_move(name, position).await
    }
}
