//! A small room with things that can go wrong at the same time.

use super::memory::split;
use super::{Loaded, Memory, Need, StateMap, resolve_conflicts};
use ruma::{OwnedEventId, OwnedRoomId, RoomVersionId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::Event;

pub(crate) const ALICE: &str = "@alice:x";
pub(crate) const BOB: &str = "@bob:x";
pub(crate) const CAROL: &str = "@carol:x";
pub(crate) const DAVE: &str = "@dave:x";

pub(crate) fn id(name: &str) -> OwnedEventId {
    format!("${name}:x").try_into().unwrap()
}

fn room_id() -> OwnedRoomId {
    "!create:x".try_into().unwrap()
}

/// One event: (name, sender, type, state key, depth and time, content, auth events).
pub(crate) type Spec<'a> = (&'a str, &'a str, &'a str, &'a str, u32, Value, &'a str);

pub(crate) struct Room {
    pub version: RoomVersionId,
    pub events: BTreeMap<OwnedEventId, Arc<Event>>,
}

impl Room {
    /// Alice's public room: she has made Bob a moderator; Carol has joined too. Everything that may happen next is
    /// there as an event, but in no state.
    pub fn new(version: RoomVersionId) -> Room {
        let mut room = Room { version, events: BTreeMap::new() };
        let member = |membership: &str| json!({ "membership": membership });
        room.add(("create", ALICE, "m.room.create", "", 1, json!({ "creator": ALICE }), ""));
        room.add(("alice", ALICE, "m.room.member", ALICE, 2, member("join"), "create"));
        room.add(("pl", ALICE, "m.room.power_levels", "", 3, room.levels(&[(BOB, 50)]), "create alice"));
        room.add((
            "jr",
            ALICE,
            "m.room.join_rules",
            "",
            4,
            json!({ "join_rule": "public" }),
            "create alice pl",
        ));
        room.add(("bob", BOB, "m.room.member", BOB, 5, member("join"), "create pl jr"));
        room.add(("carol", CAROL, "m.room.member", CAROL, 6, member("join"), "create pl jr"));
        room.add(("topic", ALICE, "m.room.topic", "", 7, json!({ "topic": "first" }), "create alice pl"));

        room.add(("ban_bob", ALICE, "m.room.member", BOB, 11, member("ban"), "create alice pl bob"));
        room.add(("bob_left", BOB, "m.room.member", BOB, 14, member("leave"), "create pl bob"));
        let raised = room.levels(&[(BOB, 50), (CAROL, 50)]);
        room.add(("pl_by_bob", BOB, "m.room.power_levels", "", 10, raised, "create bob pl"));
        let strict = room.levels(&[(BOB, 0)]);
        room.add(("pl_by_alice", ALICE, "m.room.power_levels", "", 12, strict, "create alice pl"));
        room.add(("topic_by_bob", BOB, "m.room.topic", "", 13, json!({ "topic": "Bob's" }), "create bob pl"));
        let after = json!({ "topic": "Alice's" });
        room.add(("topic_by_alice", ALICE, "m.room.topic", "", 12, after, "create alice pl"));
        let closed = json!({ "join_rule": "invite" });
        room.add(("jr_closed", ALICE, "m.room.join_rules", "", 10, closed, "create alice pl"));
        room.add(("dave", DAVE, "m.room.member", DAVE, 12, member("join"), "create pl jr"));
        room.add(("dave_again", DAVE, "m.room.member", DAVE, 13, member("join"), "create pl jr dave"));
        room
    }

    /// Power levels; Alice's 100 where a creator does not have more than any number.
    pub fn levels(&self, users: &[(&str, i64)]) -> Value {
        let mut users: BTreeMap<&str, i64> = users.iter().copied().collect();
        if self.version != RoomVersionId::V12 {
            users.insert(ALICE, 100);
        }
        json!({ "users": users, "state_default": 50 })
    }

    pub fn add(&mut self, (name, sender, kind, key, depth, content, auth): Spec<'_>) {
        let newest = self.version == RoomVersionId::V12;
        let auth = auth.split_whitespace().filter(|name| !newest || *name != "create");
        let mut pdu = json!({
            "type": kind, "sender": sender, "state_key": key, "depth": depth, "origin_server_ts": depth,
            "content": content, "prev_events": [], "auth_events": auth.map(id).collect::<Vec<_>>(),
            "room_id": room_id(),
        });
        if newest && kind == "m.room.create" {
            pdu.as_object_mut().unwrap().remove("room_id");
        }
        let raw = serde_json::value::to_raw_value(&pdu).unwrap();
        let event = Event::parse(id(name), room_id(), raw).unwrap();
        self.events.insert(id(name), Arc::new(event));
    }

    /// The state after these events, one after the other.
    pub fn state(&self, names: &str) -> StateMap {
        let events = names.split_whitespace().map(|name| &self.events[&id(name)]);
        events.map(|event| (event.state_entry().unwrap(), event.event_id.clone())).collect()
    }

    /// The state after the room's beginning and these events.
    pub fn after(&self, names: &str) -> StateMap {
        self.state(&format!("create alice pl jr bob carol topic {names}"))
    }

    /// All of it.
    pub fn memory(&self) -> Memory {
        Memory::new(self.events.values().map(|event| (Arc::clone(event), false)))
    }

    /// Resolves, loading what is asked for and nothing else.
    pub fn resolve(&self, states: &[StateMap]) -> StateMap {
        self.memory().resolve(&self.version, states).unwrap()
    }

    /// Also says how many events, entries and nodes it took; nothing is asked for twice.
    pub fn resolve_counting(&self, states: &[StateMap]) -> (StateMap, usize) {
        let memory = self.memory();
        let (agreed, sides) = split(states).unwrap();
        let mut loaded = Loaded::new();
        let mut asked = BTreeSet::new();
        loop {
            let need = match resolve_conflicts(&self.version, &sides, &loaded) {
                Ok(state) => return (agreed.into_iter().chain(state).collect(), asked.len()),
                Err(need) => need,
            };
            let names: Vec<String> = match &need {
                Need::Events(ids) => ids.iter().map(|id| format!("event {id}")).collect(),
                Need::Entries(keys) => keys.iter().map(|key| format!("entry {key:?}")).collect(),
                Need::NodesOf(ids) => ids.iter().map(|id| format!("node of {id}")).collect(),
                Need::Nodes(numbers) => numbers.iter().map(|number| format!("node {number}")).collect(),
                Need::Later { of, after } => vec![format!("after {after} of {of:?}")],
                Need::Impossible(why) => panic!("{why}"),
            };
            assert!(!names.is_empty());
            for name in names {
                assert!(asked.insert(name.clone()), "{name} is asked for twice");
            }
            memory.answer(need, &agreed, &mut loaded).unwrap();
        }
    }
}
