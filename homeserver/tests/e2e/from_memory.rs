//! What answers come from memory: counted by the server itself, whose metrics say how often it asked the database.

use crate::http::{Raw, sealed};
use crate::node::free_port;
use crate::site::{Shape, Site};
use serde_json::{Value, json};
use std::time::Duration;

/// Answers that are looked at. Tasks beside requests ask the database now and then, so that not every one of them needs to
/// be quiet; what a request itself reads, it reads each time.
const ROUNDS: usize = 10;
/// By then what follows a message beside the sync (notifications, other servers) is done.
const SETTLE: Duration = Duration::from_millis(150);

/// How often the server whose metrics these are asked the database.
async fn lookups(metrics: &str) -> u64 {
    let text = reqwest::get(metrics).await.unwrap().text().await.unwrap();
    let line =
        text.lines().find(|line| line.starts_with("waxwing_database_lookups_total ")).expect("the metric");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Someone and a friend in a room on a server that says what it does.
async fn two_in_a_room() -> (Site, String, Raw, Raw, String) {
    let port = free_port();
    let listen = format!("listen.metrics=127.0.0.1:{port}");
    let site = Site::start_with(Shape::Sqlite, &[listen]).await.unwrap();
    let (ann, bob) = (Raw::register(&site.url, "ann").await, Raw::register(&site.url, "bob").await);
    let room = bob.create_room(json!({ "preset": "public_chat" })).await;
    ann.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    (site, format!("http://127.0.0.1:{port}/metrics"), ann, bob, room)
}

/// The fewest lookups of a round, in each of which `say` something and `ask` for it.
async fn fewest<S, A>(metrics: &str, mut say: S, mut ask: A) -> u64
where
    S: AsyncFnMut(usize),
    A: AsyncFnMut(usize),
{
    let mut fewest = u64::MAX;
    for round in 0..ROUNDS {
        say(round).await;
        tokio::time::sleep(SETTLE).await;
        let before = lookups(metrics).await;
        ask(round).await;
        fewest = fewest.min(lookups(metrics).await - before);
    }
    fewest
}

async fn send(who: &Raw, room: &str, transaction: &str) {
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{transaction}");
    who.put(&path, sealed("QUJD")).await.fine();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_with_one_new_message_reads_nothing() {
    let (_site, metrics, ann, bob, room) = two_in_a_room().await;
    let filter = json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 20 } } });
    let stored = ann.post(&format!("/_matrix/client/v3/user/{}/filter", ann.user), filter).await.fine();
    let filter = stored["filter_id"].as_str().unwrap();
    let first = ann.get(&format!("/_matrix/client/v3/sync?filter={filter}")).await.fine();
    let mut since = first["next_batch"].as_str().unwrap().to_owned();
    let say = async |round: usize| send(&bob, &room, &format!("v3-{round}")).await;
    let ask = async |_| {
        let path = format!("/_matrix/client/v3/sync?filter={filter}&since={since}&timeout=0");
        let answer = ann.get(&path).await.fine();
        assert_eq!(answer["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap().len(), 1);
        answer["next_batch"].as_str().unwrap().clone_into(&mut since);
    };
    assert_eq!(fewest(&metrics, say, ask).await, 0, "lookups of a sync");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sliding_sync_with_one_new_message_reads_nothing() {
    let (_site, metrics, ann, bob, room) = two_in_a_room().await;
    let body = json!({
        "conn_id": "room-list",
        "lists": { "all": {
            "ranges": [[0, 19]], "timeline_limit": 1,
            "required_state": [["m.room.name", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]],
        } },
        "extensions": { "account_data": { "enabled": true }, "receipts": { "enabled": true, "rooms": ["*"] } },
    });
    let mut pos = String::new();
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
    let mut next = async || -> Value {
        let at = if pos.is_empty() { String::new() } else { format!("&pos={pos}") };
        let answer = ann.post(&format!("{path}{at}"), body.clone()).await.fine();
        answer["pos"].as_str().unwrap().clone_into(&mut pos);
        answer
    };
    next().await;
    let say = async |round: usize| send(&bob, &room, &format!("sliding-{round}")).await;
    let ask = async |_| {
        let answer = next().await;
        assert_eq!(answer["rooms"][&room]["timeline"].as_array().unwrap().len(), 1);
    };
    assert_eq!(fewest(&metrics, say, ask).await, 0, "lookups of a sliding sync");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_what_was_just_said_reads_nothing() {
    let (_site, metrics, ann, bob, room) = two_in_a_room().await;
    for number in 0..20 {
        send(&bob, &room, &format!("said-{number}")).await;
    }
    let say = async |round: usize| send(&bob, &room, &format!("page-{round}")).await;
    let ask = async |round: usize| {
        let newest =
            ann.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=10")).await.fine();
        assert_eq!(newest["chunk"].as_array().unwrap().len(), 10, "round {round}");
        for what in ["state", "members", "joined_members"] {
            ann.get(&format!("/_matrix/client/v3/rooms/{room}/{what}")).await.fine();
        }
    };
    assert_eq!(fewest(&metrics, say, ask).await, 0, "lookups of a page and of the state");
    // What changed shows, for all that is remembered.
    let member = format!("/_matrix/client/v3/rooms/{room}/state/m.room.member/{}", ann.user);
    ann.put(&member, json!({ "membership": "join", "displayname": "Ann of before" })).await.fine();
    let joined = bob.get(&format!("/_matrix/client/v3/rooms/{room}/joined_members")).await.fine();
    assert_eq!(joined["joined"][&ann.user]["display_name"], "Ann of before");
    ann.post(&format!("/_matrix/client/v3/rooms/{room}/leave"), json!({})).await.fine();
    send(&bob, &room, "after").await;
    let last = ann.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1")).await.fine();
    assert_eq!(last["chunk"][0]["content"]["membership"], "leave");
    bob.post(&format!("/_matrix/client/v3/rooms/{room}/ban"), json!({ "user_id": ann.user })).await.fine();
    let joined = bob.get(&format!("/_matrix/client/v3/rooms/{room}/joined_members")).await.fine();
    assert!(joined["joined"].get(&ann.user).is_none());
    ann.post(&format!("/_matrix/client/v3/rooms/{room}/forget"), json!({})).await.fine();
    ann.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b")).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_of_known_keys_reads_nothing_and_is_never_behind() {
    let (_site, metrics, ann, bob, _) = two_in_a_room().await;
    let whoami = bob.get("/_matrix/client/v3/account/whoami").await.fine();
    let device = whoami["device_id"].as_str().unwrap();
    let keys = json!({ "device_keys": {
        "user_id": bob.user, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("curve25519:{device}"): "c" }, "signatures": {},
    } });
    bob.post("/_matrix/client/v3/keys/upload", keys).await.fine();
    let query = json!({ "device_keys": { &bob.user: [], &ann.user: [] } });
    let ask = async || {
        let answer = ann.post("/_matrix/client/v3/keys/query", query.clone()).await.fine();
        answer["device_keys"][&bob.user][device].clone()
    };
    // Rows of the log in between that are not of keys.
    let say = async |round: usize| {
        let path = format!("/_matrix/client/v3/user/{}/account_data/org.example.kind", bob.user);
        bob.put(&path, json!({ "round": round })).await.fine();
    };
    let count = fewest(&metrics, say, async |_| assert!(ask().await["keys"].is_object())).await;
    assert_eq!(count, 0, "lookups of a query");
    let path = format!("/_matrix/client/v3/devices/{device}");
    for name in ["one", "two"] {
        bob.put(&path, json!({ "display_name": name })).await.fine();
        assert_eq!(ask().await["unsigned"]["device_display_name"], name);
    }
    bob.post("/_matrix/client/v3/logout", json!({})).await.fine();
    assert!(ask().await.is_null(), "keys of a device that is gone");
}
