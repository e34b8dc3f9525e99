//! Whose devices have which keys.
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery>

use super::{Keys, KeysError, objects};
use ruma::api::federation::device::get_devices;
use ruma::api::federation::keys::get_keys;
use ruma::encryption::{CrossSigningKey, DeviceKeys};
use ruma::serde::Raw;
use ruma::{CanonicalJsonObject, OwnedDeviceId, OwnedUserId, UInt, UserId};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use waxwing_storage::{Conn, CrossSigningRow, DeviceKeysRow, KeySignatureRow};

/// Users that one query may name. Rooms with more members exist, but clients ask in batches of a few hundred.
const MAX_USERS: usize = 10_000;

/// Whose devices are asked for; an empty list stands for all of a user's devices.
pub type Wanted = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Queried {
    /// Identity keys of devices.
    pub device_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Raw<DeviceKeys>>>,
    /// Master keys.
    pub master_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// Self-signing keys.
    pub self_signing_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// The viewer's own user-signing key.
    pub user_signing_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// Servers that did not answer, and why.
    pub failures: BTreeMap<String, Value>,
}

impl Keys {
    /// The keys of the devices of `wanted`, as `viewer` may see them. Other servers are asked where we have no copy that
    /// holds; for at most `timeout` and ten seconds.
    pub async fn query(
        &self,
        viewer: &UserId,
        wanted: Wanted,
        timeout: Option<Duration>,
    ) -> Result<Queried, KeysError> {
        if wanted.len() > MAX_USERS {
            return Err(KeysError::TooLarge(format!("at most {MAX_USERS} users at once")));
        }
        let (local, remote): (Wanted, Wanted) =
            wanted.into_iter().partition(|(user, _)| self.core.is_local(user));
        let mut found = self.collect_local(Some(viewer), &local).await?;
        if remote.is_empty() {
            return Ok(found);
        }
        let fetched = self.remote_keys(&remote, timeout).await?;
        let of = |user: &OwnedUserId| (user.clone(), remote.get(user).cloned().unwrap_or_default());
        let kept: Wanted = fetched.kept.iter().map(of).collect();
        let mut conn = self.core.store.read().await?;
        let users: Vec<OwnedUserId> = kept.keys().cloned().collect();
        let rows = Rows::load(&mut conn, Some(viewer), &users).await?;
        for (user, ids) in &kept {
            rows.render(&mut found, Some(viewer), user, ids);
        }
        let asked: Vec<OwnedUserId> = fetched.answers.iter().map(|answer| answer.user.clone()).collect();
        let signatures = conn.key_signatures_load(&asked, Some(viewer)).await?;
        drop(conn);
        let signatures = Signatures::new(signatures);
        for answer in fetched.answers {
            let wanted = remote.get(&answer.user).map(Vec::as_slice).unwrap_or_default();
            render(&mut found, Some(viewer), wanted, &signatures, &answer.devices, &answer.cross_signing);
            found.device_keys.entry(answer.user).or_default();
        }
        found.failures = fetched.failures;
        Ok(found)
    }

    /// What another server learns of our users' keys.
    /// <https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1userkeysquery>
    pub async fn query_local(&self, wanted: Wanted) -> Result<get_keys::v1::Response, KeysError> {
        if wanted.len() > MAX_USERS {
            return Err(KeysError::TooLarge(format!("at most {MAX_USERS} users at once")));
        }
        let local: Wanted = wanted.into_iter().filter(|(user, _)| self.core.is_local(user)).collect();
        let found = self.collect_local(None, &local).await?;
        let mut response = get_keys::v1::Response::new(found.device_keys);
        response.master_keys = found.master_keys;
        response.self_signing_keys = found.self_signing_keys;
        Ok(response)
    }

    /// The whole device list of one of our users, for another server.
    /// <https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1userdevicesuserid>
    pub async fn user_devices(&self, user: &UserId) -> Result<get_devices::v1::Response, KeysError> {
        if !self.core.is_local(user) {
            return Err(KeysError::NotFound("this user is not ours".into()));
        }
        let mut conn = self.core.store.read().await?;
        // The number first: a change that comes between is then told as one that the list does not have yet.
        let stream = conn.device_list_stream(user).await?;
        let names: HashMap<String, Option<String>> = conn
            .device_keys_load(&[user.to_owned()])
            .await?
            .into_iter()
            .map(|row| (row.device_id, row.display_name))
            .collect();
        let mut found = Queried::default();
        let owner = user.to_owned();
        let rows = Rows::load(&mut conn, None, std::slice::from_ref(&owner)).await?;
        rows.render(&mut found, None, &owner, &[]);
        let stream = UInt::try_from(stream).unwrap_or_default();
        let mut response = get_devices::v1::Response::new(user.to_owned(), stream);
        for (id, keys) in found.device_keys.remove(user).unwrap_or_default() {
            let name = names.get(id.as_str()).cloned().flatten();
            let mut device = get_devices::v1::UserDevice::new(id, keys);
            device.device_display_name = name;
            response.devices.push(device);
        }
        response.master_key = found.master_keys.remove(user);
        response.self_signing_key = found.self_signing_keys.remove(user);
        Ok(response)
    }
}

/// Signatures by whose key they are over.
pub(super) struct Signatures(HashMap<(OwnedUserId, String), Vec<KeySignatureRow>>);

impl Signatures {
    pub(super) fn new(rows: Vec<KeySignatureRow>) -> Signatures {
        let mut by_key: HashMap<_, Vec<KeySignatureRow>> = HashMap::new();
        for row in rows {
            by_key.entry((row.target_id.clone(), row.target_key.clone())).or_default().push(row);
        }
        Signatures(by_key)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many keys they are over.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are any over this key.
    pub(super) fn has(&self, owner: &OwnedUserId, key: &str) -> bool {
        self.0.contains_key(&(owner.clone(), key.to_owned()))
    }

    /// The object with the signatures that `viewer` may see, and no others.
    pub(super) fn finish(
        &self,
        object: &mut CanonicalJsonObject,
        owner: &OwnedUserId,
        key: &str,
        viewer: Option<&UserId>,
    ) {
        let seen =
            |signer: &str| signer == owner.as_str() || viewer.is_some_and(|viewer| viewer.as_str() == signer);
        objects::keep_signatures(object, seen);
        for row in self.0.get(&(owner.clone(), key.to_owned())).into_iter().flatten() {
            if seen(row.signer_id.as_str()) {
                objects::add_signature(object, row);
            }
        }
    }
}

/// Everything that the database has of some users.
pub(super) struct Rows {
    devices: BTreeMap<OwnedUserId, Vec<DeviceKeysRow>>,
    cross: BTreeMap<OwnedUserId, Vec<CrossSigningRow>>,
    signatures: Signatures,
}

impl Rows {
    /// Reads it, with the signatures that the users made over their own keys and those that `viewer` made over them.
    pub(super) async fn load(
        conn: &mut Conn,
        viewer: Option<&UserId>,
        users: &[OwnedUserId],
    ) -> Result<Rows, KeysError> {
        let mut devices: BTreeMap<OwnedUserId, Vec<DeviceKeysRow>> = BTreeMap::new();
        for row in conn.device_keys_load(users).await? {
            devices.entry(row.user_id.clone()).or_default().push(row);
        }
        let mut cross: BTreeMap<OwnedUserId, Vec<CrossSigningRow>> = BTreeMap::new();
        for row in conn.cross_signing_load(users).await? {
            cross.entry(row.user_id.clone()).or_default().push(row);
        }
        let signatures = Signatures::new(conn.key_signatures_load(users, viewer).await?);
        Ok(Rows { devices, cross, signatures })
    }

    /// Adds the keys of one user to the answer, those of the devices `ids` (none: all), as `viewer` may see them.
    pub(super) fn render(
        &self,
        found: &mut Queried,
        viewer: Option<&UserId>,
        user: &OwnedUserId,
        ids: &[OwnedDeviceId],
    ) {
        found.device_keys.entry(user.clone()).or_default();
        let devices = self.devices.get(user).map(Vec::as_slice).unwrap_or_default();
        let cross = self.cross.get(user).map(Vec::as_slice).unwrap_or_default();
        render(found, viewer, ids, &self.signatures, devices, cross);
    }
}

/// Adds rows to the answer as `viewer` may see them.
fn render(
    found: &mut Queried,
    viewer: Option<&UserId>,
    wanted: &[OwnedDeviceId],
    signatures: &Signatures,
    devices: &[DeviceKeysRow],
    cross: &[CrossSigningRow],
) {
    let wanted: BTreeSet<&str> = wanted.iter().map(|id| id.as_str()).collect();
    for row in devices.iter().filter(|row| wanted.is_empty() || wanted.contains(row.device_id.as_str())) {
        let Ok(mut object) = objects::parse(&row.json) else { continue };
        signatures.finish(&mut object, &row.user_id, &row.device_id, viewer);
        objects::set_device_name(&mut object, row.display_name.as_deref());
        if let Some(raw) = raw(&object) {
            let of_user = found.device_keys.entry(row.user_id.clone()).or_default();
            of_user.insert(row.device_id.as_str().into(), raw);
        }
    }
    for row in cross {
        let Ok(mut object) = objects::parse(&row.json) else { continue };
        let Some(key) = objects::only_key(&object).map(|(_, key)| key.to_owned()) else { continue };
        signatures.finish(&mut object, &row.user_id, &key, viewer);
        let of_usage = match row.usage.as_str() {
            "master" => &mut found.master_keys,
            "self_signing" => &mut found.self_signing_keys,
            "user_signing" if viewer == Some(&*row.user_id) => &mut found.user_signing_keys,
            _ => continue,
        };
        if let Some(raw) = raw(&object) {
            of_usage.insert(row.user_id.clone(), raw);
        }
    }
}

fn raw<T>(object: &CanonicalJsonObject) -> Option<Raw<T>> {
    Raw::from_json_string(objects::text(object)).ok()
}
