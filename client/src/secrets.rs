//! Secret storage: the account's private keys, encrypted under the recovery key and kept by the server as
//! account data it cannot read. <https://spec.matrix.org/v1.18/client-server-api/#storage>

use std::collections::BTreeMap;

use client_ruma::{
    api::client::config::{get_global_account_data, set_global_account_data},
    events::{
        EventContentFromType, GlobalAccountDataEventType,
        secret::request::SecretName,
        secret_storage::{
            default_key::SecretStorageDefaultKeyEventContent, key::SecretStorageKeyEventContent,
        },
    },
    serde::Raw,
};
use matrix_sdk_crypto::{
    CrossSigningKeyExport,
    secret_storage::{AesHmacSha2EncryptedData, SecretStorageKey},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    client::Client,
    error::{Error, Result},
};

/// Account data of one secret: its ciphertext under each storage key.
#[derive(Default, Deserialize, Serialize)]
struct StoredSecret {
    encrypted: BTreeMap<String, serde_json::Value>,
}

impl Client {
    /// Makes a new storage key, the default one from now on.
    pub(crate) async fn create_secret_storage(&self) -> Result<SecretStorageKey> {
        let key = SecretStorageKey::new();
        self.set_account_data(key.event_type(), key.event_content()).await?;
        let default = SecretStorageDefaultKeyEventContent::new(key.key_id().to_owned());
        self.set_account_data(GlobalAccountDataEventType::SecretStorageDefaultKey, &default).await?;
        Ok(key)
    }

    /// Opens the default storage key; `None` when the account has no secret storage.
    pub(crate) async fn open_secret_storage(&self, recovery_key: &str) -> Result<Option<SecretStorageKey>> {
        let default: Option<SecretStorageDefaultKeyEventContent> =
            self.account_data(GlobalAccountDataEventType::SecretStorageDefaultKey).await?;
        let Some(default) = default else { return Ok(None) };
        let event_type = GlobalAccountDataEventType::SecretStorageKey(default.key_id);
        let raw: Option<Box<serde_json::value::RawValue>> = self.account_data(event_type.clone()).await?;
        let Some(raw) = raw else { return Ok(None) };
        let content = SecretStorageKeyEventContent::from_parts(&event_type.to_string(), &raw)?;
        SecretStorageKey::from_account_data(recovery_key, content)
            .map(Some)
            .map_err(|_| Error::Backup("this recovery key does not fit the account".to_owned()))
    }

    pub(crate) async fn store_secret(
        &self,
        key: &SecretStorageKey,
        name: &SecretName,
        secret: &str,
    ) -> Result<()> {
        let sealed = key.encrypt(secret.as_bytes().to_vec(), name);
        let mut stored = StoredSecret::default();
        stored.encrypted.insert(key.key_id().to_owned(), serde_json::to_value(sealed)?);
        self.set_account_data(name.as_str().into(), &stored).await
    }

    pub(crate) async fn load_secret(
        &self,
        key: &SecretStorageKey,
        name: &SecretName,
    ) -> Result<Option<String>> {
        let stored: Option<StoredSecret> = self.account_data(name.as_str().into()).await?;
        let Some(sealed) = stored.and_then(|mut stored| stored.encrypted.remove(key.key_id())) else {
            return Ok(None);
        };
        let sealed: AesHmacSha2EncryptedData = serde_json::from_value(sealed)?;
        let opened = key
            .decrypt(&sealed, name)
            .map_err(|_| Error::Backup(format!("the stored {} is damaged", name.as_str())))?;
        String::from_utf8(opened)
            .map(Some)
            .map_err(|_| Error::Backup("a stored secret is not text".to_owned()))
    }

    pub(crate) async fn store_cross_signing(&self, key: &SecretStorageKey) -> Result<bool> {
        let Some(keys) = self.machine().export_cross_signing_keys().await? else { return Ok(false) };
        let parts = [
            (SecretName::CrossSigningMasterKey, &keys.master_key),
            (SecretName::CrossSigningSelfSigningKey, &keys.self_signing_key),
            (SecretName::CrossSigningUserSigningKey, &keys.user_signing_key),
        ];
        for (name, secret) in parts {
            if let Some(secret) = secret {
                self.store_secret(key, &name, secret).await?;
            }
        }
        Ok(true)
    }

    pub(crate) async fn load_cross_signing(&self, key: &SecretStorageKey) -> Result<CrossSigningKeyExport> {
        Ok(CrossSigningKeyExport {
            master_key: self.load_secret(key, &SecretName::CrossSigningMasterKey).await?,
            self_signing_key: self.load_secret(key, &SecretName::CrossSigningSelfSigningKey).await?,
            user_signing_key: self.load_secret(key, &SecretName::CrossSigningUserSigningKey).await?,
        })
    }

    async fn set_account_data(&self, kind: GlobalAccountDataEventType, data: &impl Serialize) -> Result<()> {
        let data = Raw::new(data)?.cast_unchecked();
        let user = self.user_id().to_owned();
        self.http().send(set_global_account_data::v3::Request::new_raw(user, kind, data)).await?;
        Ok(())
    }

    async fn account_data<T: DeserializeOwned>(&self, kind: GlobalAccountDataEventType) -> Result<Option<T>> {
        let request = get_global_account_data::v3::Request::new(self.user_id().to_owned(), kind);
        match self.http().send(request).await {
            Ok(answer) => Ok(Some(answer.account_data.deserialize_as_unchecked()?)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
