//! Signing keys of other servers, kept for ever: events of a dead server must stay verifiable.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::ServerName;

statements! {
    KEYS = "SELECT key_id, public_key, valid_until FROM server_keys WHERE server_name = $1";
    DOCUMENT = "SELECT document, fetched_at FROM server_key_documents WHERE server_name = $1";
    KEY_SAVE = "INSERT INTO server_keys (server_name, key_id, public_key, valid_until) VALUES ($1, $2, $3, $4) ON CONFLICT (server_name, key_id) DO UPDATE SET public_key = excluded.public_key, valid_until = excluded.valid_until";
    DOCUMENT_SAVE = "INSERT INTO server_key_documents (server_name, document, fetched_at) VALUES ($1, $2, $3) ON CONFLICT (server_name) DO UPDATE SET document = excluded.document, fetched_at = excluded.fetched_at";
}

/// One signing key of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKeyRow {
    /// `ed25519:name`.
    pub key_id: String,
    /// The public key, 32 bytes.
    pub key: Vec<u8>,
    /// The last moment at which it counts, milliseconds since the epoch.
    pub valid_until: u64,
}

impl Conn {
    /// Every key ever seen of `server`.
    pub async fn server_keys_load(&mut self, server: &ServerName) -> StoreResult<Vec<ServerKeyRow>> {
        let found: Vec<(String, Vec<u8>, i64)> =
            on_engine!(self, |c| sqlx::query_as(KEYS).bind(server.as_str()).fetch_all(c).await)?;
        Ok(found
            .into_iter()
            .map(|(key_id, key, until)| ServerKeyRow { key_id, key, valid_until: from_millis(until) })
            .collect())
    }

    /// The newest key document of `server`, byte for byte, and when it was fetched.
    pub async fn server_key_document(&mut self, server: &ServerName) -> StoreResult<Option<(String, u64)>> {
        let found: Option<(String, i64)> =
            on_engine!(self, |c| sqlx::query_as(DOCUMENT).bind(server.as_str()).fetch_optional(c).await)?;
        Ok(found.map(|(document, at)| (document, from_millis(at))))
    }
}

impl crate::Tx {
    /// Keeps a key; one of the same id is replaced.
    pub async fn server_key_save(&mut self, server: &ServerName, row: &ServerKeyRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(KEY_SAVE)
            .bind(server.as_str())
            .bind(&row.key_id)
            .bind(&row.key)
            .bind(to_millis(row.valid_until))
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Replaces the key document.
    pub async fn server_key_document_save(
        &mut self,
        server: &ServerName,
        document: &str,
        fetched_at: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DOCUMENT_SAVE)
            .bind(server.as_str())
            .bind(document)
            .bind(to_millis(fetched_at))
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}

/// Times that another server claims may be beyond what the database holds.
fn to_millis(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

fn from_millis(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}
