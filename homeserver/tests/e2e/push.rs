//! Notifications, from a letter to the gateway of an app.

use crate::gateway::Gateway;
use crate::http::Raw;
use crate::site::{Shape, Site};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// A test in each shape: `async fn NAME(site: Site)`, of a server that calls gateways on the loopback.
macro_rules! with_gateways {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use crate::site::Shape;
            with_gateways!(@ $name sqlite Sqlite);
            with_gateways!(@ $name postgres Postgres);
            with_gateways!(@ $name two_nodes TwoNodes);
        })*
    };
    (@ $name:ident $test:ident $shape:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            if let Some(site) = super::site(Shape::$shape, &[]).await {
                super::$name(site).await;
            }
        }
    };
}

with_gateways!(letters_are_told_once_and_by_their_id_alone, what_is_owed_survives_a_crash);

pub async fn site(shape: Shape, more: &[&str]) -> Option<Site> {
    let mut settings = vec!["push.allow_private_addresses=true".to_owned()];
    settings.extend(more.iter().map(|setting| (*setting).to_owned()));
    Site::start_with(shape, &settings).await
}

async fn pair(site: &Site) -> (Raw, Raw) {
    (Raw::register(&site.url, "alice").await, Raw::register(&site.url, "bob").await)
}

/// A room of both, by `body`.
pub async fn room(alice: &Raw, bob: &Raw, mut body: Value) -> String {
    body["invite"] = json!([bob.user]);
    let room = alice.create_room(body).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    room
}

pub async fn set(who: &Raw, pusher: Value) {
    who.post("/_matrix/client/v3/pushers/set", pusher).await.fine();
}

async fn pushers(who: &Raw) -> Vec<Value> {
    let body = who.get("/_matrix/client/v3/pushers").await.fine();
    body["pushers"].as_array().unwrap().clone()
}

pub async fn letter(who: &Raw, room: &str, transaction: &str) -> String {
    let sent = who.send_sealed(room, transaction).await.fine();
    sent["event_id"].as_str().unwrap().to_owned()
}

pub async fn say(who: &Raw, room: &str, transaction: &str, content: Value) -> String {
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{transaction}");
    let sent = who.put(&path, content).await.fine();
    sent["event_id"].as_str().unwrap().to_owned()
}

async fn read(who: &Raw, room: &str, event: &str) {
    let path = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{event}");
    who.post(&path, json!({})).await.fine();
}

fn keys(notification: &Value) -> Vec<&String> {
    notification.as_object().unwrap().keys().collect()
}

async fn letters_are_told_once_and_by_their_id_alone(site: Site) {
    let gateway = Gateway::start().await;
    let (alice, bob) = pair(&site).await;
    let room = room(&alice, &bob, json!({ "preset": "private_chat", "name": "Aviary" })).await;
    letter(&alice, &room, "before").await;
    // It asks for everything, and gets no more than the id of what is sealed.
    set(&bob, gateway.pusher("key", json!({}))).await;
    let first = letter(&alice, &room, "1").await;
    let told = gateway.take(1).await;
    assert_eq!(keys(&told[0]), ["counts", "devices", "event_id", "prio", "room_id"]);
    assert_eq!((&told[0]["event_id"], &told[0]["room_id"]), (&json!(first), &json!(room)));
    // What came before the pusher is not told, but is unread.
    assert_eq!((&told[0]["counts"]["unread"], &told[0]["prio"]), (&json!(2), &json!("high")));
    assert!(told[0]["devices"][0].get("tweaks").is_none());

    let mut sent = Vec::new();
    for number in 2..7 {
        sent.push(letter(&alice, &room, &number.to_string()).await);
    }
    let told = gateway.take(sent.len()).await;
    let heard: Vec<&str> = told.iter().filter_map(|it| it["event_id"].as_str()).collect();
    assert_eq!(heard, sent);
    assert_eq!(told[4]["counts"]["unread"], 7);

    read(&bob, &room, &sent[4]).await;
    let told = gateway.take(1).await;
    assert_eq!(keys(&told[0]), ["counts", "devices", "prio"]);
    assert_eq!(told[0]["counts"]["unread"], 0);
    // Nobody is told of their own letters.
    letter(&bob, &room, "mine").await;
    gateway.take(0).await;

    switched_off_elsewhere(&site, &gateway, &alice, &bob, &room).await;
    gateway.reject("key");
    letter(&alice, &room, "rejected").await;
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while !pushers(&bob).await.is_empty() {
        assert!(tokio::time::Instant::now() < until, "the rejected pushkey is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    set(&bob, gateway.pusher("other", json!({}))).await;
    bob.post("/_matrix/client/v3/logout", json!({})).await.fine();
    letter(&alice, &room, "after the logout").await;
    gateway.take(0).await;
}

/// MSC3881: another device of bob's switches the first one's notifications off and on.
async fn switched_off_elsewhere(site: &Site, gateway: &Gateway, alice: &Raw, bob: &Raw, room: &str) {
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": bob.user }, "password": "correct horse",
    });
    let login = Raw::nobody(&site.url).post("/_matrix/client/v3/login", body).await.fine();
    let laptop = bob.with_token(login["access_token"].as_str().unwrap());
    let device = pushers(bob).await[0]["org.matrix.msc3881.device_id"].clone();
    let mut pusher = gateway.pusher("key", json!({}));
    pusher["org.matrix.msc3881.enabled"] = false.into();
    set(&laptop, pusher.clone()).await;
    letter(alice, room, "while it is off").await;
    gateway.take(0).await;
    let shown = pushers(bob).await;
    assert_eq!(shown[0]["org.matrix.msc3881.enabled"], false);
    assert_eq!(shown[0]["org.matrix.msc3881.device_id"], device);
    pusher["org.matrix.msc3881.enabled"] = true.into();
    set(&laptop, pusher).await;
    // It is still the first device's: the laptop's end changes nothing.
    laptop.post("/_matrix/client/v3/logout", json!({})).await.fine();
    let sent = letter(alice, room, "on again").await;
    assert_eq!(gateway.take(1).await[0]["event_id"], sent);
}

async fn what_is_owed_survives_a_crash(mut site: Site) {
    let mut gateway = Gateway::start().await;
    let (alice, bob) = pair(&site).await;
    let room = room(&alice, &bob, json!({ "preset": "private_chat" })).await;
    set(&bob, gateway.pusher("key", json!({}))).await;
    let mut sent = vec![letter(&alice, &room, "1").await];
    assert_eq!(gateway.take(1).await[0]["event_id"], sent.remove(0));
    gateway.close().await;
    for number in 2..5 {
        sent.push(letter(&alice, &room, &number.to_string()).await);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for node in &mut site.nodes {
        node.kill().await;
    }
    for node in &mut site.nodes {
        node.start().await;
    }
    sent.push(letter(&alice, &room, "after the crash").await);
    gateway.fail(true);
    gateway.open().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    gateway.fail(false);
    let told = gateway.take(sent.len()).await;
    let heard: Vec<&str> = told.iter().filter_map(|it| it["event_id"].as_str()).collect();
    assert_eq!(heard, sent);
    // The outage is over: what comes now comes at once.
    let last = letter(&alice, &room, "last").await;
    assert_eq!(gateway.take(1).await[0]["event_id"], last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_in_the_clear_are_told_of_by_the_rules() {
    let site = site(Shape::Sqlite, &["plaintext=accept"]).await.unwrap();
    let gateway = Gateway::start().await;
    let (alice, bob) = pair(&site).await;
    set(&bob, gateway.pusher("full", json!({}))).await;
    let path = format!("/_matrix/client/v3/profile/{}/displayname", alice.user);
    alice.put(&path, json!({ "displayname": "Alice" })).await.fine();
    let body = json!({ "preset": "private_chat", "name": "Aviary", "invite": [bob.user],
                       "room_alias_name": "birds" });
    let room = alice.create_room(body).await;
    let told = gateway.take(1).await.remove(0);
    assert_eq!((&told["type"], &told["user_is_target"]), (&json!("m.room.member"), &json!(true)));
    assert_eq!((&told["sender"], &told["room_name"]), (&json!(alice.user), &json!("Aviary")));
    assert_eq!((&told["counts"]["unread"], &told["content"]["membership"]), (&json!(1), &json!("invite")));
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 0);

    // Three are no one-to-one chat.
    let carol = Raw::register(&site.url, "carol").await;
    alice
        .post(&format!("/_matrix/client/v3/rooms/{room}/invite"), json!({ "user_id": carol.user }))
        .await
        .fine();
    carol.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let text = |body: &str| json!({ "msgtype": "m.text", "body": body, "m.mentions": {} });
    say(&alice, &room, "1", text("The waxwings are back")).await;
    let told = gateway.take(1).await.remove(0);
    assert_eq!((&told["prio"], &told["sender_display_name"]), (&json!("low"), &json!("Alice")));
    assert_eq!(
        (&told["content"]["body"], &told["room_alias"]),
        (&json!("The waxwings are back"), &json!("#birds:localhost"))
    );
    let mut mention = text("bob, look");
    mention["m.mentions"] = json!({ "user_ids": [bob.user] });
    let mentioned = say(&alice, &room, "2", mention).await;
    let told = gateway.take(1).await.remove(0);
    assert_eq!(told["devices"][0]["tweaks"], json!({ "highlight": true, "sound": "default" }));
    assert_eq!((&told["prio"], &told["counts"]["unread"]), (&json!("high"), &json!(2)));
    // A redaction takes one away; notices, edits, reactions and what an ignored person says are not told.
    let path = format!("/_matrix/client/v3/rooms/{room}/redact/{mentioned}/r1");
    alice.put(&path, json!({})).await.fine();
    assert_eq!(gateway.take(1).await[0]["counts"]["unread"], 1);
    say(&alice, &room, "3", json!({ "msgtype": "m.notice", "body": "a notice" })).await;
    let mut edit = text("* The waxwings have left");
    edit["m.relates_to"] = json!({ "rel_type": "m.replace", "event_id": mentioned });
    say(&alice, &room, "4", edit).await;
    let ignored = json!({ "ignored_users": { carol.user.clone(): {} } });
    let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", bob.user);
    bob.put(&path, ignored).await.fine();
    say(&carol, &room, "1", text("bob!")).await;
    gateway.take(0).await;

    muted_rooms_and_formats(&gateway, &alice, &bob, &room).await;
}

async fn muted_rooms_and_formats(gateway: &Gateway, alice: &Raw, bob: &Raw, room: &str) {
    let text = |body: &str| json!({ "msgtype": "m.text", "body": body, "m.mentions": {} });
    let more = json!({ "format": "event_id_only", "org.matrix.msc4076.disable_badge_count": true });
    set(bob, gateway.pusher("full", more)).await;
    say(alice, room, "11", text("one")).await;
    let told = gateway.take(1).await.remove(0);
    assert_eq!(keys(&told), ["devices", "event_id", "prio", "room_id"]);
    let rule = format!("/_matrix/client/v3/pushrules/global/room/{room}");
    bob.put(&rule, json!({ "actions": ["dont_notify"] })).await.fine();
    say(alice, room, "12", text("two")).await;
    gateway.take(0).await;
    let listed = bob.get("/_matrix/client/v3/notifications?limit=10").await.fine();
    // Nothing but the invitation.
    assert_eq!(listed["notifications"].as_array().unwrap().len(), 1, "{listed}");
    bob.send(Method::DELETE, &rule, "").await.fine();
    let listed = bob.get("/_matrix/client/v3/notifications?limit=10").await.fine();
    let shown = |it: &Value| (it["event"]["content"]["body"].clone(), it["read"].clone());
    let list: Vec<(Value, Value)> = listed["notifications"].as_array().unwrap().iter().map(shown).collect();
    let unread = |body: &str| (json!(body), json!(false));
    // The last is the invitation.
    assert_eq!(list[..3], [unread("two"), unread("one"), unread("The waxwings are back")], "{listed}");
    assert_eq!((list.len(), &list[3].1), (4, &json!(true)), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_inside_and_bad_rules_are_refused() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let gateway = Gateway::start().await;
    let (_, bob) = pair(&site).await;
    let set = async |pusher: Value| bob.post("/_matrix/client/v3/pushers/set", pusher).await;
    let inside = gateway.pusher("key", json!({}));
    set(inside.clone()).await.refused(400, "M_INVALID_PARAM");
    let mut https = inside.clone();
    https["data"]["url"] = "https://127.0.0.1/_matrix/push/v1/notify".into();
    set(https.clone()).await.refused(400, "M_INVALID_PARAM");
    https["data"]["url"] = "https://gate.example/_matrix/push/v1/notify".into();
    https["lang"].take();
    set(https.clone()).await.refused(400, "M_BAD_JSON");
    https.as_object_mut().unwrap().remove("lang");
    set(https).await.refused(400, "M_MISSING_PARAM");

    let rules = "/_matrix/client/v3/pushrules/global";
    let put = async |path: &str, body: Value| bob.put(&format!("{rules}/{path}"), body).await;
    let plain = json!({ "actions": ["notify"], "conditions": [] });
    for (path, code) in [
        ("override/.mine", "M_INVALID_PARAM"),
        ("override/a%2Fb", "M_INVALID_PARAM"),
        ("override/a%5Cb", "M_INVALID_PARAM"),
        ("override/mine?after=nothing", "M_UNKNOWN"),
        ("override/mine?before=.m.rule.tombstone", "M_INVALID_PARAM"),
        ("content/mine", "M_MISSING_PARAM"),
        ("sender/nobody", "M_INVALID_PARAM"),
        ("pigeon/mine", "M_INVALID_PARAM"),
        ("postcontent/mine", "M_INVALID_PARAM"),
    ] {
        put(path, plain.clone()).await.refused(400, code);
    }
    put("override/first", plain.clone()).await.fine();
    put("override/second?after=first", plain.clone()).await.fine();
    put("override/between?before=second", plain.clone()).await.fine();
    let all = bob.get(&format!("{rules}/")).await.fine();
    let ids: Vec<&str> = all["override"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|rule| rule["rule_id"].as_str())
        .take(5)
        .collect();
    assert_eq!(ids, [".m.rule.master", "first", "between", "second", ".m.rule.suppress_notices"]);
    put("override/between/enabled", json!({ "enabled": false })).await.fine();
    put("override/.m.rule.master/enabled", json!({ "enabled": true })).await.fine();
    put("underride/.m.rule.message/actions", json!({ "actions": [] })).await.fine();
    put("underride/.m.rule.nothing/actions", json!({ "actions": [] })).await.refused(404, "M_NOT_FOUND");
    put("underride/.m.rule.nothing/enabled", json!({ "enabled": true })).await.refused(404, "M_NOT_FOUND");
    let rule = bob.get(&format!("{rules}/underride/.m.rule.message")).await.fine();
    assert_eq!((&rule["actions"], &rule["default"]), (&json!([]), &json!(true)));
    bob.get(&format!("{rules}/io.element.msc4306.postcontent/x")).await.refused(404, "M_NOT_FOUND");
    let remove = async |path: &str| bob.send(Method::DELETE, &format!("{rules}/{path}"), "").await;
    remove("override/.m.rule.master").await.refused(400, "M_INVALID_PARAM");
    remove("override/nothing").await.refused(404, "M_NOT_FOUND");
    remove("override/between").await.fine();
}
