//! Rooms beyond speaking: upgrades, events that are sent later, threads that people follow, search, sticky events,
//! state that belongs to users, redactions of a whole thread.

use crate::http::{Raw, at, sealed};
use crate::site::Site;
use reqwest::Method;
use serde_json::{Value, json};

in_each_shape!(
    an_upgrade_takes_along_what_people_keep,
    what_waits_is_sent_even_after_a_restart,
    threads_are_followed_and_redacted,
    words_are_found_until_they_are_redacted,
    sticky_events_are_shown_to_newcomers,
    state_of_users_is_theirs_and_their_superiors,
);

async fn join(raw: &Raw, room: &str) {
    raw.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
}

async fn an_upgrade_takes_along_what_people_keep(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let space =
        alice.create_room(json!({"preset": "public_chat", "creation_content": {"type": "m.space"}})).await;
    let old = alice
        .create_room(json!({
            "preset": "public_chat", "room_version": "10", "name": "Tea", "room_alias_name": "tea",
            "visibility": "public",
            "initial_state": [{"type": "m.space.parent", "state_key": space, "content": {"via": ["localhost"]}}],
        }))
        .await;
    let child = at(&space, &format!("state/m.space.child/{old}"));
    alice.put(&child, json!({"via": ["localhost"], "order": "a"})).await.fine();
    join(&bob, &old).await;
    alice.post(&at(&old, "ban"), json!({"user_id": "@mallory:localhost"})).await.fine();
    for (raw, tag) in [(&alice, "m.favourite"), (&bob, "u.mine")] {
        let user = &raw.user;
        let tags = format!("/_matrix/client/v3/user/{user}/rooms/{old}/tags/{tag}");
        raw.put(&tags, json!({"order": 0.5})).await.fine();
        let rule = format!("/_matrix/client/v3/pushrules/global/room/{old}");
        raw.put(&rule, json!({"actions": []})).await.fine();
    }
    let of_room = json!([{"kind": "event_match", "key": "room_id", "pattern": old}]);
    let rule = "/_matrix/client/v3/pushrules/global/override/tea";
    bob.put(rule, json!({"actions": ["notify"], "conditions": of_room})).await.fine();
    let upgrade = at(&old, "upgrade");
    bob.post(&upgrade, json!({"new_version": "12"})).await.refused(403, "M_FORBIDDEN");
    alice.post(&upgrade, json!({"new_version": "x"})).await.refused(400, "M_UNSUPPORTED_ROOM_VERSION");
    let made = alice.post(&upgrade, json!({"new_version": "12"})).await.fine();
    let new = made["replacement_room"].as_str().unwrap().to_owned();
    assert!(!new.contains(':'), "the id of a version 12 room is a hash: {new}");
    let create = alice.get(&at(&new, "state/m.room.create/")).await.fine();
    assert_eq!(create["predecessor"]["room_id"], *old);
    let tombstone = alice.get(&at(&old, "state/m.room.tombstone/")).await.fine();
    assert_eq!(tombstone["replacement_room"], *new);
    join(&bob, &new).await;
    let name = bob.get(&at(&new, "state/m.room.name/")).await.fine();
    assert_eq!(name["name"], "Tea");
    let ban = alice.get(&at(&new, "state/m.room.member/@mallory:localhost")).await.fine();
    assert_eq!(ban["membership"], "ban");
    let found = bob.get("/_matrix/client/v3/directory/room/%23tea:localhost").await.fine();
    assert_eq!(found["room_id"], *new);
    let listed = bob.get(&format!("/_matrix/client/v3/directory/list/room/{new}")).await.fine();
    assert_eq!(listed["visibility"], "public");
    let moved = alice.get(&at(&space, &format!("state/m.space.child/{new}"))).await.fine();
    assert_eq!(moved["order"], "a");
    for (raw, tag) in [(&alice, "m.favourite"), (&bob, "u.mine")] {
        let user = &raw.user;
        let tags = raw.get(&format!("/_matrix/client/v3/user/{user}/rooms/{new}/tags")).await.fine();
        assert_eq!(tags["tags"][tag]["order"], 0.5);
        raw.get(&format!("/_matrix/client/v3/pushrules/global/room/{new}")).await.fine();
    }
    let rule = bob.get(&format!("/_matrix/client/v3/pushrules/global/override/tea_{new}")).await.fine();
    assert_eq!(rule["conditions"][0]["pattern"], *new, "{rule}");
}

/// Where a state entry of the test is.
fn entry(room: &str, key: &str) -> String {
    at(room, &format!("state/org.example.test/{key}"))
}

async fn what_waits_is_sent_even_after_a_restart(mut site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({"preset": "public_chat"})).await;
    let events = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
    let later = |key: &str, delay: &str| format!("{}?org.matrix.msc4140.delay={delay}", entry(&room, key));
    alice.put(&later("x", "soon"), json!({})).await.refused(400, "M_INVALID_PARAM");
    let long = alice.put(&later("x", "999999999999"), json!({})).await;
    assert_eq!(long.body["org.matrix.msc4140.errcode"], "M_MAX_DELAY_EXCEEDED", "{}", long.body);
    bob.put(&later("x", "1000"), json!({})).await.refused(403, "M_FORBIDDEN");
    let message = at(&room, "send/m.room.message/1?org.matrix.msc4140.delay=1000");
    alice.put(&message, json!({"msgtype": "m.text", "body": "x"})).await.refused(403, "M_FORBIDDEN");

    let letter = at(&room, "send/m.room.encrypted/2?org.matrix.msc4140.delay=60000");
    let first = alice.put(&letter, sealed("QUJD")).await.fine();
    assert_eq!(first, alice.put(&letter, sealed("QUJD")).await.fine(), "a repetition gets the first answer");
    let mut ids = Vec::new();
    for key in ["cancelled", "sent", "restarted"] {
        let waiting = alice.put(&later(key, "60000"), json!({"key": key})).await.fine();
        ids.push(waiting["delay_id"].as_str().unwrap().to_owned());
    }
    let listed = alice.get(events).await.fine();
    assert_eq!(listed["delayed_events"].as_array().unwrap().len(), 4, "{listed}");
    assert_eq!(listed["delayed_events"][1]["content"]["key"], "cancelled");
    assert_eq!(bob.get(events).await.fine()["delayed_events"], json!([]));
    let one = alice.get(&format!("{events}/{}", ids[1])).await.fine();
    assert_eq!((&one["content"]["key"], &one["delay"]), (&json!("sent"), &json!(60_000)), "{one}");
    bob.get(&format!("{events}/{}", ids[1])).await.refused(404, "M_NOT_FOUND");

    // Whoever knows an id needs no token; both forms are in use.
    let nobody = Raw::nobody(&site.url);
    nobody.post(&format!("{events}/{}/cancel", ids[0]), json!({})).await.fine();
    nobody.post(&format!("{events}/{}/cancel", ids[0]), json!({})).await.refused(404, "M_NOT_FOUND");
    nobody.post(&format!("{events}/{}", ids[1]), json!({"action": "send"})).await.fine();
    nobody.post(&format!("{events}/{}/restart", ids[2]), json!({})).await.fine();
    nobody.post(&format!("{events}/{}/dance", ids[2]), json!({})).await.refused(404, "M_UNRECOGNIZED");
    alice.get(&entry(&room, "cancelled")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(alice.get(&entry(&room, "sent")).await.fine()["key"], "sent");
    let listed = alice.get(events).await.fine();
    assert_eq!(listed["delayed_events"].as_array().unwrap().len(), 2, "{listed}");

    alice.put(&later("now", "300"), json!({"key": "now"})).await.fine();
    alice.until(&entry(&room, "now"), |answer| answer.body["key"] == "now").await;
    alice.put(&later("restart", "1500"), json!({"key": "restart"})).await.fine();
    site.restart().await;
    alice.until(&entry(&room, "restart"), |answer| answer.body["key"] == "restart").await;

    // Another's word on the same entry ends the waiting.
    let levels = json!({"users": {}, "events": {"org.example.test": 0}});
    alice.put(&at(&room, "state/m.room.power_levels/"), levels).await.fine();
    join(&bob, &room).await;
    bob.put(&entry(&room, "restarted"), json!({"key": "bob"})).await.fine();
    let listed = alice.get(events).await.fine();
    assert_eq!(listed["delayed_events"].as_array().unwrap().len(), 1, "{listed}");
}

async fn threads_are_followed_and_redacted(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({"preset": "private_chat"})).await;
    let send = |id: &str| at(&room, &format!("send/m.room.encrypted/{id}"));
    let event = |answer: Value| answer["event_id"].as_str().unwrap().to_owned();
    let root = event(alice.put(&send("root"), sealed("QUJD")).await.fine());
    let mut reply = sealed("QUJE");
    reply["m.relates_to"] = json!({"rel_type": "m.thread", "event_id": root});
    let first = event(alice.put(&send("first"), reply.clone()).await.fine());
    let base = "/_matrix/client/unstable/io.element.msc4306/rooms";
    let path = format!("{base}/{room}/thread/{root}/subscription");
    alice.get(&path).await.refused(404, "M_NOT_FOUND");
    alice.put(&path, json!({"automatic": root})).await.refused(400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD");
    alice.put(&path, json!({"automatic": first})).await.fine();
    assert_eq!(alice.get(&path).await.fine()["automatic"], true);
    alice.put(&path, json!({})).await.fine();
    alice.put(&path, json!({"automatic": first})).await.fine();
    assert_eq!(alice.get(&path).await.fine()["automatic"], false, "what was wished for stays");
    let listing = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=b";
    let listed = alice.get(listing).await.fine();
    assert_eq!(listed["subscribed"][&room][&root]["automatic"], false, "{listed}");
    assert!(listed["subscribed"][&room][&root]["bump_stamp"].as_i64().unwrap() > 0);
    alice.send(Method::DELETE, &path, "").await.fine();
    alice.send(Method::DELETE, &path, "").await.fine();
    alice
        .put(&path, json!({"automatic": first}))
        .await
        .refused(409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION");
    let listed = alice.get(listing).await.fine();
    assert!(listed["unsubscribed"][&room][&root]["bump_stamp"].is_i64(), "{listed}");
    let second = event(alice.put(&send("second"), reply).await.fine());
    alice.put(&path, json!({"automatic": second})).await.fine();
    // Who is not in the room learns nothing.
    let bob = Raw::register(&site.url, "bob").await;
    bob.put(&path, json!({})).await.refused(404, "M_NOT_FOUND");

    let redact = at(&room, &format!("redact/{root}/1"));
    alice.put(&redact, json!({"with_rel_types": ["m.thread"]})).await.fine();
    for id in [root, first, second] {
        let shown = alice.get(&at(&room, &format!("event/{id}"))).await.fine();
        assert_eq!(shown["content"], json!({}), "{shown}");
    }
}

async fn words_are_found_until_they_are_redacted(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({"preset": "private_chat", "name": "Owls & Kestrels"})).await;
    let topic = json!({"topic": "Birds of the evening, Äquator"});
    let topic = alice.put(&at(&room, "state/m.room.topic/"), topic).await.fine();
    let search = |term: &str| json!({"search_categories": {"room_events": {"search_term": term}}});
    let found = |answer: &Value| answer["search_categories"]["room_events"]["count"].as_u64().unwrap();
    let path = "/_matrix/client/v3/search";
    for (term, count) in
        [("owls", 1), ("kestr", 1), ("evening BIRDS", 1), ("äquator", 1), ("owls evening", 0), ("x\"y'*", 0)]
    {
        let answer = alice.post(path, search(term)).await.fine();
        assert_eq!(found(&answer), count, "{term}: {answer}");
        let answer = bob.post(path, search(term)).await.fine();
        assert_eq!(found(&answer), 0, "{term}: {answer}");
    }
    let redact = at(&room, &format!("redact/{}/1", topic["event_id"].as_str().unwrap()));
    alice.put(&redact, json!({})).await.fine();
    let answer = alice.post(path, search("evening")).await.fine();
    assert_eq!(found(&answer), 0, "{answer}");
}

async fn sticky_events_are_shown_to_newcomers(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({"preset": "public_chat"})).await;
    let path = at(&room, "send/m.room.encrypted/1?org.matrix.msc4354.sticky_duration_ms=600000");
    let sent = alice.put(&path, sealed("QUJD")).await.fine();
    for number in 0..12 {
        alice.send_sealed(&room, &format!("more{number}")).await.fine();
    }
    join(&bob, &room).await;
    let synced = bob.get("/_matrix/client/v3/sync?timeout=0").await.fine();
    let sticky = &synced["rooms"]["join"][&room]["msc4354_sticky"]["events"][0];
    assert_eq!(sticky["event_id"], sent["event_id"], "{synced}");
    assert_eq!(sticky["msc4354_sticky"]["duration_ms"], 600_000);
    assert!(sticky["unsigned"]["msc4354_sticky_duration_ttl_ms"].as_u64().unwrap() > 0, "{sticky}");
}

async fn state_of_users_is_theirs_and_their_superiors(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let carol = Raw::register(&site.url, "carol").await;
    let room = alice
        .create_room(json!({
            "preset": "public_chat", "room_version": "org.matrix.msc3757.11",
            "power_level_content_override": {"events": {"org.example.test": 0}},
        }))
        .await;
    join(&bob, &room).await;
    join(&carol, &room).await;
    let own = entry(&room, &format!("{}_DEVICE", bob.user));
    bob.put(&own, json!({"by": "bob"})).await.fine();
    carol.put(&own, json!({"by": "carol"})).await.refused(403, "M_FORBIDDEN");
    alice.put(&own, json!({"by": "alice"})).await.fine();
    assert_eq!(carol.get(&own).await.fine()["by"], "alice");
    alice.put(&entry(&room, "@nobody"), json!({})).await.refused(400, "M_BAD_JSON");
}
