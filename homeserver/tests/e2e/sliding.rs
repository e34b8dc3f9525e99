//! Sliding sync as clients speak it, in both dialects and in each shape.

use crate::http::{Answer, Raw};
use crate::site::{PATIENCE, Site};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

in_each_shape!(
    three_connections_side_by_side,
    positions_survive_a_restart_and_are_nobody_elses,
    the_accepted_dialect,
    followed_threads_and_sticky_events,
);

const DEPLOYED: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
const ACCEPTED: &str = "/_matrix/client/v4/sync";

/// One connection of the deployed dialect.
struct Connection<'a> {
    who: &'a Raw,
    body: Value,
    pos: Option<String>,
}

impl<'a> Connection<'a> {
    fn new(who: &'a Raw, body: Value) -> Connection<'a> {
        Connection { who, body, pos: None }
    }

    async fn send(&self, timeout: u64) -> Answer {
        let pos = self.pos.as_deref().map(|pos| format!("&pos={pos}")).unwrap_or_default();
        self.who.post(&format!("{DEPLOYED}?timeout={timeout}{pos}"), self.body.clone()).await
    }

    async fn ask(&mut self, timeout: u64) -> Value {
        let answer = self.send(timeout).await.fine();
        self.pos = answer["pos"].as_str().map(str::to_owned);
        answer
    }
}

fn room_list(last: u64) -> Value {
    json!({
        "conn_id": "room-list",
        "lists": {"all_rooms": {
            "ranges": [[0, last]],
            "timeline_limit": 1,
            "required_state": [
                ["m.room.name", ""], ["m.room.encryption", ""], ["m.room.create", ""],
                ["m.room.member", "$LAZY"], ["m.room.member", "$ME"], ["m.space.child", "*"],
            ],
            "filters": {"not_room_types": ["m.space"]},
        }},
        "extensions": {
            "account_data": {"enabled": true},
            "receipts": {"enabled": true, "rooms": ["*"]},
            "typing": {"enabled": true},
        },
    })
}

fn encryption(since: Option<&str>) -> Value {
    json!({"conn_id": "encryption", "extensions": {
        "to_device": {"enabled": true, "since": since},
        "e2ee": {"enabled": true},
    }})
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// What Element X does: the list of rooms in growing windows, keys and to-device messages beside it.
async fn three_connections_side_by_side(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let mut rooms = Vec::new();
    for number in 0..3 {
        rooms.push(alice.create_room(json!({"name": format!("Room {number}")})).await);
    }
    let mut list = Connection::new(&alice, room_list(1));
    let first = list.ask(0).await;
    assert_eq!(first["lists"]["all_rooms"]["count"], 3);
    assert_eq!(keys(&first["rooms"]).len(), 2, "{first}");
    let newest = &first["rooms"][&rooms[2]];
    assert_eq!((&newest["name"], &newest["initial"]), (&json!("Room 2"), &json!(true)));
    let state = newest["required_state"].as_array().unwrap();
    assert!(state.iter().any(|event| event["state_key"] == alice.user), "{newest}");
    assert_eq!(newest["timeline"].as_array().unwrap().len(), 1);
    let global = first["extensions"]["account_data"]["global"].as_array().unwrap();
    assert!(global.iter().any(|event| event["type"] == "m.push_rules"));

    list.body = room_list(19);
    let grown = list.ask(0).await;
    assert_eq!(keys(&grown["rooms"]), [rooms[0].as_str()]);

    // A message wakes the list, at whichever node it waits.
    let waiting = list.ask(20_000);
    let saying = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        alice.send_sealed(&rooms[0], "one").await.fine()
    };
    let (news, said) = tokio::join!(waiting, saying);
    let room = &news["rooms"][&rooms[0]];
    assert_eq!(room["timeline"][0]["event_id"], said["event_id"], "{news}");
    assert_eq!((&room["num_live"], room.get("initial")), (&json!(1), None));
    // The token serves to read on backwards.
    let pos = list.pos.clone().unwrap();
    let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1&from={pos}", rooms[0]);
    assert_eq!(alice.get(&path).await.fine()["chunk"][0]["event_id"], said["event_id"]);

    // An open room is subscribed to and shows more of the past.
    list.body["room_subscriptions"] = json!({&rooms[1]: {
        "timeline_limit": 20, "required_state": [["m.room.topic", ""], ["m.room.power_levels", ""]],
    }});
    let opened = list.ask(0).await;
    let room = &opened["rooms"][&rooms[1]];
    assert!(room["timeline"].as_array().unwrap().len() > 4, "{opened}");
    assert_eq!(room["unstable_expanded_timeline"], true);
    let state = room["required_state"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.power_levels"), "{opened}");

    // Typing and receipts of it.
    let path = format!("/_matrix/client/v3/rooms/{}/typing/{}", rooms[1], alice.user);
    alice.put(&path, json!({"typing": true, "timeout": 30_000})).await.fine();
    let news = list.ask(20_000).await;
    let typing = &news["extensions"]["typing"]["rooms"][&rooms[1]];
    assert_eq!(typing["content"]["user_ids"], json!([alice.user]), "{news}");
    let event = room["timeline"].as_array().unwrap().last().unwrap()["event_id"].as_str().unwrap();
    let path = format!("/_matrix/client/v3/rooms/{}/receipt/m.read/{event}", rooms[1]);
    alice.post(&path, json!({})).await.fine();
    let news = list.ask(20_000).await;
    let receipt = &news["extensions"]["receipts"]["rooms"][&rooms[1]];
    assert!(receipt["content"][event]["m.read"][&alice.user].is_object(), "{news}");

    to_device(&alice, &bob).await;
}

/// Messages to a device stay until they are acknowledged.
async fn to_device(alice: &Raw, bob: &Raw) {
    let device = alice.get("/_matrix/client/v3/account/whoami").await.fine()["device_id"].clone();
    let device = device.as_str().unwrap();
    let mut connection = Connection::new(alice, encryption(None));
    let first = connection.ask(0).await;
    let extensions = &first["extensions"];
    assert!(extensions["e2ee"]["device_one_time_keys_count"].is_object(), "{first}");
    let since = extensions["to_device"]["next_batch"].as_str().unwrap().to_owned();
    connection.body = encryption(Some(&since));
    let waiting = connection.ask(20_000);
    let saying = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let body = json!({"messages": {&alice.user: {device: {"n": 1}}}});
        bob.put("/_matrix/client/v3/sendToDevice/m.test/one", body).await.fine();
    };
    let (news, ()) = tokio::join!(waiting, saying);
    let messages = &news["extensions"]["to_device"];
    assert_eq!(messages["events"][0]["content"]["n"], 1, "{news}");
    // The answer is lost: the same token brings it again.
    let again = connection.ask(0).await;
    assert_eq!(again["extensions"]["to_device"]["events"].as_array().unwrap().len(), 1, "{again}");
    connection.body = encryption(again["extensions"]["to_device"]["next_batch"].as_str());
    let acknowledged = connection.ask(0).await;
    assert_eq!(acknowledged["extensions"]["to_device"]["events"], json!([]));
    connection.body = encryption(Some(&since));
    let gone = connection.ask(0).await;
    assert_eq!(gone["extensions"]["to_device"]["events"], json!([]), "what was acknowledged is gone");
    connection.body = encryption(Some("x"));
    connection.send(0).await.refused(400, "M_INVALID_PARAM");
    connection.body = encryption(acknowledged["extensions"]["to_device"]["next_batch"].as_str());
    steps(alice, bob, connection).await;
}

/// What may be a step of a verification in a chat of two brings the connection for keys back, though it has no news.
async fn steps(alice: &Raw, bob: &Raw, mut connection: Connection<'_>) {
    let room = bob.create_room(json!({"preset": "private_chat", "invite": [&alice.user]})).await;
    alice.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    // The other's devices are news, at another node a moment later.
    let (end, mut seen) = (Instant::now() + Duration::from_secs(20), false);
    loop {
        let answer = connection.ask(500).await;
        let lists = &answer["extensions"]["e2ee"]["device_lists"];
        let changed = lists["changed"].as_array().cloned().unwrap_or_default();
        if seen && changed.is_empty() {
            break;
        }
        seen |= changed.iter().any(|user| *user == bob.user);
        assert!(Instant::now() < end, "{answer}");
    }
    let began = Instant::now();
    let waiting = connection.ask(30_000);
    let saying = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        bob.send_sealed(&room, "step").await.fine();
    };
    let (answer, ()) = tokio::join!(waiting, saying);
    assert!(answer["extensions"]["e2ee"].get("device_lists").is_none(), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(20), "it came back after {:?}", began.elapsed());
    let began = Instant::now();
    let waiting = connection.ask(3_000);
    let saying = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        alice.send_sealed(&room, "own").await.fine();
    };
    tokio::join!(waiting, saying);
    assert!(began.elapsed() >= Duration::from_secs(3), "what one says oneself is no step of another's");
}

async fn positions_survive_a_restart_and_are_nobody_elses(mut site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({})).await;
    let mut list = Connection::new(&alice, room_list(19));
    assert_eq!(keys(&list.ask(0).await["rooms"]), [room.as_str()]);
    let mut stranger = Connection::new(&bob, room_list(19));
    stranger.pos.clone_from(&list.pos);
    stranger.send(0).await.refused(400, "M_UNKNOWN_POS");
    stranger.pos = Some("p1".to_owned());
    stranger.send(0).await.refused(400, "M_UNKNOWN_POS");
    stranger.pos = None;
    stranger.body["room_subscriptions"] =
        json!({&room: {"timeline_limit": 20, "required_state": [["*", "*"]]}});
    assert_eq!(keys(&stranger.ask(0).await["rooms"]), [""; 0]);

    site.restart().await;
    let quiet = list.ask(0).await;
    assert_eq!(keys(&quiet["rooms"]), [""; 0], "{quiet}");
    let before = list.pos.clone();
    let said = alice.send_sealed(&room, "one").await.fine();
    for _ in 0..2 {
        // The same position twice: the first answer was lost.
        list.pos.clone_from(&before);
        let news = list.ask(5_000).await;
        assert_eq!(news["rooms"][&room]["timeline"][0]["event_id"], said["event_id"]);
    }
    // Idle polls end in time and bring nothing.
    let started = Instant::now();
    let quiet = list.ask(300).await;
    assert!(keys(&quiet["rooms"]).is_empty() && started.elapsed() >= Duration::from_millis(300));
    // Nothing of a device that has logged out stays.
    alice.post("/_matrix/client/v3/logout", json!({})).await.fine();
    // Another node hears of it a moment later.
    let began = Instant::now();
    while list.send(0).await.status.is_success() {
        assert!(began.elapsed() < PATIENCE, "the token is still good");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    list.send(0).await.refused(401, "M_UNKNOWN_TOKEN");
}

async fn the_accepted_dialect(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({"name": "Nest", "invite": [&bob.user]})).await;
    let list = |pos: Option<&str>| {
        json!({
            "conn_id": "main", "pos": pos, "timeout": 5_000,
            "lists": {"all": {
                "range": [0, 9], "timeline_limit": 2,
                "required_state": {
                    "include": [{}], "exclude": [{"type": "m.room.create"}], "lazy_members": true,
                },
            }},
        })
    };
    let invited = bob.post(ACCEPTED, list(None)).await.fine();
    let entry = &invited["rooms"][&room];
    assert_eq!((&entry["membership"], &entry["lists"]), (&json!("invite"), &json!(["all"])));
    assert_eq!(entry["stripped_state"][0]["type"], "m.room.create", "{invited}");
    assert!(entry.get("name").is_none() && entry.get("timeline").is_none());

    bob.post(&format!("/_matrix/client/v3/rooms/{room}/join"), json!({})).await.fine();
    let joined = bob.post(ACCEPTED, list(invited["pos"].as_str())).await.fine();
    let entry = &joined["rooms"][&room];
    assert_eq!((&entry["membership"], &entry["name"]), (&json!("join"), &json!("Nest")), "{joined}");
    assert_eq!(entry["initial"], true);
    let kinds: Vec<&str> =
        entry["required_state"].as_array().unwrap().iter().filter_map(|it| it["type"].as_str()).collect();
    assert!(!kinds.contains(&"m.room.create") && kinds.contains(&"m.room.encryption"), "{kinds:?}");
    assert!(entry.get("notification_count").is_none());

    let pos = joined["pos"].as_str();
    let path = format!("/_matrix/client/v3/rooms/{room}/state/m.room.name/");
    alice.put(&path, json!({})).await.fine();
    let news = bob.post(ACCEPTED, list(pos)).await.fine();
    assert_eq!(news["rooms"][&room]["name"], Value::Null, "{news}");
    assert!(keys(&news["rooms"][&room]).contains(&"name"));

    for (body, code) in [
        (json!({"pos": "what"}), "M_UNKNOWN_POS"),
        (json!({"set_presence": "busy?"}), "M_INVALID_PARAM"),
        (json!({"lists": {"all": {"timeline_limit": 1}}}), "M_MISSING_PARAM"),
        (json!({"lists": {"all": {"timeline_limit": "1", "required_state": {}}}}), "M_BAD_JSON"),
    ] {
        bob.post(ACCEPTED, body).await.refused(400, code);
    }
    let many = |name: &str| {
        let rule = json!({"timeline_limit": 1, "required_state": {}});
        let all: serde_json::Map<String, Value> =
            (0..101).map(|number| (format!("!{number}:x"), rule.clone())).collect();
        json!({ name: all })
    };
    bob.post(ACCEPTED, many("lists")).await.refused(400, "M_INVALID_PARAM");
    bob.post(ACCEPTED, many("room_subscriptions")).await.refused(400, "M_INVALID_PARAM");
    Raw::nobody(&site.url).post(ACCEPTED, json!({})).await.refused(401, "M_MISSING_TOKEN");
    bob.send(Method::POST, ACCEPTED, "{").await.refused(400, "M_NOT_JSON");
}

async fn followed_threads_and_sticky_events(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({"preset": "public_chat"})).await;
    let thread = "io.element.msc4308.thread_subscriptions";
    let follow = async |number: u32| {
        let root = alice.send_sealed(&room, &format!("root{number}")).await.fine();
        let root = root["event_id"].as_str().unwrap().to_owned();
        let path = "/_matrix/client/unstable/io.element.msc4306/rooms";
        alice.put(&format!("{path}/{room}/thread/{root}/subscription"), json!({})).await.fine();
        root
    };
    let mut roots = Vec::new();
    for number in 0..3 {
        roots.push(follow(number).await);
    }
    let body = json!({"extensions": {thread: {"enabled": true, "limit": 2}}});
    let mut connection = Connection::new(&alice, body);
    let first = connection.ask(0).await;
    let news = &first["extensions"][thread];
    assert_eq!(keys(&news["subscribed"][&room]).len(), 2, "{first}");
    assert_eq!(news["subscribed"][&room][&roots[2]]["automatic"], false);
    // The oldest is to be had from the other endpoint.
    let from = news["prev_batch"].as_str().unwrap();
    let listing = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=b&limit=2";
    let older = alice.get(&format!("{listing}&from={from}")).await.fine();
    assert_eq!(keys(&older["subscribed"][&room]), [roots[0].as_str()], "{older}");
    assert!(older.get("end").is_none(), "{older}");
    let pos = connection.pos.clone().unwrap();
    let none = alice.get(&format!("{listing}&from={from}&to={pos}")).await.fine();
    assert_eq!(none, json!({}), "nothing between the two");

    let quiet = connection.ask(0).await;
    assert!(quiet["extensions"].get(thread).is_none(), "{quiet}");
    let waiting = connection.ask(20_000);
    let saying = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let path = format!(
            "/_matrix/client/unstable/io.element.msc4306/rooms/{room}/thread/{}/subscription",
            roots[0]
        );
        alice.send(Method::DELETE, &path, "").await.fine();
    };
    let (news, ()) = tokio::join!(waiting, saying);
    let news = &news["extensions"][thread];
    assert!(news["unsubscribed"][&room][&roots[0]]["bump_stamp"].is_i64(), "{news}");
    assert!(news.get("subscribed").is_none() && news.get("prev_batch").is_none(), "{news}");

    sticky(&alice, &bob, &room).await;
}

/// Whoever comes into a room gets what is sticky there, others what is new.
async fn sticky(alice: &Raw, bob: &Raw, room: &str) {
    let name = "org.matrix.msc4354.sticky_events";
    let stick = async |number: u32| {
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/sticky{number}");
        let path = format!("{path}?org.matrix.msc4354.sticky_duration_ms=600000");
        let sent = alice.put(&path, crate::http::sealed("QUJD")).await.fine();
        sent["event_id"].clone()
    };
    let first = [stick(0).await, stick(1).await, stick(2).await];
    let ids = |answer: &Value| {
        let events = answer["extensions"][name]["rooms"][room]["events"].as_array().cloned();
        events.unwrap_or_default().iter().map(|event| event["event_id"].clone()).collect::<Vec<_>>()
    };
    let rule = |since: Option<&str>| json!({"enabled": true, "limit": 2, "since": since});
    let body = |since: Option<&str>| json!({"extensions": {name: rule(since)}});
    let next = |answer: &Value| answer["extensions"][name]["next_batch"].as_str().map(str::to_owned);
    let mut own = Connection::new(alice, body(None));
    let answer = own.ask(0).await;
    assert_eq!(ids(&answer), first[..2], "{answer}");
    own.body = body(next(&answer).as_deref());
    let answer = own.ask(0).await;
    assert_eq!(ids(&answer), first[2..], "{answer}");
    own.body = body(next(&answer).as_deref());
    assert!(ids(&own.ask(0).await).is_empty());

    let mut other = Connection::new(bob, body(None));
    let answer = other.ask(0).await;
    assert!(ids(&answer).is_empty(), "{answer}");
    other.body = body(next(&answer).as_deref());
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let answer = other.ask(20_000).await;
    assert_eq!(ids(&answer), first, "{answer}");
    other.body = body(next(&answer).as_deref());
    let (answer, last) = tokio::join!(other.ask(20_000), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stick(3).await
    });
    assert_eq!(ids(&answer), [last], "{answer}");
}
