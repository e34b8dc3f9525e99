//! What concerns one device: messages to it, how many keys it has left, and whose devices changed.

use super::Sync;
use super::build::Build;
use super::response::DeviceLists;
use super::rooms::Shown;
use super::window::Window;
use crate::Core;
use crate::keys::device_list_changes;
use crate::render::Viewer;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::events::StateEventType;
use ruma::{OwnedUserId, UserId};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, LogRow, StoreError, StoreResult, StoredEvent};

/// To-device messages of one answer: more follow in the next.
const MAX_MESSAGES: usize = 100;
/// Devices of which the key counts are kept.
const DEVICES: usize = 50_000;

/// Keys that a device has left.
#[derive(Debug, Default)]
pub(super) struct KeyCounts {
    pub one_time: BTreeMap<String, u64>,
    pub fallback: Vec<String>,
}

type Device = (OwnedUserId, String);

/// What is remembered of devices.
pub(super) struct Devices {
    counts: Cache<Device, (LogPosition, Arc<KeyCounts>)>,
    /// Up to where messages of a device were deleted.
    deleted: Mutex<HashMap<Device, LogPosition>>,
    /// Up to where messages of a device are known to have been in an answer.
    handed_out: Cache<Device, LogPosition>,
}

impl Default for Devices {
    fn default() -> Devices {
        Devices { counts: Cache::new(DEVICES), deleted: Mutex::default(), handed_out: Cache::new(DEVICES) }
    }
}

impl Devices {
    /// The device's key counts at `upto`, from memory when no row says that they changed.
    pub async fn counts(
        &self,
        core: &Core,
        user: &UserId,
        device: &str,
        upto: LogPosition,
    ) -> StoreResult<Arc<KeyCounts>> {
        let key = (user.to_owned(), device.to_owned());
        if let Some((read, counts)) = self.counts.get(&key) {
            let changed = |row: &Arc<LogRow>| {
                matches!(row.fact, Fact::OneTimeKeys | Fact::Account)
                    && row.reference.as_deref().is_none_or(|other| other == device)
            };
            let rows = core.store.tail().range_of_user(user, read, upto);
            if rows.is_some_and(|rows| !rows.iter().any(changed)) {
                self.counts.insert(key, (upto.max(read), Arc::clone(&counts)));
                return Ok(counts);
            }
        }
        let mut conn = core.store.read().await?;
        let one_time = conn.one_time_key_counts(user, device).await?;
        let fallback = conn.fallback_types_unused(user, device).await?;
        let counts = Arc::new(KeyCounts { one_time, fallback });
        self.counts.insert(key, (upto, Arc::clone(&counts)));
        Ok(counts)
    }
}

impl Devices {
    /// Up to where every message of the device has been in an answer of some node. From memory when that is `enough`.
    async fn handed_out(
        &self,
        core: &Core,
        device: &Device,
        enough: LogPosition,
    ) -> StoreResult<LogPosition> {
        if let Some(known) = self.handed_out.get(device).filter(|known| *known >= enough) {
            return Ok(known);
        }
        let stored = core.store.read().await?.to_device_handed_out(&device.0, &device.1).await?;
        self.handed_out.insert(device.clone(), stored);
        Ok(stored)
    }

    /// An answer with every message of the device up to `upto` is about to leave.
    async fn hand_out(&self, core: &Core, device: &Device, upto: LogPosition) -> StoreResult<()> {
        if self.handed_out.get(device).is_some_and(|known| known >= upto) {
            return Ok(());
        }
        let (user, name) = device.clone();
        core.store
            .write("to-device handed out", Vec::new(), move |tx| {
                let (user, name) = (user.clone(), name.clone());
                Box::pin(async move { tx.to_device_hand_out(&user, &name, upto).await })
            })
            .await?;
        self.handed_out.insert(device.clone(), upto);
        Ok(())
    }
}

impl Sync {
    /// The client came back with a token: it has the messages up to `upto` that were sent with it, and they go.
    pub(super) async fn acknowledge_to_device(
        &self,
        viewer: &Viewer,
        upto: LogPosition,
    ) -> Result<(), StoreError> {
        let Some(device) = &viewer.device else { return Ok(()) };
        let key = (viewer.user.clone(), device.clone());
        let folds = self.notifier.folds();
        let Some(newest) = folds.to_device_newest(&key.0, &key.1) else { return Ok(()) };
        // A token of another session may be ahead of what this device was ever given.
        let upto = upto.min(newest);
        let upto = upto.min(self.devices.handed_out(&self.core, &key, upto).await?);
        if self.devices.deleted.lock().get(&key).is_some_and(|deleted| *deleted >= upto) {
            return Ok(());
        }
        let store = &self.core.store;
        if store.to_device_load(&key.0, &key.1, LogPosition::START, upto, 1).await?.is_empty() {
            self.devices.deleted.lock().insert(key, upto);
            return Ok(());
        }
        let (user, name) = key.clone();
        self.core
            .store
            .write("to-device received", Vec::new(), move |tx| {
                let (user, name) = (user.clone(), name.clone());
                Box::pin(async move {
                    tx.to_device_delete_upto(&user, &name, upto).await?;
                    Ok::<_, StoreError>(())
                })
            })
            .await?;
        self.devices.deleted.lock().insert(key, upto);
        Ok(())
    }
}

impl Build<'_> {
    /// Messages to the device after `after`, at most `limit`, and up to where they go.
    pub async fn to_device(
        &self,
        device: &str,
        after: LogPosition,
        limit: usize,
    ) -> StoreResult<(Vec<Box<RawValue>>, LogPosition)> {
        let newest = self.sync.notifier.folds().to_device_newest(self.user(), device);
        let Some(newest) = newest else { return Ok((Vec::new(), self.upto.max(after))) };
        let (devices, key) = (&self.sync.devices, (self.user().to_owned(), device.to_owned()));
        // What was in no answer yet goes out, whatever the client says that it has.
        let given = devices.handed_out(self.core(), &key, newest.min(after)).await?;
        if newest <= after && newest <= given {
            return Ok((Vec::new(), self.upto.max(after)));
        }
        let (token, after) = (after, after.min(given));
        let limit = limit.clamp(1, MAX_MESSAGES);
        let found = self.core().store.to_device_load(self.user(), device, after, self.upto, limit).await?;
        let cut = found.len() == limit;
        let upto = found.last().filter(|_| cut).map_or(self.upto.max(token), |(position, _)| *position);
        if let Some((last, _)) = found.last() {
            devices.hand_out(self.core(), &key, *last).await?;
        }
        Ok((found.into_iter().map(|(_, message)| message).collect(), upto))
    }

    /// Whose devices changed since the last answer, and with whom no room is shared any more.
    pub async fn device_lists(&self, window: &Window, shown: &Shown) -> StoreResult<DeviceLists> {
        let Some(since) = self.since else { return Ok(DeviceLists::default()) };
        let mut lists = if self.follower.device_lists_changed(since) {
            let changes = device_list_changes(&self.core().store, self.user(), since, self.upto).await?;
            (changes.changed, changes.left)
        } else {
            (BTreeSet::new(), BTreeSet::new())
        };
        self.sharing_changes(window, shown, &mut lists).await?;
        let (changed, left) = lists;
        Ok(DeviceLists {
            left: left.into_iter().filter(|user| !changed.contains(user)).collect(),
            changed: changed.into_iter().collect(),
        })
    }

    /// Adds those who came to share a room with the user, or ceased to, by what happened in rooms.
    async fn sharing_changes(
        &self,
        window: &Window,
        shown: &Shown,
        (changed, left): &mut (BTreeSet<OwnedUserId>, BTreeSet<OwnedUserId>),
    ) -> StoreResult<()> {
        let (mut came, mut went) = (BTreeSet::new(), BTreeSet::new());
        for (room, rows) in &window.rooms {
            if !self.rooms.contains_key(room) || shown.newly_joined.contains(room) {
                continue;
            }
            for row in rows.rows().iter().filter(|row| row.fact == Fact::Event) {
                let (Some(user), Some(stored)) = (&row.user, &row.event) else { continue };
                if user == self.user() {
                    continue;
                }
                let joined = stored.event.content_str("membership").as_deref() == Some("join");
                if joined != self.was_joined_at(stored, user).await? {
                    if joined {
                        came.insert(user.clone())
                    } else {
                        went.insert(user.clone())
                    };
                }
            }
        }
        for (rooms, users) in [(&shown.newly_joined, &mut came), (&shown.newly_left, &mut went)] {
            for room in rooms {
                let members = self.core().store.read().await?.members_of(room, "join").await?;
                users.extend(members.into_iter().map(|row| row.user_id));
            }
        }
        came.remove(self.user());
        went.remove(self.user());
        if came.is_empty() && went.is_empty() {
            return Ok(());
        }
        let asked: Vec<OwnedUserId> = came.union(&went).cloned().collect();
        let mut conn = self.core().store.read().await?;
        let sharing: BTreeSet<OwnedUserId> =
            conn.users_sharing_among(self.user(), &asked).await?.into_iter().collect();
        changed.extend(came.into_iter().filter(|user| sharing.contains(user)));
        left.extend(went.into_iter().filter(|user| !sharing.contains(user)));
        Ok(())
    }

    async fn was_joined_at(&self, stored: &StoredEvent, user: &UserId) -> StoreResult<bool> {
        let Some(root) = stored.state_before else { return Ok(false) };
        let store = &self.core().store;
        let before = store.state_get(root, StateEventType::RoomMember, user.as_str()).await?;
        let Some(before) = before else { return Ok(false) };
        let member = store.event(&before).await?;
        Ok(member.is_some_and(|member| member.event.content_str("membership").as_deref() == Some("join")))
    }
}
