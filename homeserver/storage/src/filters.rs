//! Filters that clients stored. The id is the hash of the content, so that the same filter is stored once.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::UserId;

statements! {
    LOAD = "SELECT json FROM filters WHERE user_id = $1 AND filter_id = $2";
    PUT = "INSERT INTO filters (user_id, filter_id, json) VALUES ($1, $2, $3) ON CONFLICT (user_id, filter_id) DO NOTHING";
}

impl Conn {
    /// A user's filter, JSON.
    pub async fn filter_load(&mut self, user: &UserId, id: &str) -> StoreResult<Option<String>> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(user.as_str()).bind(id).fetch_optional(c).await)?;
        Ok(found.map(|(json,)| json))
    }
}

impl crate::Tx {
    /// Keeps a user's filter. One that is there stays.
    pub async fn filter_put(&mut self, user: &UserId, id: &str, json: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PUT)
            .bind(user.as_str())
            .bind(id)
            .bind(json)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
