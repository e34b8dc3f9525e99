//! Devices: <https://spec.matrix.org/v1.19/client-server-api/#device-management>.

use super::sessions::{LONGEST_DEVICE_NAME, check_device_id, is_cross_signing_key};
use super::{AccountError, Accounts};
use crate::{Core, account_data, keys};
use ruma::{DeviceId, OwnedDeviceId, UserId};
use waxwing_storage::{DeviceRow, Fact, NewRow, StoreResult, Tx};

/// Removes a device with everything that hangs on it; false: there was none.
pub(crate) async fn remove(core: &Core, tx: &mut Tx, user: &UserId, device: &DeviceId) -> StoreResult<bool> {
    tx.tokens_delete_of_device(user, device).await?;
    tx.log_append(NewRow::new(Fact::Account).user(user).reference(device.as_str()));
    if !tx.device_delete(user, device).await? {
        return Ok(false);
    }
    tx.pushers_remove_of_device(user, device.as_str()).await?;
    account_data::device_removed(tx, user, device.as_str()).await?;
    keys::device_removed(core, tx, user, device.as_str()).await?;
    Ok(true)
}

/// Removes all devices of a user but one, and all tokens that belong to no device.
pub(super) async fn remove_except(
    core: &Core,
    tx: &mut Tx,
    user: &UserId,
    kept: Option<&DeviceId>,
) -> StoreResult<()> {
    for row in tx.devices_of(user).await? {
        if kept != Some(&*row.device_id) {
            remove(core, tx, user, &row.device_id).await?;
        }
    }
    if kept.is_none() {
        tx.tokens_delete_of_user(user).await?;
        tx.log_append(NewRow::new(Fact::Account).user(user));
    }
    Ok(())
}

impl Accounts {
    /// The devices of a user, oldest first.
    pub async fn devices(&self, user: &UserId) -> Result<Vec<DeviceRow>, AccountError> {
        let mut rows = self.core.store.read().await?.devices_of(user).await?;
        for row in &mut rows {
            self.seen.overlay(row);
        }
        Ok(rows)
    }

    /// One device.
    pub async fn device(&self, user: &UserId, device: &DeviceId) -> Result<DeviceRow, AccountError> {
        let found = self.core.store.read().await?.device_load(user, device).await?;
        let mut row = found.ok_or(AccountError::UnknownDevice)?;
        self.seen.overlay(&mut row);
        Ok(row)
    }

    /// Renames a device.
    pub async fn rename_device(
        &self,
        user: &UserId,
        device: &DeviceId,
        name: Option<String>,
    ) -> Result<(), AccountError> {
        let name: Option<String> = name.map(|name| name.chars().take(LONGEST_DEVICE_NAME).collect());
        let (core, user, device) = (self.core.clone(), user.to_owned(), device.to_owned());
        self.core
            .store
            .write("device renamed", Vec::new(), move |tx| {
                let (core, user, device, name) = (core.clone(), user.clone(), device.clone(), name.clone());
                Box::pin(async move {
                    if !tx.device_rename(&user, &device, name.as_deref()).await? {
                        return Err(AccountError::UnknownDevice);
                    }
                    keys::device_changed(&core, tx, &user, device.as_str()).await?;
                    Ok(())
                })
            })
            .await
    }

    /// Makes a device without tokens for a user of an application service; false: it was there, and is renamed.
    /// <https://spec.matrix.org/v1.19/application-service-api/#device-management>
    ///
    /// # Errors
    /// [`AccountError::InvalidDeviceId`], [`AccountError::DeviceIdIsKey`].
    pub async fn put_appservice_device(
        &self,
        user: &UserId,
        device: &DeviceId,
        name: Option<String>,
    ) -> Result<bool, AccountError> {
        check_device_id(device)?;
        let name: Option<String> = name.map(|name| name.chars().take(LONGEST_DEVICE_NAME).collect());
        let now = self.core.now();
        let (core, user, device) = (self.core.clone(), user.to_owned(), device.to_owned());
        self.core
            .store
            .write("device of an appservice", Vec::new(), move |tx| {
                let (core, user, device, name) = (core.clone(), user.clone(), device.clone(), name.clone());
                Box::pin(async move {
                    if is_cross_signing_key(tx, &user, &device).await? {
                        return Err(AccountError::DeviceIdIsKey);
                    }
                    let made = tx.device_insert(&user, &device, name.as_deref(), now).await?;
                    if !made && name.is_none() {
                        return Ok(false);
                    }
                    if !made {
                        tx.device_rename(&user, &device, name.as_deref()).await?;
                    }
                    keys::device_changed(&core, tx, &user, device.as_str()).await?;
                    Ok(made)
                })
            })
            .await
    }

    /// Deletes devices. Those that are not there are passed over, unless it is the only one named.
    pub async fn delete_devices(&self, user: &UserId, devices: &[OwnedDeviceId]) -> Result<(), AccountError> {
        let (core, user, devices) = (self.core.clone(), user.to_owned(), devices.to_vec());
        self.core
            .store
            .write("devices deleted", Vec::new(), move |tx| {
                let (core, user, devices) = (core.clone(), user.clone(), devices.clone());
                Box::pin(async move {
                    let mut any = false;
                    for device in &devices {
                        any |= remove(&core, tx, &user, device).await?;
                    }
                    if !any && devices.len() == 1 {
                        return Err(AccountError::UnknownDevice);
                    }
                    Ok(())
                })
            })
            .await
    }
}
