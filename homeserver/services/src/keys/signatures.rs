//! A user signs keys: own devices, the own master key, other users' master keys.
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keyssignaturesupload>

use super::query::Wanted;
use super::{Keys, KeysError, announce, objects};
use ruma::{CanonicalJsonObject, OwnedUserId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_storage::KeySignatureRow;

/// Keys that one upload may sign.
const MAX_SIGNED: usize = 5000;

/// By user and key: the `errcode` and a text.
pub type SignatureFailures = BTreeMap<OwnedUserId, BTreeMap<String, (&'static str, String)>>;

/// What is known of a user's keys: what is signed, and what it is signed with.
#[derive(Default)]
struct Known {
    devices: BTreeMap<String, CanonicalJsonObject>,
    cross: BTreeMap<String, CanonicalJsonObject>,
}

impl Known {
    fn key(&self, usage: &str) -> Option<(&str, &str)> {
        objects::only_key(self.cross.get(usage)?)
    }
}

type Failure = (&'static str, String);

impl Keys {
    /// Stores the signatures that the user made over the keys in `signed` (user → key → the signed object, JSON). What
    /// cannot be taken is named with the reason; the rest is stored.
    pub async fn sign(
        &self,
        user: &UserId,
        signed: BTreeMap<OwnedUserId, BTreeMap<String, String>>,
    ) -> Result<SignatureFailures, KeysError> {
        if signed.values().map(BTreeMap::len).sum::<usize>() > MAX_SIGNED {
            return Err(KeysError::TooLarge(format!("at most {MAX_SIGNED} keys at once")));
        }
        let own = self.known(user, user).await?;
        let mut failures = SignatureFailures::new();
        let mut rows = Vec::new();
        for (target, keys) in signed {
            let theirs = if target == user { None } else { Some(self.known(user, &target).await?) };
            for (key, json) in keys {
                let checked = match &theirs {
                    None => check_own(user, &own, &key, &json),
                    Some(theirs) => check_other(user, &own, &target, theirs, &key, &json),
                };
                match checked {
                    Ok(new) => rows.extend(new),
                    Err(why) => {
                        failures.entry(target.clone()).or_default().insert(key, why);
                    }
                }
            }
        }
        if !rows.is_empty() {
            self.store_signatures(user, rows).await?;
        }
        Ok(failures)
    }

    /// The keys of `target` as the database or the user's server says.
    async fn known(&self, viewer: &UserId, target: &UserId) -> Result<Known, KeysError> {
        let wanted = Wanted::from([(target.to_owned(), Vec::new())]);
        let found = self.query(viewer, wanted, None).await?;
        let mut known = Known::default();
        for (device, keys) in found.device_keys.into_values().flatten() {
            if let Ok(object) = objects::parse(keys.json().get()) {
                known.devices.insert(device.to_string(), object);
            }
        }
        let cross = [
            ("master", found.master_keys),
            ("self_signing", found.self_signing_keys),
            ("user_signing", found.user_signing_keys),
        ];
        for (usage, keys) in cross {
            if let Some(object) = keys.get(target).and_then(|key| objects::parse(key.json().get()).ok()) {
                known.cross.insert(usage.to_owned(), object);
            }
        }
        Ok(known)
    }

    async fn store_signatures(&self, user: &UserId, rows: Vec<KeySignatureRow>) -> Result<(), KeysError> {
        let (core, user, rows) = (self.core.clone(), user.to_owned(), Arc::new(rows));
        self.core
            .store
            .write("keys.sign", Vec::new(), move |tx| {
                let (core, user, rows) = (core.clone(), user.clone(), Arc::clone(&rows));
                Box::pin(async move {
                    let mut devices = BTreeSet::new();
                    let mut others = BTreeSet::new();
                    let mut master = false;
                    for row in rows.iter() {
                        tx.key_signature_put(row).await?;
                        if row.target_id != user {
                            others.insert(row.target_id.clone());
                        } else if tx.device_keys_of(&user, &row.target_key).await?.is_some() {
                            devices.insert(row.target_key.clone());
                        } else {
                            master = true;
                        }
                    }
                    for device in &devices {
                        announce::device_changed(&core, tx, &user, device).await?;
                    }
                    if master {
                        announce::signing_keys_changed(&core, tx, &user).await?;
                    }
                    for target in &others {
                        announce::view_changed(tx, &user, target);
                    }
                    Ok(())
                })
            })
            .await
    }
}

fn not_found() -> Failure {
    ("M_NOT_FOUND", "there is no such key".to_owned())
}

fn invalid(what: &str) -> Failure {
    ("M_INVALID_SIGNATURE", what.to_owned())
}

/// The uploaded object, if it is the known one but for signatures.
fn same(json: &str, known: &CanonicalJsonObject) -> Result<CanonicalJsonObject, Failure> {
    let object = objects::parse(json).map_err(|error| ("M_BAD_JSON", error.to_string()))?;
    if objects::signed_text(&object) != objects::signed_text(known) {
        return Err(invalid("this is not the key that the server has"));
    }
    Ok(object)
}

/// Own devices, signed with the self-signing key; the own master key, signed by own devices.
fn check_own(user: &UserId, own: &Known, key: &str, json: &str) -> Result<Vec<KeySignatureRow>, Failure> {
    if let Some(known) = own.devices.get(key) {
        let object = same(json, known)?;
        let (id, public) = own.key("self_signing").ok_or_else(not_found)?;
        return Ok(vec![row(&object, user, user, key, id, public)?]);
    }
    let (_, master) = own.key("master").filter(|(_, public)| *public == key).ok_or_else(not_found)?;
    let object = same(json, own.cross.get("master").ok_or_else(not_found)?)?;
    let mut rows = Vec::new();
    for (id, _) in objects::signatures_of(&object, user.as_str()) {
        let device = id.strip_prefix("ed25519:").unwrap_or_default();
        let Some(public) = own.devices.get(device).and_then(|keys| objects::public_key(keys, id)) else {
            continue;
        };
        rows.push(row(&object, user, user, master, id, public)?);
    }
    if rows.is_empty() { Err(invalid("none of your devices signed this key")) } else { Ok(rows) }
}

/// Another user's master key, signed with the own user-signing key.
fn check_other(
    user: &UserId,
    own: &Known,
    target: &UserId,
    theirs: &Known,
    key: &str,
    json: &str,
) -> Result<Vec<KeySignatureRow>, Failure> {
    let (_, master) = theirs.key("master").filter(|(_, public)| *public == key).ok_or_else(not_found)?;
    let object = same(json, theirs.cross.get("master").ok_or_else(not_found)?)?;
    let (id, public) = own.key("user_signing").ok_or_else(not_found)?;
    Ok(vec![row(&object, user, target, master, id, public)?])
}

fn row(
    object: &CanonicalJsonObject,
    signer: &UserId,
    target: &UserId,
    target_key: &str,
    key_id: &str,
    public: &str,
) -> Result<KeySignatureRow, Failure> {
    if !objects::is_signed_by(object, signer.as_str(), key_id, public) {
        return Err(invalid("the signature is missing or wrong"));
    }
    let signature = objects::signature(object, signer.as_str(), key_id).unwrap_or_default();
    Ok(KeySignatureRow {
        target_id: target.to_owned(),
        target_key: target_key.to_owned(),
        signer_id: signer.to_owned(),
        signer_key: key_id.to_owned(),
        signature: signature.to_owned(),
    })
}
