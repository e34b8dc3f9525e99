//! What is forgotten without being asked: `m.room.retention` (MSC1763) within the bounds of the configuration.
//! <https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/1763-configurable-retention-periods.md>

use super::{Before, HistoryPurge, PurgeError, Purges};
use crate::media::uses::LONGEST;
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, RoomId};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;
use waxwing_model::Event;

/// Rooms looked at in one read.
const ROOMS: i64 = 200;
/// How often it is looked whether another node has done it, milliseconds.
const LOOK: u64 = 60_000;
/// Old events looked at to find one that may go: the ends of a room stay, however old.
const ENDS: i64 = 100;
/// The setting that says when rooms were last looked through.
const LAST: &str = "retention_last";

/// What the configuration says of how long messages live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionSettings {
    /// Whether rooms' policies count at all.
    pub enabled: bool,
    /// How long messages live in rooms that say nothing; none: for ever.
    pub default_max: Option<Duration>,
    /// No room makes messages live shorter.
    pub least: Option<Duration>,
    /// No room makes messages live longer.
    pub most: Option<Duration>,
    /// How often rooms are looked through.
    pub every: Duration,
}

/// How long messages of a room live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime(pub Duration);

#[derive(Default, Deserialize)]
struct Content {
    #[serde(default)]
    max_lifetime: Option<u64>,
}

impl RetentionSettings {
    /// How long messages live in a room with this `m.room.retention` event; `None`: for ever.
    pub fn lifetime(&self, policy: Option<&Event>) -> Option<Lifetime> {
        if !self.enabled {
            return None;
        }
        let content: Content = policy.and_then(|event| event.content_as().ok()).unwrap_or_default();
        let wanted = content.max_lifetime.map(Duration::from_millis).or(self.default_max);
        let bounded = match (wanted, self.most) {
            (Some(wanted), Some(most)) => Some(wanted.min(most)),
            (wanted, most) => wanted.or(most),
        };
        bounded.map(|lifetime| Lifetime(lifetime.max(self.least.unwrap_or_default())))
    }
}

impl Purges {
    /// Begins the purges that are due by the rooms' policies, once in a while.
    pub(super) async fn apply_retention(&self) -> Result<(), PurgeError> {
        let retention = &self.settings.retention;
        let now = self.core.now();
        if !retention.enabled || now < self.next_look.load(Ordering::Relaxed) || !self.lease().await? {
            return Ok(());
        }
        let every = retention.every.as_millis() as u64;
        let last = self.core.store.read().await?.setting_load(LAST).await?;
        let due = last.and_then(|last| last.parse::<u64>().ok()).map_or(0, |last| last + every);
        self.next_look.store(due.max(now + every.min(LOOK)), Ordering::Relaxed);
        if now < due {
            return Ok(());
        }
        self.forget_old().await?;
        let mut after = String::new();
        let mut longest = Some(Duration::ZERO);
        loop {
            let rooms = self.core.store.read().await?.rooms_scan(&after, ROOMS).await?;
            let Some(last) = rooms.last() else { break };
            after = last.to_string();
            for room in rooms {
                let lifetime = self.retain(room, now).await?;
                longest = longest.zip(lifetime).map(|(longest, Lifetime(lifetime))| longest.max(lifetime));
            }
        }
        // A file in an encrypted message may be in any room.
        let longest = match longest.filter(|longest| !longest.is_zero()) {
            Some(longest) => longest.as_millis().to_string(),
            None => "for ever".to_owned(),
        };
        self.core
            .store
            .write("retention", Vec::new(), move |tx| {
                let longest = longest.clone();
                Box::pin(async move {
                    tx.setting_save(LONGEST, &longest).await?;
                    tx.setting_save(LAST, &now.to_string()).await
                })
            })
            .await
            .map_err(PurgeError::Store)
    }

    /// Forgets what is too old in a room. Gives how long its messages live.
    async fn retain(&self, room: OwnedRoomId, now: u64) -> Result<Option<Lifetime>, PurgeError> {
        let Some(Lifetime(lifetime)) = self.lifetime(&room).await? else { return Ok(None) };
        let before = now.saturating_sub(lifetime.as_millis() as u64);
        if !self.has_messages_before(&room, before).await? {
            return Ok(Some(Lifetime(lifetime)));
        }
        let wanted = HistoryPurge { before: Before::Time(before), local: true };
        match self.purge_history(&room, wanted).await {
            Err(PurgeError::UnderWay) => Ok(Some(Lifetime(lifetime))),
            begun => begun.map(|_| Some(Lifetime(lifetime))),
        }
    }

    async fn has_messages_before(&self, room: &RoomId, before: u64) -> Result<bool, PurgeError> {
        let before = i64::try_from(before).unwrap_or(i64::MAX);
        let mut conn = self.core.store.read().await?;
        let Some(row) = conn.room_load(room).await? else { return Ok(false) };
        let ends: BTreeSet<_> = row.extremities.iter().map(|(id, _)| id).collect();
        let old = conn.events_by_time(room, before.saturating_sub(1), false, ENDS).await?;
        Ok(old.iter().any(|stored| !ends.contains(&stored.event.event_id)))
    }

    /// How long messages of a room live; `None`: for ever.
    pub async fn lifetime(&self, room: &RoomId) -> Result<Option<Lifetime>, PurgeError> {
        let store = &self.core.store;
        let id = {
            let mut conn = store.read().await?;
            let Some(row) = conn.room_load(room).await? else { return Ok(None) };
            let kind = StateEventType::from("m.room.retention");
            store.state(&mut conn).get(row.state_root, kind, "").await?
        };
        let policy = match id {
            Some(id) => store.event(&id).await?,
            None => None,
        };
        Ok(self.settings.retention.lifetime(policy.as_ref().map(|stored| &*stored.event)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(max: u64) -> Event {
        let json = json!({
            "type": "m.room.retention", "state_key": "", "sender": "@a:b", "origin_server_ts": 1, "depth": 1,
            "prev_events": [], "auth_events": [], "content": { "max_lifetime": max },
        });
        let raw = serde_json::value::to_raw_value(&json).unwrap();
        Event::parse("$e".try_into().unwrap(), "!r:b".try_into().unwrap(), raw).unwrap()
    }

    #[test]
    fn a_room_says_how_long_within_bounds() {
        let second = Duration::from_secs(1);
        let mut settings = RetentionSettings { enabled: true, ..RetentionSettings::default() };
        assert_eq!(settings.lifetime(None), None);
        assert_eq!(settings.lifetime(Some(&policy(5000))), Some(Lifetime(5 * second)));
        settings.default_max = Some(7 * second);
        assert_eq!(settings.lifetime(None), Some(Lifetime(7 * second)));
        settings.most = Some(4 * second);
        assert_eq!(settings.lifetime(None), Some(Lifetime(4 * second)));
        assert_eq!(settings.lifetime(Some(&policy(5000))), Some(Lifetime(4 * second)));
        settings.least = Some(2 * second);
        assert_eq!(settings.lifetime(Some(&policy(1))), Some(Lifetime(2 * second)));
        settings.enabled = false;
        assert_eq!(settings.lifetime(Some(&policy(1))), None);
    }
}
