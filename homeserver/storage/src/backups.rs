//! Key backups: encrypted room keys, by version. What is in them only their owner can read.
//! <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{pieces, rows, statements};
use ruma::UserId;
use sqlx::AssertSqlSafe;

statements! {
    LATEST = "SELECT version, algorithm, auth_data, etag FROM backup_versions WHERE user_id = $1 AND NOT deleted ORDER BY version DESC LIMIT 1";
    VERSION = "SELECT version, algorithm, auth_data, etag FROM backup_versions WHERE user_id = $1 AND version = $2 AND NOT deleted";
    HIGHEST = "SELECT MAX(version) FROM backup_versions WHERE user_id = $1";
    INSERT = "INSERT INTO backup_versions (user_id, version, algorithm, auth_data, etag, deleted) VALUES ($1, $2, $3, $4, 0, FALSE)";
    UPDATE = "UPDATE backup_versions SET auth_data = $3 WHERE user_id = $1 AND version = $2 AND NOT deleted";
    TOUCH = "UPDATE backup_versions SET etag = etag + 1 WHERE user_id = $1 AND version = $2 RETURNING etag";
    DELETE = "UPDATE backup_versions SET deleted = TRUE WHERE user_id = $1 AND version = $2 AND NOT deleted";
    COUNT = "SELECT COUNT(*) FROM backup_keys WHERE user_id = $1 AND version = $2";
    KEYS = "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data FROM backup_keys WHERE user_id = $1 AND version = $2 ORDER BY room_id, session_id";
    KEYS_OF_ROOM = "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data FROM backup_keys WHERE user_id = $1 AND version = $2 AND room_id = $3 ORDER BY session_id";
    KEY = "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data FROM backup_keys WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4";
    /// The better key stays: verified, then from an earlier message on, then forwarded less often.
    MERGE = "INSERT INTO backup_keys (user_id, version, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data) VALUES $rows ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count, is_verified = excluded.is_verified, session_data = excluded.session_data WHERE (excluded.is_verified AND NOT backup_keys.is_verified) OR (excluded.is_verified = backup_keys.is_verified AND (excluded.first_message_index < backup_keys.first_message_index OR (excluded.first_message_index = backup_keys.first_message_index AND excluded.forwarded_count < backup_keys.forwarded_count)))";
    KEYS_DELETE = "DELETE FROM backup_keys WHERE user_id = $1 AND version = $2";
    KEYS_DELETE_OF_ROOM = "DELETE FROM backup_keys WHERE user_id = $1 AND version = $2 AND room_id = $3";
    KEY_DELETE = "DELETE FROM backup_keys WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4";
}

/// One version of a user's backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRow {
    /// Its number: each new one is higher.
    pub version: i64,
    /// The algorithm.
    pub algorithm: String,
    /// What the algorithm needs, JSON.
    pub auth_data: String,
    /// Grows with each change of the keys.
    pub etag: i64,
}

/// A key in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupKeyRow {
    /// The room.
    pub room_id: String,
    /// The session.
    pub session_id: String,
    /// The first message that it decrypts.
    pub first_message_index: i64,
    /// How often it was forwarded.
    pub forwarded_count: i64,
    /// Whether it came from a verified device.
    pub is_verified: bool,
    /// The key itself, encrypted, JSON.
    pub session_data: String,
}

/// Which keys of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupScope {
    /// All.
    All,
    /// Those of a room.
    Room(String),
    /// One session of a room.
    Session(String, String),
}

impl BackupScope {
    fn parts(&self) -> (Option<&str>, Option<&str>) {
        match self {
            BackupScope::All => (None, None),
            BackupScope::Room(room) => (Some(room), None),
            BackupScope::Session(room, session) => (Some(room), Some(session)),
        }
    }
}

type VersionColumns = (i64, String, String, i64);
type KeyColumns = (String, String, i64, i64, bool, String);

fn version_row((version, algorithm, auth_data, etag): VersionColumns) -> BackupRow {
    BackupRow { version, algorithm, auth_data, etag }
}

fn key_row(columns: KeyColumns) -> BackupKeyRow {
    let (room_id, session_id, first_message_index, forwarded_count, is_verified, session_data) = columns;
    BackupKeyRow { room_id, session_id, first_message_index, forwarded_count, is_verified, session_data }
}

impl Conn {
    /// The newest version that is not deleted: the only one that takes keys.
    pub async fn backup_latest(&mut self, user: &UserId) -> StoreResult<Option<BackupRow>> {
        let found: Option<VersionColumns> =
            on_engine!(self, |c| sqlx::query_as(LATEST).bind(user.as_str()).fetch_optional(c).await)?;
        Ok(found.map(version_row))
    }

    /// One version, unless it was deleted.
    pub async fn backup_load(&mut self, user: &UserId, version: i64) -> StoreResult<Option<BackupRow>> {
        let found: Option<VersionColumns> = on_engine!(self, |c| sqlx::query_as(VERSION)
            .bind(user.as_str())
            .bind(version)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(version_row))
    }

    /// How many keys a version has.
    pub async fn backup_count(&mut self, user: &UserId, version: i64) -> StoreResult<i64> {
        let (count,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(COUNT).bind(user.as_str()).bind(version).fetch_one(c).await)?;
        Ok(count)
    }

    /// Keys of a version, in order of rooms and sessions.
    pub async fn backup_keys_load(
        &mut self,
        user: &UserId,
        version: i64,
        scope: &BackupScope,
    ) -> StoreResult<Vec<BackupKeyRow>> {
        let text = match scope {
            BackupScope::All => KEYS,
            BackupScope::Room(_) => KEYS_OF_ROOM,
            BackupScope::Session(..) => KEY,
        };
        let (room, session) = scope.parts();
        let found: Vec<KeyColumns> = on_engine!(self, |c| {
            let mut query = sqlx::query_as(text).bind(user.as_str()).bind(version);
            for part in [room, session].into_iter().flatten() {
                query = query.bind(part);
            }
            query.fetch_all(c).await
        })?;
        Ok(found.into_iter().map(key_row).collect())
    }
}

impl crate::Tx {
    /// Makes a version, higher than every one before, and gives its number.
    pub async fn backup_insert(
        &mut self,
        user: &UserId,
        algorithm: &str,
        auth_data: &str,
    ) -> StoreResult<i64> {
        let conn = self.writing().await?;
        let (highest,): (Option<i64>,) =
            on_engine!(&mut *conn, |c| sqlx::query_as(HIGHEST).bind(user.as_str()).fetch_one(c).await)?;
        let version = highest.unwrap_or(0) + 1;
        on_engine!(conn, |c| sqlx::query(INSERT)
            .bind(user.as_str())
            .bind(version)
            .bind(algorithm)
            .bind(auth_data)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(version)
    }

    /// Replaces what the algorithm needs. `false` when there is no such version.
    pub async fn backup_update(&mut self, user: &UserId, version: i64, auth_data: &str) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let affected = on_engine!(conn, |c| sqlx::query(UPDATE)
            .bind(user.as_str())
            .bind(version)
            .bind(auth_data)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(affected > 0)
    }

    /// Deletes a version with its keys. `false` when there is no such version.
    pub async fn backup_delete(&mut self, user: &UserId, version: i64) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let mut affected = 0;
        for text in [KEYS_DELETE, DELETE] {
            affected = on_engine!(&mut *conn, |c| sqlx::query(text)
                .bind(user.as_str())
                .bind(version)
                .execute(c)
                .await
                .map(|done| done.rows_affected()))?;
        }
        Ok(affected > 0)
    }

    /// Adds keys, each where the version has none for its session or a worse one. Gives how many were written.
    pub async fn backup_keys_merge(
        &mut self,
        user: &UserId,
        version: i64,
        keys: &[BackupKeyRow],
    ) -> StoreResult<u64> {
        let conn = self.writing().await?;
        let mut written = 0;
        for chunk in pieces(keys) {
            let text = rows(MERGE, 8, chunk.len());
            written += on_engine!(&mut *conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for key in chunk {
                    query = query
                        .bind(user.as_str())
                        .bind(version)
                        .bind(&key.room_id)
                        .bind(&key.session_id)
                        .bind(key.first_message_index)
                        .bind(key.forwarded_count)
                        .bind(key.is_verified)
                        .bind(&key.session_data);
                }
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        Ok(written)
    }

    /// Deletes keys of a version. Gives how many there were.
    pub async fn backup_keys_delete(
        &mut self,
        user: &UserId,
        version: i64,
        scope: &BackupScope,
    ) -> StoreResult<u64> {
        let text = match scope {
            BackupScope::All => KEYS_DELETE,
            BackupScope::Room(_) => KEYS_DELETE_OF_ROOM,
            BackupScope::Session(..) => KEY_DELETE,
        };
        let (room, session) = scope.parts();
        let conn = self.writing().await?;
        Ok(on_engine!(conn, |c| {
            let mut query = sqlx::query(text).bind(user.as_str()).bind(version);
            for part in [room, session].into_iter().flatten() {
                query = query.bind(part);
            }
            query.execute(c).await.map(|done| done.rows_affected())
        })?)
    }

    /// The keys of a version changed: its next etag.
    pub async fn backup_touch(&mut self, user: &UserId, version: i64) -> StoreResult<i64> {
        let conn = self.writing().await?;
        let (etag,): (i64,) =
            on_engine!(conn, |c| sqlx::query_as(TOUCH).bind(user.as_str()).bind(version).fetch_one(c).await)?;
        Ok(etag)
    }
}
