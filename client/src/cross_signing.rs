//! Cross-signing: one identity per person, vouching for that person's devices and for other people.

use client_ruma::{UserId, api::client::keys::upload_signing_keys, serde::Raw};
use matrix_sdk_crypto::{
    CrossSigningKeyExport, CrossSigningStatus,
    types::{CrossSigningKey, requests::UploadSigningKeysRequest},
};

use crate::{
    client::Client,
    error::Result,
    session::{Credentials, authenticate},
};

impl Client {
    /// Makes the cross-signing identity of this account and signs this device with it; an identity that this
    /// device already holds is uploaded again. The server may ask for the password.
    pub async fn bootstrap_cross_signing(&self, password: Option<&str>) -> Result<()> {
        let credentials = match password {
            Some(password) => Credentials::password(self.user_id(), password),
            None => Credentials { user: Some(self.user_id().to_string()), ..Default::default() },
        };
        let requests = self.machine().bootstrap_cross_signing(false).await?;
        if let Some(keys) = &requests.upload_keys_req {
            self.send_machine_request(keys.request_id(), keys.request()).await?;
        }
        let upload = signing_keys(&requests.upload_signing_keys_req)?;
        authenticate(&credentials, async |auth| {
            let mut request = upload.clone();
            request.auth = auth;
            self.http().send(request).await
        })
        .await?;
        self.upload_signatures(requests.upload_signatures_req).await?;
        // Learn our identity back from the server: from here on it is what others see.
        self.refresh_devices([self.user_id()]).await
    }

    /// Which private cross-signing keys this device holds.
    pub async fn cross_signing_status(&self) -> CrossSigningStatus {
        self.machine().cross_signing_status().await
    }

    /// Whether this device has verified `user`'s identity.
    pub async fn is_user_verified(&self, user: &UserId) -> Result<bool> {
        Ok(self.machine().get_identity(user, None).await?.is_some_and(|identity| identity.is_verified()))
    }

    /// Whether our identity vouches for this device.
    pub async fn is_device_signed(&self) -> Result<bool> {
        let device = self.machine().get_device(self.user_id(), self.device_id(), None).await?;
        Ok(device.is_some_and(|device| device.is_cross_signed_by_owner()))
    }

    /// Takes over private cross-signing keys (from the secret storage) and signs this device with them.
    pub(crate) async fn adopt_cross_signing(&self, keys: CrossSigningKeyExport) -> Result<bool> {
        self.refresh_devices([self.user_id()]).await?;
        let status = self.machine().import_cross_signing_keys(keys).await?;
        if !status.is_complete() {
            return Ok(false);
        }
        if let Some(device) = self.machine().get_device(self.user_id(), self.device_id(), None).await? {
            let signatures = device.verify().await?;
            self.upload_signatures(signatures).await?;
        }
        self.refresh_devices([self.user_id()]).await?;
        Ok(true)
    }
}

fn signing_keys(keys: &UploadSigningKeysRequest) -> Result<upload_signing_keys::v3::Request> {
    let raw = |key: &Option<CrossSigningKey>| {
        key.as_ref().map(|key| Raw::new(key).map(Raw::cast_unchecked)).transpose()
    };
    let mut request = upload_signing_keys::v3::Request::new();
    request.master_key = raw(&keys.master_key)?;
    request.self_signing_key = raw(&keys.self_signing_key)?;
    request.user_signing_key = raw(&keys.user_signing_key)?;
    Ok(request)
}
