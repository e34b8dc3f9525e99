//! What things cost as a server grows, at three sizes a factor of ten apart: counted, not timed. What a message writes and what a
//! sync reads depends neither on how many silent members a room has nor on in how many rooms nothing happened.

use super::{Client, Server, bodies, server, user};
use futures_util::{StreamExt, stream};
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use waxwing_services::timeline::{Author, JoinRoom};

/// Members of a room.
const MEMBERS: [usize; 3] = [10, 100, 1000];
/// Rooms of a person.
const ROOMS: [usize; 3] = [5, 50, 500];
/// Members who hold a long poll.
const LISTENERS: [&str; 3] = ["ann", "bob", "carol"];
/// Joins at the same time: they share commits.
const TOGETHER: usize = 64;

async fn join(server: &Server, who: OwnedUserId, room: &OwnedRoomId) {
    let wish =
        JoinRoom { author: Author::new(who), room: room.clone(), via: Vec::new(), content: Map::new() };
    server.timeline.join(wish).await.unwrap();
}

fn lazily<'a>(server: &'a Server, name: &'static str) -> Client<'a> {
    Client::new(server, name).with(json!({"room": {"state": {"lazy_load_members": true}}}))
}

/// A message that all listeners are told: rows of the log, reads of the database, bytes of all answers.
async fn tell(
    server: &Arc<Server>,
    clients: &mut [Client<'_>],
    room: &OwnedRoomId,
    body: &str,
) -> (i64, u64, usize) {
    let polls: Vec<_> = clients
        .iter()
        .map(|client| {
            let (sync, mut request) = (Arc::clone(&server.sync), client.request());
            request.timeout = Duration::from_secs(20);
            tokio::spawn(async move { sync.sync(&request).await.unwrap() })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (head, before) = (server.core.store.tail().head(), server.core.store.lookups());
    server.say("ann", room, body).await;
    let mut bytes = 0;
    for (client, poll) in clients.iter_mut().zip(polls) {
        let answer = serde_json::to_value(poll.await.unwrap()).unwrap();
        assert_eq!(bodies(&answer["rooms"]["join"][room.as_str()]), [body]);
        client.since = answer["next_batch"].as_str().map(str::to_owned);
        bytes += answer["rooms"].to_string().len();
    }
    let rows = server.core.store.tail().head().0 - head.0;
    (rows, server.core.store.lookups() - before, bytes)
}

#[tokio::test]
async fn silent_members_cost_a_message_nothing() {
    let mut costs = Vec::new();
    for size in MEMBERS {
        let server = Arc::new(server().await);
        let room = server.room("ann").await;
        for listener in &LISTENERS[1..] {
            server.join(listener, &room).await;
        }
        let (shared, made) = (&server, &room);
        stream::iter(LISTENERS.len()..size)
            .for_each_concurrent(TOGETHER, |n| join(shared, user(&format!("silent{n}")), made))
            .await;
        let mut clients = LISTENERS.map(|name| lazily(&server, name));
        for client in &mut clients {
            client.sync().await;
        }
        // The first may bring things to memory.
        tell(&server, &mut clients, &room, "first").await;
        costs.push(tell(&server, &mut clients, &room, "other").await);
    }
    println!("a message to {} listeners beside {MEMBERS:?} members: {costs:?}", LISTENERS.len());
    let (rows, reads, bytes) = costs[0];
    for cost in &costs[1..] {
        assert_eq!((cost.0, cost.1), (rows, reads), "rows of the log, reads: {costs:?}");
        // Positions and ages have more digits.
        assert!(cost.2 <= bytes + 100, "bytes: {costs:?}");
    }
}

#[tokio::test]
async fn rooms_where_nothing_happened_cost_a_sync_nothing() {
    let mut costs = Vec::new();
    for size in ROOMS {
        let server = Arc::new(server().await);
        let rooms: Vec<OwnedRoomId> =
            stream::iter(0..size).map(|_| server.room("ann")).buffer_unordered(TOGETHER).collect().await;
        let mut clients = [lazily(&server, "ann")];
        clients[0].sync().await;
        tell(&server, &mut clients, &rooms[0], "first").await;
        let news = tell(&server, &mut clients, &rooms[size / 2], "other").await;
        let before = server.core.store.lookups();
        let quiet: Value = clients[0].sync().await;
        assert!(quiet.get("rooms").is_none());
        costs.push((news, server.core.store.lookups() - before));
    }
    println!("a sync with one message, and without any, in {ROOMS:?} rooms: {costs:?}");
    let ((rows, reads, bytes), quiet) = costs[0];
    for (cost, without) in &costs[1..] {
        assert_eq!((cost.0, cost.1, *without), (rows, reads, quiet), "rows of the log, reads: {costs:?}");
        assert!(cost.2 <= bytes + 100, "bytes: {costs:?}");
    }
}

#[tokio::test]
async fn a_state_change_writes_as_many_rows_whoever_is_there() {
    let mut costs = Vec::new();
    for size in MEMBERS {
        let server = server().await;
        let room = server.room("ann").await;
        let (shared, made) = (&server, &room);
        stream::iter(1..size)
            .for_each_concurrent(TOGETHER, |n| join(shared, user(&format!("silent{n}")), made))
            .await;
        let head = server.core.store.tail().head().0;
        server.set("ann", &room, "m.room.topic", json!({"topic": "news"})).await;
        let changed = server.core.store.tail().head().0;
        server.leave("silent1", &room).await;
        costs.push((changed - head, server.core.store.tail().head().0 - changed));
    }
    println!("rows of the log for a topic and a leaving, beside {MEMBERS:?} members: {costs:?}");
    assert!(costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
}
