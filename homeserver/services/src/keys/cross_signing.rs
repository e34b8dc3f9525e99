//! A user publishes cross-signing keys.
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload>

use super::{Keys, KeysError, announce, objects};
use crate::Core;
use ruma::encryption::CrossSigningKey;
use ruma::{CanonicalJsonObject, OwnedUserId, UserId};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_storage::{Conn, CrossSigningRow, Tx};

/// Bytes of a cross-signing key. Real ones have about 500.
const MAX_KEY: usize = 64 * 1024;

/// The keys of one upload, JSON.
#[derive(Clone, Debug, Default)]
pub struct SigningKeys {
    /// The master key.
    pub master: Option<String>,
    /// The self-signing key, signed by the master key.
    pub self_signing: Option<String>,
    /// The user-signing key, signed by the master key.
    pub user_signing: Option<String>,
}

type Stored = BTreeMap<String, CanonicalJsonObject>;

impl SigningKeys {
    fn each(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("master", self.master.as_deref()),
            ("self_signing", self.self_signing.as_deref()),
            ("user_signing", self.user_signing.as_deref()),
        ]
        .into_iter()
        .filter_map(|(usage, json)| Some((usage, json?)))
    }
}

impl Keys {
    /// Whether the user must prove who it is before these keys are taken: not for the first keys, and not when they are
    /// those that the user has.
    pub async fn signing_keys_need_auth(&self, user: &UserId, keys: &SigningKeys) -> Result<bool, KeysError> {
        let mut conn = self.core.store.read().await?;
        let stored = load(&mut conn, user).await?;
        drop(conn);
        if !stored.contains_key("master") {
            return Ok(false);
        }
        for (usage, json) in keys.each() {
            let object = objects::parse(json)?;
            let same = stored
                .get(usage)
                .is_some_and(|stored| objects::signed_text(stored) == objects::signed_text(&object));
            if !same {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Checks keys as far as that goes without writing. To be called before the user is asked to authenticate.
    pub async fn signing_keys_check(&self, user: &UserId, keys: &SigningKeys) -> Result<(), KeysError> {
        let mut conn = self.core.store.read().await?;
        let stored = load(&mut conn, user).await?;
        check(&mut conn, user, keys, &stored).await.map(|_| ())
    }

    /// Takes the keys. The caller has made sure that the user may.
    pub async fn signing_keys_put(&self, user: &UserId, keys: SigningKeys) -> Result<(), KeysError> {
        let (core, user, keys) = (self.core.clone(), user.to_owned(), Arc::new(keys));
        self.core
            .store
            .write("keys.signing", Vec::new(), move |tx| {
                let (core, user, keys) = (core.clone(), user.clone(), Arc::clone(&keys));
                Box::pin(async move {
                    let stored = load(tx, &user).await?;
                    let new = check(tx, &user, &keys, &stored).await?;
                    put(&core, tx, &user, &stored, new).await
                })
            })
            .await
    }
}

async fn load(conn: &mut Conn, user: &UserId) -> Result<Stored, KeysError> {
    let rows = conn.cross_signing_load(&[user.to_owned()]).await?;
    Ok(rows.into_iter().filter_map(|row| Some((row.usage, objects::parse(&row.json).ok()?))).collect())
}

/// The keys as they are to be stored.
async fn check(
    conn: &mut Conn,
    user: &UserId,
    keys: &SigningKeys,
    stored: &Stored,
) -> Result<Vec<(&'static str, CanonicalJsonObject)>, KeysError> {
    let devices = conn.device_ids_of(&[user.to_owned()]).await?;
    let mut new = Vec::new();
    for (usage, json) in keys.each() {
        let object = check_one(user, usage, json)?;
        let key = objects::only_key(&object).map(|(_, key)| key).unwrap_or_default();
        if devices.iter().any(|(_, device)| device == key) {
            return Err(KeysError::Forbidden("a cross-signing key has the id of one of your devices".into()));
        }
        new.push((usage, object));
    }
    let uploaded = new.iter().find(|(usage, _)| *usage == "master").map(|(_, object)| object);
    let master = uploaded.or_else(|| stored.get("master"));
    let master = master.and_then(objects::only_key).map(|(id, key)| (id.to_owned(), key.to_owned()));
    let identities = device_identities(conn, user).await?;
    for (usage, object) in &mut new {
        if *usage == "master" {
            // The user's devices may have signed it. What they did not sign is not kept.
            let signed = |object: &CanonicalJsonObject, id: &str| {
                let key = identities.get(id);
                key.is_some_and(|key| objects::is_signed_by(object, user.as_str(), id, key))
            };
            objects::keep_signatures_of(object, user.as_str(), signed);
            continue;
        }
        let (id, key) = master
            .as_ref()
            .ok_or_else(|| KeysError::Missing("there is no master key for these keys".into()))?;
        if !objects::is_signed_by(object, user.as_str(), id, key) {
            let what = usage.replace('_', "-");
            return Err(KeysError::Signature(format!("the {what} key is not signed by the master key")));
        }
        objects::keep_signatures_of(object, user.as_str(), |_, other| other == id);
    }
    Ok(new)
}

/// The identity keys of the user's devices by their ids (`ed25519:DEVICE`).
async fn device_identities(conn: &mut Conn, user: &UserId) -> Result<BTreeMap<String, String>, KeysError> {
    let mut all = BTreeMap::new();
    for row in conn.device_keys_load(&[user.to_owned()]).await? {
        let id = format!("ed25519:{}", row.device_id);
        if let Ok(object) = objects::parse(&row.json)
            && let Some(key) = objects::public_key(&object, &id)
        {
            all.insert(id.clone(), key.to_owned());
        }
    }
    Ok(all)
}

fn check_one(user: &UserId, usage: &str, json: &str) -> Result<CanonicalJsonObject, KeysError> {
    if json.len() > MAX_KEY {
        return Err(KeysError::TooLarge("this key is too large".into()));
    }
    let typed: CrossSigningKey =
        serde_json::from_str(json).map_err(|error| KeysError::BadJson(format!("{usage} key: {error}")))?;
    if typed.user_id != user {
        return Err(KeysError::Invalid(format!("the {usage} key is of another user")));
    }
    if !typed.usage.iter().any(|named| named.as_str() == usage) {
        return Err(KeysError::Invalid(format!("the {usage} key is not meant for that")));
    }
    let mut object = objects::parse(json)?;
    let fits = objects::only_key(&object)
        .is_some_and(|(id, key)| !key.is_empty() && id.strip_prefix("ed25519:") == Some(key));
    if !fits {
        return Err(KeysError::Invalid(format!(
            "the {usage} key must have exactly one Ed25519 key, named by itself"
        )));
    }
    objects::drop_unsigned(&mut object);
    objects::keep_signatures(&mut object, |signer| signer == user.as_str());
    Ok(object)
}

async fn put(
    core: &Core,
    tx: &mut Tx,
    user: &OwnedUserId,
    stored: &Stored,
    new: Vec<(&'static str, CanonicalJsonObject)>,
) -> Result<(), KeysError> {
    let mut public = false;
    let mut private = false;
    for (usage, object) in new {
        let before = stored.get(usage);
        if before == Some(&object) {
            continue;
        }
        if let Some((id, key)) = before.and_then(objects::only_key)
            && objects::only_key(&object) != Some((id, key))
        {
            tx.key_signatures_drop_target(user, key).await?;
            tx.key_signatures_drop_signer(user, id).await?;
        }
        let json = objects::text(&object);
        tx.cross_signing_put(&CrossSigningRow { user_id: user.clone(), usage: usage.to_owned(), json })
            .await?;
        if usage == "user_signing" { private = true } else { public = true }
    }
    if public {
        announce::signing_keys_changed(core, tx, user).await?;
    } else if private {
        announce::view_changed(tx, user, user);
    }
    Ok(())
}
