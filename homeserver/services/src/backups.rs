//! Key backups: room keys that a user's clients encrypted for themselves, kept by version.
//! <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>

use crate::Core;
use ruma::UserId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
pub use waxwing_storage::BackupScope;
use waxwing_storage::{BackupKeyRow, BackupRow, Conn, StoreError};

/// Bytes of a version's `auth_data`. Real ones have about 500.
const MAX_AUTH_DATA: usize = 64 * 1024;
/// Bytes of one encrypted key. Real ones have about 700.
const MAX_SESSION: usize = 64 * 1024;
/// Characters of an algorithm, a session id, a room id.
const MAX_NAME: usize = 255;

/// Why a request about backups is refused.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such version, or no such key.
    #[error("{0}")]
    NotFound(&'static str),
    /// Keys only go to the newest version: this one.
    #[error("this is not the current version of the backup")]
    WrongVersion(String),
    /// Not of the shape that the protocol asks for.
    #[error("{0}")]
    BadJson(String),
    /// Of the right shape, but not acceptable.
    #[error("{0}")]
    Invalid(&'static str),
    /// More than this server takes.
    #[error("{0}")]
    TooLarge(&'static str),
}

/// A version as clients see it.
#[derive(Clone, Debug)]
pub struct BackupInfo {
    /// Its name.
    pub version: String,
    /// The algorithm.
    pub algorithm: String,
    /// What the algorithm needs.
    pub auth_data: Box<RawValue>,
    /// How many keys it has.
    pub count: u64,
    /// Changes when the keys do.
    pub etag: String,
}

/// How a version stands after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupState {
    /// How many keys it has.
    pub count: u64,
    /// Changes when the keys do.
    pub etag: String,
}

/// What makes a version: `algorithm`, `auth_data`, and when it is updated perhaps its name.
#[derive(Clone, Debug, Deserialize)]
pub struct BackupDefinition {
    algorithm: String,
    auth_data: Box<RawValue>,
    #[serde(default)]
    version: Option<String>,
}

/// One backed-up key as it goes over the wire.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SessionBackup {
    /// The first message that it decrypts.
    pub first_message_index: u32,
    /// How often it was forwarded.
    pub forwarded_count: u32,
    /// Whether it came from a verified device.
    pub is_verified: bool,
    /// The key, encrypted.
    pub session_data: Box<RawValue>,
}

/// Backed-up keys: room, session, key (JSON of [`SessionBackup`]).
pub type BackupKeys = BTreeMap<String, BTreeMap<String, Box<RawValue>>>;

/// The service.
#[derive(Clone)]
pub struct Backups {
    core: Core,
}

impl Backups {
    /// The service.
    pub fn new(core: Core) -> Backups {
        Backups { core }
    }

    /// Begins a version, which becomes the current one. `definition`: the request's body.
    pub async fn create(&self, user: &UserId, definition: &RawValue) -> Result<String, BackupError> {
        let definition = Arc::new(check_definition(definition)?);
        let user = user.to_owned();
        let version = self
            .core
            .store
            .write("backups.create", Vec::new(), move |tx| {
                let (user, definition) = (user.clone(), Arc::clone(&definition));
                Box::pin(async move {
                    let version =
                        tx.backup_insert(&user, &definition.algorithm, definition.auth_data.get()).await?;
                    Ok::<_, BackupError>(version)
                })
            })
            .await?;
        Ok(version.to_string())
    }

    /// The current version (`None`), or the named one.
    pub async fn info(&self, user: &UserId, version: Option<&str>) -> Result<BackupInfo, BackupError> {
        let mut conn = self.core.store.read().await?;
        let row = match version {
            Some(version) => load(&mut conn, user, version).await?,
            None => conn.backup_latest(user).await?.ok_or(NO_VERSION)?,
        };
        let count = conn.backup_count(user, row.version).await?;
        let auth_data = RawValue::from_string(row.auth_data)
            .map_err(|error| StoreError::corrupt("backup_versions", user.as_str(), error))?;
        Ok(BackupInfo {
            version: row.version.to_string(),
            algorithm: row.algorithm,
            auth_data,
            count: count.unsigned_abs(),
            etag: row.etag.to_string(),
        })
    }

    /// Replaces the `auth_data` of a version; the algorithm must stay.
    pub async fn update(
        &self,
        user: &UserId,
        version: &str,
        definition: &RawValue,
    ) -> Result<(), BackupError> {
        let definition = Arc::new(check_definition(definition)?);
        if definition.version.as_deref().is_some_and(|named| named != version) {
            return Err(BackupError::Invalid("the version in the body is not the one in the path"));
        }
        let (user, version) = (user.to_owned(), version.to_owned());
        self.core
            .store
            .write("backups.update", Vec::new(), move |tx| {
                let (user, version, definition) = (user.clone(), version.clone(), Arc::clone(&definition));
                Box::pin(async move {
                    let row = load(tx, &user, &version).await?;
                    if row.algorithm != definition.algorithm {
                        return Err(BackupError::Invalid("the algorithm of a backup cannot be changed"));
                    }
                    tx.backup_update(&user, row.version, definition.auth_data.get()).await?;
                    Ok(())
                })
            })
            .await
    }

    /// Deletes a version with its keys.
    pub async fn delete(&self, user: &UserId, version: &str) -> Result<(), BackupError> {
        let number = number(version)?;
        let user = user.to_owned();
        self.core
            .store
            .write("backups.delete", Vec::new(), move |tx| {
                let user = user.clone();
                Box::pin(async move {
                    if tx.backup_delete(&user, number).await? { Ok(()) } else { Err(NO_SUCH_VERSION) }
                })
            })
            .await
    }

    /// Adds keys to the current version, each where it has none or a worse one.
    ///
    /// # Errors
    /// [`BackupError::WrongVersion`] when `version` is not the current one.
    pub async fn keys_put(
        &self,
        user: &UserId,
        version: &str,
        keys: BackupKeys,
    ) -> Result<BackupState, BackupError> {
        let rows = Arc::new(check_keys(keys)?);
        let (user, version) = (user.to_owned(), version.to_owned());
        self.core
            .store
            .write("backups.put", Vec::new(), move |tx| {
                let (user, version, rows) = (user.clone(), version.clone(), Arc::clone(&rows));
                Box::pin(async move {
                    let current = tx.backup_latest(&user).await?.ok_or(NO_VERSION)?;
                    if current.version.to_string() != version {
                        return Err(BackupError::WrongVersion(current.version.to_string()));
                    }
                    let mut etag = current.etag;
                    if tx.backup_keys_merge(&user, current.version, &rows).await? > 0 {
                        etag = tx.backup_touch(&user, current.version).await?;
                    }
                    state(tx, &user, current.version, etag).await
                })
            })
            .await
    }

    /// Keys of a version.
    pub async fn keys(
        &self,
        user: &UserId,
        version: &str,
        scope: &BackupScope,
    ) -> Result<BackupKeys, BackupError> {
        let mut conn = self.core.store.read().await?;
        let row = load(&mut conn, user, version).await?;
        let mut keys = BackupKeys::new();
        for key in conn.backup_keys_load(user, row.version, scope).await? {
            let (room, session) = (key.room_id.clone(), key.session_id.clone());
            keys.entry(room).or_default().insert(session, encode(key)?);
        }
        Ok(keys)
    }

    /// One key of a version.
    pub async fn key(
        &self,
        user: &UserId,
        version: &str,
        room: &str,
        session: &str,
    ) -> Result<Box<RawValue>, BackupError> {
        let scope = BackupScope::Session(room.to_owned(), session.to_owned());
        let keys = self.keys(user, version, &scope).await?;
        let key = keys.into_values().flat_map(BTreeMap::into_values).next();
        key.ok_or(BackupError::NotFound("there is no such key in this backup"))
    }

    /// Deletes keys of a version. It is no error when there are none.
    pub async fn keys_delete(
        &self,
        user: &UserId,
        version: &str,
        scope: BackupScope,
    ) -> Result<BackupState, BackupError> {
        let (user, version) = (user.to_owned(), version.to_owned());
        self.core
            .store
            .write("backups.delete_keys", Vec::new(), move |tx| {
                let (user, version, scope) = (user.clone(), version.clone(), scope.clone());
                Box::pin(async move {
                    let row = load(tx, &user, &version).await?;
                    let mut etag = row.etag;
                    if tx.backup_keys_delete(&user, row.version, &scope).await? > 0 {
                        etag = tx.backup_touch(&user, row.version).await?;
                    }
                    state(tx, &user, row.version, etag).await
                })
            })
            .await
    }
}

const NO_VERSION: BackupError = BackupError::NotFound("there is no backup");
const NO_SUCH_VERSION: BackupError = BackupError::NotFound("there is no such version of the backup");

fn number(version: &str) -> Result<i64, BackupError> {
    version.parse().map_err(|_| NO_SUCH_VERSION)
}

async fn load(conn: &mut Conn, user: &UserId, version: &str) -> Result<BackupRow, BackupError> {
    conn.backup_load(user, number(version)?).await?.ok_or(NO_SUCH_VERSION)
}

async fn state(conn: &mut Conn, user: &UserId, version: i64, etag: i64) -> Result<BackupState, BackupError> {
    let count = conn.backup_count(user, version).await?.unsigned_abs();
    Ok(BackupState { count, etag: etag.to_string() })
}

fn check_definition(definition: &RawValue) -> Result<BackupDefinition, BackupError> {
    let definition: BackupDefinition =
        serde_json::from_str(definition.get()).map_err(|error| BackupError::BadJson(error.to_string()))?;
    if !definition.auth_data.get().starts_with('{') {
        return Err(BackupError::BadJson("auth_data must be an object".into()));
    }
    if definition.auth_data.get().len() > MAX_AUTH_DATA || definition.algorithm.len() > MAX_NAME {
        return Err(BackupError::TooLarge("this backup's definition is too large"));
    }
    Ok(definition)
}

fn check_keys(keys: BackupKeys) -> Result<Vec<BackupKeyRow>, BackupError> {
    let mut rows = Vec::new();
    for (room, sessions) in keys {
        for (session, json) in sessions {
            let key: SessionBackup =
                serde_json::from_str(json.get()).map_err(|error| BackupError::BadJson(error.to_string()))?;
            if !key.session_data.get().starts_with('{') {
                return Err(BackupError::BadJson("session_data must be an object".into()));
            }
            let long = room.len() > MAX_NAME || session.len() > MAX_NAME;
            if long || key.session_data.get().len() > MAX_SESSION {
                return Err(BackupError::TooLarge("a key is too large"));
            }
            rows.push(BackupKeyRow {
                room_id: room.clone(),
                session_id: session,
                first_message_index: i64::from(key.first_message_index),
                forwarded_count: i64::from(key.forwarded_count),
                is_verified: key.is_verified,
                session_data: key.session_data.get().to_owned(),
            });
        }
    }
    Ok(rows)
}

fn encode(row: BackupKeyRow) -> Result<Box<RawValue>, BackupError> {
    let corrupt = |why: &dyn std::fmt::Display| {
        BackupError::Store(StoreError::corrupt("backup_keys", row.session_id.clone(), why))
    };
    let session_data = RawValue::from_string(row.session_data.clone()).map_err(|error| corrupt(&error))?;
    let key = SessionBackup {
        first_message_index: u32::try_from(row.first_message_index).map_err(|error| corrupt(&error))?,
        forwarded_count: u32::try_from(row.forwarded_count).map_err(|error| corrupt(&error))?,
        is_verified: row.is_verified,
        session_data,
    };
    serde_json::value::to_raw_value(&key).map_err(|error| corrupt(&error))
}
