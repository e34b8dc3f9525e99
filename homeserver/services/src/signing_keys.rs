//! Changing the key with which this server signs.
//!
//! The key itself is a file of each node, never plain in the database. A rotation writes into the database what others must
//! know of the old key, and the new key sealed under the old one: so every node, and one that crashed in between, gets
//! from the key that it has to the one that is in use.
//! <https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys>

use crate::Core;
use crate::federation::Outgoing;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_federation::keys::OldKey;
use waxwing_rooms::KeyPair;
use waxwing_storage::{SigningKeyRow, Store, StoreError};

/// How long the old key counts after a rotation, milliseconds: until then every node has noticed, and no event that it
/// signed is younger than the key's end.
pub const GRACE: u64 = 60_000;
/// How often a node looks whether its key was rotated.
const LOOK: Duration = Duration::from_secs(2);
/// Rotations that a node may have missed.
const MAX_STEPS: usize = 10_000;

/// Why the key in use cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The database could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the database has of the successor is not readable with this key.
    #[error(
        "the successor of {0} cannot be read with it: copy signing.key from a node that has the key in use"
    )]
    Sealed(String),
    /// No new key could be made.
    #[error("no new key could be made")]
    Make,
    /// Somebody else rotated it at the same time.
    #[error("the key was rotated by somebody else just now")]
    Raced,
}

/// A pseudo-random function of a key, for one purpose.
fn derive(key: &KeyPair, purpose: &[u8], of: &[u8]) -> Result<[u8; 32], SigningKeyError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.to_der()).map_err(|_| SigningKeyError::Make)?;
    for part in [b"waxwing signing key ".as_slice(), purpose, b"\0", of] {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().into())
}

/// What stands in the DER of a key before its seed, which is its end.
const DER_PREFIX: usize = 16;

/// A key readable with its predecessor only. Each pad is used once: the id of the new key is random.
fn seal(old: &KeyPair, new: &KeyPair) -> Result<Vec<u8>, SigningKeyError> {
    let id = new.id();
    let pad = derive(old, b"pad", id.as_bytes())?;
    let mut sealed: Vec<u8> =
        new.to_der()[DER_PREFIX..].iter().zip(pad).map(|(byte, pad)| byte ^ pad).collect();
    let tag = derive(old, b"tag", &[id.as_bytes(), &sealed].concat())?;
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

/// The other way round; `None` when it was not sealed under this key.
fn unseal(old: &KeyPair, id: &str, sealed: &[u8]) -> Result<Option<KeyPair>, SigningKeyError> {
    let Some((sealed, tag)) = sealed.split_last_chunk::<32>() else { return Ok(None) };
    if derive(old, b"tag", &[id.as_bytes(), sealed].concat())? != *tag {
        return Ok(None);
    }
    let pad = derive(old, b"pad", id.as_bytes())?;
    let seed: Vec<u8> = sealed.iter().zip(pad).map(|(byte, pad)| byte ^ pad).collect();
    let Ok(seed) = <[u8; 32]>::try_from(seed) else { return Ok(None) };
    let version = id.strip_prefix("ed25519:").unwrap_or_default();
    Ok(KeyPair::from_seed(seed, version).ok())
}

/// The key in use, from a key that this server has or had: follows every rotation since.
///
/// # Errors
/// [`SigningKeyError::Sealed`] when a successor cannot be read.
pub async fn newest(store: &Store, mut key: KeyPair) -> Result<KeyPair, SigningKeyError> {
    for _ in 0..MAX_STEPS {
        let row = store.read().await?.signing_key_retired(key.id().as_str()).await?;
        let Some(row) = row else { return Ok(key) };
        let next = unseal(&key, &row.successor, &row.sealed)?;
        key = next.ok_or(SigningKeyError::Sealed(row.key_id))?;
    }
    Ok(key)
}

/// The keys that this server used to sign with, for others to verify what is old.
pub async fn retired(store: &Store) -> Result<Vec<OldKey>, StoreError> {
    let rows = store.read().await?.signing_keys_retired().await?;
    let old = |row: SigningKeyRow| {
        let key_id = row.key_id.as_str().try_into().ok()?;
        Some(OldKey { key_id, key: row.public_key.try_into().ok()?, expired_ts: row.expired_at })
    };
    Ok(rows.into_iter().filter_map(old).collect())
}

/// Retires the key in use and makes its successor, which every node uses from the next moment on.
///
/// # Errors
/// [`SigningKeyError::Raced`] when it was retired meanwhile.
pub async fn rotate(core: &Core) -> Result<KeyPair, SigningKeyError> {
    let old = core.key.fixed();
    let new = KeyPair::generate().map_err(|_| SigningKeyError::Make)?;
    let row = SigningKeyRow {
        key_id: old.id().to_string(),
        public_key: old.public_key().into_inner(),
        expired_at: core.now() + GRACE,
        successor: new.id().to_string(),
        sealed: seal(&old, &new)?,
    };
    let retired: Result<bool, StoreError> = core
        .store
        .write("rotate key", Vec::new(), move |tx| {
            let row = row.clone();
            Box::pin(async move { tx.signing_key_retire(&row).await })
        })
        .await;
    if retired? { Ok(new) } else { Err(SigningKeyError::Raced) }
}

/// Changes to the key in use whenever it was rotated, until `stop` is cancelled. `keep` puts it into this node's file.
pub async fn follow(
    core: Core,
    outgoing: Option<Outgoing>,
    keep: impl Fn(&KeyPair) + Send + Sync,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        if let Err(error) = look(&core, outgoing.as_ref(), &keep).await {
            tracing::warn!(%error, "cannot tell whether the signing key was rotated");
        }
    }
}

async fn look(
    core: &Core,
    outgoing: Option<&Outgoing>,
    keep: &(impl Fn(&KeyPair) + Send + Sync),
) -> Result<(), SigningKeyError> {
    let key = newest(&core.store, core.key.fixed()).await?;
    if key.id() == core.key.id() {
        return Ok(());
    }
    keep(&key);
    if let Some(outgoing) = outgoing {
        outgoing.ring.own().set_old(retired(&core.store).await?);
    }
    // Requests and events are signed with it from now on.
    core.key.replace(&key);
    tracing::info!(key = %key.id(), "the signing key was rotated");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_key_is_read_with_its_predecessor_only() {
        let [old, new, other] = [1, 2, 3].map(|seed| KeyPair::from_seed([seed; 32], "k").unwrap());
        let sealed = seal(&old, &new).unwrap();
        assert!(!sealed.windows(8).any(|part| part == [2; 8]));
        let read = unseal(&old, "ed25519:k", &sealed).unwrap().unwrap();
        assert_eq!(read.to_line(), new.to_line());
        assert!(unseal(&other, "ed25519:k", &sealed).unwrap().is_none());
        assert!(unseal(&old, "ed25519:j", &sealed).unwrap().is_none());
        let mut bent = sealed.clone();
        bent[5] ^= 1;
        assert!(unseal(&old, "ed25519:k", &bent).unwrap().is_none());
        assert!(unseal(&old, "ed25519:k", &sealed[..20]).unwrap().is_none());
    }
}
