//! Rows that wait for someone: the outbox of each destination, answers to repeated requests.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::events::StoredEvent;
use crate::repeats::Answered;
use crate::sql::{pieces, rows, statements};
use crate::tx::{OutboxRow, RelationRow, Slot, TransactionKey, Tx};
use ruma::OwnedUserId;
use sqlx::AssertSqlSafe;
use std::collections::HashMap;
use std::sync::Arc;

statements! {
    TRANSACTIONS = "SELECT t.user_id, t.device_id, t.endpoint, t.txn_id, t.response FROM (VALUES $rows) AS v JOIN transactions t ON t.user_id = v.column1 AND t.device_id = v.column2 AND t.endpoint = v.column3 AND t.txn_id = v.column4";
    TRANSACTIONS_INSERT = "INSERT INTO transactions (user_id, device_id, endpoint, txn_id, response, created_at) VALUES $rows ON CONFLICT DO NOTHING";
    TRANSACTIONS_OLDEST = "SELECT MIN(created_at) FROM transactions";
    TRANSACTIONS_PRUNE = "DELETE FROM transactions WHERE created_at < $1";
    OUTBOX_INSERT = "INSERT INTO outbox (destination, position, room_id, reference, json) VALUES $rows ON CONFLICT DO NOTHING";
    RELATIONS_INSERT = "INSERT INTO relations (parent_id, sn, child_id, room_id, rel_type, kind, sender) VALUES $rows ON CONFLICT DO NOTHING";
}

impl Tx {
    /// Forgets answers to requests that came before `before` (milliseconds since the epoch), of the oldest `slice`
    /// milliseconds that there are. Gives how many it forgot, none when there are none so old.
    pub async fn transactions_prune(&mut self, before: u64, slice: u64) -> StoreResult<u64> {
        let conn = self.writing().await?;
        let (oldest,): (Option<i64>,) =
            on_engine!(&mut *conn, |c| sqlx::query_as(TRANSACTIONS_OLDEST).fetch_one(c).await)?;
        let Some(oldest) = oldest.filter(|oldest| *oldest < before as i64) else { return Ok(0) };
        let until = (before as i64).min(oldest.saturating_add(slice.max(1) as i64));
        Ok(on_engine!(conn, |c| sqlx::query(TRANSACTIONS_PRUNE)
            .bind(until)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?)
    }
}

impl Conn {
    /// The answers that were given to those of these requests that came before.
    pub(crate) async fn transactions_load(
        &mut self,
        keys: &[TransactionKey],
    ) -> StoreResult<HashMap<TransactionKey, String>> {
        let mut answers = HashMap::new();
        for piece in pieces(keys) {
            let text = rows(TRANSACTIONS, 4, piece.len());
            let found: Vec<(String, String, String, String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for (user, device, endpoint, txn) in piece {
                    query = query.bind(user.as_str()).bind(device).bind(endpoint).bind(txn);
                }
                query.fetch_all(c).await
            })?;
            for (user, device, endpoint, txn, response) in found {
                let user = OwnedUserId::try_from(user.as_str())
                    .map_err(|error| StoreError::corrupt("transactions", user.as_str(), error))?;
                answers.insert((user, device, endpoint, txn), response);
            }
        }
        Ok(answers)
    }

    /// Keeps answers; those of requests that have one already stay as they are. Gives how many were new.
    pub(crate) async fn transactions_insert(&mut self, all: &[&Answered]) -> StoreResult<usize> {
        let mut new = 0;
        for chunk in pieces(all) {
            let text = rows(TRANSACTIONS_INSERT, 6, chunk.len());
            new += on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for Answered { key: (user, device, endpoint, txn), response, at, .. } in chunk {
                    query = query
                        .bind(user.as_str())
                        .bind(device)
                        .bind(endpoint)
                        .bind(txn)
                        .bind(response)
                        .bind(*at as i64);
                }
                query.execute(c).await.map(|done| done.rows_affected() as usize)
            })?;
        }
        Ok(new)
    }

    pub(crate) async fn outbox_insert(
        &mut self,
        all: &[OutboxRow],
        position: impl Fn(Slot) -> i64,
    ) -> StoreResult<()> {
        for chunk in pieces(all) {
            let text = rows(OUTBOX_INSERT, 5, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for row in chunk {
                    query = query
                        .bind(row.destination.as_str())
                        .bind(position(row.slot))
                        .bind(row.room.as_ref().map(|room| room.as_str()))
                        .bind(row.reference.as_ref().map(|id| id.as_str()))
                        .bind(row.json.as_deref());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    pub(crate) async fn relations_insert(
        &mut self,
        all: &[RelationRow],
        events: &[Arc<StoredEvent>],
    ) -> StoreResult<()> {
        for chunk in pieces(all) {
            let text = rows(RELATIONS_INSERT, 7, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for row in chunk {
                    let child = &events[row.child];
                    query = query
                        .bind(row.parent.as_str())
                        .bind(child.sn)
                        .bind(child.event.event_id.as_str())
                        .bind(child.event.room_id.as_str())
                        .bind(&row.rel_type)
                        .bind(child.event.kind.to_string())
                        .bind(child.event.sender.as_str());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}
