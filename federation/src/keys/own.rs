use base64::Engine;
use parking_lot::RwLock;
use ruma::{CanonicalJsonObject, OwnedServerSigningKeyId, ServerName};
use serde_json::value::RawValue;
use waxwing_rooms::KeyPair;

use super::document::ServerKeys;
use crate::canonical::{canonical_object, to_raw};
use crate::ports::{ServerKeyRecord, StoredKey};
use crate::signing::{BASE64, Identity};

/// How long others may rely on our document. A day is usual; after a key was stolen, it takes this long until nobody
/// believes it any more.
const VALIDITY: u64 = 24 * 60 * 60 * 1000;

/// A key that we used to sign with.
#[derive(Clone, Debug)]
pub struct OldKey {
    /// `ed25519:name`.
    pub key_id: OwnedServerSigningKeyId,
    /// The public key.
    pub key: [u8; 32],
    /// When we stopped.
    pub expired_ts: u64,
}

/// Our own keys.
#[derive(Debug)]
pub struct OwnKeys {
    identity: Identity,
    old: RwLock<Vec<OldKey>>,
}

impl OwnKeys {
    /// We sign as `identity`, and used to sign with `old`.
    pub fn new(identity: Identity, old: Vec<OldKey>) -> OwnKeys {
        OwnKeys { identity, old: RwLock::new(old) }
    }

    /// We used to sign with `old`.
    pub fn set_old(&self, old: Vec<OldKey>) {
        *self.old.write() = old;
    }

    /// Our name.
    pub fn server(&self) -> &ServerName {
        &self.identity.server
    }

    /// Our key document as of `now`, signed: the answer to `GET /_matrix/key/v2/server`.
    pub fn document(&self, now: u64) -> Result<Box<RawValue>, serde_json::Error> {
        let key = self.identity.key.fixed();
        let verify = serde_json::json!({ key.id().as_str(): { "key": key.public_key() } });
        let old: serde_json::Map<String, serde_json::Value> = self
            .old
            .read()
            .iter()
            .filter(|old| old.key_id != key.id())
            .map(|old| {
                let value =
                    serde_json::json!({ "key": BASE64.encode(old.key), "expired_ts": old.expired_ts });
                (old.key_id.to_string(), value)
            })
            .collect();
        let document = serde_json::json!({
            "server_name": self.identity.server,
            "verify_keys": verify,
            "old_verify_keys": old,
            "valid_until_ts": now.saturating_add(VALIDITY),
        });
        let mut object: CanonicalJsonObject = serde_json::from_value(document)?;
        sign(&key, &self.identity.server, &mut object)?;
        to_raw(&object)
    }

    /// Adds our signature to another server's document: what a notary does.
    pub fn countersign(&self, document: &RawValue) -> Result<Box<RawValue>, serde_json::Error> {
        let mut object = canonical_object(document)?;
        sign(&self.identity.key, &self.identity.server, &mut object)?;
        to_raw(&object)
    }

    /// The same in the form in which other servers' keys are kept. Our current key counts always.
    pub(super) fn server_keys(&self) -> ServerKeys {
        let key = self.identity.key.fixed();
        let old = self.old.read();
        let old = old.iter().filter(|old| old.key_id != key.id());
        let mut keys =
            vec![StoredKey { key_id: key.id(), key: key.public_key().into_inner(), valid_until: u64::MAX }];
        keys.extend(old.map(|old| StoredKey {
            key_id: old.key_id.clone(),
            key: old.key.to_vec(),
            valid_until: old.expired_ts,
        }));
        ServerKeys::from_record(ServerKeyRecord { keys, ..ServerKeyRecord::default() })
    }
}

fn sign(
    key: &KeyPair,
    server: &ServerName,
    object: &mut CanonicalJsonObject,
) -> Result<(), serde_json::Error> {
    key.sign_json(server, object).map_err(serde::ser::Error::custom)
}
