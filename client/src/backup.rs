//! Key backup: the room keys, encrypted to a key that only the recovery key opens, so that a new device can read
//! what the old one could. <https://spec.matrix.org/v1.18/client-server-api/#server-side-key-backups>

use std::collections::BTreeMap;

use client_ruma::{
    OwnedRoomId,
    api::client::backup::{
        EncryptedSessionData, RoomKeyBackup, add_backup_keys, create_backup_version, get_backup_keys,
        get_latest_backup_info,
    },
    events::secret::request::SecretName,
    serde::Raw,
};
use matrix_sdk_crypto::{olm::ExportedRoomKey, store::types::BackupDecryptionKey, types::RoomKeyBackupInfo};
use rand::RngExt;
use serde::Deserialize;

use crate::{
    client::Client,
    error::{Error, Result},
    http::Secret,
};

/// Batches per pass; each holds up to a hundred keys.
const MAX_BATCHES: usize = 1_000;

/// What a restore brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    pub imported: usize,
    pub total: usize,
    /// Whether the cross-signing keys came along and this device is now signed.
    pub cross_signing: bool,
}

/// The state of the backup as this device and the server see it.
#[derive(Clone, Debug)]
pub struct BackupStatus {
    /// The version this device uploads to.
    pub enabled: Option<String>,
    /// The version and number of keys that the server holds.
    pub on_server: Option<(String, u64)>,
    pub keys_here: usize,
    pub keys_backed_up: usize,
}

impl Client {
    /// Starts a backup, stores its key and the cross-signing keys under a new recovery key, and uploads every
    /// room key. The recovery key is returned once and kept nowhere.
    pub async fn create_backup(&self) -> Result<Secret> {
        let storage = self.create_secret_storage().await?;
        self.store_cross_signing(&storage).await?;
        let key = BackupDecryptionKey::from_bytes(&rand::rng().random());
        let mut info = key.to_backup_info();
        self.machine().backup_machine().sign_backup(&mut info).await?;
        let algorithm = Raw::new(&info)?.cast();
        let version = self.http().send(create_backup_version::v3::Request::new(algorithm)).await?.version;
        self.store_secret(&storage, &SecretName::RecoveryKey, &key.to_base64()).await?;
        // Keys marked as stored in an older version must go up again.
        self.machine().backup_machine().disable_backup().await?;
        self.enable_backup(key, version).await?;
        self.upload_backup().await?;
        Ok(Secret::new(storage.to_base58()))
    }

    /// Gets room keys and cross-signing keys back with the recovery key, and continues the backup.
    pub async fn restore_backup(&self, recovery_key: &str) -> Result<Restored> {
        let latest = self.latest_backup().await?;
        let storage = self.open_secret_storage(recovery_key).await?;
        let mut cross_signing = false;
        let stored = match &storage {
            Some(storage) => {
                let keys = self.load_cross_signing(storage).await?;
                cross_signing = keys.master_key.is_some() && self.adopt_cross_signing(keys).await?;
                self.load_secret(storage, &SecretName::RecoveryKey).await?
            }
            None => None,
        };
        let Some(latest) = latest else {
            return Ok(Restored { imported: 0, total: 0, cross_signing });
        };
        let unfit = |_| Error::Backup("this recovery key does not fit the backup".to_owned());
        let key = match stored {
            Some(stored) => BackupDecryptionKey::from_base64(&stored).map_err(unfit)?,
            // Accounts older than secret storage hand out the backup's own key.
            None => BackupDecryptionKey::from_base58(recovery_key).map_err(unfit)?,
        };
        if !key.backup_key_matches(&latest.algorithm.deserialize_as_unchecked::<RoomKeyBackupInfo>()?) {
            return Err(Error::Backup("the recovery key belongs to another backup".to_owned()));
        }
        let rooms = self.http().send(get_backup_keys::v3::Request::new(latest.version.clone())).await?.rooms;
        let exported = decrypt_keys(&key, rooms);
        let result =
            self.machine().store().import_room_keys(exported, Some(&latest.version), |_, _| {}).await?;
        self.enable_backup(key, latest.version).await?;
        self.open_waiting().await?;
        Ok(Restored { imported: result.imported_count, total: result.total_count, cross_signing })
    }

    /// Uploads the room keys that the backup does not hold yet; returns how many batches went up.
    pub async fn upload_backup(&self) -> Result<usize> {
        let machine = self.machine().backup_machine();
        if !machine.enabled().await {
            return Ok(0);
        }
        for batch in 0..MAX_BATCHES {
            let Some((id, request)) = machine.backup().await? else { return Ok(batch) };
            let upload = add_backup_keys::v3::Request::new(request.version, request.rooms);
            let answer = self.http().send(upload).await?;
            self.machine().mark_request_as_sent(&id, &answer).await?;
        }
        Ok(MAX_BATCHES)
    }

    /// The backup is no reason to fail a sync or a send: what did not go up goes up next time.
    pub(crate) async fn upload_backup_quietly(&self) {
        match self.upload_backup().await {
            Err(error) if error.errcode().as_deref() == Some("M_WRONG_ROOM_KEYS_VERSION") => {
                tracing::warn!("another device began a new key backup; this device stops its own");
                if let Err(error) = self.machine().backup_machine().disable_backup().await {
                    tracing::warn!(%error, "the key backup could not be switched off");
                }
            }
            Err(error) => tracing::warn!(%error, "room keys were not backed up; trying again later"),
            Ok(_) => {}
        }
    }

    pub async fn backup_status(&self) -> Result<BackupStatus> {
        let machine = self.machine().backup_machine();
        let counts = machine.room_key_counts().await?;
        let on_server = self.latest_backup().await?.map(|latest| (latest.version, latest.count.into()));
        Ok(BackupStatus {
            enabled: machine.backup_version().await,
            on_server,
            keys_here: counts.total,
            keys_backed_up: counts.backed_up,
        })
    }

    async fn enable_backup(&self, key: BackupDecryptionKey, version: String) -> Result<()> {
        let public = key.megolm_v1_public_key();
        public.set_version(version.clone());
        let machine = self.machine().backup_machine();
        machine.save_decryption_key(Some(key), Some(version)).await?;
        Ok(machine.enable_backup_v1(public).await?)
    }

    async fn latest_backup(&self) -> Result<Option<get_latest_backup_info::v3::Response>> {
        match self.http().send(get_latest_backup_info::v3::Request::new()).await {
            Ok(latest) => Ok(Some(latest)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Decrypts what can be decrypted; a damaged entry costs one key, not the restore.
fn decrypt_keys(
    key: &BackupDecryptionKey,
    rooms: BTreeMap<OwnedRoomId, RoomKeyBackup>,
) -> Vec<ExportedRoomKey> {
    #[derive(Deserialize)]
    struct Entry {
        session_data: EncryptedSessionData,
    }
    let mut exported = Vec::new();
    for (room_id, room) in rooms {
        for (session_id, raw) in room.sessions {
            let opened = raw
                .deserialize_as_unchecked::<Entry>()
                .ok()
                .and_then(|entry| key.decrypt_session_data(entry.session_data).ok());
            match opened {
                Some(opened) => exported.push(ExportedRoomKey::from_backed_up_room_key(
                    room_id.clone(),
                    session_id,
                    opened,
                )),
                None => tracing::warn!(room = %room_id, "a backed-up key could not be decrypted"),
            }
        }
    }
    exported
}
