//! Reading rooms: who sees what of a room's history, and how it is walked.

use ruma::events::TimelineEventType;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, UserId};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::render::Viewer;
use waxwing_services::rooms_read::{
    EventFilter, MemberQuery, MessagesQuery, Page, ReadError, RelationsQuery, RoomReader, ThreadsQuery,
};
use waxwing_services::timeline::{Author, CreateRoom, Draft, JoinRoom, Preset, Removal, Timeline};
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use waxwing_storage::Store;

struct Server {
    core: Core,
    timeline: Timeline,
    reader: RoomReader,
    _dir: tempfile::TempDir,
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite:{}", dir.path().join("test.db").display())).await.unwrap();
    let core = Core {
        server_name: "test".try_into().unwrap(),
        clock: Clock::System,
        store,
        key: Arc::new(KeyPair::generate().unwrap()),
        settings: Arc::new(Settings {
            registration: RegistrationMode::Open,
            registration_shared_secret: None,
            plaintext: PlaintextPolicy { accept: true, ..PlaintextPolicy::default() },
            default_room_version: RoomVersionId::V12,
            presence: false,
            max_upload_bytes: 1,
            password: PasswordCost { memory_kib: 8, iterations: 1 },
            everyone_publishes_rooms: true,
            federation: false,
            push: waxwing_services::PushSettings::default(),
            accounts: waxwing_services::AccountSettings::default(),
        }),
    };
    let reader = RoomReader::new(core.clone(), None, None);
    Server { timeline: Timeline::new(core.clone(), None), reader, core, _dir: dir }
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:test")).unwrap()
}

fn viewer(name: &str) -> Viewer {
    Viewer::new(user(name))
}

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).unwrap()
}

/// What the events say: `content.body`, or the type for others.
fn words(events: &[Box<RawValue>]) -> Vec<String> {
    let word = |event: &RawValue| {
        let event: Value = serde_json::from_str(event.get()).unwrap();
        let said = event["content"]["body"].as_str().or(event["type"].as_str());
        said.unwrap_or_default().to_owned()
    };
    events.iter().map(|event| word(event)).collect()
}

fn spoken(page: &Page) -> Vec<String> {
    words(&page.chunk).into_iter().filter(|word| !word.starts_with("m.")).collect()
}

/// Who is in the member events, with the membership, sorted.
fn memberships(events: &[Box<RawValue>]) -> Vec<(String, String)> {
    let mut all: Vec<_> = events
        .iter()
        .map(|event| {
            let event: Value = serde_json::from_str(event.get()).unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&event["state_key"]), text(&event["content"]["membership"]))
        })
        .collect();
    all.sort();
    all
}

impl Server {
    /// A room of ann's with this history visibility.
    async fn room(&self, visibility: &str) -> OwnedRoomId {
        let content = json!({"history_visibility": visibility});
        let wish = CreateRoom {
            author: Author::new(user("ann")),
            version: None,
            creation_content: Map::new(),
            preset: Preset::PublicChat,
            initial_state: vec![("m.room.history_visibility".to_owned(), String::new(), raw(&content))],
            name: None,
            topic: None,
            alias: None,
            power_levels: Map::new(),
            invite: Vec::new(),
            is_direct: false,
            published: false,
        };
        self.timeline.create_room(wish).await.unwrap()
    }

    async fn join(&self, name: &str, room: &OwnedRoomId) {
        let author = Author::new(user(name));
        let join = JoinRoom { author, room: room.clone(), via: Vec::new(), content: Map::new() };
        self.timeline.join(join).await.unwrap();
    }

    async fn leave(&self, name: &str, room: &OwnedRoomId) {
        self.timeline.leave(&Author::new(user(name)), room, None).await.unwrap();
    }

    async fn invite(&self, name: &str, room: &OwnedRoomId) {
        self.timeline.invite(&Author::new(user("ann")), room, &user(name), Map::new()).await.unwrap();
    }

    async fn send(&self, name: &str, room: &OwnedRoomId, content: Value) -> OwnedEventId {
        let kind = if content["m.relates_to"]["rel_type"] == "m.annotation" {
            TimelineEventType::Reaction
        } else {
            TimelineEventType::RoomMessage
        };
        let draft = Draft::message(user(name), kind, raw(&content));
        self.timeline.send(&Author::new(user(name)), room, draft, None).await.unwrap()
    }

    async fn say(&self, name: &str, room: &OwnedRoomId, words: &str) -> OwnedEventId {
        self.send(name, room, json!({"msgtype": "m.text", "body": words})).await
    }

    async fn page(&self, name: &str, room: &OwnedRoomId, query: &MessagesQuery) -> Result<Page, ReadError> {
        self.reader.messages(&viewer(name), room, query).await
    }

    /// All that `name` reads in the room, newest first.
    async fn reads(&self, name: &str, room: &OwnedRoomId) -> Option<Vec<String>> {
        let query = MessagesQuery { limit: 100, ..MessagesQuery::default() };
        match self.page(name, room, &query).await {
            Ok(page) => Some(spoken(&page)),
            Err(ReadError::Forbidden) => None,
            Err(error) => panic!("{error}"),
        }
    }

    async fn sees(&self, name: &str, room: &OwnedRoomId, event: &EventId) -> bool {
        let one = self.reader.event(&viewer(name), room, event).await;
        let around = self.reader.context(&viewer(name), room, event, 0, &EventFilter::default()).await;
        assert_eq!(one.is_ok(), around.is_ok(), "one event and its context agree");
        one.is_ok()
    }
}

/// What each of several people reads of one history, for each visibility: one who came at the second word, one who was
/// invited before it and came after it, one who left after the second, one who was never there.
/// <https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility>
#[tokio::test]
async fn history_is_shown_as_the_room_says() {
    let expected: [(&str, [Option<&[&str]>; 4]); 4] = [
        (
            "world_readable",
            [
                Some(&["three", "two", "one"]),
                Some(&["three", "two", "one"]),
                Some(&["two", "one"]),
                Some(&["three", "two", "one"]),
            ],
        ),
        (
            "shared",
            [Some(&["three", "two", "one"]), Some(&["three", "two", "one"]), Some(&["two", "one"]), None],
        ),
        ("invited", [Some(&["three", "two"]), Some(&["three", "two"]), Some(&["two", "one"]), None]),
        ("joined", [Some(&["three", "two"]), Some(&["three"]), Some(&["two", "one"]), None]),
    ];
    let server = server().await;
    for (visibility, of) in expected {
        let room = server.room(visibility).await;
        server.join("leaver", &room).await;
        let one = server.say("ann", &room, "one").await;
        server.join("early", &room).await;
        server.invite("guest", &room).await;
        let two = server.say("ann", &room, "two").await;
        server.join("guest", &room).await;
        server.leave("leaver", &room).await;
        let three = server.say("ann", &room, "three").await;
        for (name, expected) in ["early", "guest", "leaver", "stranger"].into_iter().zip(of) {
            let reads = server.reads(name, &room).await;
            let expected: Option<Vec<String>> =
                expected.map(|words| words.iter().map(|word| (*word).to_owned()).collect());
            assert_eq!(reads, expected, "{visibility}: {name}");
            for (word, event) in [("one", &one), ("two", &two), ("three", &three)] {
                let listed = expected.as_ref().is_some_and(|words| words.iter().any(|other| other == word));
                // Who has left a room that the whole world may read may read on, too, event by event.
                let listed = listed || visibility == "world_readable";
                assert_eq!(server.sees(name, &room, event).await, listed, "{visibility}: {name}: {word}");
            }
        }
    }
}

#[tokio::test]
async fn who_was_put_out_reads_no_further_and_who_forgot_reads_nothing() {
    let server = server().await;
    let room = server.room("shared").await;
    let ann = Author::new(user("ann"));
    server.join("bob", &room).await;
    server.say("ann", &room, "before").await;
    server.timeline.remove(&ann, &room, &user("bob"), Removal::Ban, None).await.unwrap();
    let after = server.say("ann", &room, "after").await;
    assert_eq!(server.reads("bob", &room).await, Some(vec!["before".to_owned()]));
    assert!(!server.sees("bob", &room, &after).await);
    // The members and the state are those of the moment of the ban.
    server.join("late", &room).await;
    let members = server.reader.members(&viewer("bob"), &room, &MemberQuery::default()).await.unwrap();
    assert_eq!(
        memberships(&members),
        [("@ann:test".into(), "join".into()), ("@bob:test".into(), "ban".into())]
    );
    assert!(matches!(server.reader.joined_members(&user("bob"), &room).await, Err(ReadError::Forbidden)));
    server.timeline.forget(&user("bob"), &room).await.unwrap();
    assert_eq!(server.reads("bob", &room).await, None);
}

/// Pages of any size, in both directions, give each event once and in order.
#[tokio::test]
async fn pages_put_together_are_the_history() {
    let server = server().await;
    let room = server.room("shared").await;
    let said: Vec<String> = (0..25).map(|number| format!("word {number}")).collect();
    for word in &said {
        server.say("ann", &room, word).await;
    }
    for forward in [false, true] {
        for limit in [1, 3, 7, 25, 1000] {
            let mut read = Vec::new();
            let mut from = None;
            for _ in 0..60 {
                let query = MessagesQuery { from: from.clone(), forward, limit, ..MessagesQuery::default() };
                let page = server.page("ann", &room, &query).await.unwrap();
                assert!(page.chunk.len() <= limit);
                read.extend(spoken(&page));
                from = page.end;
                if from.is_none() {
                    break;
                }
            }
            if !forward {
                read.reverse();
            }
            assert_eq!(read, said, "forward {forward}, {limit} a page");
        }
    }
    // Up to a place: the start of the first page, from the beginning.
    let query = MessagesQuery { limit: 5, ..MessagesQuery::default() };
    let newest = server.page("ann", &room, &query).await.unwrap();
    let query =
        MessagesQuery { forward: true, to: newest.end.clone(), limit: 100, ..MessagesQuery::default() };
    let rest = server.page("ann", &room, &query).await.unwrap();
    assert_eq!(spoken(&rest), said[..20]);
    let wrong = MessagesQuery { from: Some("nonsense".into()), limit: 5, ..MessagesQuery::default() };
    assert!(matches!(server.page("ann", &room, &wrong).await, Err(ReadError::InvalidParam(_))));
}

#[tokio::test]
async fn a_filter_keeps_what_it_names_and_its_senders() {
    let server = server().await;
    let room = server.room("shared").await;
    server.join("bob", &room).await;
    for number in 0..4 {
        let name = if number % 2 == 0 { "ann" } else { "bob" };
        server.say(name, &room, &format!("{name} {number}")).await;
    }
    let filter =
        json!({"types": ["m.room.message"], "senders": ["@bob:test"], "lazy_load_members": true}).to_string();
    let filter = EventFilter::parse(&filter).unwrap();
    let query = MessagesQuery { limit: 10, filter, ..MessagesQuery::default() };
    let page = server.page("ann", &room, &query).await.unwrap();
    assert_eq!(words(&page.chunk), ["bob 3", "bob 1"]);
    assert_eq!(memberships(&page.state), [("@bob:test".into(), "join".into())]);
}

#[tokio::test]
async fn an_event_comes_with_what_surrounds_it_and_the_state_of_then() {
    let server = server().await;
    let room = server.room("shared").await;
    let mut events = Vec::new();
    for number in 0..9 {
        events.push(server.say("ann", &room, &format!("{number}")).await);
    }
    server.join("late", &room).await;
    let filter = EventFilter::default();
    let context = server.reader.context(&viewer("ann"), &room, &events[4], 4, &filter).await.unwrap();
    assert_eq!(words(&[context.event]), ["4"]);
    assert_eq!(words(&context.before), ["3", "2"]);
    assert_eq!(words(&context.after), ["5", "6"]);
    assert!(!context.state.iter().any(|event| event.get().contains("@late:test")), "not there yet");
    // Both ends go on where the context stops.
    let back = MessagesQuery { from: Some(context.start), limit: 2, ..MessagesQuery::default() };
    assert_eq!(words(&server.page("ann", &room, &back).await.unwrap().chunk), ["1", "0"]);
    let on = MessagesQuery { from: Some(context.end), forward: true, limit: 2, ..MessagesQuery::default() };
    assert_eq!(words(&server.page("ann", &room, &on).await.unwrap().chunk), ["7", "8"]);
    // An event of another room is none of this one.
    let other = server.room("shared").await;
    let elsewhere = server.say("ann", &other, "elsewhere").await;
    let missed = server.reader.context(&viewer("ann"), &room, &elsewhere, 4, &filter).await;
    assert!(matches!(missed, Err(ReadError::NotFound(_))));
}

#[tokio::test]
async fn members_at_a_point_are_those_of_then() {
    let server = server().await;
    let room = server.room("shared").await;
    server.join("bob", &room).await;
    let then = server.core.store.tail().head();
    server.leave("bob", &room).await;
    server.join("eve", &room).await;
    let ask = |query: MemberQuery| {
        let (server, room) = (&server, room.clone());
        async move { memberships(&server.reader.members(&viewer("ann"), &room, &query).await.unwrap()) }
    };
    let entry = |name: &str, membership: &str| (format!("@{name}:test"), membership.to_owned());
    let now = [entry("ann", "join"), entry("bob", "leave"), entry("eve", "join")];
    assert_eq!(ask(MemberQuery::default()).await, now);
    let at = MemberQuery { at: Some(format!("t{}", then.0)), ..MemberQuery::default() };
    assert_eq!(ask(at).await, [entry("ann", "join"), entry("bob", "join")]);
    let joined = MemberQuery { membership: Some("join".into()), ..MemberQuery::default() };
    assert_eq!(ask(joined).await, [now[0].clone(), now[2].clone()]);
    let not = MemberQuery { not_membership: Some("join".into()), ..MemberQuery::default() };
    assert_eq!(ask(not).await, [now[1].clone()]);
}

#[tokio::test]
async fn relations_are_paged_filtered_and_followed() {
    let server = server().await;
    let room = server.room("shared").await;
    server.join("bob", &room).await;
    let root = server.say("ann", &room, "root").await;
    let relate = |kind: &str, to: &EventId| json!({"rel_type": kind, "event_id": to});
    let mut threaded = Vec::new();
    for number in 0..5 {
        let content = json!({
            "msgtype": "m.text", "body": format!("reply {number}"), "m.relates_to": relate("m.thread", &root),
        });
        threaded.push(server.send("bob", &room, content).await);
    }
    let mut reaction = relate("m.annotation", &threaded[0]);
    reaction["key"] = "+".into();
    server.send("ann", &room, json!({"m.relates_to": reaction})).await;
    let ask = |query: RelationsQuery| {
        let (server, room, root) = (&server, room.clone(), root.clone());
        async move { server.reader.relations(&viewer("ann"), &room, &root, &query).await.unwrap() }
    };
    let mut read = Vec::new();
    let mut from = None;
    for _ in 0..10 {
        let query = RelationsQuery { limit: Some(2), from: from.clone(), ..RelationsQuery::default() };
        let page = ask(query).await;
        read.extend(words(&page.chunk));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(read, ["reply 4", "reply 3", "reply 2", "reply 1", "reply 0"]);
    let annotations = RelationsQuery { rel_type: Some("m.annotation".into()), ..RelationsQuery::default() };
    assert!(ask(annotations).await.chunk.is_empty());
    let all = RelationsQuery { recurse: true, limit: Some(50), ..RelationsQuery::default() };
    let all = ask(all).await;
    assert_eq!(all.chunk.len(), 6, "with the reaction to a reply");
    assert!(all.depth.is_some());
    // A thread is listed; who took no part in it does not find it among their own.
    let threads = |participated| ThreadsQuery { participated, ..ThreadsQuery::default() };
    let listed = server.reader.threads(&viewer("ann"), &room, &threads(false)).await.unwrap();
    assert_eq!(words(&listed.chunk), ["root"]);
    server.join("eve", &room).await;
    let hers = server.reader.threads(&viewer("eve"), &room, &threads(true)).await.unwrap();
    assert!(hers.chunk.is_empty());
    let stranger = server.reader.relations(&viewer("zoe"), &room, &root, &RelationsQuery::default()).await;
    assert!(matches!(stranger, Err(ReadError::Forbidden)), "{stranger:?}");
    // A page of relations does not show what the reader may not see.
    let closed = server.room("joined").await;
    let early = server.say("ann", &closed, "early").await;
    server.join("bob", &closed).await;
    let hidden = server.reader.relations(&viewer("bob"), &closed, &early, &RelationsQuery::default()).await;
    assert!(matches!(hidden, Err(ReadError::NotFound(_))), "{hidden:?}");
}

#[tokio::test]
async fn events_say_what_they_replaced_and_who_was_there() {
    let server = server().await;
    let room = server.room("shared").await;
    // Many who come and go one after the other: what is said of one follows from the one before.
    for name in ["bob", "carol", "bob"] {
        server.join(name, &room).await;
        server.say("ann", &room, name).await;
        server.leave(name, &room).await;
    }
    server.invite("carol", &room).await;
    server.join("carol", &room).await;
    for name in ["one", "two"] {
        let draft =
            Draft::state(user("ann"), "m.room.name".into(), String::new(), raw(&json!({"name": name})));
        server.timeline.send(&Author::new(user("ann")), &room, draft, None).await.unwrap();
    }
    let forward = MessagesQuery { forward: true, limit: 100, ..MessagesQuery::default() };
    for reader in ["ann", "carol"] {
        let page = server.page(reader, &room, &forward).await.unwrap();
        let events: Vec<Value> =
            page.chunk.iter().map(|event| serde_json::from_str(event.get()).unwrap()).collect();
        let mut holders: std::collections::BTreeMap<(String, String), Value> =
            std::collections::BTreeMap::new();
        let mut own = "leave".to_owned();
        for event in &events {
            let unsigned = &event["unsigned"];
            if let Some(key) = event["state_key"].as_str() {
                let entry = (event["type"].to_string(), key.to_owned());
                let before = holders.insert(entry, event.clone());
                let id = before.as_ref().map_or(Value::Null, |before| before["event_id"].clone());
                assert_eq!(unsigned["replaces_state"], id, "{event}");
                let content = before.map_or(Value::Null, |before| before["content"].clone());
                assert_eq!(unsigned["prev_content"], content, "{event}");
                if event["type"] == "m.room.member" && key == user(reader) {
                    event["content"]["membership"].as_str().unwrap().clone_into(&mut own);
                }
            }
            assert_eq!(unsigned["membership"], own, "{reader}: {event}");
        }
        assert!(events.len() > 15, "{}", events.len());
    }
}
