//! The keys with which this server signs and signed: their public halves, and each one's successor, sealed under it.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;

statements! {
    ALL = "SELECT key_id, public_key, expired_at, successor, sealed FROM signing_keys ORDER BY expired_at";
    ONE = "SELECT key_id, public_key, expired_at, successor, sealed FROM signing_keys WHERE key_id = $1";
    RETIRE = "INSERT INTO signing_keys (key_id, public_key, expired_at, successor, sealed) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (key_id) DO NOTHING RETURNING key_id";
}

/// A key that this server used to sign with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKeyRow {
    /// `ed25519:VERSION`.
    pub key_id: String,
    /// The public key.
    pub public_key: Vec<u8>,
    /// Until when it counts, milliseconds since the epoch.
    pub expired_at: u64,
    /// The id of the key that follows.
    pub successor: String,
    /// That key, readable with this one only.
    pub sealed: Vec<u8>,
}

type Columns = (String, Vec<u8>, i64, String, Vec<u8>);

fn decode((key_id, public_key, expired_at, successor, sealed): Columns) -> SigningKeyRow {
    let expired_at = u64::try_from(expired_at).unwrap_or_default();
    SigningKeyRow { key_id, public_key, expired_at, successor, sealed }
}

impl Conn {
    /// All keys that this server used to sign with.
    pub async fn signing_keys_retired(&mut self) -> StoreResult<Vec<SigningKeyRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(ALL).fetch_all(c).await)?;
        Ok(found.into_iter().map(decode).collect())
    }

    /// One of them; `None` for the key that is in use.
    pub async fn signing_key_retired(&mut self, key_id: &str) -> StoreResult<Option<SigningKeyRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(ONE).bind(key_id).fetch_optional(c).await)?;
        Ok(found.map(decode))
    }
}

impl crate::Tx {
    /// Retires a key. `false` when that was done before.
    pub async fn signing_key_retire(&mut self, row: &SigningKeyRow) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let done: Option<(String,)> = on_engine!(conn, |c| sqlx::query_as(RETIRE)
            .bind(&row.key_id)
            .bind(&row.public_key)
            .bind(i64::try_from(row.expired_at).unwrap_or(i64::MAX))
            .bind(&row.successor)
            .bind(&row.sealed)
            .fetch_optional(c)
            .await)?;
        Ok(done.is_some())
    }
}
