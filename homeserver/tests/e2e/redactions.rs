//! What is taken back: by whom, in rooms of either way of saying so, and that it is gone wherever it was to be read.

use crate::federation::{Federation, NAMES};
use crate::http::{Raw, at, sealed};
use crate::site::Site;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

in_each_shape!(what_is_redacted_is_gone_from_every_reading, upgrades_name_successors_of_version_12);

/// How long what follows from a request may take to show.
const SOON: Duration = Duration::from_secs(20);

async fn join(who: &Raw, room: &str, via: &str) {
    who.post(&format!("/_matrix/client/v3/join/{room}?via={via}"), json!({})).await.fine();
}

async fn letter(who: &Raw, room: &str, transaction: &str) -> String {
    who.send_sealed(room, transaction).await.fine()["event_id"].as_str().unwrap().to_owned()
}

async fn redact(who: &Raw, room: &str, event: &str, transaction: &str) -> crate::http::Answer {
    who.put(&at(room, &format!("redact/{event}/{transaction}")), json!({"reason": "slipped"})).await
}

/// The event with this id in a list.
#[track_caller]
fn among(events: &Value, id: &str) -> Value {
    let found = events.as_array().and_then(|all| all.iter().find(|event| event["event_id"] == id));
    found.unwrap_or_else(|| panic!("{id} is not in {events}")).clone()
}

/// An event when it is redacted at the node that is asked.
async fn once_redacted(who: &Raw, room: &str, id: &str) -> Value {
    let end = Instant::now() + SOON;
    loop {
        let event = who.get(&at(room, &format!("event/{id}"))).await.fine();
        if event["unsigned"]["redacted_because"].is_object() {
            return event;
        }
        assert!(Instant::now() < end, "{event}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn once_at_each(who: &Raw, nodes: &[String], room: &str, id: &str) {
    for node in nodes {
        once_redacted(&who.at(node), room, id).await;
    }
}

/// A redacted event and the redaction that it shows.
#[track_caller]
fn is_redacted(event: &Value, redaction: &str, redacts: &str, where_: &str) {
    assert_eq!(event["content"], json!({}), "{where_}: {event}");
    let because = &event["unsigned"]["redacted_because"];
    assert_eq!(because["event_id"], redaction, "{where_}: {event}");
    // Clients of either way of saying it find what it redacts.
    assert_eq!(
        (&because["redacts"], &because["content"]["redacts"]),
        (&json!(redacts), &json!(redacts)),
        "{where_}: {event}"
    );
    assert_eq!(because["content"]["reason"], "slipped", "{where_}: {event}");
}

async fn what_is_redacted_is_gone_from_every_reading(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let nodes: Vec<String> = site.nodes.iter().map(crate::node::Node::client_url).collect();
    for version in ["10", "11", "12"] {
        let room = alice.create_room(json!({"preset": "public_chat", "room_version": version})).await;
        join(&bob, &room, "localhost").await;
        let since =
            bob.get("/_matrix/client/v3/sync").await.fine()["next_batch"].as_str().unwrap().to_owned();
        let root = letter(&alice, &room, "root").await;
        let mut reply = sealed("QUJD");
        reply["m.relates_to"] = json!({"rel_type": "m.thread", "event_id": root});
        let reply = bob.put(&at(&room, "send/m.room.encrypted/reply"), reply).await.fine();
        let reply = reply["event_id"].as_str().unwrap().to_owned();
        // Whose it is not, and who has not the power, may not.
        redact(&bob, &room, &root, "1").await.refused(403, "M_FORBIDDEN");
        redact(&bob, &room, "$nothing", "2").await.refused(403, "M_FORBIDDEN");
        let done = redact(&bob, &room, &reply, "3").await.fine();
        let by_himself = done["event_id"].as_str().unwrap().to_owned();
        // What it relates to stays, and no longer counts.
        once_at_each(&alice, &nodes, &room, &reply).await;
        let shown = alice.get(&at(&room, &format!("event/{root}"))).await.fine();
        assert!(shown["unsigned"]["m.relations"]["m.thread"].is_null(), "{version}: {shown}");
        let second = letter(&bob, &room, "second").await;
        let done = redact(&alice, &room, &second, "4").await.fine();
        let by_power = done["event_id"].as_str().unwrap().to_owned();
        assert_eq!(redact(&alice, &room, &second, "4").await.fine()["event_id"], by_power);
        once_at_each(&alice, &nodes, &room, &second).await;
        let synced = format!("/_matrix/client/v3/sync?since={since}");
        let sliding = json!({
            "room_subscriptions": {&room: {"timeline_limit": 20, "required_state": []}},
        });
        let sliding_path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
        for (id, redaction) in [(&reply, &by_himself), (&second, &by_power)] {
            for who in [&alice, &bob] {
                let place = |place: &str| format!("version {version}, {place}, {}", who.user);
                let event = who.get(&at(&room, &format!("event/{id}"))).await.fine();
                is_redacted(&event, redaction, id, &place("event"));
                let page = who.get(&at(&room, "messages?dir=b&limit=50")).await.fine();
                is_redacted(&among(&page["chunk"], id), redaction, id, &place("messages"));
                let context = who.get(&at(&room, &format!("context/{root}?limit=50"))).await.fine();
                is_redacted(&among(&context["events_after"], id), redaction, id, &place("context"));
                let sync = who.get("/_matrix/client/v3/sync").await.fine();
                let timeline = &sync["rooms"]["join"][&room]["timeline"]["events"];
                is_redacted(&among(timeline, id), redaction, id, &place("sync"));
                let answer = who.post(sliding_path, sliding.clone()).await.fine();
                let timeline = &answer["rooms"][&room]["timeline"];
                is_redacted(&among(timeline, id), redaction, id, &place("sliding sync"));
            }
            let sync = bob.get(&synced).await.fine();
            let timeline = &sync["rooms"]["join"][&room]["timeline"]["events"];
            is_redacted(&among(timeline, id), redaction, id, "incremental sync");
            // The redaction itself says what it redacts in both places.
            let event = bob.get(&at(&room, &format!("event/{redaction}"))).await.fine();
            assert_eq!(
                (&event["redacts"], &event["content"]["redacts"]),
                (&json!(id), &json!(id)),
                "{event}"
            );
        }
        // As an event of its own, in either way of saying it.
        let third = letter(&bob, &room, "third").await;
        let send = at(&room, "send/m.room.redaction/own");
        let sent = bob.put(&send, json!({"redacts": third, "reason": "slipped"})).await.fine();
        let event = once_redacted(&alice, &room, &third).await;
        is_redacted(&event, sent["event_id"].as_str().unwrap(), &third, "sent");
        let fourth = letter(&alice, &room, "fourth").await;
        let send = at(&room, "send/m.room.redaction/others");
        bob.put(&send, json!({"redacts": fourth})).await.refused(403, "M_FORBIDDEN");
        state_keeps_what_it_must(&alice, &nodes, &room, version).await;
    }
}

/// Of state, what the rules need stays.
async fn state_keeps_what_it_must(alice: &Raw, nodes: &[String], room: &str, version: &str) {
    let topic = at(room, "state/m.room.topic/");
    let event = alice.put(&topic, json!({"topic": "slips"})).await.fine();
    let redacted = event["event_id"].as_str().unwrap();
    redact(alice, room, redacted, "topic").await.fine();
    once_at_each(alice, nodes, room, redacted).await;
    assert_eq!(alice.get(&topic).await.fine(), json!({}), "{version}");
    let rules = at(room, "state/m.room.join_rules/");
    let event = alice.put(&rules, json!({"join_rule": "public", "word": "slips"})).await.fine();
    let redacted = event["event_id"].as_str().unwrap();
    redact(alice, room, redacted, "rules").await.fine();
    once_at_each(alice, nodes, room, redacted).await;
    assert_eq!(alice.get(&rules).await.fine(), json!({"join_rule": "public"}), "{version}");
    // What replaces it does not bring it back.
    let next = alice.put(&topic, json!({"topic": "next"})).await.fine();
    let next = at(room, &format!("event/{}", next["event_id"].as_str().unwrap()));
    assert_eq!(alice.get(&next).await.fine()["unsigned"]["prev_content"], json!({}), "{version}");
}

/// The redaction and what it redacts, at the other server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redactions_reach_the_other_server() {
    let federation = Federation::start().await;
    let alice = Raw::register(&federation.nodes[0].client_url(), "alice").await;
    let bob = Raw::register(&federation.nodes[1].client_url(), "bob").await;
    let carol = Raw::register(&federation.nodes[1].client_url(), "carol").await;
    for version in ["10", "12"] {
        let room = alice.create_room(json!({"preset": "public_chat", "room_version": version})).await;
        join(&bob, &room, NAMES[0]).await;
        join(&carol, &room, NAMES[0]).await;
        let hers = letter(&alice, &room, "hers").await;
        let his = letter(&bob, &room, "his").await;
        let shown = |who: &Raw, id: &str| (who.clone(), at(&room, &format!("event/{id}")));
        let arrived = async |(who, path): (Raw, String), good: &dyn Fn(&Value) -> bool| {
            let end = Instant::now() + SOON;
            loop {
                let answer = who.get(&path).await;
                if answer.status.is_success() && good(&answer.body) {
                    return answer.body;
                }
                assert!(Instant::now() < end, "{path}: {} {}", answer.status, answer.body);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let whole = |event: &Value| event["content"]["ciphertext"].is_string();
        let gone = |event: &Value| event["unsigned"]["redacted_because"].is_object();
        arrived(shown(&bob, &hers), &whole).await;
        arrived(shown(&alice, &his), &whole).await;
        // Of one server or not, what is another's is not theirs to take back.
        redact(&bob, &room, &hers, "1").await.refused(403, "M_FORBIDDEN");
        redact(&carol, &room, &his, "2").await.refused(403, "M_FORBIDDEN");
        let own = redact(&alice, &room, &hers, "3").await.fine();
        let event = arrived(shown(&bob, &hers), &gone).await;
        is_redacted(&event, own["event_id"].as_str().unwrap(), &hers, version);
        let power = redact(&alice, &room, &his, "4").await.fine();
        let event = arrived(shown(&bob, &his), &gone).await;
        is_redacted(&event, power["event_id"].as_str().unwrap(), &his, version);
    }
}

/// From version 11, and again from 12: the new id is a hash, what names it comes after it, and creators stand nowhere in
/// the levels.
async fn upgrades_name_successors_of_version_12(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let first = json!({"preset": "public_chat", "room_version": "11", "name": "Tea"});
    let mut old = alice.create_room(first).await;
    join(&bob, &old, "localhost").await;
    let levels = at(&old, "state/m.room.power_levels/");
    let mut content = alice.get(&levels).await.fine();
    content["users"][&bob.user] = json!(50);
    alice.put(&levels, content).await.fine();
    let state = async |room: &str, kind: &str| alice.get(&at(room, &format!("state/{kind}/"))).await.fine();
    for additional in [json!([]), json!([bob.user])] {
        let upgrade = json!({"new_version": "12", "additional_creators": additional});
        let made = alice.post(&at(&old, "upgrade"), upgrade).await.fine();
        let new = made["replacement_room"].as_str().unwrap().to_owned();
        let tombstone = format!("{}?format=event", at(&old, "state/m.room.tombstone/"));
        let tombstone = alice.get(&tombstone).await.fine();
        assert_eq!(tombstone["content"]["replacement_room"], *new, "{tombstone}");
        let create = alice.get(&format!("{}?format=event", at(&new, "state/m.room.create/"))).await.fine();
        assert_eq!(format!("!{}", &create["event_id"].as_str().unwrap()[1..]), new, "{create}");
        assert_eq!(create["content"]["predecessor"], json!({"room_id": old}), "{create}");
        let creators = create["content"].get("additional_creators").cloned().unwrap_or(json!([]));
        assert_eq!(creators, additional);
        let levels = state(&new, "m.room.power_levels").await;
        assert!(levels["users"].get(&alice.user).is_none(), "{levels}");
        let bobs = levels["users"].get(&bob.user).cloned();
        assert_eq!(bobs.is_none(), additional != json!([]), "{levels}");
        assert!(levels["events"]["m.room.tombstone"].as_i64() > Some(100), "{levels}");
        assert_eq!(state(&new, "m.room.name").await["name"], "Tea");
        // Nobody without power says more in the old one.
        let carol = Raw::register(&site.url, &format!("carol{}", additional.as_array().unwrap().len())).await;
        join(&carol, &old, "localhost").await;
        carol.send_sealed(&old, "late").await.refused(403, "M_FORBIDDEN");
        join(&bob, &new, "localhost").await;
        let late = at(&new, "state/m.room.tombstone/");
        if additional == json!([]) {
            bob.put(&late, json!({"body": "x", "replacement_room": old})).await.refused(403, "M_FORBIDDEN");
        }
        old = new;
    }
    // A room that is gone from is upgraded by nobody, and by who left it neither.
    bob.post(&at(&old, "leave"), json!({})).await.fine();
    bob.post(&at(&old, "upgrade"), json!({"new_version": "12"})).await.refused(403, "M_FORBIDDEN");
    let nowhere = at("!nowhere:localhost", "upgrade");
    let answer = alice.send(Method::POST, &nowhere, json!({"new_version": "12"}).to_string()).await;
    answer.refused(404, "M_NOT_FOUND");
}
