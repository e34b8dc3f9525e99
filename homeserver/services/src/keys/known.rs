//! The keys of our users as others see them, from memory: everybody in a room asks for the same ones. What was read holds
//! until a row of the log says that the user's devices or keys changed.

use super::query::{Queried, Rows, Signatures, Wanted};
use super::{Keys, KeysError, objects};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::encryption::{CrossSigningKey, DeviceKeys};
use ruma::serde::Raw;
use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{Now, StoreResult};

/// Bytes of users' keys that are kept: some 10,000 users, of whom most have one or two devices.
const USERS_BYTES: u64 = 16 * 1024 * 1024;
/// A guess of the users in that many bytes.
const USERS: usize = 10_000;
/// Bytes of signatures over others' keys that are kept: those who ask have few or none.
const MADE_BYTES: u64 = 4 * 1024 * 1024;
/// A guess of the users in that many bytes.
const MADE: usize = 10_000;

/// Keys of one user, rendered as everybody sees them who has not signed any.
#[derive(Debug, Default)]
struct UserKeys {
    devices: BTreeMap<OwnedDeviceId, Raw<DeviceKeys>>,
    master: Option<Raw<CrossSigningKey>>,
    self_signing: Option<Raw<CrossSigningKey>>,
    user_signing: Option<Raw<CrossSigningKey>>,
}

/// Something with the position at which it was read.
type Read<T> = (LogPosition, Arc<T>);

#[derive(Clone)]
struct KeysWeight;

impl Weighter<OwnedUserId, Read<UserKeys>> for KeysWeight {
    fn weight(&self, _: &OwnedUserId, (_, keys): &Read<UserKeys>) -> u64 {
        let devices = keys.devices.values().map(|keys| 150 + keys.json().get().len());
        let cross = [&keys.master, &keys.self_signing, &keys.user_signing].into_iter().flatten();
        let cross = cross.map(|key| key.json().get().len());
        400 + devices.chain(cross).sum::<usize>() as u64
    }
}

#[derive(Clone)]
struct MadeWeight;

impl Weighter<OwnedUserId, Read<Signatures>> for MadeWeight {
    fn weight(&self, _: &OwnedUserId, (_, made): &Read<Signatures>) -> u64 {
        300 + 600 * made.len() as u64
    }
}

/// What is remembered.
pub(super) struct Known {
    users: Cache<OwnedUserId, Read<UserKeys>, KeysWeight>,
    /// Signatures that a user made over others' keys.
    made: Cache<OwnedUserId, Read<Signatures>, MadeWeight>,
}

impl Default for Known {
    fn default() -> Known {
        Known {
            users: Cache::with_weighter(USERS, USERS_BYTES, KeysWeight),
            made: Cache::with_weighter(MADE, MADE_BYTES, MadeWeight),
        }
    }
}

impl Keys {
    /// What `viewer` (nobody: another server) sees of the keys of these users of ours.
    pub(super) async fn collect_local(
        &self,
        viewer: Option<&UserId>,
        wanted: &Wanted,
    ) -> Result<Queried, KeysError> {
        let mut found = Queried::default();
        if wanted.is_empty() {
            return Ok(found);
        }
        let now = self.core.store.now().await?;
        let keys = self.user_keys(&now, wanted).await?;
        let made = match viewer {
            Some(viewer) => Some(self.signatures_made(&now, viewer).await?),
            None => None,
        };
        for (user, ids) in wanted {
            let of_user = found.device_keys.entry(user.clone()).or_default();
            let Some(keys) = keys.get(user) else { continue };
            let seen = Seen { viewer, owner: user, made: made.as_deref() };
            for (id, keys) in keys.devices.iter().filter(|(id, _)| ids.is_empty() || ids.contains(id)) {
                of_user.insert(id.clone(), seen.device(id, keys));
            }
            if let Some(key) = &keys.master {
                found.master_keys.insert(user.clone(), seen.cross(key));
            }
            if let Some(key) = &keys.self_signing {
                found.self_signing_keys.insert(user.clone(), seen.cross(key));
            }
            if let Some(key) = keys.user_signing.as_ref().filter(|_| viewer == Some(&**user)) {
                found.user_signing_keys.insert(user.clone(), key.clone());
            }
        }
        Ok(found)
    }

    async fn user_keys(
        &self,
        now: &Now<'_>,
        wanted: &Wanted,
    ) -> Result<BTreeMap<OwnedUserId, Arc<UserKeys>>, KeysError> {
        let cache = &self.known.users;
        let mut all = BTreeMap::new();
        let mut missing: Vec<OwnedUserId> = Vec::new();
        for user in wanted.keys() {
            match cache.get(user).filter(|(read, _)| now.keys_hold(user, *read)) {
                Some((read, keys)) => {
                    if read < now.head() {
                        cache.insert(user.clone(), (now.head(), Arc::clone(&keys)));
                    }
                    all.insert(user.clone(), keys);
                }
                None => missing.push(user.clone()),
            }
        }
        if missing.is_empty() {
            return Ok(all);
        }
        let mut conn = self.core.store.read().await?;
        let rows = Rows::load(&mut conn, None, &missing).await?;
        let mut found = Queried::default();
        for user in &missing {
            // As each sees the own keys: with the one that is for nobody else.
            rows.render(&mut found, Some(user), user, &[]);
        }
        drop(conn);
        for user in missing {
            let keys = Arc::new(UserKeys {
                devices: found.device_keys.remove(&user).unwrap_or_default(),
                master: found.master_keys.remove(&user),
                self_signing: found.self_signing_keys.remove(&user),
                user_signing: found.user_signing_keys.remove(&user),
            });
            // Those without any too: there are such people in rooms. A scan of made-up names does not drive out others.
            cache.insert(user.clone(), (now.head(), Arc::clone(&keys)));
            all.insert(user, keys);
        }
        Ok(all)
    }

    async fn signatures_made(&self, now: &Now<'_>, viewer: &UserId) -> StoreResult<Arc<Signatures>> {
        let cache = &self.known.made;
        if let Some((read, made)) = cache.get(viewer).filter(|(read, _)| now.keys_hold(viewer, *read)) {
            if read < now.head() {
                cache.insert(viewer.to_owned(), (now.head(), Arc::clone(&made)));
            }
            return Ok(made);
        }
        let made = self.core.store.read().await?.key_signatures_by(viewer).await?;
        let made = Arc::new(Signatures::new(made));
        cache.insert(viewer.to_owned(), (now.head(), Arc::clone(&made)));
        Ok(made)
    }
}

/// How one user's keys look to another.
struct Seen<'a> {
    viewer: Option<&'a UserId>,
    owner: &'a OwnedUserId,
    made: Option<&'a Signatures>,
}

impl Seen<'_> {
    fn device(&self, id: &OwnedDeviceId, keys: &Raw<DeviceKeys>) -> Raw<DeviceKeys> {
        self.with_own_signatures(id.as_str(), keys).unwrap_or_else(|| keys.clone())
    }

    fn cross(&self, key: &Raw<CrossSigningKey>) -> Raw<CrossSigningKey> {
        let signed = || {
            self.made.filter(|made| !made.is_empty())?;
            let object = objects::parse(key.json().get()).ok()?;
            let (_, public) = objects::only_key(&object)?;
            self.with_own_signatures(public, key)
        };
        signed().unwrap_or_else(|| key.clone())
    }

    /// With the signatures that the viewer made over the key, if any.
    fn with_own_signatures<T>(&self, key: &str, raw: &Raw<T>) -> Option<Raw<T>> {
        let made = self.made.filter(|made| made.has(self.owner, key))?;
        let mut object = objects::parse(raw.json().get()).ok()?;
        made.finish(&mut object, self.owner, key, self.viewer);
        Raw::from_json_string(objects::text(&object)).ok()
    }
}
