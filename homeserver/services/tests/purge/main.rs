//! Rooms and history that are forgotten: what goes, what stays, and that a crash in the middle costs nothing.

mod media;

use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, UserId};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::purge::{
    Before, HistoryPurge, Lifetime, PurgeError, PurgePhase, PurgeSettings, Purges, RetentionSettings,
    RoomPurge,
};
use waxwing_services::timeline::{Author, CreateRoom, Draft, JoinRoom, Preset, Timeline, TimelineError};
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use waxwing_storage::Store;

const START: u64 = 1_700_000_000_000;
const DAY: u64 = 24 * 60 * 60 * 1000;

struct Server {
    core: Core,
    timeline: Timeline,
    dir: tempfile::TempDir,
}

async fn open(dir: &tempfile::TempDir, clock: Clock) -> (Core, Timeline) {
    let store = Store::open(&format!("sqlite:{}", dir.path().join("test.db").display())).await.unwrap();
    let core = Core {
        server_name: "test".try_into().unwrap(),
        clock,
        store,
        key: Arc::new(KeyPair::from_seed([1; 32], "k").unwrap()),
        settings: Arc::new(Settings {
            registration: RegistrationMode::Open,
            registration_shared_secret: None,
            plaintext: PlaintextPolicy { accept: true, ..PlaintextPolicy::default() },
            default_room_version: RoomVersionId::V12,
            presence: false,
            max_upload_bytes: 1000,
            password: PasswordCost { memory_kib: 8, iterations: 1 },
            everyone_publishes_rooms: true,
            federation: false,
            push: waxwing_services::PushSettings::default(),
            accounts: waxwing_services::AccountSettings::default(),
        }),
    };
    (core.clone(), Timeline::new(core, None))
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let (core, timeline) = open(&dir, Clock::manual(START)).await;
    Server { core, timeline, dir }
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:test")).unwrap()
}

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).unwrap()
}

impl Server {
    fn purges(&self) -> Purges {
        let settings = PurgeSettings {
            slice: 7,
            pause: Duration::from_millis(1),
            grace: Duration::ZERO,
            retention: RetentionSettings {
                enabled: true,
                every: Duration::from_hours(1),
                ..RetentionSettings::default()
            },
        };
        Purges::new(self.core.clone(), self.timeline.clone(), settings)
    }

    async fn room(&self) -> OwnedRoomId {
        let wish = CreateRoom {
            author: Author::new(user("ann")),
            version: None,
            creation_content: Map::new(),
            preset: Preset::PublicChat,
            initial_state: Vec::new(),
            name: Some("Tea".to_owned()),
            topic: None,
            alias: None,
            power_levels: Map::new(),
            invite: Vec::new(),
            is_direct: false,
            published: false,
        };
        let room = self.timeline.create_room(wish).await.unwrap();
        self.timeline.join(join("bob", &room)).await.unwrap();
        room
    }

    async fn say(&self, room: &OwnedRoomId, body: &str) -> OwnedEventId {
        let content = raw(&json!({"msgtype": "m.text", "body": body}));
        let draft = Draft::message(user("bob"), TimelineEventType::RoomMessage, content);
        self.timeline.send(&Author::new(user("bob")), room, draft, None).await.unwrap()
    }

    async fn topic(&self, room: &OwnedRoomId, topic: &str) -> OwnedEventId {
        let content = raw(&json!({ "topic": topic }));
        let draft = Draft::state(user("ann"), TimelineEventType::RoomTopic, "", content);
        self.timeline.set_state(&Author::new(user("ann")), room, draft).await.unwrap()
    }

    async fn has(&self, id: &OwnedEventId) -> bool {
        self.core.store.read().await.unwrap().events_load(std::slice::from_ref(id)).await.unwrap().len() == 1
    }

    /// Nodes that states of the room need, all of which are there.
    async fn needed(&self, room: &OwnedRoomId) -> HashSet<waxwing_rooms::state_tree::NodeId> {
        let mut conn = self.core.store.read().await.unwrap();
        let mut reached = HashSet::new();
        let row = conn.room_load(room).await.unwrap().unwrap();
        let (mut roots, _) = conn.state_roots(room, i64::MIN, 10_000).await.unwrap();
        roots.insert(row.state_root);
        conn.state_reach(roots, &mut reached).await.unwrap();
        let present = conn.state_nodes_present(&reached.iter().copied().collect::<Vec<_>>()).await.unwrap();
        assert_eq!(present, reached.len(), "a state that is needed has lost nodes");
        reached
    }

    async fn nodes(&self) -> usize {
        self.core.store.read().await.unwrap().state_nodes_count().await.unwrap() as usize
    }
}

fn join(name: &str, room: &OwnedRoomId) -> JoinRoom {
    JoinRoom { author: Author::new(user(name)), room: room.clone(), via: Vec::new(), content: Map::new() }
}

#[tokio::test]
async fn history_before_an_event_goes_and_the_room_goes_on() {
    let server = server().await;
    let room = server.room().await;
    let other = server.room().await;
    let mut said = Vec::new();
    let mut topics = Vec::new();
    for number in 0..30 {
        said.push(server.say(&room, &format!("message {number}")).await);
        topics.push(server.topic(&room, &format!("topic {number}")).await);
    }
    let elsewhere = server.say(&other, "elsewhere").await;
    let before = server.nodes().await;
    let purges = server.purges();
    let wanted = HistoryPurge { before: Before::Event(said[20].clone()), local: true };
    let id = purges.purge_history(&room, wanted.clone()).await.unwrap();
    assert!(matches!(purges.purge_history(&room, wanted).await, Err(PurgeError::UnderWay)));
    purges.turn().await;
    let purge = purges.status(&id).await.unwrap().unwrap();
    assert_eq!((purge.phase, purge.progress.events), (PurgePhase::Complete, 20), "{purge}");
    for (number, event) in said.iter().enumerate() {
        assert_eq!(server.has(event).await, number >= 20, "{number}");
    }
    // State stays, without a place in the timeline.
    let old = server.core.store.event(&topics[3]).await.unwrap().unwrap();
    assert!(old.flags.outlier && old.state_before.is_none());
    assert!(server.has(&elsewhere).await);
    let ends = server.core.store.read().await.unwrap().backward_extremities(&room).await.unwrap();
    assert_eq!(ends, vec![topics[19].clone()]);
    assert!(purge.progress.nodes > 0 && server.nodes().await < before);
    let needed = server.needed(&room).await.len() + server.needed(&other).await.len();
    assert_eq!(server.nodes().await, needed, "what nothing needs is gone");
    server.say(&room, "on and on").await;
    server.topic(&room, "and on").await;
}

#[tokio::test]
async fn what_others_may_not_have_stays_unless_it_is_asked_for() {
    let server = server().await;
    let room = server.room().await;
    let old = server.say(&room, "old").await;
    server.core.clock.advance(10 * DAY);
    let young = server.say(&room, "young").await;
    let purges = server.purges();
    let wanted = HistoryPurge { before: Before::Time(START + DAY), local: false };
    let id = purges.purge_history(&room, wanted).await.unwrap();
    purges.turn().await;
    let purge = purges.status(&id).await.unwrap().unwrap();
    assert_eq!((purge.phase, purge.progress.events), (PurgePhase::Complete, 0), "{purge}");
    let stored = server.core.store.event(&old).await.unwrap().unwrap();
    assert!(stored.flags.outlier && stored.event.json.get().contains("old"));
    assert!(!server.core.store.event(&young).await.unwrap().unwrap().flags.outlier);
}

#[tokio::test]
async fn a_room_goes_whole_and_its_neighbour_stays() {
    let server = server().await;
    let (room, other) = (server.room().await, server.room().await);
    for number in 0..20 {
        server.say(&room, &format!("message {number}")).await;
        server.topic(&room, &format!("topic {number}")).await;
    }
    let kept = server.say(&other, "stays").await;
    let purges = server.purges();
    let wanted = RoomPurge { purge: true, block: true, ..RoomPurge::default() };
    let id = purges.purge_room(&room, wanted).await.unwrap();
    purges.turn().await;
    let purge = purges.status(&id).await.unwrap().unwrap();
    assert_eq!(purge.phase, PurgePhase::Complete, "{purge}");
    assert_eq!(purge.progress.kicked.len(), 2);
    let mut conn = server.core.store.read().await.unwrap();
    assert!(conn.room_load(&room).await.unwrap().is_none());
    assert!(conn.events_between(&room, i64::MIN, i64::MAX, 10).await.unwrap().is_empty());
    assert!(conn.member_load(&room, &user("bob")).await.unwrap().is_none());
    drop(conn);
    assert!(server.has(&kept).await);
    assert_eq!(server.nodes().await, server.needed(&other).await.len());
    let refused = server.timeline.join(join("bob", &room)).await;
    assert!(matches!(refused, Err(TimelineError::Forbidden(_))), "{refused:?}");
    purges.block(&room, "@root:test", false).await.unwrap();
    let unknown = server.timeline.join(join("bob", &room)).await;
    assert!(matches!(unknown, Err(TimelineError::NoRoom)), "{unknown:?}");
}

#[tokio::test]
async fn a_crash_in_the_middle_costs_nothing() {
    let Server { core, timeline, dir } = server().await;
    let mut server = Server { core, timeline, dir };
    let (room, other) = (server.room().await, server.room().await);
    for number in 0..40 {
        server.say(&room, &format!("message {number}")).await;
        server.topic(&room, &format!("topic {number}")).await;
        server.say(&other, &format!("message {number}")).await;
    }
    let last = server.topic(&other, "the end").await;
    let purges = server.purges();
    let rooms = [(&room, true), (&other, false)];
    let mut ids = Vec::new();
    for (which, whole) in rooms {
        ids.push(if whole {
            purges.purge_room(which, RoomPurge { purge: true, ..RoomPurge::default() }).await.unwrap()
        } else {
            let wanted = HistoryPurge { before: Before::Event(last.clone()), local: true };
            purges.purge_history(which, wanted).await.unwrap()
        });
    }
    let mut crashes = 0;
    loop {
        let purges = server.purges();
        let mut over = true;
        for id in &ids {
            over &= purges.status(id).await.unwrap().unwrap().phase.is_over();
        }
        if over {
            break;
        }
        // A power failure: whatever it was doing is not done any more, and the database is opened again.
        let running = tokio::spawn({
            let purges = purges.clone();
            async move { purges.run(CancellationToken::new()).await }
        });
        tokio::time::sleep(Duration::from_millis(15 + crashes % 10)).await;
        running.abort();
        let _ = running.await;
        crashes += 1;
        assert!(crashes < 2000, "it does not get on");
        drop(purges);
        let (core, timeline) = open(&server.dir, server.core.clock.clone()).await;
        server = Server { core, timeline, dir: server.dir };
    }
    assert!(crashes > 3, "{crashes} crashes");
    let purges = server.purges();
    for id in &ids {
        let purge = purges.status(id).await.unwrap().unwrap();
        assert_eq!((purge.phase, &purge.error), (PurgePhase::Complete, &None), "{purge}");
    }
    assert_eq!(server.nodes().await, server.needed(&other).await.len());
    server.say(&other, "still here").await;
    assert!(server.core.store.read().await.unwrap().room_blocked_by(&room).await.unwrap().is_none());
}

#[tokio::test]
async fn rooms_say_how_long_messages_live() {
    let server = server().await;
    let (short, long) = (server.room().await, server.room().await);
    let content = raw(&json!({ "max_lifetime": 5 * DAY }));
    let kind = TimelineEventType::from(StateEventType::from("m.room.retention").to_string());
    let draft = Draft::state(user("ann"), kind, "", content);
    server.timeline.set_state(&Author::new(user("ann")), &short, draft).await.unwrap();
    let (gone, kept) = (server.say(&short, "gone").await, server.say(&long, "kept").await);
    server.core.clock.advance(6 * DAY);
    let young = server.say(&short, "young").await;
    let purges = server.purges();
    assert_eq!(purges.lifetime(&short).await.unwrap(), Some(Lifetime(Duration::from_millis(5 * DAY))));
    purges.turn().await;
    assert!(!server.has(&gone).await);
    assert!(server.has(&kept).await && server.has(&young).await);
    let begun = purges.newest().await.unwrap().len();
    server.core.clock.advance(DAY / 2);
    purges.turn().await;
    assert_eq!(purges.newest().await.unwrap().len(), begun, "nothing is left to forget");
}
