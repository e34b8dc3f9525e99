//! When and from where devices were last seen: kept in memory, written in one go now and then.

use super::{Accounts, Requester};
use parking_lot::Mutex;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use waxwing_storage::{DeviceRow, StoreError, StoreResult};

/// A device is noted at most so often, in milliseconds.
const GRAIN: u64 = 60_000;
/// Devices that are written in one go: they share the commit of whoever writes just then, who must not wait for thousands.
const AT_ONCE: usize = 64;
/// Longer names of clients are cut off.
const LONGEST_AGENT: usize = 512;

#[derive(Clone)]
struct Sight {
    at: u64,
    address: IpAddr,
    agent: Option<String>,
    written: bool,
}

/// What was seen by this node and may not be written yet.
#[derive(Default)]
pub(super) struct Seen(Mutex<HashMap<OwnedUserId, HashMap<OwnedDeviceId, Sight>>>);

impl Seen {
    fn note(&self, user: &UserId, device: &DeviceId, now: u64, address: IpAddr, agent: Option<&str>) {
        let mut all = self.0.lock();
        if let Some(sight) = all.get(user).and_then(|devices| devices.get(device))
            && sight.at + GRAIN > now
            && sight.address == address
        {
            return;
        }
        let agent = agent.map(|agent| agent.chars().take(LONGEST_AGENT).collect());
        let sight = Sight { at: now, address, agent, written: false };
        all.entry(user.to_owned()).or_default().insert(device.to_owned(), sight);
    }

    /// Adds what is not written yet.
    pub fn overlay(&self, row: &mut DeviceRow) {
        let all = self.0.lock();
        let Some(sight) = all.get(&row.user_id).and_then(|devices| devices.get(&row.device_id)) else {
            return;
        };
        if row.last_seen_at.is_none_or(|at| at < sight.at) {
            row.last_seen_at = Some(sight.at);
            row.last_seen_ip = Some(sight.address.to_string());
            row.user_agent = sight.agent.clone();
        }
    }

    /// What is to be written; what is old and written is dropped.
    fn take(&self, now: u64) -> Vec<(OwnedUserId, OwnedDeviceId, Sight)> {
        let mut all = self.0.lock();
        let mut taken = Vec::new();
        all.retain(|user, devices| {
            devices.retain(|device, sight| {
                if !sight.written {
                    sight.written = true;
                    taken.push((user.clone(), device.clone(), sight.clone()));
                }
                sight.at + GRAIN > now
            });
            !devices.is_empty()
        });
        taken
    }
}

impl Accounts {
    /// Remembers when, from where and with what a device was last seen.
    pub fn seen(&self, requester: &Requester, address: IpAddr, user_agent: Option<&str>) {
        if let Some(device) = &requester.device_id {
            self.seen.note(&requester.user_id, device, self.core.now(), address, user_agent);
        }
    }

    /// Writes down when devices were last seen. Called from time to time, and before the end.
    pub async fn write_seen(&self) -> StoreResult<()> {
        let taken = self.seen.take(self.core.now());
        if taken.is_empty() {
            return Ok(());
        }
        for some in taken.chunks(AT_ONCE) {
            let some: Arc<[_]> = some.into();
            let write = self.core.store.write("devices seen", Vec::new(), move |tx| {
                let some = Arc::clone(&some);
                Box::pin(async move {
                    for (user, device, sight) in some.iter() {
                        let address = sight.address.to_string();
                        tx.device_seen(user, device, sight.at, &address, sight.agent.as_deref()).await?;
                    }
                    Ok::<(), StoreError>(())
                })
            });
            write.await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{device_id, user_id};

    #[test]
    fn a_device_is_written_once_a_minute() {
        let (seen, user, device) = (Seen::default(), user_id!("@a:x"), device_id!("D"));
        let address: IpAddr = "127.0.0.1".parse().unwrap();
        seen.note(user, device, 100_000, address, Some("client"));
        seen.note(user, device, 100_500, address, Some("client"));
        assert_eq!(seen.take(101_000).len(), 1);
        assert!(seen.take(101_000).is_empty());
        seen.note(user, device, 170_000, address, None);
        assert_eq!(seen.take(170_000).len(), 1);
    }
}
