//! Identity keys of devices, cross-signing keys, and signatures over both: of this server's users, and kept copies of
//! others'. <https://spec.matrix.org/v1.19/client-server-api/#end-to-end-encryption>

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{OwnedUserId, UserId};
use sqlx::AssertSqlSafe;

statements! {
    DEVICES = "SELECT k.user_id, k.device_id, k.json, COALESCE(d.display_name, k.display_name) FROM device_keys k LEFT JOIN devices d ON d.user_id = k.user_id AND d.device_id = k.device_id WHERE k.user_id IN ($list) ORDER BY k.user_id, k.device_id";
    DEVICE = "SELECT k.user_id, k.device_id, k.json, COALESCE(d.display_name, k.display_name) FROM device_keys k LEFT JOIN devices d ON d.user_id = k.user_id AND d.device_id = k.device_id WHERE k.user_id = $1 AND k.device_id = $2";
    DEVICE_NAME = "SELECT display_name FROM devices WHERE user_id = $1 AND device_id = $2";
    DEVICE_PUT = "INSERT INTO device_keys (user_id, device_id, json, display_name) VALUES ($1, $2, $3, $4) ON CONFLICT (user_id, device_id) DO UPDATE SET json = excluded.json, display_name = excluded.display_name";
    DEVICE_DELETE = "DELETE FROM device_keys WHERE user_id = $1 AND device_id = $2";
    DEVICE_DELETE_ALL = "DELETE FROM device_keys WHERE user_id = $1";
    CROSS = "SELECT user_id, usage, json FROM cross_signing_keys WHERE user_id IN ($list)";
    CROSS_PUT = "INSERT INTO cross_signing_keys (user_id, usage, json) VALUES ($1, $2, $3) ON CONFLICT (user_id, usage) DO UPDATE SET json = excluded.json";
    CROSS_DELETE_ALL = "DELETE FROM cross_signing_keys WHERE user_id = $1";
    SIGNATURES = "SELECT target_id, target_key, signer_id, signer_key, signature FROM key_signatures WHERE (signer_id = target_id OR signer_id = $1) AND target_id IN ($list)";
    SIGNATURES_BY = "SELECT target_id, target_key, signer_id, signer_key, signature FROM key_signatures WHERE signer_id = $1 AND signer_id <> target_id";
    SIGNATURE_PUT = "INSERT INTO key_signatures (target_id, target_key, signer_id, signer_key, signature) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (target_id, target_key, signer_id, signer_key) DO UPDATE SET signature = excluded.signature";
    SIGNATURES_DROP_TARGET = "DELETE FROM key_signatures WHERE target_id = $1 AND target_key = $2";
    SIGNATURES_DROP_SIGNER = "DELETE FROM key_signatures WHERE target_id = $1 AND signer_id = $1 AND signer_key = $2";
}

/// The identity keys of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceKeysRow {
    /// Whose device.
    pub user_id: OwnedUserId,
    /// Which device.
    pub device_id: String,
    /// The keys as they were uploaded.
    pub json: String,
    /// The name of the device, as its user or its server says now.
    pub display_name: Option<String>,
}

/// A cross-signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossSigningRow {
    /// Whose key.
    pub user_id: OwnedUserId,
    /// `master`, `self_signing` or `user_signing`.
    pub usage: String,
    /// The key as it was uploaded.
    pub json: String,
}

/// A signature that was uploaded after the key that it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySignatureRow {
    /// Whose key was signed.
    pub target_id: OwnedUserId,
    /// Which key: a device id, or the public key of a cross-signing key.
    pub target_key: String,
    /// Who signed.
    pub signer_id: OwnedUserId,
    /// With which key, `ed25519:…`.
    pub signer_key: String,
    /// The signature in base64.
    pub signature: String,
}

type SignatureColumns = (String, String, String, String, String);

fn signature(columns: SignatureColumns) -> Option<KeySignatureRow> {
    let (target, target_key, signer, signer_key, signature) = columns;
    let (target_id, signer_id) = (target.try_into().ok()?, signer.try_into().ok()?);
    Some(KeySignatureRow { target_id, target_key, signer_id, signer_key, signature })
}

type DeviceColumns = (String, String, String, Option<String>);

fn device(columns: DeviceColumns) -> Option<DeviceKeysRow> {
    let (user, device_id, json, display_name) = columns;
    Some(DeviceKeysRow { user_id: user.try_into().ok()?, device_id, json, display_name })
}

impl Conn {
    /// The identity keys of all devices of `users`, those that have any.
    pub async fn device_keys_load(&mut self, users: &[OwnedUserId]) -> StoreResult<Vec<DeviceKeysRow>> {
        let mut all = Vec::new();
        for chunk in users.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(DEVICES, 1, chunk.len());
            let found: Vec<DeviceColumns> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.fetch_all(c).await
            })?;
            all.extend(found.into_iter().filter_map(device));
        }
        Ok(all)
    }

    /// The identity keys of one device.
    pub async fn device_keys_of(&mut self, user: &UserId, id: &str) -> StoreResult<Option<DeviceKeysRow>> {
        let found: Option<DeviceColumns> = on_engine!(self, |c| sqlx::query_as(DEVICE)
            .bind(user.as_str())
            .bind(id)
            .fetch_optional(c)
            .await)?;
        Ok(found.and_then(device))
    }

    /// The name of one of our users' devices; the outer `None` when there is no such device.
    pub async fn device_name(&mut self, user: &UserId, id: &str) -> StoreResult<Option<Option<String>>> {
        let found: Option<(Option<String>,)> = on_engine!(self, |c| sqlx::query_as(DEVICE_NAME)
            .bind(user.as_str())
            .bind(id)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(|(name,)| name))
    }

    /// The cross-signing keys of `users`.
    pub async fn cross_signing_load(&mut self, users: &[OwnedUserId]) -> StoreResult<Vec<CrossSigningRow>> {
        let mut all = Vec::new();
        for chunk in users.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(CROSS, 1, chunk.len());
            let found: Vec<(String, String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.fetch_all(c).await
            })?;
            all.extend(found.into_iter().filter_map(|(user, usage, json)| {
                Some(CrossSigningRow { user_id: user.try_into().ok()?, usage, json })
            }));
        }
        Ok(all)
    }

    /// The signatures over keys of `targets` that `viewer` may see: those that the targets made themselves, and those
    /// that the viewer made.
    pub async fn key_signatures_load(
        &mut self,
        targets: &[OwnedUserId],
        viewer: Option<&UserId>,
    ) -> StoreResult<Vec<KeySignatureRow>> {
        let mut all = Vec::new();
        let viewer = viewer.map_or("", UserId::as_str);
        for chunk in targets.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(SIGNATURES, 2, chunk.len());
            let found: Vec<SignatureColumns> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(viewer);
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.fetch_all(c).await
            })?;
            all.extend(found.into_iter().filter_map(signature));
        }
        Ok(all)
    }

    /// The signatures that `signer` made over keys of others.
    pub async fn key_signatures_by(&mut self, signer: &UserId) -> StoreResult<Vec<KeySignatureRow>> {
        let found: Vec<SignatureColumns> =
            on_engine!(self, |c| sqlx::query_as(SIGNATURES_BY).bind(signer.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(signature).collect())
    }
}

impl crate::Tx {
    /// Sets the identity keys of a device. The name only counts for devices of other servers.
    pub async fn device_keys_put(&mut self, row: &DeviceKeysRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DEVICE_PUT)
            .bind(row.user_id.as_str())
            .bind(&row.device_id)
            .bind(&row.json)
            .bind(row.display_name.as_deref())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The device has no identity keys any more; signatures over them go too.
    pub async fn device_keys_delete(&mut self, user: &UserId, id: &str) -> StoreResult<()> {
        self.key_signatures_drop_target(user, id).await?;
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DEVICE_DELETE)
            .bind(user.as_str())
            .bind(id)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Forgets all device and cross-signing keys of the user. (Signatures that our users made over them stay: they
    /// count again when the same keys come back.)
    pub async fn keys_delete_all(&mut self, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        for text in [DEVICE_DELETE_ALL, CROSS_DELETE_ALL] {
            on_engine!(&mut *conn, |c| sqlx::query(text).bind(user.as_str()).execute(c).await.map(|_| ()))?;
        }
        Ok(())
    }

    /// Sets a cross-signing key.
    pub async fn cross_signing_put(&mut self, row: &CrossSigningRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(CROSS_PUT)
            .bind(row.user_id.as_str())
            .bind(&row.usage)
            .bind(&row.json)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Adds a signature, or replaces the one by the same key.
    pub async fn key_signature_put(&mut self, row: &KeySignatureRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SIGNATURE_PUT)
            .bind(row.target_id.as_str())
            .bind(&row.target_key)
            .bind(row.signer_id.as_str())
            .bind(&row.signer_key)
            .bind(&row.signature)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The key was replaced or is gone: all signatures over it go.
    pub async fn key_signatures_drop_target(&mut self, user: &UserId, key: &str) -> StoreResult<()> {
        self.signatures_drop(SIGNATURES_DROP_TARGET, user, key).await
    }

    /// The key was replaced: what the user signed with it over own keys goes.
    pub async fn key_signatures_drop_signer(&mut self, user: &UserId, key_id: &str) -> StoreResult<()> {
        self.signatures_drop(SIGNATURES_DROP_SIGNER, user, key_id).await
    }

    async fn signatures_drop(&mut self, text: &'static str, user: &UserId, key: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(text).bind(user.as_str()).bind(key).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
