//! A rule, an event that it lets pass and one that it does not, in every room version.

use ruma::events::TimelineEventType;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::auth::{
    auth_types_for, check_state_dependent, check_state_independent, create_event_id, state_of_auth_events,
};
use waxwing_rooms::version::SUPPORTED;
use waxwing_rooms::{AuthMap, Judged};

/// Made the room: level 100, or that of a creator from version 12 on.
pub const ALICE: &str = "@alice:x";
/// In the room, with level 50.
pub const MOD: &str = "@mod:x";
/// In the room, with level 50 too.
pub const OTHER_MOD: &str = "@othermod:x";
/// In the room, without a level.
pub const BOB: &str = "@bob:x";
/// In the room, without a level, on another server.
pub const EVE: &str = "@eve:elsewhere";
pub const INVITED: &str = "@invited:x";
pub const BANNED: &str = "@banned:x";
pub const LEFT: &str = "@left:x";
pub const KNOCKING: &str = "@knocking:x";
/// Never was in the room.
pub const STRANGER: &str = "@stranger:x";

/// All room versions.
pub const ALL: RangeInclusive<u8> = 1..=12;
/// The room's id: that of its create event with another sigil, so that it suits version 12 too.
const ROOM: &str = "!create:x";
/// As large as a level can be.
pub const LARGEST: i64 = (1 << 53) - 1;

pub fn id(name: &str) -> OwnedEventId {
    format!("${name}").try_into().expect("an event id")
}

/// An event that somebody tries to send; what is not said is as it should be.
#[derive(Clone)]
pub struct Try {
    sender: String,
    kind: String,
    key: Option<String>,
    content: Value,
    id: String,
    redacts: Option<String>,
    prev: Vec<&'static str>,
    /// In place of those that the state holds.
    auth: Option<Vec<&'static str>>,
    /// Besides.
    more_auth: Vec<&'static str>,
    without_auth: Option<&'static str>,
    room: &'static str,
}

pub fn event(sender: &str, kind: &str, content: Value) -> Try {
    Try {
        sender: sender.to_owned(),
        kind: kind.to_owned(),
        key: None,
        content,
        id: "attempt:x".to_owned(),
        redacts: None,
        prev: vec!["mod:x"],
        auth: None,
        more_auth: Vec::new(),
        without_auth: None,
        room: ROOM,
    }
}

pub fn state(sender: &str, kind: &str, key: &str, content: Value) -> Try {
    Try { key: Some(key.to_owned()), ..event(sender, kind, content) }
}

pub fn message(sender: &str) -> Try {
    event(sender, "m.room.message", json!({ "body": "words" }))
}

pub fn member(sender: &str, target: &str, membership: &str) -> Try {
    state(sender, "m.room.member", target, json!({ "membership": membership }))
}

pub fn create(content: Value) -> Try {
    Try { prev: Vec::new(), auth: Some(Vec::new()), ..state(ALICE, "m.room.create", "", content) }
}

pub fn join_rule(rule: &str) -> Try {
    state(ALICE, "m.room.join_rules", "", json!({ "join_rule": rule }))
}

impl Try {
    /// With this in its content.
    pub fn with(mut self, field: &str, value: Value) -> Try {
        self.content[field] = value;
        self
    }
    pub fn named(self, id: &str) -> Try {
        Try { id: id.to_owned(), ..self }
    }
    pub fn redacting(self, id: &str) -> Try {
        Try { redacts: Some(id.to_owned()), ..self }
    }
    pub fn after(self, prev: &[&'static str]) -> Try {
        Try { prev: prev.to_vec(), ..self }
    }
    /// With one auth event more.
    pub fn citing(mut self, id: &'static str) -> Try {
        self.more_auth.push(id);
        self
    }
    pub fn not_citing(self, id: &'static str) -> Try {
        Try { without_auth: Some(id), ..self }
    }
    pub fn citing_nothing(self) -> Try {
        Try { auth: Some(Vec::new()), ..self }
    }
    pub fn in_room(self, room: &'static str) -> Try {
        Try { room, ..self }
    }
}

/// A room as a case has it.
pub struct Room {
    pub version: RoomVersionId,
    /// 1 to 12.
    pub number: u8,
    state: AuthMap,
    events: BTreeMap<OwnedEventId, Arc<Event>>,
    rejected: BTreeSet<OwnedEventId>,
}

impl Room {
    /// With all the people above, public, and levels of 50 for what moderators do.
    fn new(number: u8) -> Room {
        let version = SUPPORTED[usize::from(number) - 1].clone();
        let (events, rejected) = (BTreeMap::new(), BTreeSet::new());
        let mut room = Room { version, number, state: AuthMap::new(), events, rejected };
        let content = json!({ "creator": ALICE, "room_version": number.to_string() });
        room.put(create(content).named("create:x"));
        room.put(member(ALICE, ALICE, "join").named("alice:x"));
        room.put(state(ALICE, "m.room.power_levels", "", json!({})).named("levels:x"));
        room.put(join_rule("public").named("rules:x"));
        for (user, membership) in [
            (MOD, "join"),
            (OTHER_MOD, "join"),
            (BOB, "join"),
            (EVE, "join"),
            (INVITED, "invite"),
            (BANNED, "ban"),
            (LEFT, "leave"),
            (KNOCKING, "knock"),
        ] {
            let sender = if membership == "ban" || membership == "invite" { ALICE } else { user };
            room.put(member(sender, user, membership).named(&user[1..]));
        }
        room
    }

    /// The usual levels, with these changes; `null` takes one out, and `users` and the like are merged.
    fn levels(&self, changes: Value) -> Value {
        let mut levels = json!({
            "users": { MOD: 50, OTHER_MOD: 50 }, "users_default": 0, "events_default": 0, "state_default": 50,
            "ban": 50, "kick": 50, "redact": 50, "invite": 0,
            "events": { "org.example.free": 0, "org.example.dear": 60 },
            "notifications": { "room": 50, "dear": 60 },
        });
        if self.number < 12 {
            levels["users"][ALICE] = 100.into();
        }
        merge(&mut levels, changes);
        levels
    }

    /// Makes an event part of the state, whether it is allowed or not.
    pub fn put(&mut self, what: Try) {
        let what = if what.id == "attempt:x" {
            Try { id: format!("put{}:x", self.events.len()), ..what }
        } else {
            what
        };
        let event = Arc::new(self.make(what));
        let entry = event.state_entry().expect("a state event");
        self.events.insert(event.event_id.clone(), Arc::clone(&event));
        self.state.insert(entry, event);
    }

    /// Makes an event known that is in no state.
    pub fn know(&mut self, what: Try, rejected: bool) {
        let event = Arc::new(self.make(what));
        if rejected {
            self.rejected.insert(event.event_id.clone());
        }
        self.events.insert(event.event_id.clone(), event);
    }

    pub fn reject(&mut self, name: &str) {
        self.rejected.insert(id(name));
    }

    pub fn remove(&mut self, kind: &str, key: &str) {
        self.state.remove(&(kind.into(), key.to_owned()));
    }

    /// Only the create event is left of the state.
    pub fn strip(&mut self) {
        self.state.retain(|key, _| key.0.to_string() == "m.room.create");
    }

    fn make(&self, what: Try) -> Event {
        let kind = TimelineEventType::from(what.kind.as_str());
        let sender = OwnedUserId::try_from(what.sender.as_str()).expect("a user id");
        let content = match what.kind.as_str() {
            // What a case says of levels are changes to the usual ones.
            "m.room.power_levels" => self.levels(what.content),
            _ => what.content,
        };
        let raw = to_raw_value(&content).expect("JSON");
        let chosen = || {
            let keys = auth_types_for(&kind, &sender, what.key.as_deref(), &raw, &self.version);
            let keys = keys.unwrap_or_default();
            keys.iter().filter_map(|key| Some(self.state.get(key)?.event_id.clone())).collect::<Vec<_>>()
        };
        let mut auth = match &what.auth {
            Some(names) => names.iter().map(|name| id(name)).collect(),
            None => chosen(),
        };
        auth.extend(what.more_auth.iter().map(|name| id(name)));
        auth.retain(|event| what.without_auth.is_none_or(|name| *event != id(name)));
        let prev: Vec<OwnedEventId> = what.prev.iter().map(|name| id(name)).collect();
        let mut pdu = json!({
            "type": what.kind, "sender": what.sender, "content": content, "depth": 10, "origin_server_ts": 10,
            "prev_events": prev, "auth_events": auth,
        });
        let of_create = self.number == 12 && what.kind == "m.room.create" && what.room == ROOM;
        if !of_create {
            pdu["room_id"] = what.room.into();
        }
        if let Some(key) = what.key {
            pdu["state_key"] = key.into();
        }
        if let Some(target) = what.redacts {
            pdu["redacts"] = target.into();
        }
        let room = OwnedRoomId::try_from(what.room).expect("a room id");
        Event::parse(id(&what.id), room, to_raw_value(&pdu).expect("JSON")).expect("an event")
    }

    fn fetch(&self, id: &EventId) -> Option<Judged> {
        let event = Arc::clone(self.events.get(id)?);
        Some(Judged { event, rejected: self.rejected.contains(id) })
    }

    /// The checks on receipt: by itself, by its auth events, by the state.
    pub fn check(&self, what: Try) -> Result<(), String> {
        let event = self.make(what);
        let version = &self.version;
        check_state_independent(&event, version, |id| self.fetch(id)).map_err(|error| error.to_string())?;
        let own = state_of_auth_events(&event, version, |id| self.fetch(id));
        check_state_dependent(&event, version, &own).map_err(|error| error.to_string())?;
        let implied = create_event_id(&event.room_id, version);
        assert!(implied.is_none_or(|id| self.events.contains_key(&id)), "the create event is known");
        check_state_dependent(&event, version, &self.state).map_err(|error| error.to_string())
    }
}

fn merge(into: &mut Value, changes: Value) {
    let Value::Object(changes) = changes else {
        *into = changes;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, change) in changes {
        if change.is_null() {
            into.as_object_mut().expect("an object").remove(&key);
        } else {
            merge(&mut into[key.as_str()], change);
        }
    }
}

/// What becomes of the two events in versions that do not have the rule.
#[derive(Clone, Copy)]
pub enum Elsewhere {
    /// Nothing that this rule would say anything of.
    Unsaid,
    /// Whether they are allowed there.
    Allowed { good: bool, bad: bool },
}

pub struct Case {
    rule: &'static str,
    versions: RangeInclusive<u8>,
    room: fn(&mut Room),
    good: Try,
    bad: Try,
    elsewhere: Elsewhere,
}

/// A rule of all versions.
pub fn rule(rule: &'static str, good: Try, bad: Try) -> Case {
    Case { rule, versions: ALL, room: |_| (), good, bad, elsewhere: Elsewhere::Unsaid }
}

impl Case {
    pub fn of(self, versions: RangeInclusive<u8>) -> Case {
        Case { versions, ..self }
    }
    pub fn given(self, room: fn(&mut Room)) -> Case {
        Case { room, ..self }
    }
    /// What other versions make of the two.
    pub fn elsewhere(self, good: bool, bad: bool) -> Case {
        Case { elsewhere: Elsewhere::Allowed { good, bad }, ..self }
    }

    fn run(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for number in ALL {
            let (good, bad) = match self.elsewhere {
                _ if self.versions.contains(&number) => (true, false),
                Elsewhere::Unsaid => continue,
                Elsewhere::Allowed { good, bad } => (good, bad),
            };
            let mut room = Room::new(number);
            (self.room)(&mut room);
            for (name, what, expected) in [("good", &self.good, good), ("bad", &self.bad, bad)] {
                let found = room.check(what.clone());
                if found.is_ok() != expected {
                    wrong.push(format!("version {number}: {}: the {name} event: {found:?}", self.rule));
                }
            }
        }
        wrong
    }
}

/// Runs a table.
pub fn run(cases: Vec<Case>) {
    let wrong: Vec<String> = cases.iter().flat_map(Case::run).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
