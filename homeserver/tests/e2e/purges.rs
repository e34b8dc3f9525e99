//! Rooms and history that administrators have forgotten, while people go on, and through a crash.

use crate::http::Raw;
use crate::site::{Shape, Site};
use crate::tenants::{SECRET, administrator};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a purge may take on a machine that has other work too.
const PATIENCE: Duration = Duration::from_mins(1);
/// Messages of a room: some slices.
const MESSAGES: usize = 450;

async fn site(shape: Shape) -> Option<Site> {
    Site::start_with(shape, &[format!("registration_shared_secret={SECRET}")]).await
}

/// Asks until the purge is over.
async fn over(root: &Raw, path: &str) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = root.get(path).await.fine();
        if matches!(status["status"].as_str(), Some("complete" | "failed")) {
            return status;
        }
        assert!(Instant::now() < end, "{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn speak(raw: &Raw, room: &str, from: usize, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in from..from + count {
        let answer = raw.send_sealed(room, &format!("t{number}")).await.fine();
        ids.push(answer["event_id"].as_str().unwrap().to_owned());
    }
    ids
}

async fn messages(raw: &Raw, room: &str) -> Vec<String> {
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1000");
    let page = raw.get(&path).await.fine();
    let chunk = page["chunk"].as_array().unwrap();
    chunk.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

async fn history_goes(site: &Site) {
    let root = administrator(site).await;
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({"preset": "private_chat"})).await;
    let said = speak(&alice, &room, 0, 20).await;
    let path = format!("/_synapse/admin/v1/purge_history/{room}");
    alice.post(&path, json!({"purge_up_to_ts": 1})).await.refused(403, "M_FORBIDDEN");
    root.post(&path, json!({})).await.refused(400, "M_MISSING_PARAM");
    root.post(&format!("{path}/$nothing"), json!({})).await.refused(404, "M_NOT_FOUND");
    root.get("/_synapse/admin/v1/purge_history_status/nothing").await.refused(404, "M_NOT_FOUND");
    let first = alice.get("/_matrix/client/v3/sync?timeout=0").await.fine();
    let begun = root.post(&format!("{path}/{}", said[15]), json!({"delete_local_events": true})).await.fine();
    let id = begun["purge_id"].as_str().unwrap();
    let status = over(&root, &format!("/_synapse/admin/v1/purge_history_status/{id}")).await;
    assert_eq!(status["status"], "complete", "{status}");
    let left = messages(&alice, &room).await;
    assert!(said[15..].iter().all(|id| left.contains(id)) && !left.contains(&said[14]), "{left:?}");
    let event = format!("/_matrix/client/v3/rooms/{room}/event/{}", said[3]);
    alice.get(&event).await.refused(404, "M_NOT_FOUND");
    let output = site.nodes[0].run(&["doctor"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // Whoever was away, and whoever comes anew, gets on.
    let next = alice.send_sealed(&room, "after").await.fine()["event_id"].clone();
    let since = first["next_batch"].as_str().unwrap();
    // Another node hears of it a moment later.
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let sync = alice.get(&format!("/_matrix/client/v3/sync?timeout=0&since={since}")).await.fine();
        let events = sync["rooms"]["join"][&room]["timeline"]["events"].as_array();
        if events.is_some_and(|events| events.iter().any(|event| event["event_id"] == next)) {
            break;
        }
        assert!(Instant::now() < end, "{sync}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let whole = alice.get("/_matrix/client/v3/sync?timeout=0").await.fine();
    let joined = &whole["rooms"]["join"][&room];
    assert!(
        joined["state"]["events"].as_array().unwrap().iter().any(|e| e["type"] == "m.room.create"),
        "{joined}"
    );
    alice.get(&format!("/_matrix/client/v3/rooms/{room}/state/m.room.create/")).await.fine();
}

async fn a_room_goes_through_a_crash(site: &mut Site) {
    let root = administrator(site).await;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({"preset": "public_chat", "room_alias_name": "gone"})).await;
    let kept = alice.create_room(json!({"preset": "private_chat"})).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    speak(&alice, &room, 0, MESSAGES).await;
    let stays = speak(&alice, &kept, 0, 3).await;
    let path = format!("/_synapse/admin/v2/rooms/{room}");
    bob.send(Method::DELETE, &path, "{}").await.refused(403, "M_FORBIDDEN");
    root.get(&format!("{path}/delete_status")).await.refused(404, "M_NOT_FOUND");
    let body = json!({"block": true, "purge": true}).to_string();
    let begun = root.send(Method::DELETE, &path, body.clone()).await.fine();
    let id = begun["delete_id"].as_str().unwrap().to_owned();
    root.send(Method::DELETE, &path, body).await.refused(400, "M_INVALID_PARAM");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        for node in &mut site.nodes {
            node.kill().await;
        }
        for node in &mut site.nodes {
            node.start().await;
        }
    }
    let status = over(&root, &format!("/_synapse/admin/v2/rooms/delete_status/{id}")).await;
    assert_eq!(status["status"], "complete", "{status}");
    let kicked = status["shutdown_room"]["kicked_users"].as_array().unwrap().len();
    assert_eq!(kicked, 2, "{status}");
    assert!(status["shutdown_room"]["local_aliases"][0].as_str().unwrap().starts_with("#gone:"), "{status}");
    let of_room = root.get(&format!("{path}/delete_status")).await.fine();
    assert_eq!(of_room["results"][0]["delete_id"], id.as_str());
    let shown = site.nodes[0].run(&["purges", &id]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("Complete"), "{shown}");
    for raw in [&alice, &bob] {
        let sync = raw.get("/_matrix/client/v3/sync?timeout=0").await.fine();
        assert!(sync["rooms"]["join"][&room].is_null(), "{sync}");
        let join = raw.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await;
        join.refused(403, "M_FORBIDDEN");
    }
    alice.get("/_matrix/client/v3/directory/room/%23gone:localhost").await.refused(404, "M_NOT_FOUND");
    let left = messages(&alice, &kept).await;
    assert!(stays.iter().all(|id| left.contains(id)), "{left:?}");
    let block = format!("/_synapse/admin/v1/rooms/{room}/block");
    assert_eq!(root.get(&block).await.fine()["block"], true);
    root.put(&block, json!({"block": false})).await.fine();
    assert_eq!(root.get(&block).await.fine(), json!({"block": false}));
}

async fn the_operator_forgets(site: &Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({"preset": "private_chat"})).await;
    let said = speak(&alice, &room, 0, 5).await;
    let run = site.nodes[0].run(&["history", "purge", &room, "--before", &said[3], "--local"]).await;
    assert!(run.status.success(), "{run:?}");
    let id = String::from_utf8_lossy(&run.stdout).trim().to_owned();
    let end = Instant::now() + PATIENCE;
    loop {
        let shown = site.nodes[0].run(&["purges", &id]).await;
        if String::from_utf8_lossy(&shown.stdout).contains("Complete") {
            break;
        }
        assert!(Instant::now() < end, "{shown:?}");
    }
    let left = messages(&alice, &room).await;
    assert!(left.contains(&said[3]) && !left.contains(&said[2]), "{left:?}");
    let unknown = site.nodes[0].run(&["history", "purge", "!nothing:localhost", "--days", "3"]).await;
    assert!(!unknown.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administrators_forget_history_and_rooms() {
    for shape in [Shape::Sqlite, Shape::Postgres, Shape::TwoNodes] {
        if let Some(site) = site(shape).await {
            history_goes(&site).await;
        }
        if let Some(mut site) = site(shape).await {
            a_room_goes_through_a_crash(&mut site).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_forget_from_the_command_line() {
    let site = site(Shape::Sqlite).await.unwrap();
    the_operator_forgets(&site).await;
}
