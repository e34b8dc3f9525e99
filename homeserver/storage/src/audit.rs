//! Everything that may hold what people wrote, in chunks, for `waxwing audit`. Events and media have scans of their
//! own beside their other lookups.

use crate::engine::{Conn, Engine, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;

statements! {
    TO_DEVICE = "SELECT user_id, device_id, position, content FROM to_device WHERE filed AND (user_id, device_id, position) > ($1, $2, $3) ORDER BY user_id, device_id, position LIMIT $4";
    TO_DEVICE_UNFILED = "SELECT user_id, device_id, position, content FROM to_device WHERE NOT filed AND position > $1 ORDER BY position LIMIT $2";
    ACCOUNT_DATA = "SELECT user_id, room_id, kind, content FROM account_data WHERE (user_id, room_id, kind) > ($1, $2, $3) ORDER BY user_id, room_id, kind LIMIT $4";
    BACKUP_KEYS = "SELECT user_id, version, room_id, session_id, session_data FROM backup_keys WHERE (user_id, version, room_id, session_id) > ($1, $2, $3, $4) ORDER BY user_id, version, room_id, session_id LIMIT $5";
    OUTBOX = "SELECT destination, position, json FROM outbox WHERE json IS NOT NULL AND (destination, position) > ($1, $2) ORDER BY destination, position LIMIT $3";
    APPSERVICES = "SELECT appservice, txn_id, body FROM appservice_transactions WHERE (appservice, txn_id) > ($1, $2) ORDER BY appservice, txn_id LIMIT $3";
}

/// User, device, position and content of a waiting to-device message.
pub type ToDeviceEntry = (String, String, i64, String);
/// User, room (empty: none), type and content of account data.
pub type AccountDataRow = (String, String, String, String);
/// User, version, room, session and content of a backed-up key.
pub type BackupKeyEntry = (String, i64, String, String, String);
/// Destination or application service, number and content of what waits to be sent.
pub type WaitingEntry = (String, i64, String);

impl Conn {
    /// Waiting to-device messages after this one.
    pub async fn to_device_scan(
        &mut self,
        (user, device, position): (&str, &str, i64),
        limit: i64,
    ) -> StoreResult<Vec<ToDeviceEntry>> {
        Ok(on_engine!(self, |c| sqlx::query_as(TO_DEVICE)
            .bind(user)
            .bind(device)
            .bind(position)
            .bind(limit)
            .fetch_all(c)
            .await)?)
    }

    /// Waiting to-device messages after this position that are not filed under their devices yet; on PostgreSQL all are.
    pub async fn to_device_scan_unfiled(
        &mut self,
        position: i64,
        limit: i64,
    ) -> StoreResult<Vec<ToDeviceEntry>> {
        if self.engine() == Engine::Postgres {
            return Ok(Vec::new());
        }
        let text = TO_DEVICE_UNFILED;
        Ok(on_engine!(self, |c| sqlx::query_as(text).bind(position).bind(limit).fetch_all(c).await)?)
    }

    /// Account data after this entry.
    pub async fn account_data_scan(
        &mut self,
        (user, room, kind): (&str, &str, &str),
        limit: i64,
    ) -> StoreResult<Vec<AccountDataRow>> {
        Ok(on_engine!(self, |c| sqlx::query_as(ACCOUNT_DATA)
            .bind(user)
            .bind(room)
            .bind(kind)
            .bind(limit)
            .fetch_all(c)
            .await)?)
    }

    /// Backed-up keys after this one.
    pub async fn backup_keys_scan(
        &mut self,
        (user, version, room, session): (&str, i64, &str, &str),
        limit: i64,
    ) -> StoreResult<Vec<BackupKeyEntry>> {
        Ok(on_engine!(self, |c| sqlx::query_as(BACKUP_KEYS)
            .bind(user)
            .bind(version)
            .bind(room)
            .bind(session)
            .bind(limit)
            .fetch_all(c)
            .await)?)
    }

    /// Waiting EDUs after this one.
    pub async fn outbox_scan(
        &mut self,
        (destination, position): (&str, i64),
        limit: i64,
    ) -> StoreResult<Vec<WaitingEntry>> {
        Ok(on_engine!(self, |c| sqlx::query_as(OUTBOX)
            .bind(destination)
            .bind(position)
            .bind(limit)
            .fetch_all(c)
            .await)?)
    }

    /// Waiting transactions of application services after this one.
    pub async fn appservice_transactions_scan(
        &mut self,
        (appservice, id): (&str, i64),
        limit: i64,
    ) -> StoreResult<Vec<WaitingEntry>> {
        Ok(on_engine!(self, |c| sqlx::query_as(APPSERVICES)
            .bind(appservice)
            .bind(id)
            .bind(limit)
            .fetch_all(c)
            .await)?)
    }
}
