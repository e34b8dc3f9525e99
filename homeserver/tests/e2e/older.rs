//! What the specification keeps of the API before `/sync`, as older clients and bots ask it.

use crate::http::Raw;
use crate::site::Site;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

in_each_shape!(older_clients_begin_and_go_on);

/// How long what follows from a request may take to show.
const SOON: Duration = Duration::from_secs(20);

/// Polls `/events` until this is among what it tells; gives where it stands then.
async fn until_told(who: &Raw, mut from: String, what: &str, told: impl Fn(&Value) -> bool) -> String {
    let end = Instant::now() + SOON;
    loop {
        let page = who.get(&format!("/_matrix/client/v3/events?timeout=1000&from={from}")).await.fine();
        assert_eq!(page["start"], *from, "{page}");
        page["end"].as_str().unwrap().clone_into(&mut from);
        if page["chunk"].as_array().unwrap().iter().any(&told) {
            return from;
        }
        assert!(Instant::now() < end, "{what}: {page}");
    }
}

async fn older_clients_begin_and_go_on(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let eve = Raw::register(&site.url, "eve").await;
    let room =
        alice.create_room(json!({"preset": "public_chat", "name": "Tea", "visibility": "public"})).await;
    let other = alice.create_room(json!({"preset": "private_chat", "invite": [bob.user]})).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let mut last = String::new();
    for number in 0..5 {
        let sent = alice.send_sealed(&room, &number.to_string()).await.fine();
        sent["event_id"].as_str().unwrap().clone_into(&mut last);
    }
    let whoami = bob.get("/_matrix/client/v3/account/whoami").await.fine();
    let device = whoami["device_id"].as_str().unwrap();
    let message = json!({"messages": {&bob.user: {device: {"algorithm": "m.olm.v1", "ciphertext": {"k": {}}, "n": 1}}}});
    alice.put("/_matrix/client/v3/sendToDevice/m.room.encrypted/1", message).await.fine();
    // What the node that is asked has seen, it tells.
    bob.get("/_matrix/client/v3/sync?timeout=0").await.fine();

    let end = Instant::now() + SOON;
    let began = loop {
        let began = bob.get("/_matrix/client/r0/initialSync?limit=2").await.fine();
        if began["rooms"].as_array().unwrap().len() == 2 {
            break began;
        }
        assert!(Instant::now() < end, "{began}");
    };
    let of = |id: &str| {
        let found = began["rooms"].as_array().unwrap().iter().find(|info| info["room_id"] == *id);
        found.unwrap_or_else(|| panic!("{id} is not in {began}")).clone()
    };
    let info = of(&room);
    assert_eq!((&info["membership"], &info["visibility"]), (&json!("join"), &json!("public")), "{info}");
    let messages = info["messages"]["chunk"].as_array().unwrap();
    assert_eq!(messages.len(), 2, "{info}");
    assert_eq!((&messages[1]["event_id"], &messages[1]["room_id"]), (&json!(last), &json!(room)), "{info}");
    let state = info["state"].as_array().unwrap();
    assert!(
        state.iter().any(|event| event["content"]["name"] == "Tea" && event["room_id"] == *room),
        "{info}"
    );
    let older = format!(
        "/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1&from={}",
        info["messages"]["start"].as_str().unwrap()
    );
    assert_eq!(bob.get(&older).await.fine()["chunk"][0]["type"], "m.room.encrypted");
    one_room(&bob, &room, &last).await;
    let info = of(&other);
    assert_eq!((&info["membership"], &info["inviter"]), (&json!("invite"), &json!(alice.user)), "{info}");
    assert!(began["presence"].is_array() && began["account_data"].is_array(), "{began}");

    let from = began["end"].as_str().unwrap().to_owned();
    let sent = alice.send_sealed(&room, "new").await.fine()["event_id"].clone();
    let from = until_told(&bob, from, "a letter", |event| event["event_id"] == sent).await;
    let third = alice.create_room(json!({"preset": "private_chat", "invite": [bob.user]})).await;
    let invited = |event: &Value| event["room_id"] == *third && event["content"]["membership"] == "invite";
    let from = until_told(&bob, from, "an invitation", invited).await;
    let data = format!("/_matrix/client/v3/user/{}/account_data/org.example.kind", bob.user);
    bob.put(&data, json!({"a": 1})).await.fine();
    let from = until_told(&bob, from, "account data", |event| event["type"] == "org.example.kind").await;
    let tag = format!("/_matrix/client/v3/user/{}/rooms/{room}/tags/u.other", bob.user);
    bob.put(&tag, json!({})).await.fine();
    until_told(&bob, from, "a tag", |event| event["type"] == "m.tag" && event["room_id"] == *room).await;
    // No message between devices is lost by it.
    let synced = bob.get("/_matrix/client/v3/sync?timeout=0").await.fine();
    assert_eq!(synced["to_device"]["events"][0]["content"]["n"], 1, "{synced}");

    one_event(&bob, &eve, &room, &last).await;
}

/// One room, as one of its members begins with it.
async fn one_room(bob: &Raw, room: &str, last: &str) {
    let read = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{last}");
    bob.post(&read, json!({})).await.fine();
    let tagged = format!("/_matrix/client/v3/user/{}/rooms/{room}/tags/u.mine", bob.user);
    bob.put(&tagged, json!({})).await.fine();
    let path = format!("/_matrix/client/v3/rooms/{room}/initialSync?limit=1");
    let end = Instant::now() + SOON;
    let one = loop {
        let one = bob.get(&path).await.fine();
        if one["receipts"].to_string().contains(last) && one["account_data"][0]["type"] == "m.tag" {
            break one;
        }
        assert!(Instant::now() < end, "{one}");
    };
    assert_eq!((&one["membership"], &one["visibility"]), (&json!("join"), &json!("public")), "{one}");
    assert_eq!(one["messages"]["chunk"][0]["event_id"], last, "{one}");
    assert!(one["presence"].is_array() && one["state"].is_array(), "{one}");
}

async fn one_event(bob: &Raw, eve: &Raw, room: &str, last: &str) {
    let one = |id: &str| format!("/_matrix/client/v3/events/{id}");
    let shown = bob.get(&one(last)).await.fine();
    assert_eq!((&shown["event_id"], &shown["room_id"]), (&json!(last), &json!(room)));
    eve.get(&one(last)).await.refused(404, "M_NOT_FOUND");
    eve.get(&one("$nothing")).await.refused(404, "M_NOT_FOUND");
    eve.get(&one("nothing")).await.refused(400, "M_INVALID_PARAM");
    for wrong in ["from=nonsense", "limit=many", "limit=-1", "timeout=soon"] {
        bob.get(&format!("/_matrix/client/v3/events?{wrong}")).await.refused(400, "M_INVALID_PARAM");
    }
    bob.get("/_matrix/client/v3/initialSync?limit=many").await.refused(400, "M_INVALID_PARAM");
}
