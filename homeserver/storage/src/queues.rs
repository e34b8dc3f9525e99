//! Rows that wait for someone: to-device messages, the outbox of each destination, answers to repeated requests.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::events::StoredEvent;
use crate::sql::{CHUNK, rows, statements};
use crate::tx::{OutboxRow, RelationRow, Slot, ToDeviceRow, TransactionKey};
use sqlx::AssertSqlSafe;
use std::sync::Arc;

statements! {
    TRANSACTION = "SELECT response FROM transactions WHERE user_id = $1 AND device_id = $2 AND endpoint = $3 AND txn_id = $4";
    TRANSACTIONS_INSERT = "INSERT INTO transactions (user_id, device_id, endpoint, txn_id, response, created_at) VALUES $rows ON CONFLICT DO NOTHING";
    OUTBOX_INSERT = "INSERT INTO outbox (destination, position, room_id, reference, json) VALUES $rows ON CONFLICT DO NOTHING";
    TO_DEVICE_INSERT = "INSERT INTO to_device (user_id, device_id, position, content) VALUES $rows";
    RELATIONS_INSERT = "INSERT INTO relations (parent_id, sn, child_id, room_id, rel_type, kind, sender) VALUES $rows ON CONFLICT DO NOTHING";
}

impl Conn {
    /// The answer that was given to this request before.
    pub async fn transaction_load(&mut self, key: &TransactionKey) -> StoreResult<Option<String>> {
        let (user, device, endpoint, txn) = key;
        let found: Option<(String,)> = on_engine!(self, |c| sqlx::query_as(TRANSACTION)
            .bind(user.as_str())
            .bind(device)
            .bind(endpoint)
            .bind(txn)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(|(response,)| response))
    }

    pub(crate) async fn transactions_insert(
        &mut self,
        all: &[(TransactionKey, String, u64)],
    ) -> StoreResult<()> {
        for chunk in all.chunks(CHUNK) {
            let text = rows(TRANSACTIONS_INSERT, 6, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for ((user, device, endpoint, txn), response, at) in chunk {
                    query = query
                        .bind(user.as_str())
                        .bind(device)
                        .bind(endpoint)
                        .bind(txn)
                        .bind(response)
                        .bind(*at as i64);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    pub(crate) async fn outbox_insert(
        &mut self,
        all: &[OutboxRow],
        position: impl Fn(Slot) -> i64,
    ) -> StoreResult<()> {
        for chunk in all.chunks(CHUNK) {
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

    pub(crate) async fn messages_insert(
        &mut self,
        all: &[ToDeviceRow],
        position: impl Fn(Slot) -> i64,
    ) -> StoreResult<()> {
        for chunk in all.chunks(CHUNK) {
            let text = rows(TO_DEVICE_INSERT, 4, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for row in chunk {
                    query = query
                        .bind(row.user.as_str())
                        .bind(&row.device)
                        .bind(position(row.slot))
                        .bind(&*row.content);
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
        for chunk in all.chunks(CHUNK) {
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
