//! The auth graph: numbers that follow the auth events, whatever the order in which events come, and whoever stored them;
//! and states that were made outside of a transaction.

use crate::Fresh;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, room_id};
use serde_json::json;
use serde_json::value::to_raw_value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::resolve::AuthNode;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{EventFlags, Fact, NewRow, Place, Store, StoreError};

/// Name, whether it is a state event, what authorises it.
type Spec = (&'static str, bool, &'static [&'static str]);

const ROOM: [Spec; 8] = [
    ("create", true, &[]),
    ("alice", true, &["create"]),
    ("levels", true, &["create", "alice"]),
    ("rules", true, &["create", "alice", "levels"]),
    ("bob", true, &["create", "levels", "rules"]),
    ("hello", false, &["create", "levels", "bob"]),
    ("bob2", true, &["create", "levels", "bob"]),
    ("levels2", true, &["create", "levels", "alice"]),
];

fn room() -> OwnedRoomId {
    room_id!("!r:test").to_owned()
}

fn id(name: &str) -> OwnedEventId {
    format!("${name}").try_into().unwrap()
}

fn event((name, state, auth): Spec) -> Arc<Event> {
    let mut json = json!({
        "type": "m.room.member", "sender": "@alice:test", "origin_server_ts": 1, "depth": 1, "prev_events": [],
        "auth_events": auth.iter().map(|name| id(name)).collect::<Vec<_>>(), "content": {}, "hashes": {},
    });
    if state {
        json["state_key"] = json!(name);
    }
    Arc::new(Event::parse(id(name), room(), to_raw_value(&json).unwrap()).unwrap())
}

async fn put(store: &Store, events: Vec<Spec>, place: Place) {
    let events: Arc<[Arc<Event>]> = events.into_iter().map(event).collect();
    let written: Result<(), StoreError> = store
        .write("put", Vec::new(), move |tx| {
            let events = Arc::clone(&events);
            Box::pin(async move {
                for event in events.iter() {
                    let flags = EventFlags { outlier: place == Place::Outlier, ..EventFlags::NONE };
                    let row = NewRow::new(Fact::Event).room(room()).reference(event.event_id.as_str());
                    tx.event_put(Arc::clone(event), flags, None, place, row, None);
                }
                Ok(())
            })
        })
        .await;
    written.unwrap();
}

async fn fill(store: &Store, limit: i64) {
    let mut after = i64::MIN;
    loop {
        let filled: Result<Option<i64>, StoreError> = store
            .write("fill", Vec::new(), move |tx| {
                Box::pin(async move { tx.auth_graph_fill(&room(), after, limit).await })
            })
            .await;
        match filled.unwrap() {
            Some(last) => after = last,
            None => return,
        }
    }
}

/// Every node, with its auth events by name.
async fn graph(store: &Store) -> BTreeMap<String, BTreeSet<String>> {
    let nodes = store.auth_nodes_later(&room(), 0, 1000).await.unwrap();
    assert!(nodes.windows(2).all(|pair| pair[0].number < pair[1].number));
    let name = |id: &OwnedEventId| id.as_str()[1..].to_owned();
    let by_number: BTreeMap<u64, &AuthNode> = nodes.iter().map(|node| (node.number, node)).collect();
    for node in &nodes {
        assert!(node.auth.iter().all(|auth| *auth < node.number), "{node:?}");
        let read = store.auth_nodes(&room(), &[node.number]).await.unwrap();
        assert_eq!(*read[0], *node);
        let (of, unplaced) =
            store.auth_nodes_of(&room(), std::slice::from_ref(&node.event_id)).await.unwrap();
        assert_eq!((&*of[0], unplaced.len()), (node, 0));
    }
    let auth = |node: &AuthNode| node.auth.iter().map(|auth| name(&by_number[auth].event_id)).collect();
    nodes.iter().map(|node| (name(&node.event_id), auth(node))).collect()
}

fn expected() -> BTreeMap<String, BTreeSet<String>> {
    let state = ROOM.iter().filter(|(_, state, _)| *state);
    let owned = |auth: &&[&str]| auth.iter().map(|name| (*name).to_owned()).collect();
    state.map(|(name, _, auth)| ((*name).to_owned(), owned(auth))).collect()
}

async fn is_whole(store: &Store) -> bool {
    let mut conn = store.read().await.unwrap();
    let whole = !conn.auth_graph_lacks(&room()).await.unwrap();
    assert_eq!(conn.auth_graph_next("").await.unwrap().is_none(), whole);
    let faults = conn.disagreements().await.unwrap();
    assert!(faults.iter().all(|fault| !fault.what.contains("auth graph") || fault.count == 0), "{faults:?}");
    whole
}

#[tokio::test]
async fn numbers_follow_the_auth_events() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        // A state as another server tells it: in any order.
        put(&store, ROOM[1..5].iter().rev().copied().chain([ROOM[0]]).collect(), Place::Outlier).await;
        for spec in &ROOM[5..] {
            put(&store, vec![*spec], Place::Live).await;
        }
        assert!(is_whole(&store).await);
        assert_eq!(graph(&store).await, expected());
        let (nodes, unplaced) = store.auth_nodes_of(&room(), &[id("hello"), id("unknown")]).await.unwrap();
        assert!(nodes.is_empty() && unplaced.is_empty());

        // One that was known before it came keeps its number.
        let before = store.auth_nodes_of(&room(), &[id("bob")]).await.unwrap().0[0].number;
        put(&store, vec![ROOM[4]], Place::Live).await;
        let after = store.auth_nodes_of(&room(), &[id("bob")]).await.unwrap().0[0].number;
        assert_eq!((after, graph(&store).await), (before, expected()));
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn what_an_older_program_stored_gets_its_place() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        put(&store, ROOM[..6].to_vec(), Place::Live).await;
        drop(store);
        fresh.execute("UPDATE events SET auth_number = NULL").await.unwrap();
        fresh.execute("DELETE FROM auth_graph").await.unwrap();

        let store = Store::open(&fresh.url).await.unwrap();
        // Now this program stores what rests on the others'.
        put(&store, ROOM[6..].to_vec(), Place::Live).await;
        assert!(!is_whole(&store).await);
        assert_eq!(store.auth_nodes_of(&room(), &[id("bob2")]).await.unwrap().1, [id("bob2")]);
        fill(&store, 2).await;
        assert!(is_whole(&store).await);
        assert_eq!(graph(&store).await, expected());
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn one_that_lacks_an_auth_event_waits_for_it_unless_it_must_not() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        put(&store, vec![ROOM[0], ROOM[2], ROOM[7]], Place::Outlier).await;
        fill(&store, 10).await;
        assert!(!is_whole(&store).await);
        put(&store, vec![ROOM[1]], Place::Outlier).await;
        fill(&store, 10).await;
        assert!(is_whole(&store).await);
        let some = ["create", "alice", "levels", "levels2"];
        let mut part = expected();
        part.retain(|name, _| some.contains(&&**name));
        assert_eq!(graph(&store).await, part);

        put(&store, vec![ROOM[4]], Place::Outlier).await;
        let forced: Result<(), StoreError> = store
            .write("force", Vec::new(), |tx| Box::pin(async move { tx.auth_graph_force(&[id("bob")]).await }))
            .await;
        forced.unwrap();
        let without_rules = ["create", "levels"].map(str::to_owned);
        assert_eq!(graph(&store).await["bob"], BTreeSet::from(without_rules));
        drop(store);
        fresh.drop_database().await;
    }
}

#[tokio::test]
async fn states_made_outside_of_a_transaction_are_on_disk_with_the_next_one() {
    for fresh in Fresh::both().await {
        let store = Store::open(&fresh.url).await.unwrap();
        let member = |n: usize| (StateEventType::RoomMember, format!("@user{n}:test"));
        let mut root = NodeId::EMPTY;
        for n in 0..100 {
            root = store.state_update(root, &[(member(n), Some(id(&format!("e{n}"))))]).await.unwrap();
        }
        let changed = store.state_update(root, &[(member(7), None)]).await.unwrap();
        assert_eq!(
            store.state_conflicts(&[root, changed]).await.unwrap(),
            [BTreeMap::from([(member(7), id("e7"))]), BTreeMap::new(),]
        );
        // Another node finds nothing of it yet.
        let other = Store::open(&fresh.url).await.unwrap();
        assert!(other.state_entries(changed).await.is_err());
        put(&store, vec![ROOM[0]], Place::Live).await;
        assert_eq!(other.state_entries(root).await.unwrap().len(), 100);
        assert_eq!(other.state_entries(changed).await.unwrap().len(), 99);
        drop((store, other));
        fresh.drop_database().await;
    }
}
