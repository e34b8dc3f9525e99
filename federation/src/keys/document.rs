use base64::Engine;
use ruma::serde::Base64;
use ruma::{OwnedServerName, OwnedServerSigningKeyId, ServerName, SigningKeyAlgorithm};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_rooms::sign::verify_json;

use crate::canonical::canonical_object;
use crate::ports::{ServerKeyRecord, StoredKey};
use crate::signing::BASE64;

/// Keys read of one document. A server has one or two, and some retired ones.
const MAX_KEYS: usize = 128;
/// No document counts longer than this after it was fetched: a stolen key must not be good for ever.
/// <https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server>
const MAX_VALIDITY: u64 = 7 * 24 * 60 * 60 * 1000;

/// A key document that is not believed.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("not a key document: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is the document of {0}")]
    Server(OwnedServerName),
    #[error("it has no usable key")]
    NoKeys,
    #[error("none of its keys signed it")]
    Signature,
}

/// A self-signed key document, verified.
#[derive(Clone, Debug)]
pub struct KeyDocument {
    /// Whose it is.
    pub server: OwnedServerName,
    /// The keys in it, retired ones with the end of their time.
    pub keys: Vec<StoredKey>,
    /// Until when its owner says that it counts.
    pub valid_until: u64,
    /// The document byte for byte.
    pub json: Arc<RawValue>,
}

#[derive(Deserialize)]
struct Document {
    server_name: OwnedServerName,
    verify_keys: BTreeMap<String, VerifyKey>,
    #[serde(default)]
    old_verify_keys: BTreeMap<String, OldVerifyKey>,
    valid_until_ts: u64,
}

#[derive(Deserialize)]
struct VerifyKey {
    key: String,
}

#[derive(Deserialize)]
struct OldVerifyKey {
    key: String,
    expired_ts: u64,
}

/// Reads an ed25519 key; others and malformed ones are left out.
fn ed25519(id: &str, key: &str) -> Option<(OwnedServerSigningKeyId, Vec<u8>)> {
    let id = OwnedServerSigningKeyId::try_from(id).ok()?;
    let key = BASE64.decode(key).ok()?;
    (id.algorithm() == SigningKeyAlgorithm::Ed25519 && key.len() == 32).then_some((id, key))
}

impl KeyDocument {
    /// Reads and verifies a document of `server` fetched at `now`: one of its own keys has to have signed it, and its
    /// keys count for at most seven days.
    pub fn verify(server: &ServerName, json: Box<RawValue>, now: u64) -> Result<KeyDocument, DocumentError> {
        let document: Document = serde_json::from_str(json.get())?;
        if document.server_name != server {
            return Err(DocumentError::Server(document.server_name));
        }
        let until = document.valid_until_ts.min(now.saturating_add(MAX_VALIDITY));
        let mut keys = Vec::new();
        for (id, key) in document.verify_keys.iter().take(MAX_KEYS) {
            if let Some((key_id, key)) = ed25519(id, &key.key) {
                keys.push(StoredKey { key_id, key, valid_until: until });
            }
        }
        if keys.is_empty() {
            return Err(DocumentError::NoKeys);
        }
        let object = canonical_object(&json)?;
        let signed = keys.iter().any(|key| {
            let one = BTreeMap::from([(key.key_id.to_string(), Base64::new(key.key.clone()))]);
            verify_json(&object, server, &one).is_ok()
        });
        if !signed {
            return Err(DocumentError::Signature);
        }
        for (id, old) in document.old_verify_keys.iter().take(MAX_KEYS) {
            if let Some((key_id, key)) = ed25519(id, &old.key)
                && !keys.iter().any(|known| known.key_id == key_id)
            {
                keys.push(StoredKey { key_id, key, valid_until: old.expired_ts });
            }
        }
        let valid_until = document.valid_until_ts;
        Ok(KeyDocument { server: document.server_name, keys, valid_until, json: Arc::from(json) })
    }
}

/// What is known of a server's keys, in memory.
#[derive(Clone, Debug, Default)]
pub struct ServerKeys {
    keys: BTreeMap<OwnedServerSigningKeyId, StoredKey>,
    /// The newest document and when it was fetched.
    pub document: Option<(Arc<RawValue>, u64)>,
}

impl ServerKeys {
    /// Takes what the database keeps.
    pub fn from_record(record: ServerKeyRecord) -> ServerKeys {
        ServerKeys {
            keys: record.keys.into_iter().map(|key| (key.key_id.clone(), key)).collect(),
            document: record.document.map(|json| (json, record.fetched_at)),
        }
    }

    /// For the database.
    pub fn to_record(&self) -> ServerKeyRecord {
        ServerKeyRecord {
            keys: self.keys.values().cloned().collect(),
            document: self.document.as_ref().map(|(json, _)| Arc::clone(json)),
            fetched_at: self.document.as_ref().map_or(0, |(_, at)| *at),
        }
    }

    /// Adds a document fetched at `now`. Keys that it no longer names stay: they verify what they signed in their
    /// time.
    pub fn add(&mut self, document: &KeyDocument, now: u64) {
        for key in &document.keys {
            self.keys.insert(key.key_id.clone(), key.clone());
        }
        self.document = Some((Arc::clone(&document.json), now));
    }

    /// Whether the two know the same keys by the same ids.
    pub fn same_keys(&self, other: &ServerKeys) -> bool {
        let keys = |known: &ServerKeys| -> Vec<(OwnedServerSigningKeyId, Vec<u8>)> {
            known.keys.iter().map(|(id, key)| (id.clone(), key.key.clone())).collect()
        };
        keys(self) == keys(other)
    }

    /// A key that counted at `at`, or any known key by that id when `at` is `None`.
    pub fn key(&self, id: &OwnedServerSigningKeyId, at: Option<u64>) -> Option<&[u8]> {
        let key = self.keys.get(id)?;
        at.is_none_or(|at| at <= key.valid_until).then_some(key.key.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::own::{OldKey, OwnKeys};
    use crate::signing::Identity;
    use waxwing_rooms::KeyPair;

    const DAY: u64 = 24 * 60 * 60 * 1000;

    fn own(server: &str, old: Vec<OldKey>) -> OwnKeys {
        let key = Arc::new(KeyPair::from_seed([3; 32], "k").unwrap());
        let identity = Identity::new(server.try_into().unwrap(), key).unwrap();
        OwnKeys::new(identity, old)
    }

    fn name(text: &str) -> &ServerName {
        text.try_into().unwrap()
    }

    #[test]
    fn our_own_document_is_one_that_others_believe() {
        let old = OldKey { key_id: "ed25519:old".try_into().unwrap(), key: [7; 32], expired_ts: 5 };
        let keys = own("a.example", vec![old]);
        let json = keys.document(1000).unwrap();
        let document = KeyDocument::verify(name("a.example"), json.clone(), 1000).unwrap();
        assert_eq!(document.keys.len(), 2);
        assert!(document.valid_until > 1000 + 60 * 60 * 1000);
        let mut known = ServerKeys::default();
        known.add(&document, 1000);
        let k = "ed25519:k".try_into().unwrap();
        let retired = "ed25519:old".try_into().unwrap();
        assert!(known.key(&k, Some(2000)).is_some() && known.key(&k, Some(9 * DAY)).is_none());
        assert!(known.key(&retired, Some(6)).is_none() && known.key(&retired, Some(5)).is_some());
        assert!(known.key(&retired, None).is_some());
        let back = ServerKeys::from_record(known.to_record());
        assert!(back.key(&k, Some(2000)).is_some() && back.document.is_some());
        assert!(matches!(KeyDocument::verify(name("b.example"), json, 0), Err(DocumentError::Server(_))));
    }

    #[test]
    fn validity_is_cut_at_seven_days() {
        let json = own("a.example", vec![]).document(30 * DAY).unwrap();
        let document = KeyDocument::verify(name("a.example"), json, 0).unwrap();
        assert_eq!(document.keys[0].valid_until, 7 * DAY);
    }

    #[test]
    fn forged_documents_are_refused() {
        let json = own("a.example", vec![]).document(0).unwrap();
        let raw = |text: String| RawValue::from_string(text).unwrap();
        let changed = raw(json.get().replace("\"valid_until_ts\":", "\"valid_until_ts\":1"));
        assert!(matches!(KeyDocument::verify(name("a.example"), changed, 0), Err(DocumentError::Signature)));
        let keyless = raw(
            r#"{"server_name":"a.example","verify_keys":{"ed25519:1":{"key":"AAAA"}},"valid_until_ts":1}"#
                .into(),
        );
        assert!(matches!(KeyDocument::verify(name("a.example"), keyless, 0), Err(DocumentError::NoKeys)));
        assert!(KeyDocument::verify(name("a.example"), raw("[]".into()), 0).is_err());
    }
}
