//! Dehydrated devices (MSC3814): a device without a client that receives room keys until a new client of the user wakes
//! it up. The server keeps its private part, which the client encrypted.
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/3814>

use super::upload::{CheckedUpload, KeyUpload};
use super::{Keys, KeysError};
use ruma::{DeviceId, OwnedDeviceId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::DehydratedRow;

/// Bytes of `device_data`. A device with 100 one-time keys has about 5,000.
const MAX_DATA: usize = 256 * 1024;
/// Characters of a display name.
const MAX_NAME: usize = 100;
/// Bytes of a device id: a public key in base64 has 43.
const MAX_DEVICE_ID: usize = 255;
/// Messages of one page of events.
const PAGE: usize = 100;

/// A device to be dehydrated.
#[derive(Clone, Debug)]
pub struct Dehydration {
    /// Its id.
    pub device_id: OwnedDeviceId,
    /// Its private part, encrypted: an object with an `algorithm`.
    pub device_data: Box<RawValue>,
    /// What the user sees in the list of devices.
    pub display_name: Option<String>,
    /// Its keys; the identity keys must be there.
    pub keys: KeyUpload,
}

/// A page of the messages that came for a dehydrated device. Reading deletes nothing: who reads may fail to use them.
#[derive(Clone, Debug)]
pub struct DehydratedEvents {
    /// The events, oldest first.
    pub events: Vec<Box<RawValue>>,
    /// Where the next page starts.
    pub next: String,
    /// Whether there may be more.
    pub more: bool,
}

fn check_data(data: &RawValue) -> Result<(), KeysError> {
    #[derive(Deserialize)]
    struct Data {
        algorithm: String,
    }
    if data.get().len() > MAX_DATA {
        return Err(KeysError::TooLarge("device_data is too large".into()));
    }
    let parsed: Data = serde_json::from_str(data.get())
        .map_err(|error| KeysError::BadJson(format!("device_data: {error}")))?;
    if parsed.algorithm.is_empty() {
        Err(KeysError::BadJson("device_data has no algorithm".into()))
    } else {
        Ok(())
    }
}

const NONE: &str = "there is no dehydrated device";

impl Keys {
    /// Stores a user's dehydrated device in the place of the one that there is. The same device again, as
    /// a client that saw no answer sends it, keeps its messages and what is left of its one-time keys.
    ///
    /// # Errors
    /// [`KeysError::Invalid`] when the id is that of another device of the user, and as [`Keys::upload`].
    pub async fn dehydrate(&self, user: &UserId, wanted: Dehydration) -> Result<(), KeysError> {
        check_data(&wanted.device_data)?;
        if wanted.device_id.as_str().is_empty() || wanted.device_id.as_str().len() > MAX_DEVICE_ID {
            return Err(KeysError::Invalid("this is no device id".into()));
        }
        if wanted.keys.device_keys.is_none() {
            return Err(KeysError::Missing("device_keys are missing".into()));
        }
        let keys = CheckedUpload::check(user, &wanted.device_id, wanted.keys)?;
        let name: Option<String> = wanted.display_name.map(|name| name.chars().take(MAX_NAME).collect());
        let row = DehydratedRow { device_id: wanted.device_id, device_data: wanted.device_data };
        let (core, user, now) = (self.core.clone(), user.to_owned(), self.core.now());
        let input = Arc::new((keys, row, name));
        self.core
            .store
            .write("keys.dehydrate", Vec::new(), move |tx| {
                let (core, user, input) = (core.clone(), user.clone(), Arc::clone(&input));
                Box::pin(async move {
                    let (keys, row, name) = &*input;
                    let before = tx.dehydrated_load(&user).await?.map(|before| before.device_id);
                    let same = before.as_ref() == Some(&row.device_id);
                    if let Some(before) = before.filter(|_| !same) {
                        crate::accounts::remove_device(&core, tx, &user, &before).await?;
                    }
                    let made = tx.device_insert(&user, &row.device_id, name.as_deref(), now).await?;
                    if !made && !same {
                        return Err(KeysError::Invalid("you have a device with this id".into()));
                    }
                    if made {
                        keys.put(&core, tx, &user, &row.device_id).await?;
                    } else {
                        // One-time keys that were claimed meanwhile must not be handed out again.
                        keys.put_identity(&core, tx, &user, &row.device_id).await?;
                    }
                    tx.dehydrated_put(&user, row).await?;
                    Ok(())
                })
            })
            .await
    }

    /// The dehydrated device of a user.
    ///
    /// # Errors
    /// [`KeysError::NotFound`] when there is none.
    pub async fn dehydrated(&self, user: &UserId) -> Result<DehydratedRow, KeysError> {
        let row = self.core.store.read().await?.dehydrated_load(user).await?;
        row.ok_or_else(|| KeysError::NotFound(NONE.into()))
    }

    /// Deletes the dehydrated device of a user, and gives its id.
    ///
    /// # Errors
    /// [`KeysError::NotFound`] when there is none.
    pub async fn dehydrated_delete(&self, user: &UserId) -> Result<OwnedDeviceId, KeysError> {
        let (core, user) = (self.core.clone(), user.to_owned());
        self.core
            .store
            .write("keys.dehydrated_delete", Vec::new(), move |tx| {
                let (core, user) = (core.clone(), user.clone());
                Box::pin(async move {
                    let row = tx.dehydrated_load(&user).await?;
                    let row = row.ok_or_else(|| KeysError::NotFound(NONE.into()))?;
                    crate::accounts::remove_device(&core, tx, &user, &row.device_id).await?;
                    Ok(row.device_id)
                })
            })
            .await
    }

    /// A page of the messages that wait for the dehydrated device; `from` is where the last page said to go on.
    ///
    /// # Errors
    /// [`KeysError::Forbidden`] when `device` is not the user's dehydrated device, [`KeysError::Invalid`] for a `from` that
    /// no page gave.
    pub async fn dehydrated_events(
        &self,
        user: &UserId,
        device: &DeviceId,
        from: Option<&str>,
    ) -> Result<DehydratedEvents, KeysError> {
        let after = match from {
            None => LogPosition::START,
            Some(from) => {
                let position = from.strip_prefix('d').and_then(|from| from.parse().ok());
                let position = position.filter(|position: &i64| *position >= 0);
                LogPosition(
                    position.ok_or_else(|| KeysError::Invalid("this is no token of these events".into()))?,
                )
            }
        };
        let mut conn = self.core.store.read().await?;
        if conn.dehydrated_load(user).await?.is_none_or(|row| row.device_id != device) {
            return Err(KeysError::Forbidden("this is not your dehydrated device".into()));
        }
        // Of the database, not of this node: a message that another node took is part of it.
        let upto = conn.log_head().await?;
        drop(conn);
        let found = self.core.store.to_device_load(user, device.as_str(), after, upto, PAGE).await?;
        let more = found.len() == PAGE;
        let next = found.last().map_or(after, |(position, _)| *position);
        let events = found.into_iter().map(|(_, event)| event).collect();
        Ok(DehydratedEvents { events, next: format!("d{next}"), more })
    }
}
