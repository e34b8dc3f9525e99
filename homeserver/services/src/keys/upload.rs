//! A device publishes its keys.
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysupload>

use super::{Keys, KeysError, announce, objects};
use ruma::encryption::DeviceKeys;
use ruma::{CanonicalJsonObject, DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_rooms::is_canonical;
use waxwing_storage::{DeviceKeysRow, Fact, NewRow, OneTimeKeyRow, OneTimeKeysPut, Tx};

/// One-time keys that a device may have waiting for each algorithm. Clients keep 50 to 100.
const MAX_ONE_TIME_KEYS: usize = 1000;
/// One-time keys of a device that wait: those of an upload, and as many that were here.
const MAX_KEPT: u64 = 2 * MAX_ONE_TIME_KEYS as u64;
/// Bytes of a device's identity keys. Real ones have about 600; post-quantum ones may have some thousand.
const MAX_DEVICE_KEYS: usize = 64 * 1024;
/// Bytes of a one-time key. Real ones have about 250.
const MAX_ONE_TIME_KEY: usize = 8 * 1024;

/// How many one-time keys wait, by algorithm.
pub type KeyCounts = BTreeMap<String, u64>;

/// What a device publishes.
#[derive(Clone, Debug, Default)]
pub struct KeyUpload {
    /// Its identity keys, JSON.
    pub device_keys: Option<String>,
    /// One-time keys by `algorithm:id`, JSON.
    pub one_time_keys: BTreeMap<String, String>,
    /// Fallback keys by `algorithm:id`, JSON.
    pub fallback_keys: BTreeMap<String, String>,
}

impl Keys {
    /// Publishes keys of the requester's device. One-time keys that are there already are skipped when they are the same.
    ///
    /// # Errors
    /// [`KeysError::Invalid`] for keys of another user or device, and when a one-time key's id stands for another key.
    pub async fn upload(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        upload: KeyUpload,
    ) -> Result<KeyCounts, KeysError> {
        let device = device.ok_or(KeysError::NoDevice)?.to_owned();
        let upload = Arc::new(CheckedUpload::check(user, &device, upload)?);
        if upload.is_empty() {
            return Ok(self.core.store.read().await?.one_time_key_counts(user, device.as_str()).await?);
        }
        let (core, user) = (self.core.clone(), user.to_owned());
        self.core
            .store
            .write("keys.upload", Vec::new(), move |tx| {
                let (core, user, device) = (core.clone(), user.clone(), device.clone());
                let upload = Arc::clone(&upload);
                Box::pin(async move { upload.put(&core, tx, &user, &device).await })
            })
            .await
    }
}

/// Keys that are those of a device, as far as can be seen without the database.
pub(super) struct CheckedUpload {
    identity: Option<CanonicalJsonObject>,
    one_time: Vec<OneTimeKeyRow>,
    fallback: Vec<OneTimeKeyRow>,
}

impl CheckedUpload {
    /// Checks an upload for `device`.
    pub(super) fn check(
        user: &UserId,
        device: &DeviceId,
        upload: KeyUpload,
    ) -> Result<CheckedUpload, KeysError> {
        let identity = upload.device_keys.map(|json| check_device_keys(user, device, &json)).transpose()?;
        let one_time = check_one_time_keys(upload.one_time_keys)?;
        let fallback = check_one_time_keys(upload.fallback_keys)?;
        Ok(CheckedUpload { identity, one_time, fallback })
    }

    fn is_empty(&self) -> bool {
        self.identity.is_none() && self.one_time.is_empty() && self.fallback.is_empty()
    }

    /// Stores it. Gives how many one-time keys wait.
    pub(super) async fn put(
        &self,
        core: &crate::Core,
        tx: &mut Tx,
        user: &OwnedUserId,
        device: &OwnedDeviceId,
    ) -> Result<KeyCounts, KeysError> {
        self.put_identity(core, tx, user, device).await?;
        let (counts, mut changed) = put_one_time_keys(tx, user, device, &self.one_time).await?;
        for key in &self.fallback {
            changed |= tx.fallback_key_put(user, device.as_str(), key).await?;
        }
        if changed {
            let row = NewRow::new(Fact::OneTimeKeys).user(user.clone());
            tx.log_append(row.reference(device.as_str()));
        }
        Ok(counts)
    }

    /// Stores the identity keys alone.
    pub(super) async fn put_identity(
        &self,
        core: &crate::Core,
        tx: &mut Tx,
        user: &OwnedUserId,
        device: &OwnedDeviceId,
    ) -> Result<(), KeysError> {
        match &self.identity {
            Some(identity) => put_device_keys(core, tx, user, device, identity).await,
            None => Ok(()),
        }
    }
}

/// Device keys as they are kept: of this user and device, self-signed if signed at all, without what others signed.
fn check_device_keys(user: &UserId, device: &DeviceId, json: &str) -> Result<CanonicalJsonObject, KeysError> {
    if json.len() > MAX_DEVICE_KEYS {
        return Err(KeysError::TooLarge("these device keys are too large".into()));
    }
    let keys: DeviceKeys =
        serde_json::from_str(json).map_err(|error| KeysError::BadJson(format!("device_keys: {error}")))?;
    if keys.user_id != user || keys.device_id != device {
        return Err(KeysError::Invalid("these keys are of another user or device".into()));
    }
    let mut object = objects::parse(json)?;
    objects::drop_unsigned(&mut object);
    objects::keep_signatures(&mut object, |signer| signer == user.as_str());
    let key_id = format!("ed25519:{device}");
    if objects::signature(&object, user.as_str(), &key_id).is_some() {
        let key = objects::public_key(&object, &key_id).unwrap_or_default();
        if !objects::is_signed_by(&object, user.as_str(), &key_id, key) {
            return Err(KeysError::Signature("the device's own signature over its keys is wrong".into()));
        }
    }
    Ok(object)
}

fn check_one_time_keys(keys: BTreeMap<String, String>) -> Result<Vec<OneTimeKeyRow>, KeysError> {
    if keys.len() > MAX_ONE_TIME_KEYS {
        return Err(KeysError::TooLarge(format!("at most {MAX_ONE_TIME_KEYS} keys at once")));
    }
    keys.into_iter()
        .map(|(id, json)| {
            let (algorithm, key_id) = id
                .split_once(':')
                .filter(|(algorithm, key)| !algorithm.is_empty() && !key.is_empty())
                .filter(|_| !id.contains(char::is_control))
                .ok_or_else(|| KeysError::Invalid(format!("`{id}` is not a key id")))?;
            if json.len() > MAX_ONE_TIME_KEY || id.len() > 255 {
                return Err(KeysError::TooLarge("a one-time key is too large".into()));
            }
            Ok(OneTimeKeyRow {
                algorithm: algorithm.to_owned(),
                key_id: key_id.to_owned(),
                json: one_time_json(&id, json)?,
            })
        })
        .collect()
}

/// One form for each value, so that the same key uploaded twice is seen to be the same.
fn one_time_json(id: &str, json: String) -> Result<String, KeysError> {
    #[derive(serde::Deserialize)]
    struct Key<'a> {
        #[serde(borrow)]
        key: std::borrow::Cow<'a, str>,
    }

    if json.trim_start().starts_with('"') {
        let text: String =
            serde_json::from_str(&json).map_err(|error| KeysError::BadJson(error.to_string()))?;
        return serde_json::to_string(&text).map_err(|error| KeysError::BadJson(error.to_string()));
    }
    // As clients write them.
    if is_canonical(&json) && serde_json::from_str::<Key<'_>>(&json).is_ok_and(|key| !key.key.is_empty()) {
        return Ok(json);
    }
    let object = objects::parse(&json)?;
    if object.get("key").and_then(|key| key.as_str()).is_none() {
        return Err(KeysError::BadJson(format!("`{id}` has no key")));
    }
    Ok(objects::text(&object))
}

async fn put_device_keys(
    core: &crate::Core,
    tx: &mut Tx,
    user: &OwnedUserId,
    device: &OwnedDeviceId,
    new: &CanonicalJsonObject,
) -> Result<(), KeysError> {
    // A device may come signed by its user already. What is signed by a key that the user does not have is not kept.
    let mut new = new.clone();
    let own = format!("ed25519:{device}");
    if objects::signatures_of(&new, user.as_str()).any(|(id, _)| id != own) {
        let cross = tx.cross_signing_load(std::slice::from_ref(user)).await?;
        let self_signing = cross.into_iter().find(|row| row.usage == "self_signing");
        let self_signing = self_signing.and_then(|row| objects::parse(&row.json).ok());
        objects::keep_signatures_of(&mut new, user.as_str(), |object, id| {
            id == own
                || self_signing.as_ref().and_then(objects::only_key).is_some_and(|(known, key)| {
                    known == id && objects::is_signed_by(object, user.as_str(), id, key)
                })
        });
    }
    let new = &new;
    let json = objects::text(new);
    if let Some(old) = tx.device_keys_of(user, device.as_str()).await? {
        if old.json == json {
            return Ok(());
        }
        let before = objects::parse(&old.json).map(|old| objects::signed_text(&old)).unwrap_or_default();
        if before != objects::signed_text(new) {
            tx.key_signatures_drop_target(user, device.as_str()).await?;
        }
    }
    let row =
        DeviceKeysRow { user_id: user.clone(), device_id: device.to_string(), json, display_name: None };
    tx.device_keys_put(&row).await?;
    announce::device_changed(core, tx, user, device.as_str()).await?;
    Ok(())
}

/// Gives how many keys wait, and whether some are new.
async fn put_one_time_keys(
    tx: &mut Tx,
    user: &UserId,
    device: &DeviceId,
    keys: &[OneTimeKeyRow],
) -> Result<(KeyCounts, bool), KeysError> {
    if keys.is_empty() {
        return Ok((tx.one_time_key_counts(user, device.as_str()).await?, false));
    }
    match tx.one_time_keys_put(user, device.as_str(), keys, MAX_KEPT).await? {
        OneTimeKeysPut::Here(counts, new) => Ok((counts, new)),
        OneTimeKeysPut::Taken(id) => Err(KeysError::Invalid(format!("One time key {id} already exists"))),
        OneTimeKeysPut::TooMany => Err(KeysError::TooLarge("this device has too many one-time keys".into())),
    }
}
