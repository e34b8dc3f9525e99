//! `/sync` trap by trap: filters, lazy members, invitations and knocks, ignored people, account data that is removed.

use crate::http::{Raw, at as path};
use crate::site::{Shape, Site};
use reqwest::Method;
use serde_json::{Value, json};

/// A server on which people may speak in the clear: filters look into contents.
async fn site() -> Site {
    Site::start_with(Shape::Sqlite, &["plaintext=accept".to_owned()]).await.unwrap()
}

/// Answers to a client that goes on from the last one.
struct Syncing<'a> {
    who: &'a Raw,
    more: String,
    since: Option<String>,
}

impl Syncing<'_> {
    fn new<'a>(who: &'a Raw, filter: &Value, more: &str) -> Syncing<'a> {
        let filter = filter.to_string();
        let escaped: String = filter
            .bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            })
            .collect();
        Syncing { who, more: format!("&filter={escaped}{more}"), since: None }
    }

    async fn next(&mut self) -> Value {
        let since = self.since.as_deref().map(|since| format!("&since={since}")).unwrap_or_default();
        let answer =
            self.who.get(&format!("/_matrix/client/v3/sync?timeout=0{}{since}", self.more)).await.fine();
        self.since = answer["next_batch"].as_str().map(str::to_owned);
        answer
    }
}

async fn sync_by(who: &Raw, filter: Value) -> Value {
    Syncing::new(who, &filter, "").next().await
}

async fn send(who: &Raw, room: &str, kind: &str, content: Value) -> String {
    let transaction = format!("{:x}", rand());
    let sent = who.put(&path(room, &format!("send/{kind}/{transaction}")), content).await.fine();
    sent["event_id"].as_str().unwrap().to_owned()
}

/// Numbers that are not used twice.
fn rand() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body, "m.mentions": {} })
}

fn ids(section: &Value) -> Vec<&str> {
    section["events"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["event_id"].as_str())
        .collect()
}

fn kinds(section: &Value) -> Vec<&str> {
    section["events"].as_array().into_iter().flatten().filter_map(|event| event["type"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_keep_what_they_name() {
    let site = site().await;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let plain = send(&alice, &room, "m.room.message", text("hello")).await;
    let image =
        json!({ "msgtype": "m.image", "body": "x.png", "url": "mxc://localhost/abc", "m.mentions": {} });
    let image = send(&bob, &room, "m.room.message", image).await;
    let custom = send(&alice, &room, "org.example.custom", json!({ "a": { "b": 1, "c": 2 } })).await;
    let reply = json!({ "msgtype": "m.text", "body": "in thread", "m.mentions": {},
                        "m.relates_to": { "rel_type": "m.thread", "event_id": plain } });
    let reply = send(&bob, &room, "m.room.message", reply).await;
    let of = async |timeline: Value| {
        let answer = sync_by(&alice, json!({ "room": { "timeline": timeline } })).await;
        answer["rooms"]["join"][&room]["timeline"].clone()
    };
    let all = ["m.room.message", "org.example.*"];
    let cases = [
        (json!({ "types": all }), vec![&plain, &image, &custom, &reply]),
        (json!({ "types": ["*"], "not_types": ["m.*"] }), vec![&custom]),
        (json!({ "types": all, "not_types": ["org.*.custom"], "senders": [alice.user] }), vec![&plain]),
        (json!({ "types": all, "not_senders": [alice.user] }), vec![&image, &reply]),
        (json!({ "types": all, "senders": [alice.user], "not_senders": [alice.user] }), vec![]),
        (json!({ "types": all, "contains_url": true }), vec![&image]),
        (json!({ "types": all, "contains_url": false }), vec![&plain, &custom, &reply]),
        (json!({ "types": all, "related_by_rel_types": ["m.thread"] }), vec![&plain]),
        (json!({ "types": all, "related_by_senders": [alice.user] }), vec![]),
        (json!({ "types": all, "org.matrix.msc3874.rel_types": ["m.thread"] }), vec![&reply]),
        (
            json!({ "types": all, "org.matrix.msc3874.not_rel_types": ["m.thread"] }),
            vec![&plain, &image, &custom],
        ),
        (json!({ "types": all, "rooms": ["!other:localhost"] }), vec![]),
        (json!({ "types": all, "not_rooms": [&room] }), vec![]),
        (json!({ "types": [] }), vec![]),
    ];
    for (filter, wanted) in cases {
        let timeline = of(filter.clone()).await;
        assert_eq!(ids(&timeline), wanted, "{filter}");
    }
    let some = of(json!({ "types": all, "limit": 2 })).await;
    assert_eq!((ids(&some), &some["limited"]), (vec![&*custom, &*reply], &json!(true)));
    let whole = of(json!({ "types": all, "limit": 4 })).await;
    assert_eq!(ids(&whole).len(), 4);

    let shaped = json!({ "event_fields": ["type", "content.a.b"],
                         "room": { "timeline": { "types": ["org.example.custom"] } } });
    let shaped = sync_by(&alice, shaped).await;
    let event = &shaped["rooms"]["join"][&room]["timeline"]["events"][0];
    assert_eq!(*event, json!({ "type": "org.example.custom", "content": { "a": { "b": 1 } } }));
    let raw =
        json!({ "event_format": "federation", "room": { "timeline": { "types": ["org.example.custom"] } } });
    let raw = sync_by(&alice, raw).await;
    let event = &raw["rooms"]["join"][&room]["timeline"]["events"][0];
    assert!(event["hashes"].is_object() && event["signatures"].is_object(), "{event}");

    for filter in [json!({ "room": { "not_rooms": [&room] } }), json!({ "room": { "rooms": [] } })] {
        let answer = sync_by(&alice, filter).await;
        assert!(answer["rooms"]["join"].get(&room).is_none(), "{answer}");
    }
    for bad in ["%7B", "%5B%5D", "nothing", "%7B%22room%22:1%7D"] {
        let answer = alice.get(&format!("/_matrix/client/v3/sync?filter={bad}")).await;
        assert_eq!(answer.status.as_u16(), 400, "{bad}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_timeline_is_filtered_too() {
    let site = site().await;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "Nest", "topic": "Twigs" })).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let said = send(&bob, &room, "m.room.message", text("hello")).await;
    let typing = path(&room, &format!("typing/{}", bob.user));
    bob.put(&typing, json!({ "typing": true, "timeout": 60_000 })).await.fine();
    bob.post(&path(&room, &format!("receipt/m.read/{said}")), json!({})).await.fine();
    let user = format!("/_matrix/client/v3/user/{}", alice.user);
    for kind in ["org.example.one", "org.example.two"] {
        alice.put(&format!("{user}/account_data/{kind}"), json!({ "x": 1 })).await.fine();
        alice.put(&format!("{user}/rooms/{room}/account_data/{kind}"), json!({ "x": 1 })).await.fine();
    }
    bob.put(&format!("/_matrix/client/v3/presence/{}/status", bob.user), json!({ "presence": "online" }))
        .await
        .fine();

    let answer = sync_by(
        &alice,
        json!({
            "account_data": { "types": ["org.example.*"], "not_types": ["*.two"] },
            "presence": { "not_senders": [&alice.user] },
            "room": {
                "account_data": { "types": ["org.example.two"] },
                "ephemeral": { "not_types": ["m.typing"] },
                "state": { "types": ["m.room.name", "m.room.member"], "not_senders": [&bob.user] },
                "timeline": { "limit": 1 },
            },
        }),
    )
    .await;
    let entry = &answer["rooms"]["join"][&room];
    assert_eq!(kinds(&answer["account_data"]), ["org.example.one"]);
    assert_eq!(kinds(&entry["account_data"]), ["org.example.two"]);
    assert_eq!(kinds(&entry["ephemeral"]), ["m.receipt"]);
    let mut state = kinds(&entry["state"]);
    state.sort_unstable();
    assert_eq!(state, ["m.room.member", "m.room.name"], "{entry}");
    let present: Vec<&Value> =
        answer["presence"]["events"].as_array().unwrap().iter().map(|event| &event["sender"]).collect();
    assert_eq!(present, [&json!(bob.user)]);

    let nothing = sync_by(
        &alice,
        json!({
            "account_data": { "types": [] }, "presence": { "types": [] },
            "room": { "account_data": { "types": [] }, "ephemeral": { "types": [] }, "state": { "types": [] },
                      "timeline": { "types": [] } },
        }),
    )
    .await;
    let entry = &nothing["rooms"]["join"][&room];
    for section in [
        &nothing["account_data"],
        &nothing["presence"],
        &entry["ephemeral"],
        &entry["account_data"],
        &entry["state"],
        &entry["timeline"],
    ] {
        assert!(kinds(section).is_empty(), "{section}");
    }
    // What is counted of a device is said in every answer, be it nothing.
    assert_eq!(nothing["device_one_time_keys_count"]["signed_curve25519"], 0);
    assert_eq!(nothing["device_unused_fallback_key_types"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_when_they_are_needed() {
    let site = site().await;
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut people = Vec::new();
    for name in ["bob", "carol", "dave"] {
        let who = Raw::register(&site.url, name).await;
        who.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
        people.push(who);
    }
    let [bob, carol, _] = &people[..] else { unreachable!() };
    // So that no joining is in a short timeline.
    for number in 0..5 {
        send(&alice, &room, "m.room.message", text(&number.to_string())).await;
    }
    send(bob, &room, "m.room.message", text("from bob")).await;
    let lazy = |redundant: bool| {
        json!({ "room": {
            "state": { "lazy_load_members": true, "include_redundant_members": redundant },
            "timeline": { "limit": 3 },
        } })
    };
    let members = |answer: &Value, section: &str| -> Vec<String> {
        let events =
            answer["rooms"]["join"][&room][section]["events"].as_array().cloned().unwrap_or_default();
        let members = events.iter().filter(|event| event["type"] == "m.room.member");
        let mut members: Vec<String> =
            members.map(|event| event["state_key"].as_str().unwrap_or_default().to_owned()).collect();
        members.sort_unstable();
        members
    };
    for (more, section) in [
        ("", "state"),
        ("&use_state_after=true", "state_after"),
        ("&org.matrix.msc4222.use_state_after=true", "org.matrix.msc4222.state_after"),
    ] {
        let mut frugal = Syncing::new(&alice, &lazy(false), more);
        let mut lavish = Syncing::new(&alice, &lazy(true), more);
        let first = frugal.next().await;
        let shown = members(&first, section);
        assert!(shown.contains(&alice.user) && shown.contains(&bob.user), "{shown:?}");
        assert_eq!(first["rooms"]["join"][&room]["summary"]["m.joined_member_count"], 4, "{first}");
        lavish.next().await;
        send(bob, &room, "m.room.message", text("again")).await;
        assert!(members(&frugal.next().await, section).is_empty());
        assert_eq!(members(&lavish.next().await, section), [&*bob.user]);
        send(carol, &room, "m.room.message", text("carol, too")).await;
        let next = frugal.next().await;
        assert!(members(&next, section).len() <= 1, "{next}");
        let entry = next["rooms"]["join"][&room].as_object().unwrap();
        assert!(entry.contains_key(section), "the section is there, empty or not");
        assert_eq!(entry.contains_key("state"), section == "state");
        lavish.next().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_are_ignored_at_once() {
    let site = site().await;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let mut syncing = Syncing::new(&alice, &json!({}), "");
    syncing.next().await;
    send(&bob, &room, "m.room.message", text("one")).await;
    let heard = syncing.next().await;
    assert_eq!(heard["rooms"]["join"][&room]["unread_notifications"]["notification_count"], 1, "{heard}");
    let list = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", alice.user);
    alice.put(&list, json!({ "ignored_users": { bob.user.clone(): {} } })).await.fine();
    send(&bob, &room, "m.room.message", text("two")).await;
    bob.put(&path(&room, &format!("typing/{}", bob.user)), json!({ "typing": true, "timeout": 9_000 }))
        .await
        .fine();
    let invited = bob.create_room(json!({ "preset": "private_chat", "invite": [&alice.user] })).await;
    let silent = syncing.next().await;
    assert_eq!(kinds(&silent["account_data"]), ["m.ignored_user_list"]);
    assert!(silent["rooms"]["invite"].get(&invited).is_none(), "{silent}");
    let entry = &silent["rooms"]["join"][&room];
    assert!(kinds(&entry["timeline"]).is_empty(), "{silent}");
    let typists = entry["ephemeral"]["events"].to_string();
    assert!(!typists.contains(&bob.user), "{silent}");
    let counted = sync_by(&alice, json!({})).await;
    assert_eq!(counted["rooms"]["join"][&room]["unread_notifications"]["notification_count"], 0, "{counted}");
    alice.put(&list, json!({ "ignored_users": {} })).await.fine();
    let heard = syncing.next().await;
    assert!(heard["rooms"]["invite"][&invited].is_object(), "the invitation is there now: {heard}");
    send(&bob, &room, "m.room.message", text("three")).await;
    let heard = syncing.next().await;
    assert_eq!(heard["rooms"]["join"][&room]["timeline"]["events"][0]["content"]["body"], "three");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_seen_from_outside_tells_what_room_it_is() {
    let site = site().await;
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let knocked = alice
        .create_room(json!({ "preset": "private_chat", "name": "Nest",
                             "initial_state": [{ "type": "m.room.join_rules", "state_key": "",
                                                 "content": { "join_rule": "knock" } }] }))
        .await;
    let mut syncing = Syncing::new(&bob, &json!({}), "");
    syncing.next().await;
    bob.post(&format!("/_matrix/client/v3/knock/{knocked}"), json!({ "reason": "please" })).await.fine();
    let invited = alice.create_room(json!({ "preset": "private_chat", "invite": [&bob.user] })).await;
    let answer = syncing.next().await;
    for (section, room, state) in [("knock", &knocked, "knock_state"), ("invite", &invited, "invite_state")] {
        let state = &answer["rooms"][section][room][state];
        assert!(kinds(state).contains(&"m.room.create"), "{answer}");
        for event in state["events"].as_array().unwrap() {
            let fields: Vec<&String> = event.as_object().unwrap().keys().collect();
            let known = ["content", "origin_server_ts", "sender", "state_key", "type"];
            assert!(fields.iter().all(|field| known.contains(&field.as_str())), "{event}");
        }
        let own = state["events"].as_array().unwrap().iter().find(|event| event["state_key"] == bob.user);
        assert!(own.is_some(), "{answer}");
    }
    // A knock that is taken back, and an invitation that is declined, are left rooms.
    for room in [&knocked, &invited] {
        bob.post(&path(room, "leave"), json!({})).await.fine();
    }
    let answer = syncing.next().await;
    for room in [&knocked, &invited] {
        assert!(answer["rooms"]["leave"][room].is_object(), "{answer}");
        let words = answer["rooms"]["leave"][room].to_string();
        assert!(!words.contains("Nest"), "{words}");
        bob.post(&path(room, "forget"), json!({})).await.fine();
    }
    let archived = sync_by(&bob, json!({ "room": { "include_leave": true } })).await;
    for room in [&knocked, &invited] {
        assert!(archived["rooms"]["leave"].get(room).is_none(), "forgotten: {archived}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn account_data_is_removed_and_that_is_said_once() {
    let site = site().await;
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({})).await;
    let base = format!("user/{}", alice.user);
    let places = [format!("{base}/account_data/org.x"), format!("{base}/rooms/{room}/account_data/org.x")];
    for place in &places {
        alice.put(&format!("/_matrix/client/v3/{place}"), json!({ "a": 1 })).await.fine();
    }
    let mut syncing = Syncing::new(&alice, &json!({}), "");
    syncing.next().await;
    for place in &places {
        let gone = format!("/_matrix/client/unstable/org.matrix.msc3391/{place}");
        alice.send(Method::DELETE, &gone, "").await.fine();
        alice.get(&format!("/_matrix/client/v3/{place}")).await.refused(404, "M_NOT_FOUND");
    }
    let said = syncing.next().await;
    let empty = json!([{ "type": "org.x", "content": {} }]);
    assert_eq!(said["account_data"]["events"], empty, "{said}");
    assert_eq!(said["rooms"]["join"][&room]["account_data"]["events"], empty, "{said}");
    let fresh = sync_by(&alice, json!({})).await;
    assert!(!fresh.to_string().contains("org.x"), "{fresh}");
    // An empty content is as good as none.
    for place in &places {
        alice.put(&format!("/_matrix/client/v3/{place}"), json!({ "a": 1 })).await.fine();
        alice.put(&format!("/_matrix/client/v3/{place}"), json!({})).await.fine();
    }
    let fresh = sync_by(&alice, json!({})).await;
    assert!(!fresh.to_string().contains("org.x"), "{fresh}");
}
