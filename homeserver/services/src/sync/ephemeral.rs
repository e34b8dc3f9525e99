//! Typing, receipts and presence.

use super::Sync;
use super::build::Build;
use super::joined::View;
use super::rooms::Shown;
use super::window::Window;
use crate::Core;
use crate::notifier::Notifier;
use crate::presence::{Presence, PresenceService};
use crate::typing::Typing;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use waxwing_storage::{Fact, LogRow, ReceiptRow, StoreResult};

/// Changes of presence are told at most this often: each wakes everyone who shares a room.
const PRESENCE_EVERY: Duration = Duration::from_millis(250);

/// Starts the tasks that wake syncs for what is not in the log.
pub(super) fn wake(core: &Core, notifier: &Arc<Notifier>, typing: &Typing, presence: &PresenceService) {
    tokio::spawn(wake_typing(Arc::downgrade(notifier), typing.clone()));
    if core.settings.presence {
        tokio::spawn(wake_presence(core.clone(), Arc::downgrade(notifier), presence.clone()));
    }
}

async fn wake_typing(notifier: Weak<Notifier>, typing: Typing) {
    let mut clock = typing.subscribe();
    let mut seen = *clock.borrow_and_update();
    while clock.changed().await.is_ok() {
        let now = *clock.borrow_and_update();
        let Some(notifier) = notifier.upgrade() else { return };
        for room in typing.rooms_changed_since(seen) {
            notifier.wake_room(&room);
        }
        seen = now;
    }
}

async fn wake_presence(core: Core, notifier: Weak<Notifier>, presence: PresenceService) {
    let mut clock = presence.subscribe();
    let mut seen = *clock.borrow_and_update();
    while clock.changed().await.is_ok() {
        let now = *clock.borrow_and_update();
        let changed: Vec<OwnedUserId> = presence.changed_since(seen).into_keys().collect();
        seen = now;
        {
            let Some(notifier) = notifier.upgrade() else { return };
            let mut woken: BTreeSet<OwnedUserId> = BTreeSet::new();
            for user in changed {
                if core.is_local(&user) {
                    woken.extend(notifier.folds().locals_sharing(&user));
                } else if let Ok(sharing) = sharing(&core, &user).await {
                    woken.extend(sharing.into_iter().filter(|other| core.is_local(other)));
                }
            }
            notifier.wake_users(woken.iter().map(|user| &**user));
        }
        tokio::time::sleep(PRESENCE_EVERY).await;
    }
}

async fn sharing(core: &Core, user: &UserId) -> StoreResult<Vec<OwnedUserId>> {
    core.store.read().await?.users_sharing(user).await
}

impl Build<'_> {
    /// Joined rooms in which who types changed since the last answer.
    pub fn typing_rooms(&self) -> BTreeSet<OwnedRoomId> {
        let seen = self.request.since.map_or(0, |since| since.typing);
        if self.request.since.is_some() && self.clocks.0 <= seen {
            return BTreeSet::new();
        }
        let changed = self.sync.typing.rooms_changed_since(seen);
        let joined = |room: &OwnedRoomId| self.rooms.get(room) == Some(&crate::folds::Membership::Join);
        let typing = |room: &OwnedRoomId| self.since.is_some() || !self.sync.typing.typists(room).is_empty();
        changed.into_iter().filter(|room| joined(room) && typing(room)).collect()
    }

    /// The ephemeral events of a joined room.
    pub async fn ephemeral(&self, room: &RoomId, view: &View<'_>) -> StoreResult<Vec<Box<RawValue>>> {
        let mut events = Vec::new();
        if view.typing && self.request.filter.ephemeral(room, "m.typing") {
            let mut typists = self.sync.typing.typists(room);
            typists.retain(|user| !self.ignored.contains(user));
            events.extend(typing_event(&typists));
        }
        if self.request.filter.ephemeral(room, "m.receipt") {
            events.extend(self.receipts(room, view).await?);
        }
        Ok(events.into_iter().map(|event| self.request.filter.shape(event)).collect())
    }

    async fn receipts(&self, room: &RoomId, view: &View<'_>) -> StoreResult<Option<Box<RawValue>>> {
        let whole = view.anew || matches!(view.rows, super::window::RoomRows::Many);
        let ahead = self.ahead();
        let receipts = if whole && ahead.rows.contains_key(room) {
            ahead.receipts.get(room).cloned().unwrap_or_default()
        } else if whole {
            self.core().store.read().await?.receipts_of_room(room, self.user()).await?
        } else {
            self.receipts_of_rows(room, view.rows.rows()).await?
        };
        Ok(receipt_event(&receipts))
    }

    /// The receipts that these rows announce and the user may see.
    pub async fn receipts_of_rows(
        &self,
        room: &RoomId,
        rows: &[Arc<LogRow>],
    ) -> StoreResult<Vec<ReceiptRow>> {
        let changed: BTreeSet<(&str, &str, &str)> = rows
            .iter()
            .filter(|row| row.fact == Fact::Receipt)
            .filter_map(|row| {
                let thread = row.data.as_deref().unwrap_or_default();
                Some((row.user.as_ref()?.as_str(), row.reference.as_deref()?, thread))
            })
            .filter(|(user, kind, _)| *kind == "m.read" || *user == self.user().as_str())
            .collect();
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        let mut conn = self.core().store.read().await?;
        if changed.len() > 20 {
            let mut all = conn.receipts_of_room(room, self.user()).await?;
            all.retain(|row| {
                changed.contains(&(row.user_id.as_str(), row.kind.as_str(), row.thread.as_str()))
            });
            return Ok(all);
        }
        let mut some = Vec::with_capacity(changed.len());
        for (user, kind, thread) in changed {
            let Ok(user) = UserId::parse(user) else { continue };
            some.extend(conn.receipt_load(room, &user, kind, thread).await?);
        }
        Ok(some)
    }

    /// Presence of those who share a room with the user: what changed, and everything of those who are new.
    pub async fn presence(&self, window: &Window, shown: &Shown) -> StoreResult<Vec<Box<RawValue>>> {
        let service = &self.sync.presence;
        if !service.is_on() {
            return Ok(Vec::new());
        }
        let seen = self.request.since.map_or(0, |since| since.presence);
        let mut all: BTreeMap<OwnedUserId, Presence> = BTreeMap::new();
        if self.clocks.1 > seen {
            let changed = service.changed_since(seen);
            let visible = self.who_shares(changed.keys().cloned().collect()).await?;
            all.extend(changed.into_iter().filter(|(user, _)| visible.contains(user)));
        }
        if self.since.is_some() {
            for user in self.newcomers(window, shown).await? {
                if let Some(presence) = service.known(&user) {
                    all.insert(user, presence);
                }
            }
        }
        let filter = &self.request.filter;
        let wanted =
            all.iter().filter(|(user, _)| filter.presence(user.as_str()) && !self.ignored.contains(*user));
        Ok(wanted.filter_map(|(user, presence)| presence_event(user, presence)).collect())
    }

    /// Those of `users` who share a room with the user; the user too.
    async fn who_shares(&self, users: Vec<OwnedUserId>) -> StoreResult<BTreeSet<OwnedUserId>> {
        let folds = self.sync.notifier.folds();
        let (local, remote): (Vec<_>, Vec<_>) =
            users.into_iter().partition(|user| self.core().is_local(user));
        let mut sharing: BTreeSet<OwnedUserId> = local
            .into_iter()
            .filter(|other| other == self.user() || folds.share_room(self.user(), other))
            .collect();
        if !remote.is_empty() {
            let mut conn = self.core().store.read().await?;
            sharing.extend(conn.users_sharing_among(self.user(), &remote).await?);
        }
        Ok(sharing)
    }

    /// Users who came into the user's rooms, and those in rooms that the user came into.
    async fn newcomers(&self, window: &Window, shown: &Shown) -> StoreResult<BTreeSet<OwnedUserId>> {
        let mut newcomers = BTreeSet::new();
        for (room, rows) in &window.rooms {
            if !self.rooms.contains_key(room) {
                continue;
            }
            let rows = rows.rows().iter().filter(|row| row.fact == Fact::Event);
            let joins = rows.filter_map(|row| {
                let event = &row.event.as_ref()?.event;
                let joined = event.content_str("membership")? == "join";
                row.user.clone().filter(|user| joined && user != self.user())
            });
            newcomers.extend(joins);
        }
        for room in &shown.newly_joined {
            let members = self.core().store.read().await?.members_of(room, "join").await?;
            newcomers.extend(members.into_iter().map(|row| row.user_id));
        }
        Ok(newcomers)
    }
}

/// Who types, as clients get it.
pub(super) fn typing_event(typists: &[OwnedUserId]) -> Option<Box<RawValue>> {
    raw(&json!({ "type": "m.typing", "content": { "user_ids": typists } }))
}

/// One user's presence as an event.
pub(crate) fn presence_event(user: &UserId, presence: &Presence) -> Option<Box<RawValue>> {
    let mut content = Map::new();
    content.insert("presence".into(), presence.state.as_str().into());
    if let Some(words) = &presence.status_msg {
        content.insert("status_msg".into(), words.as_str().into());
    }
    if let Some(ago) = presence.last_active_ago {
        content.insert("last_active_ago".into(), ago.into());
    }
    content.insert("currently_active".into(), presence.currently_active.into());
    raw(&json!({ "type": "m.presence", "sender": user, "content": content }))
}

/// One event for all receipts: event id → kind → user → data.
/// <https://spec.matrix.org/v1.19/client-server-api/#mreceipt>
pub(crate) fn receipt_event(receipts: &[ReceiptRow]) -> Option<Box<RawValue>> {
    if receipts.is_empty() {
        return None;
    }
    // One user's receipts of several threads may stand at one event: the format has room for one of them, and the
    // unthreaded one says the most (MSC4102).
    let mut receipts: Vec<&ReceiptRow> = receipts.iter().collect();
    receipts.sort_by_key(|row| row.thread.is_empty());
    let mut content: BTreeMap<&str, BTreeMap<&str, BTreeMap<&str, Value>>> = BTreeMap::new();
    for row in receipts {
        let mut data: Map<String, Value> = serde_json::from_str(&row.data).unwrap_or_default();
        if !row.thread.is_empty() {
            data.insert("thread_id".into(), row.thread.as_str().into());
        }
        let kinds = content.entry(&row.event_id).or_default();
        kinds.entry(&row.kind).or_default().insert(row.user_id.as_str(), Value::Object(data));
    }
    raw(&json!({ "type": "m.receipt", "content": content }))
}

fn raw(value: &Value) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(value).ok()
}

impl Sync {
    /// The notifier that wakes its syncs.
    pub fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{room_id, user_id};

    #[test]
    fn an_unthreaded_receipt_wins_over_threaded_ones() {
        let receipt = |thread: &str| ReceiptRow {
            room_id: room_id!("!r:x").to_owned(),
            user_id: user_id!("@a:x").to_owned(),
            kind: "m.read".to_owned(),
            thread: thread.to_owned(),
            event_id: "$e".to_owned(),
            event_sn: Some(1),
            data: r#"{"ts":5}"#.to_owned(),
        };
        let read = |rows: &[ReceiptRow]| -> Value {
            let event: Value = serde_json::from_str(receipt_event(rows).unwrap().get()).unwrap();
            event["content"]["$e"]["m.read"]["@a:x"].clone()
        };
        assert_eq!(read(&[receipt(""), receipt("main")]), json!({ "ts": 5 }));
        assert_eq!(read(&[receipt("$t")]), json!({ "ts": 5, "thread_id": "$t" }));
        assert!(receipt_event(&[]).is_none());
    }
}
