//! Answers to transactions of other servers, given again when one is repeated.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::ServerName;

statements! {
    LOAD = "SELECT response FROM inbound_transactions WHERE origin = $1 AND txn_id = $2 AND content_hash = $3";
    PUT = "INSERT INTO inbound_transactions (origin, txn_id, content_hash, response, received_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (origin, txn_id) DO UPDATE SET content_hash = excluded.content_hash, response = excluded.response, received_at = excluded.received_at";
    PRUNE = "DELETE FROM inbound_transactions WHERE received_at < $1";
}

impl Conn {
    /// The answer that `origin` got to the transaction `txn_id` with this content (SHA-256 of the body).
    pub async fn inbound_transaction_load(
        &mut self,
        origin: &ServerName,
        txn_id: &str,
        content: &[u8],
    ) -> StoreResult<Option<String>> {
        let found: Option<(String,)> = on_engine!(self, |c| sqlx::query_as(LOAD)
            .bind(origin.as_str())
            .bind(txn_id)
            .bind(content)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(|(response,)| response))
    }
}

impl crate::Tx {
    /// Keeps an answer, in the place of an older one with the same origin and id.
    pub async fn inbound_transaction_put(
        &mut self,
        origin: &ServerName,
        txn_id: &str,
        content: &[u8],
        response: &str,
        now: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PUT)
            .bind(origin.as_str())
            .bind(txn_id)
            .bind(content)
            .bind(response)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Forgets answers that were given before `before` (milliseconds since the epoch). Gives how many there were.
    pub async fn inbound_transactions_prune(&mut self, before: u64) -> StoreResult<u64> {
        let conn = self.writing().await?;
        Ok(on_engine!(conn, |c| sqlx::query(PRUNE)
            .bind(before as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?)
    }
}
