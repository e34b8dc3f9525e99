//! What we remember of rooms between syncs: membership, encryption, members. Decrypted words are kept in
//! memory only and never written to the home directory.

use std::collections::{BTreeMap, VecDeque};

use client_ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{
        AnyStrippedStateEvent, AnySyncStateEvent, AnySyncTimelineEvent, SyncStateEvent,
        room::{
            encryption::RoomEncryptionEventContent, history_visibility::HistoryVisibility,
            member::MembershipState,
        },
    },
    serde::Raw,
};
use serde::{Deserialize, Serialize};

use crate::timeline::TimelineEvent;

/// Events kept in memory, over all rooms; older ones are read again with `messages`.
const MAX_TIMELINE: usize = 10_000;
/// Encrypted events that wait for their key; more than this and the oldest is given up.
const MAX_WAITING: usize = 1_000;

/// Our relation to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    Joined,
    Invited,
    Left,
}

/// A room as far as this device knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Room {
    pub membership: Membership,
    pub name: Option<String>,
    /// Set once, never taken back: a server cannot talk us into sending in the clear.
    pub encryption: Option<RoomEncryptionEventContent>,
    pub history_visibility: HistoryVisibility,
    pub members: BTreeMap<OwnedUserId, MembershipState>,
    /// Whether `members` is the whole list, or only those that events named (lazy loading).
    pub members_complete: bool,
    pub inviter: Option<OwnedUserId>,
}

impl Room {
    pub(crate) fn new(membership: Membership) -> Self {
        Self {
            membership,
            name: None,
            encryption: None,
            history_visibility: HistoryVisibility::Shared,
            members: BTreeMap::new(),
            members_complete: false,
            inviter: None,
        }
    }

    pub fn is_encrypted(&self) -> bool {
        self.encryption.is_some()
    }

    /// Those who get the key of what we say next: members, and invited people when they may read from their
    /// invitation on.
    ///
    /// <https://spec.matrix.org/v1.18/client-server-api/#room-history-visibility>
    pub fn recipients(&self) -> Vec<OwnedUserId> {
        let invited_too = self.history_visibility != HistoryVisibility::Joined;
        let entitled = |state: &MembershipState| match state {
            MembershipState::Join => true,
            MembershipState::Invite => invited_too,
            _ => false,
        };
        self.members.iter().filter(|(_, state)| entitled(state)).map(|(user, _)| user.clone()).collect()
    }

    pub fn membership_of(&self, user: &UserId) -> Option<&MembershipState> {
        self.members.get(user)
    }

    pub(crate) fn apply(&mut self, raw: &Raw<AnySyncStateEvent>) {
        // A state event that does not parse is nobody's state: skipped, like every client does.
        let Ok(event) = raw.deserialize() else { return };
        match event {
            AnySyncStateEvent::RoomMember(event) => {
                self.members.insert(event.state_key().clone(), event.membership().clone());
            }
            AnySyncStateEvent::RoomEncryption(SyncStateEvent::Original(event)) => {
                self.encryption = Some(event.content);
            }
            AnySyncStateEvent::RoomHistoryVisibility(event) => {
                self.history_visibility = event.history_visibility().clone();
            }
            AnySyncStateEvent::RoomName(SyncStateEvent::Original(event)) => {
                self.name = Some(event.content.name).filter(|name| !name.is_empty());
            }
            _ => {}
        }
    }

    pub(crate) fn apply_stripped(&mut self, raw: &Raw<AnyStrippedStateEvent>, me: &UserId) {
        match raw.deserialize() {
            Ok(AnyStrippedStateEvent::RoomName(event)) => {
                self.name = event.content.name.filter(|name| !name.is_empty());
            }
            Ok(AnyStrippedStateEvent::RoomMember(event)) => {
                if event.state_key == me {
                    self.inviter = Some(event.sender);
                }
                self.members.insert(event.state_key, event.content.membership);
            }
            _ => {}
        }
    }
}

/// An encrypted event whose key has not come yet.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub room_id: OwnedRoomId,
    pub event_id: OwnedEventId,
    pub raw: Raw<AnySyncTimelineEvent>,
}

/// Everything a sync teaches. The predicates of `sync_until` look at this.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Store {
    pub(crate) since: Option<String>,
    rooms: BTreeMap<OwnedRoomId, Room>,
    #[serde(skip)]
    timeline: VecDeque<TimelineEvent>,
    #[serde(skip)]
    waiting: VecDeque<Waiting>,
}

impl Store {
    pub fn rooms(&self) -> impl Iterator<Item = (&RoomId, &Room)> {
        self.rooms.iter().map(|(id, room)| (&**id, room))
    }

    pub fn room(&self, id: &RoomId) -> Option<&Room> {
        self.rooms.get(id)
    }

    /// The decrypted timeline of a room since this process began to sync, oldest first.
    pub fn timeline<'a>(&'a self, room: &'a RoomId) -> impl Iterator<Item = &'a TimelineEvent> {
        self.timeline.iter().filter(move |event| event.room_id == room)
    }

    /// All rooms' events in the order they arrived.
    pub fn events(&self) -> impl Iterator<Item = &TimelineEvent> {
        self.timeline.iter()
    }

    pub fn find(&self, mut wanted: impl FnMut(&TimelineEvent) -> bool) -> Option<&TimelineEvent> {
        self.timeline.iter().find(|event| wanted(event))
    }

    pub(crate) fn room_mut(&mut self, id: &RoomId, membership: Membership) -> &mut Room {
        let room = self.rooms.entry(id.to_owned()).or_insert_with(|| Room::new(membership));
        room.membership = membership;
        room
    }

    /// Adds an event, or puts its decrypted form where the sealed one stood.
    pub(crate) fn put(&mut self, event: TimelineEvent) {
        if let Some(place) = self.timeline.iter_mut().rev().find(|known| known.event_id == event.event_id) {
            *place = event;
            return;
        }
        if self.timeline.len() == MAX_TIMELINE {
            self.timeline.pop_front();
        }
        self.timeline.push_back(event);
    }

    pub(crate) fn wait_for_key(&mut self, waiting: Waiting) {
        if self.waiting.iter().any(|known| known.event_id == waiting.event_id) {
            return;
        }
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(waiting);
    }

    pub(crate) fn take_waiting(&mut self) -> Vec<Waiting> {
        self.waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use client_ruma::{room_id, user_id};
    use serde_json::json;

    use super::*;
    use crate::timeline::Seal;

    fn state(event_type: &str, key: &str, content: serde_json::Value) -> Raw<AnySyncStateEvent> {
        Raw::new(&json!({
            "type": event_type, "state_key": key, "event_id": "$s", "origin_server_ts": 1,
            "sender": "@alice:example.org", "content": content,
        }))
        .unwrap()
        .cast_unchecked()
    }

    #[test]
    fn invited_people_get_the_key_unless_history_begins_at_the_join() {
        let mut room = Room::new(Membership::Joined);
        room.apply(&state("m.room.member", "@alice:example.org", json!({"membership": "join"})));
        room.apply(&state("m.room.member", "@bob:example.net", json!({"membership": "invite"})));
        room.apply(&state("m.room.member", "@carol:example.net", json!({"membership": "leave"})));
        assert_eq!(room.recipients(), [user_id!("@alice:example.org"), user_id!("@bob:example.net")]);
        room.apply(&state("m.room.history_visibility", "", json!({"history_visibility": "joined"})));
        assert_eq!(room.recipients(), [user_id!("@alice:example.org")]);
    }

    #[test]
    fn encryption_is_never_taken_back() {
        let mut room = Room::new(Membership::Joined);
        room.apply(&state("m.room.encryption", "", json!({"algorithm": "m.megolm.v1.aes-sha2"})));
        assert!(room.is_encrypted());
        room.apply(&state("m.room.encryption", "", json!({})));
        assert!(room.is_encrypted());
    }

    #[test]
    fn a_decrypted_event_takes_the_place_of_the_sealed_one() {
        let room = room_id!("!room:example.org");
        let raw: Raw<AnySyncTimelineEvent> = Raw::new(&json!({
            "type": "m.room.encrypted", "event_id": "$e", "sender": "@alice:example.org",
            "origin_server_ts": 1, "content": {},
        }))
        .unwrap()
        .cast_unchecked();
        let mut store = Store::default();
        store.put(TimelineEvent::sealed(room, &raw, "no key").unwrap());
        let mut opened = TimelineEvent::read(room, &raw, Seal::Verified).unwrap();
        opened.content = crate::timeline::Content::Text { body: "words".to_owned(), replaces: None };
        store.put(opened);
        assert_eq!(store.events().count(), 1);
        assert_eq!(store.timeline(room).next().unwrap().body(), Some("words"));
    }

    #[test]
    fn words_are_not_written_down() {
        let room = room_id!("!room:example.org");
        let raw: Raw<AnySyncTimelineEvent> = Raw::new(&json!({
            "type": "m.room.message", "event_id": "$e", "sender": "@alice:example.org",
            "origin_server_ts": 1, "content": {"msgtype": "m.text", "body": "between us"},
        }))
        .unwrap()
        .cast_unchecked();
        let mut store = Store::default();
        store.room_mut(room, Membership::Joined);
        store.put(TimelineEvent::read(room, &raw, Seal::Verified).unwrap());
        assert!(!serde_json::to_string(&store).unwrap().contains("between us"));
    }
}
