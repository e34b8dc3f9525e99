//! What is unread and what is told of threads: by the threads that people follow, until it is redacted, and from other
//! servers.

use crate::federation::{Federation, NAMES};
use crate::gateway::Gateway;
use crate::http::{Raw, sealed};
use crate::push::{letter, room, say, set, site};
use crate::site::{Shape, Site};
use reqwest::Method;
use serde_json::{Value, json};

const BY_THREAD: &str = "%7B%22room%22:%7B%22timeline%22:%7B%22unread_thread_notifications%22:true%7D%7D%7D";

/// The unread counts of a room, in the main timeline and in threads, as `[notifications, highlights]`.
async fn unread(who: &Raw, room: &str) -> (Value, Value) {
    let synced = who.get(&format!("/_matrix/client/v3/sync?timeout=0&filter={BY_THREAD}")).await.fine();
    let entry = &synced["rooms"]["join"][room];
    let counts = |of: &Value| json!([of["notification_count"], of["highlight_count"]]);
    let threads: serde_json::Map<String, Value> = entry["unread_thread_notifications"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(root, of)| (root.clone(), counts(of)))
        .collect();
    (counts(&entry["unread_notifications"]), threads.into())
}

async fn sealed_reply(who: &Raw, room: &str, root: &str, transaction: &str) -> String {
    let mut content = sealed("QUJD");
    content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": root });
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{transaction}");
    who.put(&path, content).await.fine()["event_id"].as_str().unwrap().to_owned()
}

async fn threads_tell_their_followers(site: Site) {
    let gateway = Gateway::start().await;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let carol = Raw::register(&site.url, "carol").await;
    let room = room(&alice, &bob, json!({ "preset": "public_chat" })).await;
    carol.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    set(&bob, gateway.pusher("key", json!({}))).await;
    let root = letter(&alice, &room, "root").await;
    assert_eq!(gateway.take(1).await[0]["event_id"], root);
    sealed_reply(&alice, &room, &root, "1").await;
    gateway.take(0).await;
    assert_eq!(unread(&bob, &room).await, (json!([1, 0]), json!({})));

    let path = format!("/_matrix/client/unstable/io.element.msc4306/rooms/{room}/thread/{root}/subscription");
    bob.put(&path, json!({})).await.fine();
    // Who follows a thread has not read what is in it already.
    assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 2);
    let second = sealed_reply(&carol, &room, &root, "2").await;
    let told = gateway.take(1).await;
    assert_eq!((&told[0]["event_id"], &told[0]["counts"]["unread"]), (&json!(second), &json!(3)));
    assert_eq!(unread(&bob, &room).await, (json!([1, 0]), json!({ &root: [2, 0] })));

    bob.send(Method::DELETE, &path, "").await.fine();
    assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 1);
    sealed_reply(&alice, &room, &root, "3").await;
    gateway.take(0).await;
    assert_eq!(unread(&bob, &room).await, (json!([1, 0]), json!({})));
    // Others have their own wishes.
    assert_eq!(unread(&carol, &room).await.1, json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_are_told_by_one_node() {
    let site = site(Shape::Sqlite, &["push.thread_subscriptions=true"]).await.unwrap();
    threads_tell_their_followers(site).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_are_told_by_two_nodes() {
    if let Some(site) = site(Shape::TwoNodes, &["push.thread_subscriptions=true"]).await {
        threads_tell_their_followers(site).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_redacted_is_neither_unread_nor_loud() {
    let site = site(Shape::Sqlite, &["plaintext=accept"]).await.unwrap();
    let gateway = Gateway::start().await;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = room(&alice, &bob, json!({ "preset": "private_chat" })).await;
    set(&bob, gateway.pusher("key", json!({}))).await;
    let mention = |root: Option<&str>| {
        let mut content =
            json!({ "msgtype": "m.text", "body": "look", "m.mentions": { "user_ids": [&bob.user] } });
        if let Some(root) = root {
            content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": root });
        }
        content
    };
    let root = say(&alice, &room, "1", mention(None)).await;
    let reply = say(&alice, &room, "2", mention(Some(&root))).await;
    let quiet = json!({ "msgtype": "m.text", "body": "look", "m.mentions": {},
                        "m.relates_to": { "rel_type": "m.thread", "event_id": &root } });
    say(&alice, &room, "3", quiet).await;
    let told = gateway.take(3).await;
    assert_eq!(told[2]["counts"]["unread"], 3);
    assert_eq!(unread(&bob, &room).await, (json!([1, 1]), json!({ &root: [2, 1] })));
    for (number, id) in [&reply, &root].into_iter().enumerate() {
        let path = format!("/_matrix/client/v3/rooms/{room}/redact/{id}/r{number}");
        alice.put(&path, json!({})).await.fine();
        assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 2 - number);
        let main = if number == 0 { json!([1, 1]) } else { json!([0, 0]) };
        assert_eq!(unread(&bob, &room).await, (main, json!({ &root: [1, 0] })));
    }
    // Reading a thread reads nothing else.
    let last = say(&alice, &room, "4", mention(None)).await;
    gateway.take(1).await;
    let third =
        bob.get(&format!("/_matrix/client/v1/rooms/{room}/relations/{root}/m.thread?limit=1")).await.fine();
    let third = third["chunk"][0]["event_id"].as_str().unwrap().to_owned();
    let receipt = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{third}");
    bob.post(&receipt, json!({ "thread_id": &root })).await.fine();
    assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 1);
    assert_eq!(unread(&bob, &room).await, (json!([1, 1]), json!({})));
    let receipt = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{last}");
    bob.post(&receipt, json!({ "thread_id": "main" })).await.fine();
    assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 0);
    assert_eq!(unread(&bob, &room).await, (json!([0, 0]), json!({})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_and_invitations_from_other_servers_are_told() {
    let federation = Federation::start_with([&["push.allow_private_addresses=true"], &[]]).await;
    let gateway = Gateway::start().await;
    let alice = Raw::register(&federation.nodes[0].client_url(), "alice").await;
    let bob = Raw::register(&federation.nodes[1].client_url(), "bob").await;
    set(&alice, gateway.pusher("key", json!({}))).await;
    let room = bob.create_room(json!({ "preset": "private_chat", "invite": [&alice.user] })).await;
    let told = gateway.take(1).await;
    assert_eq!((&told[0]["room_id"], &told[0]["counts"]["unread"]), (&json!(room), &json!(1)));
    assert!(told[0].get("sender").is_none(), "the room is encrypted: {}", told[0]);
    alice.post(&format!("/_matrix/client/v3/join/{room}?via={}", NAMES[1]), json!({})).await.fine();
    assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 0);
    let first = letter(&bob, &room, "1").await;
    let second = letter(&bob, &room, "2").await;
    let told = gateway.take(2).await;
    let ids: Vec<&Value> = told.iter().map(|it| &it["event_id"]).collect();
    assert_eq!(ids, [&json!(first), &json!(second)]);
    assert_eq!(told[1]["counts"]["unread"], 2);
    // A redaction from there takes it off.
    bob.put(&format!("/_matrix/client/v3/rooms/{room}/redact/{second}/r"), json!({})).await.fine();
    assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 1);
}
