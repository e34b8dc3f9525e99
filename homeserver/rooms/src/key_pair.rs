//! A server's Ed25519 signing key.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ruma::canonical_json::CanonicalJsonObject;
use ruma::serde::Base64;
use ruma::serde::base64::Standard;
use ruma::signatures::{Ed25519KeyPair, JsonError, KeyPair as _};
use ruma::{OwnedServerSigningKeyId, ServerName};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// The DER of an Ed25519 private key in PKCS#8 version 1, up to the 32 bytes of the seed.
/// <https://www.rfc-editor.org/rfc/rfc8410#section-7>
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What stands right before the seed in every PKCS#8 document of such a key.
const BEFORE_SEED: [u8; 9] = [0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

/// A signing key with its id, `ed25519:<version>`. Whoever shares it signs with another key from the moment on in which it
/// is replaced.
/// <https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys>
pub struct KeyPair {
    key: RwLock<Arc<Key>>,
}

/// One key, for good.
pub(crate) struct Key {
    seed: [u8; 32],
    id: OwnedServerSigningKeyId,
    /// As ruma's signing functions want it.
    pub(crate) pair: Ed25519KeyPair,
}

/// Text or bytes that hold no usable key. Never says what they held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyPairError {
    /// Not a PKCS#8 document of an Ed25519 key.
    #[error("not an Ed25519 private key in PKCS#8")]
    Der,
    /// Not PEM with a `PRIVATE KEY` block.
    #[error("not a PEM private key")]
    Pem,
    /// Not `ed25519 <version> <base64 of 32 bytes>`.
    #[error("not a line `ed25519 <version> <seed>`")]
    Line,
    /// The version is empty or has characters other than letters, digits and `_`.
    #[error("a key version is made of letters, digits and underscores")]
    Version,
}

impl KeyPair {
    /// A new random key with a random version.
    pub fn generate() -> Result<KeyPair, KeyPairError> {
        let version = format!("a_{}", waxwing_model::opaque_id(6));
        KeyPair::from_der(&Ed25519KeyPair::generate(), &version)
    }

    /// The key of a 32 byte seed.
    pub fn from_seed(seed: [u8; 32], version: &str) -> Result<KeyPair, KeyPairError> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if version.is_empty() || version.len() > 128 || !version.chars().all(word) {
            return Err(KeyPairError::Version);
        }
        let id = OwnedServerSigningKeyId::try_from(format!("ed25519:{version}"))
            .map_err(|_| KeyPairError::Version)?;
        let pair =
            Ed25519KeyPair::from_der(&der_of(&seed), version.to_owned()).map_err(|_| KeyPairError::Der)?;
        Ok(KeyPair { key: RwLock::new(Arc::new(Key { seed, id, pair })) })
    }

    /// Reads a PKCS#8 document, versions 1 and 2.
    pub fn from_der(der: &[u8], version: &str) -> Result<KeyPair, KeyPairError> {
        let at = der.windows(BEFORE_SEED.len()).position(|w| w == BEFORE_SEED).ok_or(KeyPairError::Der)?;
        let start = at + BEFORE_SEED.len();
        let seed = der.get(start..start + 32).and_then(|seed| seed.try_into().ok());
        KeyPair::from_seed(seed.ok_or(KeyPairError::Der)?, version)
    }

    /// Reads a PEM file with one `PRIVATE KEY` block.
    pub fn from_pem(pem: &str, version: &str) -> Result<KeyPair, KeyPairError> {
        let (_, rest) = pem.split_once(PEM_BEGIN).ok_or(KeyPairError::Pem)?;
        let (body, _) = rest.split_once(PEM_END).ok_or(KeyPairError::Pem)?;
        let text: String = body.split_whitespace().collect();
        KeyPair::from_der(&STANDARD.decode(text).map_err(|_| KeyPairError::Pem)?, version)
    }

    /// Reads `ed25519 <version> <seed in base64>`, the form in which other servers keep their keys.
    pub fn from_line(line: &str) -> Result<KeyPair, KeyPairError> {
        let mut words = line.split_whitespace();
        let (Some("ed25519"), Some(version), Some(seed), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(KeyPairError::Line);
        };
        // The last letter of 32 bytes has two bits to spare, and other servers do not always leave them zero.
        let seed = Base64::<Standard>::parse(seed).map_err(|_| KeyPairError::Line)?;
        KeyPair::from_seed(seed.into_inner().try_into().map_err(|_| KeyPairError::Line)?, version)
    }

    /// The key as PKCS#8 version 1 DER. A secret.
    pub fn to_der(&self) -> Vec<u8> {
        der_of(&self.key().seed)
    }

    /// The key as PEM. A secret.
    pub fn to_pem(&self) -> String {
        format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", STANDARD.encode(self.to_der()))
    }

    /// The key as the line that [`KeyPair::from_line`] reads. A secret.
    pub fn to_line(&self) -> String {
        let key = self.key();
        format!("ed25519 {} {}", key.pair.version(), STANDARD_NO_PAD.encode(key.seed))
    }

    /// `ed25519:<version>`.
    pub fn id(&self) -> OwnedServerSigningKeyId {
        self.key().id.clone()
    }

    /// The key as it is now, whatever it is replaced by: for what has to fit together.
    pub fn fixed(&self) -> KeyPair {
        KeyPair { key: RwLock::new(self.key()) }
    }

    /// From now on everybody who shares this key signs with the other one.
    pub fn replace(&self, other: &KeyPair) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = other.key();
    }

    /// The public key.
    pub fn public_key(&self) -> Base64 {
        Base64::new(self.key().pair.public_key().to_vec())
    }

    /// Adds this key's signature, in the name of `server`, to an object that is no event.
    /// <https://spec.matrix.org/v1.19/appendices/#signing-json>
    pub fn sign_json(&self, server: &ServerName, object: &mut CanonicalJsonObject) -> Result<(), JsonError> {
        ruma::signatures::sign_json(server.as_str(), &self.key().pair, object)
    }

    /// This key's signature of bytes, which need not be canonical JSON.
    pub fn sign_bytes(&self, message: &[u8]) -> Vec<u8> {
        self.key().pair.sign(message).as_bytes().to_vec()
    }

    /// The key in use.
    pub(crate) fn key(&self) -> Arc<Key> {
        Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn der_of(seed: &[u8; 32]) -> Vec<u8> {
    [PKCS8_PREFIX.as_slice(), seed.as_slice()].concat()
}

/// Never shows the seed.
impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("id", &self.id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_every_form() {
        let key = KeyPair::generate().unwrap();
        let version = key.id().key_name().as_str().to_owned();
        let again = [
            KeyPair::from_der(&key.to_der(), &version),
            KeyPair::from_pem(&key.to_pem(), &version),
            KeyPair::from_line(&key.to_line()),
        ];
        for other in again {
            let other = other.unwrap();
            assert_eq!((other.id(), other.public_key()), (key.id(), key.public_key()));
        }
        let secret = key.to_line();
        assert!(!format!("{key:?}").contains(secret.rsplit(' ').next().unwrap()));
    }

    #[test]
    fn reads_a_key_of_the_specification() {
        let key = KeyPair::from_line("ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap();
        let mut object = CanonicalJsonObject::new();
        key.sign_json(ruma::server_name!("domain"), &mut object).unwrap();
        assert_eq!(
            serde_json::to_string(&object).unwrap(),
            r#"{"signatures":{"domain":{"ed25519:1":"K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"}}}"#
        );
    }

    #[test]
    fn who_shares_a_key_signs_with_what_replaced_it() {
        let shared = KeyPair::from_seed([1; 32], "one").unwrap();
        let before = shared.fixed();
        let next = KeyPair::from_seed([2; 32], "two").unwrap();
        shared.replace(&next);
        assert_eq!((shared.id().as_str(), before.id().as_str()), ("ed25519:two", "ed25519:one"));
        assert_eq!(shared.sign_bytes(b"x"), next.sign_bytes(b"x"));
        assert_ne!(shared.sign_bytes(b"x"), before.sign_bytes(b"x"));
    }

    #[test]
    fn refuses_what_is_no_key() {
        assert_eq!(KeyPair::from_line("ed25519 1").unwrap_err(), KeyPairError::Line);
        assert_eq!(KeyPair::from_line("ed25519 1 AAAA").unwrap_err(), KeyPairError::Line);
        assert_eq!(KeyPair::from_seed([1; 32], "a b").unwrap_err(), KeyPairError::Version);
        assert_eq!(KeyPair::from_der(&BEFORE_SEED, "1").unwrap_err(), KeyPairError::Der);
        assert_eq!(KeyPair::from_pem("", "1").unwrap_err(), KeyPairError::Pem);
    }
}
