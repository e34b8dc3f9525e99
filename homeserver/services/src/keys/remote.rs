//! Keys of other servers' users: kept while we share a room with them, asked for otherwise.

use super::query::Wanted;
use super::{Keys, KeysError, REMOTE_PARALLEL, REMOTE_TIMEOUT, objects};
use futures_util::StreamExt;
use parking_lot::Mutex;
use ruma::api::federation::device::get_devices;
use ruma::api::federation::keys::get_keys;
use ruma::encryption::{CrossSigningKey, DeviceKeys};
use ruma::serde::Raw;
use ruma::{OwnedServerName, OwnedUserId, UserId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::client::{Client, ClientError};
use waxwing_model::LogPosition;
use waxwing_storage::{CrossSigningRow, DeviceKeysRow};

/// Up to this many users of one server are asked for one by one, which also tells where later changes connect; more are
/// asked for together.
const WHOLE_LISTS: usize = 8;
/// Devices of one user that are taken from another server.
const MAX_DEVICES: usize = 1000;
/// Locks kept before those that no one holds are dropped.
const LOCKS: usize = 1024;

/// Who is asking which server, so that many clients that want the same list ask once.
#[derive(Default)]
pub(super) struct Fetching(Mutex<HashMap<OwnedServerName, Arc<tokio::sync::Mutex<()>>>>);

impl Fetching {
    fn of(&self, server: &OwnedServerName) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock();
        if locks.len() > LOCKS {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(locks.entry(server.clone()).or_default())
    }
}

/// What another server says of one of its users.
#[derive(Clone, Debug)]
pub(super) struct RemoteKeys {
    pub user: OwnedUserId,
    pub devices: Vec<DeviceKeysRow>,
    pub cross_signing: Vec<CrossSigningRow>,
    /// Where later changes connect, when it said so.
    stream_id: i64,
}

/// The outcome for all users of other servers of a query.
#[derive(Default)]
pub(super) struct RemoteAnswer {
    /// Users whose copy in the database holds.
    pub kept: Vec<OwnedUserId>,
    /// Users who were asked for now.
    pub answers: Vec<RemoteKeys>,
    /// Servers that did not answer.
    pub failures: BTreeMap<String, Value>,
}

/// What another server is told in `failures`.
pub(super) fn failure(error: &ClientError) -> Value {
    let status = error.refusal().map_or(503, |refusal| refusal.status.as_u16());
    json!({ "status": status, "errcode": "M_UNKNOWN", "error": "the server could not be asked" })
}

/// The same for one that took too long.
pub(super) fn too_late() -> Value {
    json!({ "status": 504, "errcode": "M_UNKNOWN", "error": "the server did not answer in time" })
}

impl Keys {
    /// Gets the keys of users of other servers, from the copy where it holds.
    pub(super) async fn remote_keys(
        &self,
        wanted: &Wanted,
        timeout: Option<Duration>,
    ) -> Result<RemoteAnswer, KeysError> {
        let mut answer = RemoteAnswer::default();
        if wanted.is_empty() {
            return Ok(answer);
        }
        let users: Vec<OwnedUserId> = wanted.keys().cloned().collect();
        answer.kept = self.valid(&users).await?;
        let kept: BTreeSet<&OwnedUserId> = answer.kept.iter().collect();
        let mut servers: BTreeMap<OwnedServerName, Wanted> = BTreeMap::new();
        for (user, devices) in wanted.iter().filter(|(user, _)| !kept.contains(user)) {
            let of_server = servers.entry(user.server_name().to_owned()).or_default();
            of_server.insert(user.clone(), devices.clone());
        }
        let limit = timeout.unwrap_or(REMOTE_TIMEOUT).min(REMOTE_TIMEOUT);
        let asked = futures_util::stream::iter(servers.into_iter().map(|(server, wanted)| async move {
            let got = tokio::time::timeout(limit, self.ask(&server, &wanted)).await;
            (server, got)
        }));
        let mut asked = asked.buffer_unordered(REMOTE_PARALLEL);
        while let Some((server, got)) = asked.next().await {
            match got {
                Ok(Ok(of_server)) => {
                    answer.kept.extend(of_server.kept);
                    answer.answers.extend(of_server.answers);
                    answer.failures.extend(of_server.failures);
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => drop(answer.failures.insert(server.to_string(), too_late())),
            }
        }
        Ok(answer)
    }

    async fn valid(&self, users: &[OwnedUserId]) -> Result<Vec<OwnedUserId>, KeysError> {
        let mut conn = self.core.store.read().await?;
        let valid = conn.remote_lists_valid(&self.core.server_name, users).await?;
        Ok(valid.into_iter().map(|(user, _)| user).collect())
    }

    /// Asks one server. Lists of users with whom we share a room are fetched whole and kept.
    async fn ask(&self, server: &OwnedServerName, wanted: &Wanted) -> Result<RemoteAnswer, KeysError> {
        let mut answer = RemoteAnswer::default();
        let Some(client) = self.client.as_ref().filter(|_| self.core.settings.federation) else {
            let off =
                json!({ "status": 503, "errcode": "M_UNKNOWN", "error": "this server does not federate" });
            answer.failures.insert(server.to_string(), off);
            return Ok(answer);
        };
        let lock = self.fetching.of(server);
        let _once = lock.lock().await;
        let users: Vec<OwnedUserId> = wanted.keys().cloned().collect();
        answer.kept = self.valid(&users).await?;
        let kept: BTreeSet<OwnedUserId> = answer.kept.iter().cloned().collect();
        let missing: Vec<OwnedUserId> = users.into_iter().filter(|user| !kept.contains(user)).collect();
        if missing.is_empty() {
            return Ok(answer);
        }
        let since = self.core.store.tail().head();
        let mut conn = self.core.store.read().await?;
        let sharing = conn.users_known_to(&self.core.server_name, &missing).await?;
        let mut generations = BTreeMap::new();
        for user in &sharing {
            generations.insert(user.clone(), conn.remote_list_generation(user).await?);
        }
        drop(conn);
        match fetch(client, server, wanted, &missing, &sharing).await {
            Ok(found) => {
                self.keep(since, &generations, &found).await?;
                answer.answers = found;
            }
            Err(error) => {
                tracing::debug!(%server, %error, "no keys from another server");
                answer.failures.insert(server.to_string(), failure(&error));
            }
        }
        Ok(answer)
    }

    /// Keeps what was fetched of users with whom we share a room (those that have a generation).
    async fn keep(
        &self,
        since: LogPosition,
        generations: &BTreeMap<OwnedUserId, i64>,
        found: &[RemoteKeys],
    ) -> Result<(), KeysError> {
        let keep: Arc<[(RemoteKeys, i64)]> =
            found.iter().filter_map(|keys| Some((keys.clone(), *generations.get(&keys.user)?))).collect();
        if keep.is_empty() {
            return Ok(());
        }
        self.core
            .store
            .write("keys.remote", Vec::new(), move |tx| {
                let keep = Arc::clone(&keep);
                Box::pin(async move {
                    for (keys, generation) in keep.iter() {
                        tx.keys_delete_all(&keys.user).await?;
                        for row in &keys.devices {
                            tx.device_keys_put(row).await?;
                        }
                        for row in &keys.cross_signing {
                            tx.cross_signing_put(row).await?;
                        }
                        tx.remote_list_put(&keys.user, keys.stream_id, since, *generation).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

/// Asks `server` for the keys of `missing`.
async fn fetch(
    client: &Client,
    server: &OwnedServerName,
    wanted: &Wanted,
    missing: &[OwnedUserId],
    sharing: &[OwnedUserId],
) -> Result<Vec<RemoteKeys>, ClientError> {
    let sharing: BTreeSet<&OwnedUserId> = sharing.iter().collect();
    let mut found = Vec::new();
    let mut together = Wanted::new();
    let one_by_one = sharing.len() <= WHOLE_LISTS;
    for user in missing {
        if one_by_one && sharing.contains(user) {
            match client.user_devices(server, user.clone()).await {
                Ok(list) => found.push(from_list(user, list)),
                // It may know the other way to ask.
                Err(error) if error.refusal().is_some() => drop(together.insert(user.clone(), Vec::new())),
                Err(error) => return Err(error),
            }
        } else {
            let whole = sharing.contains(user);
            let devices = if whole { Vec::new() } else { wanted.get(user).cloned().unwrap_or_default() };
            together.insert(user.clone(), devices);
        }
    }
    if !together.is_empty() {
        let users: Vec<OwnedUserId> = together.keys().cloned().collect();
        let mut answer = client.keys_query(server, get_keys::v1::Request::new(together)).await?;
        found.extend(users.iter().map(|user| from_query(user, &mut answer)));
    }
    Ok(found)
}

fn from_list(user: &OwnedUserId, list: get_devices::v1::Response) -> RemoteKeys {
    let devices = list.devices.into_iter().take(MAX_DEVICES).filter_map(|device| {
        device_row(user, device.device_id.as_str(), &device.keys, device.device_display_name)
    });
    RemoteKeys {
        user: user.clone(),
        devices: devices.collect(),
        cross_signing: cross_rows(user, list.master_key.as_ref(), list.self_signing_key.as_ref()),
        stream_id: i64::try_from(u64::from(list.stream_id)).unwrap_or(0),
    }
}

fn from_query(user: &OwnedUserId, answer: &mut get_keys::v1::Response) -> RemoteKeys {
    let devices = answer.device_keys.remove(user).unwrap_or_default();
    let devices = devices.into_iter().take(MAX_DEVICES);
    let devices = devices.filter_map(|(id, keys)| device_row(user, id.as_str(), &keys, None)).collect();
    let master = answer.master_keys.remove(user);
    let self_signing = answer.self_signing_keys.remove(user);
    RemoteKeys {
        user: user.clone(),
        devices,
        cross_signing: cross_rows(user, master.as_ref(), self_signing.as_ref()),
        stream_id: 0,
    }
}

/// A device's keys as another server gave them, if they are that device's. What they are signed with, clients check.
pub(super) fn device_row(
    user: &UserId,
    device: &str,
    keys: &Raw<DeviceKeys>,
    name: Option<String>,
) -> Option<DeviceKeysRow> {
    let typed = keys.deserialize().ok()?;
    if typed.user_id != user || typed.device_id.as_str() != device {
        return None;
    }
    let mut object = objects::parse(keys.json().get()).ok()?;
    objects::drop_unsigned(&mut object);
    Some(DeviceKeysRow {
        user_id: user.to_owned(),
        device_id: device.to_owned(),
        json: objects::text(&object),
        display_name: name.or(typed.unsigned.device_display_name),
    })
}

/// The cross-signing keys that another server gave, those that are the user's.
pub(super) fn cross_rows(
    user: &UserId,
    master: Option<&Raw<CrossSigningKey>>,
    self_signing: Option<&Raw<CrossSigningKey>>,
) -> Vec<CrossSigningRow> {
    [("master", master), ("self_signing", self_signing)]
        .into_iter()
        .filter_map(|(usage, key)| {
            let key = key?;
            let typed = key.deserialize().ok().filter(|typed| typed.user_id == user)?;
            typed.usage.iter().find(|named| named.as_str() == usage)?;
            let object = objects::parse(key.json().get()).ok()?;
            objects::only_key(&object)?;
            let json = objects::text(&object);
            Some(CrossSigningRow { user_id: user.to_owned(), usage: usage.to_owned(), json })
        })
        .collect()
}
