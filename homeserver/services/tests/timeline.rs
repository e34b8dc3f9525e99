//! Rooms on a real database: created, spoken in, redacted, sealed.

use ruma::events::TimelineEventType;
use ruma::{OwnedRoomId, OwnedUserId, RoomVersionId, UserId};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::timeline::{
    Author, CreateRoom, Draft, JoinRoom, Preset, Removal, Repeatable, Timeline, TimelineError,
};
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use waxwing_storage::{Fact, Store};

struct Server {
    core: Core,
    timeline: Timeline,
    _dir: tempfile::TempDir,
}

async fn server(plaintext: bool) -> Server {
    server_at(plaintext, Clock::System).await
}

async fn server_at(plaintext: bool, clock: Clock) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite:{}", dir.path().join("test.db").display())).await.unwrap();
    let core = Core {
        server_name: "test".try_into().unwrap(),
        clock,
        store,
        key: Arc::new(KeyPair::generate().unwrap()),
        settings: Arc::new(Settings {
            registration: RegistrationMode::Open,
            registration_shared_secret: None,
            plaintext: PlaintextPolicy { accept: plaintext, ..PlaintextPolicy::default() },
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
    Server { timeline: Timeline::new(core.clone(), None), core, _dir: dir }
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:test")).unwrap()
}

fn raw(value: Value) -> Box<RawValue> {
    to_raw_value(&value).unwrap()
}

fn wish(creator: &str, version: Option<RoomVersionId>, preset: Preset) -> CreateRoom {
    CreateRoom {
        author: Author::new(user(creator)),
        version,
        creation_content: Map::new(),
        preset,
        initial_state: Vec::new(),
        name: Some("Tea".to_owned()),
        topic: None,
        alias: None,
        power_levels: Map::new(),
        invite: Vec::new(),
        is_direct: false,
        published: false,
    }
}

fn join(name: &str, room: &OwnedRoomId) -> JoinRoom {
    JoinRoom { author: Author::new(user(name)), room: room.clone(), via: Vec::new(), content: Map::new() }
}

fn text(sender: &str, body: &str) -> Draft {
    Draft::message(
        user(sender),
        TimelineEventType::RoomMessage,
        raw(json!({"msgtype": "m.text", "body": body})),
    )
}

fn txn(id: &str) -> Repeatable {
    Repeatable { device: "D".to_owned(), endpoint: "send".to_owned(), txn_id: id.to_owned() }
}

#[tokio::test]
async fn every_room_version_can_be_made_joined_and_spoken_in() {
    let server = server(true).await;
    for version in waxwing_rooms::version::SUPPORTED {
        let room = server
            .timeline
            .create_room(wish("ann", Some(version.clone()), Preset::PublicChat))
            .await
            .unwrap();
        server.timeline.join(join("bob", &room)).await.unwrap();
        // Joining again is no error.
        server.timeline.join(join("bob", &room)).await.unwrap();
        let bob = Author::new(user("bob"));
        let event = server
            .timeline
            .send(&bob, &room, text("bob", "hello"), Some(txn(version.as_str())))
            .await
            .unwrap();
        let again = server
            .timeline
            .send(&bob, &room, text("bob", "hello"), Some(txn(version.as_str())))
            .await
            .unwrap();
        assert_eq!(event, again, "a repeated request is one event");
        let ann = Author::new(user("ann"));
        let content = raw(json!({}));
        let mut redaction = Draft::message(user("ann"), TimelineEventType::RoomRedaction, content);
        redaction.redacts = Some(event.clone());
        server.timeline.send(&ann, &room, redaction, None).await.unwrap();
        let stored = server.core.store.event(&event).await.unwrap().unwrap();
        assert!(stored.redacted_by.is_some(), "version {version}: {:?}", stored.event.json);
        assert!(!stored.event.json.get().contains("hello"));
        server.timeline.remove(&ann, &room, &user("bob"), Removal::Ban, None).await.unwrap();
        let refused = server.timeline.send(&bob, &room, text("bob", "hello?"), None).await;
        assert!(matches!(refused, Err(TimelineError::NotInRoom)), "{refused:?}");
        let back = server.timeline.join(join("bob", &room)).await;
        assert!(matches!(back, Err(TimelineError::Forbidden(_))), "{back:?}");
    }
}

#[tokio::test]
async fn plaintext_is_refused_before_anything_is_written() {
    let server = server(false).await;
    let room = server.timeline.create_room(wish("ann", None, Preset::PrivateChat)).await.unwrap();
    let ann = Author::new(user("ann"));
    let head = server.core.store.tail().head();
    let refused = server.timeline.send(&ann, &room, text("ann", "secret"), None).await;
    assert!(matches!(refused, Err(TimelineError::Sealed(_))), "{refused:?}");
    assert_eq!(server.core.store.tail().head(), head);
    let sealed = raw(json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "abc", "session_id": "s"}));
    let draft = Draft::message(user("ann"), TimelineEventType::RoomEncrypted, sealed);
    server.timeline.send(&ann, &room, draft, None).await.unwrap();
    let row = server.core.store.read().await.unwrap().room_load(&room).await.unwrap().unwrap();
    assert!(row.encrypted, "rooms are made encrypted");
}

#[tokio::test]
async fn many_senders_share_commits_and_keep_one_order() {
    let server = server(true).await;
    let room = server.timeline.create_room(wish("ann", None, Preset::PublicChat)).await.unwrap();
    let start = server.core.store.tail().head();
    let mut sends = Vec::new();
    for number in 0..200 {
        let (timeline, room) = (server.timeline.clone(), room.clone());
        sends.push(tokio::spawn(async move {
            let draft = text("ann", &format!("{number}"));
            timeline
                .send(&Author::new(user("ann")), &room, draft, Some(txn(&number.to_string())))
                .await
                .unwrap()
        }));
    }
    for send in sends {
        send.await.unwrap();
    }
    let head = server.core.store.tail().head();
    let rows = server.core.store.tail().range(start, head).unwrap();
    let events: Vec<_> = rows.iter().filter(|row| row.fact == Fact::Event).collect();
    assert_eq!(events.len(), 200);
    // A chain: each follows the one before.
    for pair in events.windows(2) {
        let (one, next) = (pair[0].event.as_ref().unwrap(), pair[1].event.as_ref().unwrap());
        assert_eq!(next.event.prev_events, vec![one.event.event_id.clone()]);
    }
}

#[tokio::test]
async fn rooms_that_are_alike_in_the_same_millisecond_are_different_rooms() {
    let server = server_at(false, Clock::manual(1_800_000_000_000)).await;
    for version in [RoomVersionId::V11, RoomVersionId::V12] {
        let wish = || server.timeline.create_room(wish("ann", Some(version.clone()), Preset::PublicChat));
        let (first, second, third) = tokio::join!(wish(), wish(), wish());
        let rooms = std::collections::BTreeSet::from([first.unwrap(), second.unwrap(), third.unwrap()]);
        assert_eq!(rooms.len(), 3, "{version}");
    }
}
