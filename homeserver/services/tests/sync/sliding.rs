//! Sliding sync: windows, lists, and what a connection remembers.

use super::{Server, raw, server, user};
use ruma::OwnedRoomId;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use waxwing_services::account_data::AccountData;
use waxwing_services::render::Viewer;
use waxwing_services::sync::sliding::{
    Extensions, Filters, ListRule, Pattern, Reach, RoomRule, SlidingAnswer, SlidingError, SlidingRequest,
    SlidingRoom, StateConfig, StateNews,
};
use waxwing_services::timeline::{Author, Removal};

/// One connection: keeps its position.
struct Connection<'a> {
    server: &'a Server,
    request: SlidingRequest,
}

fn pattern(kind: &str, key: Option<&str>) -> Pattern {
    Pattern::new(Some(kind.to_owned()), key.map(str::to_owned))
}

fn rule(timeline_limit: usize, include: &[Pattern], lazy_members: bool) -> RoomRule {
    let state =
        StateConfig { include: include.iter().cloned().collect(), lazy_members, ..StateConfig::default() };
    RoomRule { timeline_limit, state }
}

fn list(range: Option<(usize, usize)>, room: RoomRule) -> ListRule {
    ListRule { ranges: range.map(|range| vec![range]), room, ..ListRule::default() }
}

impl<'a> Connection<'a> {
    fn new(server: &'a Server, name: &str, conn_id: &str) -> Connection<'a> {
        let request = SlidingRequest {
            viewer: Viewer { user: user(name), device: Some("D".to_owned()) },
            conn_id: conn_id.to_owned(),
            pos: None,
            timeout: Duration::ZERO,
            lists: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            extensions: Extensions::default(),
            counts: true,
        };
        Connection { server, request }
    }
    fn with(mut self, name: &str, list: ListRule) -> Connection<'a> {
        self.request.lists.insert(name.to_owned(), list);
        self
    }
    async fn try_ask(&self) -> Result<SlidingAnswer, SlidingError> {
        self.server.sync.sliding(&self.request).await
    }
    async fn ask(&mut self) -> SlidingAnswer {
        let answer = self.try_ask().await.unwrap();
        self.request.pos = Some(answer.pos.clone());
        answer
    }
}

fn rooms(answer: &SlidingAnswer) -> Vec<&str> {
    answer.rooms.keys().map(|room| room.as_str()).collect()
}

fn bodies(room: &SlidingRoom) -> Vec<String> {
    let events = room.timeline.iter().map(|event| serde_json::from_str::<Value>(event.get()).unwrap());
    events.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

fn entries(room: &SlidingRoom) -> Vec<String> {
    let name = |news: &StateNews| match news {
        StateNews::Event(event) => {
            let event: Value = serde_json::from_str(event.get()).unwrap();
            format!("{}/{}", event["type"].as_str().unwrap(), event["state_key"].as_str().unwrap())
        }
        StateNews::Gone(kind, key) => format!("-{kind}/{key}"),
    };
    let mut names: Vec<String> = room.state.iter().map(name).collect();
    names.sort_unstable();
    names
}

async fn some_rooms(server: &Server, count: usize) -> Vec<OwnedRoomId> {
    let mut rooms = Vec::new();
    for number in 0..count {
        let room = server.room("ann").await;
        server.say("ann", &room, &number.to_string()).await;
        rooms.push(room);
    }
    rooms
}

#[tokio::test]
async fn a_window_shows_the_most_active_rooms_and_grows() {
    let server = server().await;
    let made = some_rooms(&server, 4).await;
    let mut ann =
        Connection::new(&server, "ann", "list").with("all", list(Some((0, 1)), rule(1, &[], false)));
    let first = ann.ask().await;
    assert_eq!(first.lists["all"], 4);
    assert_eq!(first.rooms.len(), 2);
    let newest = &first.rooms[&made[3]];
    assert!(newest.initial && newest.limited && newest.lists == ["all"] && newest.live == 0);
    assert_eq!(bodies(newest), ["3"]);
    assert_eq!((newest.joined_count, newest.membership), (Some(1), "join"));
    assert!(newest.bump_stamp.unwrap() > first.rooms[&made[2]].bump_stamp.unwrap());

    // The same position again with another body, as after a lost answer; and once more from there.
    let before = ann.request.pos.clone();
    ann.request.lists.insert("all".into(), list(None, rule(1, &[], false)));
    assert_eq!(ann.ask().await.rooms.len(), 2);
    ann.request.pos.clone_from(&before);
    let grown = ann.ask().await;
    assert_eq!(grown.rooms.keys().collect::<std::collections::BTreeSet<_>>(), made[..2].iter().collect());
    assert!(ann.ask().await.rooms.is_empty());

    // A quiet room that speaks comes with what is new only.
    server.say("ann", &made[0], "again").await;
    let news = ann.ask().await;
    assert_eq!(rooms(&news), [made[0].as_str()]);
    let room = &news.rooms[&made[0]];
    assert!(!room.initial && !room.limited && room.live == 1 && room.joined_count.is_none());
    assert_eq!(bodies(room), ["again"]);

    // What falls out of the window is caught up with when it comes back.
    ann.request.lists.insert("all".into(), list(Some((0, 0)), rule(5, &[], false)));
    ann.ask().await;
    server.say("ann", &made[1], "unseen").await;
    server.say("ann", &made[0], "seen").await;
    let news = ann.ask().await;
    assert_eq!(rooms(&news), [made[0].as_str()]);
    ann.request.lists.insert("all".into(), list(None, rule(1, &[], false)));
    let news = ann.ask().await;
    assert_eq!(rooms(&news), [made[1].as_str()]);
    assert_eq!(
        (bodies(&news.rooms[&made[1]]), news.rooms[&made[1]].initial),
        (vec!["unseen".to_owned()], false)
    );
}

#[tokio::test]
async fn a_subscription_widens_what_a_list_shows() {
    let server = server().await;
    let room = server.room("ann").await;
    server.set("ann", &room, "m.room.topic", json!({"topic": "x"})).await;
    for number in 0..5 {
        server.say("ann", &room, &number.to_string()).await;
    }
    let create = pattern("m.room.create", Some(""));
    let mut ann = Connection::new(&server, "ann", "list")
        .with("all", list(None, rule(1, std::slice::from_ref(&create), false)));
    let first = ann.ask().await;
    assert_eq!(entries(&first.rooms[&room]), ["m.room.create/"]);
    let topic = pattern("m.room.topic", Some(""));
    ann.request.subscriptions.insert(room.clone(), rule(3, &[topic, create], false));
    let news = ann.ask().await;
    let entry = &news.rooms[&room];
    assert!(entry.expanded && !entry.initial && entry.live == 0);
    assert_eq!(bodies(entry), ["2", "3", "4"]);
    assert_eq!(entries(entry), ["m.room.topic/"]);
    assert!(ann.ask().await.rooms.is_empty());
    // Gone and back: the client still has the events; state that it did not ask for meanwhile is told.
    ann.request.subscriptions.clear();
    server.set("ann", &room, "m.room.topic", json!({"topic": "y"})).await;
    assert!(entries(&ann.ask().await.rooms[&room]).is_empty());
    ann.request.subscriptions.insert(room.clone(), rule(3, &[pattern("m.room.topic", None)], false));
    let news = ann.ask().await;
    assert_eq!(entries(&news.rooms[&room]), ["m.room.topic/"]);
    assert!(!news.rooms[&room].expanded);
}

#[tokio::test]
async fn lazy_members_come_with_what_they_say() {
    let server = server().await;
    let room = server.room("ann").await;
    server.join("bob", &room).await;
    server.join("eve", &room).await;
    server.say("bob", &room, "one").await;
    let wanted = [Pattern::default(), pattern("m.room.member", Some("@ann:test"))];
    let mut ann = Connection::new(&server, "ann", "list").with("all", list(None, rule(1, &wanted, true)));
    let first = ann.ask().await;
    let shown = entries(&first.rooms[&room]);
    let members: Vec<&String> = shown.iter().filter(|name| name.contains("m.room.member")).collect();
    assert_eq!(members, ["m.room.member/@ann:test", "m.room.member/@bob:test"]);
    assert!(shown.contains(&"m.room.power_levels/".to_owned()));
    let heroes = first.rooms[&room].heroes.as_ref().unwrap();
    assert_eq!(heroes.len(), 2);
    server.say("bob", &room, "two").await;
    assert!(entries(&ann.ask().await.rooms[&room]).is_empty());
    server.say("eve", &room, "three").await;
    assert_eq!(entries(&ann.ask().await.rooms[&room]), ["m.room.member/@eve:test"]);
    server.leave("bob", &room).await;
    let news = ann.ask().await;
    assert_eq!(entries(&news.rooms[&room]), ["m.room.member/@bob:test"]);
    assert_eq!(news.rooms[&room].joined_count, Some(2));
}

#[tokio::test]
async fn filters_sort_rooms_into_lists() {
    let server = server().await;
    let (plain, direct, tagged) =
        (server.room("ann").await, server.room("ann").await, server.room("ann").await);
    let invited = server.room("bob").await;
    server.timeline.invite(&Author::new(user("bob")), &invited, &user("ann"), Map::new()).await.unwrap();
    let account_data = AccountData::new(server.core.clone());
    let ann_id = user("ann");
    let content = raw(json!({"@bob:test": [direct]}));
    account_data.set(&ann_id, &ann_id, None, "m.direct", &content).await.unwrap();
    let content = raw(json!({"tags": {"m.favourite": {}}}));
    account_data.set(&ann_id, &ann_id, Some(&tagged), "m.tag", &content).await.unwrap();
    let filtered = |filters: Filters| ListRule { filters, ..list(None, rule(1, &[], false)) };
    let favourite: std::collections::BTreeSet<String> = ["m.favourite".to_owned()].into();
    let mut ann = Connection::new(&server, "ann", "list")
        .with("direct", filtered(Filters { is_dm: Some(true), ..Filters::default() }))
        .with("invited", filtered(Filters { is_invited: Some(true), ..Filters::default() }))
        .with("tagged", filtered(Filters { tags: Some(favourite.clone()), ..Filters::default() }))
        .with("encrypted", filtered(Filters { is_encrypted: Some(true), ..Filters::default() }))
        .with(
            "spaces",
            filtered(Filters { room_types: Some([Some("m.space".into())].into()), ..Filters::default() }),
        )
        .with(
            "rest",
            filtered(Filters {
                is_dm: Some(false),
                is_invited: Some(false),
                not_tags: favourite,
                not_room_types: [Some("m.space".into())].into(),
                ..Filters::default()
            }),
        );
    let first = ann.ask().await;
    let of = |list: &str| -> Vec<&OwnedRoomId> {
        let has = |room: &SlidingRoom| room.lists.iter().any(|name| name == list);
        first.rooms.iter().filter(|(_, room)| has(room)).map(|(id, _)| id).collect()
    };
    assert_eq!(of("direct"), [&direct]);
    assert_eq!(of("invited"), [&invited]);
    assert_eq!(of("tagged"), [&tagged]);
    assert_eq!(of("rest"), [&plain]);
    assert_eq!((first.lists["spaces"], first.lists["encrypted"], first.lists["rest"]), (0, 0, 1));
    assert_eq!((first.rooms[&direct].is_dm, first.rooms[&plain].is_dm), (Some(true), None));
    let entry = &first.rooms[&invited];
    assert!(entry.membership == "invite" && entry.stripped.is_some() && entry.timeline.is_empty());
    // No direct room any more: that alone is news.
    let content = raw(json!({}));
    account_data.set(&ann_id, &ann_id, None, "m.direct", &content).await.unwrap();
    let news = ann.ask().await;
    assert_eq!((rooms(&news), news.rooms[&direct].is_dm), (vec![direct.as_str()], Some(false)));
}

#[tokio::test]
async fn rooms_that_are_left_show_their_end() {
    let server = server().await;
    let (left, kicked) = (server.room("ann").await, server.room("ann").await);
    let never = server.room("ann").await;
    server.join("bob", &left).await;
    server.join("bob", &kicked).await;
    let all = || list(None, rule(10, &[pattern("m.room.member", Some("@bob:test"))], false));
    let mut bob = Connection::new(&server, "bob", "list").with("all", all());
    // Whoever names a room that is none of theirs sees nothing of it.
    bob.request.subscriptions.insert(never, rule(10, &[], false));
    assert_eq!(bob.ask().await.rooms.len(), 2);
    server.say("ann", &kicked, "last words").await;
    server.leave("bob", &left).await;
    let bob_id = user("bob");
    server.timeline.remove(&Author::new(user("ann")), &kicked, &bob_id, Removal::Kick, None).await.unwrap();
    server.say("ann", &kicked, "secret").await;
    let news = bob.ask().await;
    assert_eq!((news.rooms[&left].membership, news.rooms[&kicked].membership), ("leave", "leave"));
    assert_eq!(bodies(&news.rooms[&kicked]), ["last words"]);
    assert_eq!(entries(&news.rooms[&left]), ["m.room.member/@bob:test"]);
    assert!(bob.ask().await.rooms.is_empty());
    // A new connection tells of the room that bob was removed from, not of the one that he left.
    let mut bob = Connection::new(&server, "bob", "other").with("all", all());
    let first = bob.ask().await;
    assert_eq!((rooms(&first), first.lists["all"]), (vec![kicked.as_str()], 1));
    assert_eq!(bodies(&first.rooms[&kicked]), ["last words"]);
    // Back again: everything anew.
    server.join("bob", &kicked).await;
    let news = bob.ask().await;
    assert!(news.rooms[&kicked].initial && news.rooms[&kicked].membership == "join");
}

#[tokio::test]
async fn a_position_belongs_to_one_connection_and_survives_its_node() {
    let server = server().await;
    let room = server.room("ann").await;
    let all = || list(None, rule(1, &[], false));
    let mut ann = Connection::new(&server, "ann", "one").with("all", all());
    ann.ask().await;
    for (name, conn_id) in [("ann", "two"), ("bob", "one")] {
        let mut other = Connection::new(&server, name, conn_id).with("all", all());
        other.request.pos.clone_from(&ann.request.pos);
        assert!(matches!(other.try_ask().await, Err(SlidingError::UnknownPos)));
    }
    let next = super::on(server.core.clone(), None).await;
    let mut elsewhere = Connection { server: &next, request: ann.request.clone() };
    assert!(elsewhere.ask().await.rooms.is_empty(), "the other node knows what was sent");
    server.say("ann", &room, "hello").await;
    assert_eq!(rooms(&elsewhere.ask().await), [room.as_str()]);
    // The client begins anew: what it had is gone.
    let old = ann.request.pos.take();
    ann.ask().await;
    elsewhere.request.pos = old;
    let third = super::on(server.core.clone(), None).await;
    let stale = Connection { server: &third, request: elsewhere.request };
    assert!(matches!(stale.try_ask().await, Err(SlidingError::UnknownPos)));
}

#[tokio::test]
async fn a_message_is_told_from_memory_alone() {
    let server = Arc::new(server().await);
    let made = some_rooms(&server, 3).await;
    server.join("bob", &made[0]).await;
    let everything = [Pattern::default()];
    let mut bob = Connection::new(&server, "bob", "list").with("all", list(None, rule(1, &everything, true)));
    let all = Reach::default();
    bob.request.extensions = Extensions {
        to_device: None,
        e2ee: true,
        account_data: Some(all.clone()),
        typing: Some(all.clone()),
        receipts: Some(all),
        ..Extensions::default()
    };
    bob.ask().await;
    let mut v3 =
        super::Client::new(&server, "bob").with(json!({"room": {"state": {"lazy_load_members": true}}}));
    v3.sync().await;
    for round in 0..2 {
        server.say("ann", &made[0], "news").await;
        let before = server.core.store.lookups();
        let news = bob.ask().await;
        let sliding = server.core.store.lookups() - before;
        assert_eq!(rooms(&news), [made[0].as_str()]);
        let news = v3.sync().await;
        assert_eq!(super::bodies(&news["rooms"]["join"][made[0].as_str()]), ["news"]);
        let both = server.core.store.lookups() - before;
        if round > 0 {
            assert_eq!((sliding, both), (0, 0), "read the database");
        }
    }
}
