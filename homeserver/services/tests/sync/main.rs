//! Syncs over real rooms on a real database.

mod growth;
mod sliding;
mod trimmed;

use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, UserId};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::notifier::Notifier;
use waxwing_services::outgoing::Nowhere;
use waxwing_services::presence::PresenceService;
use waxwing_services::receipts::{ReceiptKind, Receipts};
use waxwing_services::render::Viewer;
use waxwing_services::sync::{StateWanted, Sync, SyncFilter, SyncRequest};
use waxwing_services::timeline::{
    Author, CreateRoom, Draft, JoinRoom, Preset, Removal, Repeatable, Timeline,
};
use waxwing_services::typing::Typing;
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use waxwing_storage::{Store, StoreError};

struct Server {
    core: Core,
    timeline: Timeline,
    sync: Arc<Sync>,
    typing: Typing,
    receipts: Receipts,
    dir: Option<tempfile::TempDir>,
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("sqlite:{}", dir.path().join("test.db").display());
    let store = Store::open(&address).await.unwrap();
    let core = Core {
        server_name: "test".try_into().unwrap(),
        clock: Clock::System,
        store,
        key: Arc::new(KeyPair::generate().unwrap()),
        settings: Arc::new(Settings {
            registration: RegistrationMode::Open,
            registration_shared_secret: None,
            plaintext: PlaintextPolicy { accept: true, ..PlaintextPolicy::default() },
            default_room_version: RoomVersionId::V11,
            presence: true,
            max_upload_bytes: 1,
            password: PasswordCost { memory_kib: 8, iterations: 1 },
            everyone_publishes_rooms: true,
            federation: false,
            push: waxwing_services::PushSettings::default(),
            accounts: waxwing_services::AccountSettings::default(),
        }),
    };
    on(core, Some(dir)).await
}

/// A node over the database of `core`.
async fn on(core: Core, dir: Option<tempfile::TempDir>) -> Server {
    let notifier = Notifier::start(core.clone()).await.unwrap();
    let typing = Typing::new(core.clone(), Arc::new(Nowhere));
    let presence = PresenceService::new(core.clone(), None);
    let sync = Sync::new(core.clone(), notifier, typing.clone(), presence, CancellationToken::new());
    Server {
        timeline: Timeline::new(core.clone(), None),
        sync: Arc::new(sync),
        typing,
        receipts: Receipts::new(core.clone(), Arc::new(Nowhere)),
        core,
        dir,
    }
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:test")).unwrap()
}

fn raw(value: Value) -> Box<RawValue> {
    to_raw_value(&value).unwrap()
}

/// One user's client: keeps its token.
struct Client<'a> {
    server: &'a Server,
    name: &'static str,
    filter: Arc<SyncFilter>,
    state: StateWanted,
    since: Option<String>,
}

impl<'a> Client<'a> {
    fn new(server: &'a Server, name: &'static str) -> Client<'a> {
        Client { server, name, filter: Arc::default(), state: StateWanted::Before, since: None }
    }
    fn with(mut self, filter: Value) -> Client<'a> {
        self.filter = Arc::new(SyncFilter::parse(&filter.to_string()).unwrap());
        self
    }
    fn request(&self) -> SyncRequest {
        SyncRequest {
            viewer: Viewer { user: user(self.name), device: Some("D".to_owned()) },
            since: self.since.as_ref().map(|since| since.parse().unwrap()),
            filter: Arc::clone(&self.filter),
            full_state: false,
            timeout: Duration::ZERO,
            state: self.state,
        }
    }
    async fn ask(&mut self, request: SyncRequest) -> Value {
        let answer = self.server.sync.sync(&request).await.unwrap();
        self.since = Some(answer.next_batch.clone());
        serde_json::to_value(&answer).unwrap()
    }
    async fn sync(&mut self) -> Value {
        self.ask(self.request()).await
    }
}

impl Server {
    async fn room(&self, creator: &str) -> OwnedRoomId {
        let wish = CreateRoom {
            author: Author::new(user(creator)),
            version: None,
            creation_content: Map::new(),
            preset: Preset::PublicChat,
            initial_state: Vec::new(),
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
        let join = JoinRoom {
            author: Author::new(user(name)),
            room: room.clone(),
            via: Vec::new(),
            content: Map::new(),
        };
        self.timeline.join(join).await.unwrap();
    }
    async fn leave(&self, name: &str, room: &OwnedRoomId) {
        self.timeline.leave(&Author::new(user(name)), room, None).await.unwrap();
    }
    async fn say_content(&self, name: &str, room: &OwnedRoomId, content: Value) -> OwnedEventId {
        let draft = Draft::message(user(name), TimelineEventType::RoomMessage, raw(content));
        self.timeline.send(&Author::new(user(name)), room, draft, None).await.unwrap()
    }
    async fn say(&self, name: &str, room: &OwnedRoomId, body: &str) -> OwnedEventId {
        self.say_content(name, room, json!({"msgtype": "m.text", "body": body})).await
    }
    async fn set(&self, name: &str, room: &OwnedRoomId, kind: &str, content: Value) -> OwnedEventId {
        let draft = Draft::state(user(name), kind.into(), "", raw(content));
        self.timeline.send(&Author::new(user(name)), room, draft, None).await.unwrap()
    }
}

fn bodies(section: &Value) -> Vec<String> {
    let events = section["timeline"]["events"].as_array().cloned().unwrap_or_default();
    let bodies = events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned));
    bodies.collect()
}

fn kinds(events: &Value) -> Vec<String> {
    let events = events["events"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["type"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn initial_then_incremental() {
    let server = server().await;
    let room = server.room("ann").await;
    let mut ann = Client::new(&server, "ann");
    let first = ann.sync().await;
    let entry = &first["rooms"]["join"][room.as_str()];
    assert_eq!(entry["timeline"]["limited"], false);
    assert_eq!(entry["timeline"]["events"][0]["type"], "m.room.create");
    assert!(kinds(&entry["state"]).is_empty(), "all state is in the timeline: {entry}");
    assert_eq!(entry["summary"]["m.joined_member_count"], 1);
    assert!(first["device_unused_fallback_key_types"].is_array());
    assert_eq!(kinds(&first["account_data"]), ["m.push_rules"]);

    let quiet = ann.sync().await;
    assert!(quiet.get("rooms").is_none() && quiet.get("account_data").is_none(), "{quiet}");

    let repeat = Repeatable { device: "D".into(), endpoint: "send".into(), txn_id: "t1".into() };
    let draft = Draft::message(
        user("ann"),
        TimelineEventType::RoomMessage,
        raw(json!({"msgtype": "m.text", "body": "hi"})),
    );
    server.timeline.send(&Author::new(user("ann")), &room, draft, Some(repeat)).await.unwrap();
    let news = ann.sync().await;
    let entry = &news["rooms"]["join"][room.as_str()];
    assert_eq!(bodies(entry), ["hi"]);
    let unsigned = &entry["timeline"]["events"][0]["unsigned"];
    assert_eq!((&unsigned["transaction_id"], &unsigned["membership"]), (&json!("t1"), &json!("join")));
    assert!(unsigned["age"].is_i64());

    for number in 0..15 {
        server.say("ann", &room, &number.to_string()).await;
    }
    server.set("ann", &room, "m.room.topic", json!({"topic": "x"})).await;
    for number in 15..25 {
        server.say("ann", &room, &number.to_string()).await;
    }
    let news = ann.sync().await;
    let entry = &news["rooms"]["join"][room.as_str()];
    assert_eq!(entry["timeline"]["limited"], true);
    assert_eq!(bodies(entry).len(), 10);
    assert!(entry["timeline"]["prev_batch"].as_str().unwrap().starts_with('t'));
    assert_eq!(kinds(&entry["state"]), ["m.room.topic"]);
}

#[tokio::test]
async fn a_poll_wakes_for_its_user_only() {
    let server = Arc::new(server().await);
    let room = server.room("ann").await;
    let other = server.room("bob").await;
    let mut ann = Client::new(&server, "ann");
    ann.sync().await;
    let mut request = ann.request();
    request.timeout = Duration::from_secs(20);
    let (sync, asked) = (Arc::clone(&server.sync), request.clone());
    let poll = tokio::spawn(async move { sync.sync(&asked).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.say("bob", &other, "not for ann").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!poll.is_finished());
    server.say("ann", &room, "for ann").await;
    let answer = tokio::time::timeout(Duration::from_secs(5), poll).await.unwrap().unwrap();
    let answer = serde_json::to_value(&answer).unwrap();
    assert_eq!(bodies(&answer["rooms"]["join"][room.as_str()]), ["for ann"]);

    // Typing wakes it too, and is not news again afterwards.
    ann.sync().await;
    let mut request = ann.request();
    request.timeout = Duration::from_secs(20);
    let (sync, asked) = (Arc::clone(&server.sync), request.clone());
    let poll = tokio::spawn(async move { sync.sync(&asked).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.typing.set(&user("ann"), &user("ann"), &room, Some(Duration::from_secs(30))).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), poll).await.unwrap().unwrap();
    let answer = serde_json::to_value(&answer).unwrap();
    let entry = &answer["rooms"]["join"][room.as_str()];
    assert_eq!(entry["ephemeral"]["events"][0]["content"]["user_ids"], json!(["@ann:test"]));
    ann.since = answer["next_batch"].as_str().map(str::to_owned);
    assert!(ann.sync().await.get("rooms").is_none());
}

#[tokio::test]
async fn joining_leaving_and_what_may_be_seen() {
    let server = server().await;
    let room = server.room("ann").await;
    server.set("ann", &room, "m.room.history_visibility", json!({"history_visibility": "joined"})).await;
    server.say("ann", &room, "before").await;
    let mut bob = Client::new(&server, "bob");
    bob.sync().await;
    server.say("ann", &room, "still before").await;
    server.join("bob", &room).await;
    server.say("ann", &room, "after").await;
    let news = bob.sync().await;
    let entry = &news["rooms"]["join"][room.as_str()];
    assert_eq!(bodies(entry), ["after"]);
    assert_eq!(entry["timeline"]["limited"], true);
    assert!(kinds(&entry["timeline"]).contains(&"m.room.create".to_owned()), "{entry}");
    assert_eq!(entry["summary"]["m.heroes"], json!(["@ann:test"]));
    // Bob too: his other devices may want to know.
    assert_eq!(news["device_lists"]["changed"], json!(["@ann:test", "@bob:test"]));

    server.say("ann", &room, "farewell").await;
    server.leave("bob", &room).await;
    server.say("ann", &room, "gone").await;
    let news = bob.sync().await;
    assert!(news["rooms"].get("join").is_none(), "{news}");
    let entry = &news["rooms"]["leave"][room.as_str()];
    assert_eq!(bodies(entry), ["farewell"]);
    assert_eq!(entry["timeline"]["events"][1]["content"]["membership"], "leave");
    assert_eq!(news["device_lists"]["left"], json!(["@ann:test"]));
    assert!(bob.sync().await.get("rooms").is_none());

    // From the beginning, only with the filter that asks for it.
    assert!(Client::new(&server, "bob").sync().await.get("rooms").is_none());
    let mut all = Client::new(&server, "bob").with(json!({"room": {"include_leave": true}}));
    let first = all.sync().await;
    assert_eq!(bodies(&first["rooms"]["leave"][room.as_str()]), ["after", "farewell"]);
    server.timeline.forget(&user("bob"), &room).await.unwrap();
    let mut all = Client::new(&server, "bob").with(json!({"room": {"include_leave": true}}));
    assert!(all.sync().await.get("rooms").is_none());
}

#[tokio::test]
async fn invitations_come_with_stripped_state() {
    let server = server().await;
    let room = server.room("ann").await;
    let mut bob = Client::new(&server, "bob");
    bob.sync().await;
    server.timeline.invite(&Author::new(user("ann")), &room, &user("bob"), Map::new()).await.unwrap();
    let news = bob.sync().await;
    let state = kinds(&news["rooms"]["invite"][room.as_str()]["invite_state"]);
    assert_eq!(state[0], "m.room.create");
    let invite = news["rooms"]["invite"][room.as_str()]["invite_state"]["events"].as_array().unwrap();
    assert!(invite.iter().any(|event| event["state_key"] == "@bob:test"), "{news}");
    assert!(bob.sync().await.get("rooms").is_none());
    server.leave("bob", &room).await;
    let news = bob.sync().await;
    let entry = &news["rooms"]["leave"][room.as_str()];
    assert_eq!(entry["timeline"]["events"].as_array().unwrap().len(), 1, "{news}");
    assert!(kinds(&entry["state"]).is_empty());
}

#[tokio::test]
async fn lazy_members_and_state_after() {
    let server = server().await;
    let room = server.room("ann").await;
    server.join("bob", &room).await;
    server.join("eve", &room).await;
    for number in 0..12 {
        server.say("bob", &room, &number.to_string()).await;
    }
    let filter = json!({"room": {"state": {"lazy_load_members": true}}});
    let members = |entry: &Value, section: &str| -> Vec<String> {
        let events = entry[section]["events"].as_array().unwrap().clone();
        let members = events.iter().filter(|event| event["type"] == "m.room.member");
        members.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect()
    };
    let mut ann = Client::new(&server, "ann").with(filter.clone());
    let first = ann.sync().await;
    // Eve is a hero.
    let entry = &first["rooms"]["join"][room.as_str()];
    assert_eq!(members(entry, "state"), ["@ann:test", "@bob:test", "@eve:test"]);
    server.say("bob", &room, "again").await;
    let news = ann.sync().await;
    assert!(members(&news["rooms"]["join"][room.as_str()], "state").is_empty(), "{news}");

    let mut after = Client::new(&server, "ann").with(filter);
    after.state = StateWanted::AfterUnstable;
    after.sync().await;
    server.set("ann", &room, "m.room.topic", json!({"topic": "x"})).await;
    let news = after.sync().await;
    let entry = &news["rooms"]["join"][room.as_str()];
    assert!(entry.get("state").is_none());
    assert_eq!(kinds(&entry["org.matrix.msc4222.state_after"]), ["m.room.topic"]);
    server.say("ann", &room, "x").await;
    let news = after.sync().await;
    let entry = &news["rooms"]["join"][room.as_str()];
    assert!(entry["org.matrix.msc4222.state_after"]["events"].is_array());
}

#[tokio::test]
async fn unread_counts_follow_receipts_and_threads() {
    let server = server().await;
    let room = server.room("ann").await;
    server.join("bob", &room).await;
    let mut main = Client::new(&server, "bob");
    let mut threads = Client::new(&server, "bob")
        .with(json!({"room": {"timeline": {"unread_thread_notifications": true}}}));
    main.sync().await;
    threads.sync().await;
    let first = server.say("ann", &room, "a").await;
    let in_thread = |body: &str| {
        json!({"msgtype": "m.text", "body": body,
               "m.relates_to": {"rel_type": "m.thread", "event_id": first}})
    };
    let reply = server.say_content("ann", &room, in_thread("b")).await;
    server.say("ann", &room, "hello bob").await;
    let unread = |answer: &Value| answer["rooms"]["join"][room.as_str()]["unread_notifications"].clone();
    let of_thread = |answer: &Value| {
        answer["rooms"]["join"][room.as_str()]["unread_thread_notifications"][first.as_str()].clone()
    };
    assert_eq!(unread(&main.sync().await)["notification_count"], 3);
    let news = threads.sync().await;
    assert_eq!(
        (&unread(&news)["notification_count"], &of_thread(&news)["notification_count"]),
        (&json!(2), &json!(1))
    );

    let read = |thread, event: OwnedEventId| {
        let server = &server;
        let room = &room;
        async move {
            server.receipts.read(&user("bob"), room, ReceiptKind::Read, &thread, event).await.unwrap();
        }
    };
    read(ruma::events::receipt::ReceiptThread::Thread(first.clone()), reply).await;
    let news = threads.sync().await;
    assert_eq!((&unread(&news)["notification_count"], of_thread(&news)), (&json!(2), Value::Null));
    read(ruma::events::receipt::ReceiptThread::Unthreaded, first.clone()).await;
    let news = main.sync().await;
    assert_eq!(unread(&news)["notification_count"], 1);
    let receipt = &news["rooms"]["join"][room.as_str()]["ephemeral"]["events"][0];
    assert_eq!(receipt["type"], "m.receipt");
    // Writing is reading.
    server.say("bob", &room, "ok").await;
    assert_eq!(unread(&main.sync().await)["notification_count"], 0);
    // A node that knows nothing of it comes to the same.
    let news = Client::new(&server, "bob").sync().await;
    assert_eq!(unread(&news)["notification_count"], 0);
}

#[tokio::test]
async fn to_device_messages_go_when_they_have_arrived() {
    let server = server().await;
    server.room("ann").await;
    let mut ann = Client::new(&server, "ann");
    ann.sync().await;
    server
        .core
        .store
        .write("send", Vec::new(), |tx| {
            for number in 0..150 {
                let content = json!({"type": "x", "sender": "@bob:test", "content": {"n": number}});
                tx.to_device_put(user("ann"), "D".to_owned(), content.to_string().into());
            }
            Box::pin(async { Ok::<_, StoreError>(()) })
        })
        .await
        .unwrap();
    let request = ann.request();
    let count = |answer: &Value| answer["to_device"]["events"].as_array().map_or(0, Vec::len);
    let first = ann.ask(request.clone()).await;
    assert_eq!(count(&first), 100);
    // The answer was lost: the same again.
    assert_eq!(count(&ann.ask(request).await), 100);
    let rest = ann.sync().await;
    assert_eq!(count(&rest), 50);
    assert_eq!(rest["to_device"]["events"][0]["content"]["n"], 100);
    assert_eq!(count(&ann.sync().await), 0);
    let store = &server.core.store;
    let head = store.tail().head();
    let left =
        store.to_device_load(&user("ann"), "D", waxwing_model::LogPosition(0), head, 10).await.unwrap();
    assert!(left.is_empty());
}

#[tokio::test]
async fn what_the_tail_has_lost_comes_from_the_database() {
    let server = server().await;
    let room = server.room("ann").await;
    server.join("bob", &room).await;
    let mut ann = Client::new(&server, "ann");
    ann.sync().await;
    server.say("bob", &room, "one").await;
    server.set("ann", &room, "m.room.topic", json!({"topic": "x"})).await;
    for number in 0..300 {
        server.say("bob", &room, &number.to_string()).await;
    }
    let quiet = server.room("bob").await;
    server.join("ann", &quiet).await;
    // Another node of the same database: its tail begins now.
    let path = server.dir.as_ref().unwrap().path().join("test.db");
    let store = Store::open(&format!("sqlite:{}", path.display())).await.unwrap();
    let second = on(Core { store, ..server.core.clone() }, None).await;
    let since = ann.since.clone();
    let mut again = Client::new(&second, "ann");
    again.since = since;
    let (one, two) = (ann.sync().await, again.sync().await);
    for answer in [&one, &two] {
        let entry = &answer["rooms"]["join"][room.as_str()];
        assert_eq!(bodies(entry).len(), 10);
        assert_eq!(kinds(&entry["state"]), ["m.room.topic"], "{entry}");
        assert!(answer["rooms"]["join"][quiet.as_str()]["state"]["events"].is_array());
    }
    server.timeline.remove(&Author::new(user("ann")), &room, &user("bob"), Removal::Ban, None).await.unwrap();
    second.core.store.catch_up().await.unwrap();
    let news = again.sync().await;
    assert_eq!(news["rooms"]["join"][room.as_str()]["summary"]["m.joined_member_count"], 1);
}
