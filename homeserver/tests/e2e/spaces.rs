//! Rooms as they look from outside: trees of spaces, summaries, what a moment was in a room; here and at another
//! organisation's server.

use crate::federation::{Federation, NAMES};
use crate::http::{Answer, Raw, at};
use crate::site::Site;
use serde_json::{Value, json};
use std::time::Duration;

in_each_shape!(trees_are_walked_as_each_may_see_them, summaries_are_for_who_may_know);

async fn join(who: &Raw, room: &str, via: &str) {
    who.post(&format!("/_matrix/client/v3/join/{room}?via={via}"), json!({})).await.fine();
}

async fn space(who: &Raw, body: Value) -> String {
    let mut body = body;
    body["creation_content"] = json!({"type": "m.space"});
    who.create_room(body).await
}

/// Names a child in a space.
async fn child(who: &Raw, space: &str, room: &str, content: Value) {
    who.put(&at(space, &format!("state/m.space.child/{room}")), content).await.fine();
}

async fn hierarchy(who: &Raw, room: &str, query: &str) -> Answer {
    who.get(&format!("/_matrix/client/v1/rooms/{room}/hierarchy?{query}")).await
}

fn rooms(answer: &Value) -> Vec<String> {
    let rooms = answer["rooms"].as_array().unwrap().iter();
    rooms.map(|room| room["room_id"].as_str().unwrap().to_owned()).collect()
}

/// A room of version 12 whose joining rule this is.
fn restricted(rule: &str, space: &str) -> Value {
    json!({
        "preset": "private_chat",
        "initial_state": [{"type": "m.room.join_rules", "content": {
            "join_rule": rule, "allow": [{"type": "m.room_membership", "room_id": space}],
        }}],
    })
}

async fn trees_are_walked_as_each_may_see_them(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let root = space(&alice, json!({"preset": "public_chat", "name": "Birds"})).await;
    let owls = space(&alice, json!({"preset": "public_chat", "name": "Owls"})).await;
    let open = alice.create_room(json!({"preset": "public_chat", "name": "Open", "topic": "All"})).await;
    let closed = alice.create_room(json!({"preset": "private_chat", "name": "Closed"})).await;
    let admitting = alice.create_room(restricted("restricted", &root)).await;
    let asking = alice.create_room(restricted("knock_restricted", &root)).await;
    let deep = alice.create_room(json!({"preset": "public_chat", "name": "Deep"})).await;
    let via = json!(["localhost"]);
    child(&alice, &root, &open, json!({"via": via, "suggested": true})).await;
    child(&alice, &root, &owls, json!({"via": via, "order": "a"})).await;
    child(&alice, &root, &closed, json!({"via": via, "order": "b"})).await;
    child(&alice, &root, &admitting, json!({"via": via, "order": "c"})).await;
    child(&alice, &root, &asking, json!({"via": via, "order": "d"})).await;
    child(&alice, &owls, &deep, json!({"via": via})).await;
    // A circle, a child that is none, one that is gone.
    child(&alice, &owls, &root, json!({"via": via})).await;
    child(&alice, &owls, "!nowhere:localhost", json!({"via": via})).await;
    child(&alice, &root, "!gone:localhost", json!({})).await;

    let all = [&root, &owls, &deep, &closed, &admitting, &asking, &open].map(Clone::clone);
    let seen = hierarchy(&alice, &root, "").await.fine();
    assert_eq!(rooms(&seen), all);
    let shown = &seen["rooms"][0];
    assert_eq!((&shown["name"], &shown["room_type"]), (&json!("Birds"), &json!("m.space")), "{shown}");
    assert_eq!(shown["children_state"].as_array().unwrap().len(), 5, "{shown}");
    let event = &shown["children_state"][0];
    assert_eq!(event.as_object().unwrap().keys().count(), 5, "only what a stripped child has: {event}");
    let shown = &seen["rooms"][6];
    assert_eq!((&shown["topic"], &shown["join_rule"]), (&json!("All"), &json!("public")));
    assert_eq!((&shown["num_joined_members"], &shown["guest_can_join"]), (&json!(1), &json!(false)));
    let shown = &seen["rooms"][4];
    assert_eq!(shown["allowed_room_ids"], json!([root]), "{shown}");
    assert_eq!(shown["room_version"], "12", "{shown}");
    // Bob sees what is open to knock at, and not what admits members of a space in which he is not.
    let seen = hierarchy(&bob, &root, "").await.fine();
    assert_eq!(rooms(&seen), [&root, &owls, &deep, &asking, &open].map(Clone::clone));
    join(&bob, &root, "localhost").await;
    let seen = hierarchy(&bob, &root, "").await.fine();
    assert_eq!(rooms(&seen), [&root, &owls, &deep, &admitting, &asking, &open].map(Clone::clone));
    alice.post(&at(&closed, "invite"), json!({"user_id": bob.user})).await.fine();
    assert_eq!(rooms(&hierarchy(&bob, &root, "").await.fine()), all);

    assert_eq!(rooms(&hierarchy(&alice, &root, "max_depth=0").await.fine()), std::slice::from_ref(&root));
    let shallow = hierarchy(&alice, &root, "max_depth=1").await.fine();
    assert!(!rooms(&shallow).contains(&deep) && rooms(&shallow).contains(&owls), "{shallow}");
    let suggested = hierarchy(&alice, &root, "suggested_only=true").await.fine();
    assert_eq!(rooms(&suggested), [root.clone(), open.clone()]);
    assert_eq!(suggested["rooms"][0]["children_state"].as_array().unwrap().len(), 1, "{suggested}");
    pages(&alice, &root, &all).await;
    // What may not be seen at all looks like what is not there.
    hierarchy(&bob, "!nowhere:localhost", "").await.refused(403, "M_FORBIDDEN");
    let eve = Raw::register(&site.url, "eve").await;
    hierarchy(&eve, &closed, "").await.refused(403, "M_FORBIDDEN");
    // The rules that the tree shows are those by which one gets in.
    eve.post(&format!("/_matrix/client/v3/join/{admitting}"), json!({})).await.refused(403, "M_FORBIDDEN");
    eve.post(&format!("/_matrix/client/v3/join/{asking}"), json!({})).await.refused(403, "M_FORBIDDEN");
    eve.post(&format!("/_matrix/client/v3/knock/{asking}"), json!({})).await.fine();
    for room in [&admitting, &asking] {
        join(&bob, room, "localhost").await;
        let member = bob.get(&at(room, &format!("state/m.room.member/{}", bob.user))).await.fine();
        assert_eq!(member["join_authorised_via_users_server"], alice.user, "{member}");
    }
}

/// Page by page, each room once; and a token is good for what it was made for.
async fn pages(who: &Raw, root: &str, all: &[String]) {
    let mut seen = Vec::new();
    let mut from = String::new();
    loop {
        let page = hierarchy(who, root, &format!("limit=2&max_depth=5{from}")).await.fine();
        assert!(rooms(&page).len() <= 2, "{page}");
        seen.extend(rooms(&page));
        let Some(next) = page["next_batch"].as_str() else { break };
        let other = format!("limit=2&max_depth=4&from={next}");
        hierarchy(who, root, &other).await.refused(400, "M_INVALID_PARAM");
        let other = format!("max_depth=5&suggested_only=true&from={next}");
        hierarchy(who, root, &other).await.refused(400, "M_INVALID_PARAM");
        from = format!("&from={next}");
    }
    assert_eq!(seen, all);
    hierarchy(who, root, "from=nonsense").await.refused(400, "M_INVALID_PARAM");
    hierarchy(who, root, "max_depth=-1").await.refused(400, "M_INVALID_PARAM");
}

/// The paths at which a summary is asked for.
fn summary_paths(room: &str) -> [String; 3] {
    let room = room.replace('#', "%23");
    [
        format!("/_matrix/client/v1/room_summary/{room}"),
        format!("/_matrix/client/unstable/im.nheko.summary/rooms/{room}/summary"),
        format!("/_matrix/client/unstable/im.nheko.summary/summary/{room}"),
    ]
}

async fn summaries_are_for_who_may_know(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let nobody = Raw::nobody(&site.url);
    let open = json!({"preset": "public_chat", "name": "Open", "room_alias_name": "open"});
    let open = alice.create_room(open).await;
    let closed = alice.create_room(json!({"preset": "private_chat", "name": "Closed"})).await;
    let readable =
        json!({"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}});
    let shown = json!({"preset": "private_chat", "name": "Shown", "initial_state": [readable]});
    let shown = alice.create_room(shown).await;
    let admitting = alice.create_room(restricted("restricted", &open)).await;
    for path in summary_paths(&open).into_iter().chain(summary_paths("#open:localhost")) {
        let seen = nobody.get(&path).await.fine();
        assert_eq!((&seen["room_id"], &seen["name"]), (&json!(open), &json!("Open")), "{path}");
        assert!(seen["membership"].is_null(), "{seen}");
        let seen = alice.get(&path).await.fine();
        assert_eq!((&seen["membership"], &seen["num_joined_members"]), (&json!("join"), &json!(1)), "{seen}");
        assert_eq!(bob.get(&path).await.fine()["membership"], "leave");
        // A token that is none is no way to be nobody.
        bob.with_token("nonsense").get(&path).await.refused(401, "M_UNKNOWN_TOKEN");
    }
    for path in summary_paths(&closed) {
        nobody.get(&path).await.refused(404, "M_NOT_FOUND");
        bob.get(&path).await.refused(404, "M_NOT_FOUND");
        assert_eq!(alice.get(&path).await.fine()["name"], "Closed");
    }
    for path in summary_paths(&shown) {
        assert_eq!(nobody.get(&path).await.fine()["world_readable"], true, "{path}");
    }
    for path in summary_paths(&admitting) {
        nobody.get(&path).await.refused(404, "M_NOT_FOUND");
        bob.get(&path).await.refused(404, "M_NOT_FOUND");
    }
    join(&bob, &open, "localhost").await;
    alice.post(&at(&closed, "invite"), json!({"user_id": bob.user})).await.fine();
    for (room, membership) in [(&open, "join"), (&closed, "invite"), (&admitting, "leave")] {
        for path in summary_paths(room) {
            assert_eq!(bob.get(&path).await.fine()["membership"], membership, "{path}");
        }
    }
    for path in summary_paths("!nowhere:localhost").into_iter().chain(summary_paths("#nowhere:localhost")) {
        alice.get(&path).await.refused(404, "M_NOT_FOUND");
    }
}

/// A tree of which the other server has a part, and a part of which only our users may see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_and_summaries_of_two_servers() {
    let federation = Federation::start().await;
    let [alpha, beta] = NAMES;
    let alice = Raw::register(&federation.nodes[0].client_url(), "alice").await;
    let bob = Raw::register(&federation.nodes[1].client_url(), "bob").await;
    let eve = Raw::register(&federation.nodes[1].client_url(), "eve").await;
    let root = space(&alice, json!({"preset": "public_chat", "name": "Birds"})).await;
    let open = alice.create_room(json!({"preset": "public_chat", "name": "Open"})).await;
    let closed = alice.create_room(json!({"preset": "private_chat", "name": "Closed"})).await;
    let admitting = alice.create_room(restricted("restricted", &root)).await;
    let asking = alice.create_room(restricted("knock_restricted", &root)).await;
    let theirs = space(&bob, json!({"preset": "public_chat", "name": "Theirs"})).await;
    let deep = bob.create_room(json!({"preset": "public_chat", "name": "Deep"})).await;
    child(&bob, &theirs, &deep, json!({"via": [beta]})).await;
    for (room, order) in [(&open, "a"), (&closed, "b"), (&admitting, "c"), (&asking, "d")] {
        child(&alice, &root, room, json!({"via": [alpha], "order": order})).await;
    }
    child(&alice, &root, &theirs, json!({"via": [beta], "order": "e", "suggested": true})).await;
    // Alice's server asks Bob's for its part.
    let seen = hierarchy(&alice, &root, "").await.fine();
    assert_eq!(rooms(&seen), [&root, &open, &closed, &admitting, &asking, &theirs, &deep].map(Clone::clone));
    // Bob's server asks Alice's, before and after he is in the space.
    let path = format!("/_matrix/client/v1/room_summary/{root}?via={alpha}");
    assert_eq!(bob.get(&path).await.fine()["name"], "Birds");
    let path = format!("/_matrix/client/v1/room_summary/{closed}?via={alpha}");
    bob.get(&path).await.refused(404, "M_NOT_FOUND");
    join(&bob, &root, alpha).await;
    let seen = hierarchy(&bob, &root, "").await.fine();
    assert_eq!(rooms(&seen), [&root, &open, &admitting, &asking, &theirs, &deep].map(Clone::clone), "{seen}");
    let suggested = hierarchy(&bob, &root, "suggested_only=true").await.fine();
    assert_eq!(rooms(&suggested), [&root, &theirs].map(Clone::clone));
    // Eve is of a server that may know of the room that admits members, and is no member.
    let seen = hierarchy(&eve, &root, "").await.fine();
    assert!(!rooms(&seen).contains(&admitting) && rooms(&seen).contains(&asking), "{seen}");
    let path = format!("/_matrix/client/v1/room_summary/{admitting}?via={alpha}");
    eve.get(&path).await.refused(404, "M_NOT_FOUND");
    assert_eq!(bob.get(&path).await.fine()["membership"], "leave");
    // And so it is with getting in, through the other server.
    for room in [&admitting, &asking] {
        let path = format!("/_matrix/client/v3/join/{room}?via={alpha}");
        eve.post(&path, json!({})).await.refused(403, "M_FORBIDDEN");
        join(&bob, room, alpha).await;
        let own = at(room, &format!("state/m.room.member/{}", bob.user));
        let member = alice.until(&own, |answer| answer.body["membership"] == "join").await;
        assert_eq!(member["join_authorised_via_users_server"], alice.user, "{member}");
    }
    let knock = format!("/_matrix/client/v3/knock/{asking}?via={alpha}");
    eve.post(&knock, json!({"reason": "please"})).await.fine();
    let own = at(&asking, &format!("state/m.room.member/{}", eve.user));
    let member = alice.until(&own, |answer| answer.body["membership"] == "knock").await;
    assert_eq!(member["reason"], "please");
    alice.post(&at(&asking, "invite"), json!({"user_id": eve.user})).await.fine();
    eve.until("/_matrix/client/v3/sync", |sync| sync.body["rooms"]["invite"][&asking].is_object()).await;
    join(&eve, &asking, alpha).await;
    alice.until(&own, |answer| answer.body["membership"] == "join").await;
}

async fn letter(who: &Raw, room: &str, transaction: &str) -> (String, u64) {
    let sent = who.send_sealed(room, transaction).await.fine();
    let id = sent["event_id"].as_str().unwrap().to_owned();
    let shown = who.get(&at(room, &format!("event/{id}"))).await.fine();
    // The next one has another time.
    tokio::time::sleep(Duration::from_millis(20)).await;
    (id, shown["origin_server_ts"].as_u64().unwrap())
}

async fn event_at(who: &Raw, room: &str, time: u64, direction: &str) -> Answer {
    let path = format!("/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts={time}&dir={direction}");
    who.get(&path).await
}

/// The event at a moment, as far as somebody may see it: from our own history, or from the other server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moments_are_found_here_and_elsewhere() {
    let federation = Federation::start().await;
    let alice = Raw::register(&federation.nodes[0].client_url(), "alice").await;
    let carol = Raw::register(&federation.nodes[0].client_url(), "carol").await;
    let bob = Raw::register(&federation.nodes[1].client_url(), "bob").await;
    let room = alice.create_room(json!({"preset": "public_chat"})).await;
    let (first, early) = letter(&alice, &room, "1").await;
    let (second, late) = letter(&alice, &room, "2").await;
    assert_eq!(event_at(&alice, &room, early, "f").await.fine()["event_id"], first);
    let hit = event_at(&alice, &room, early + 1, "f").await.fine();
    assert_eq!((&hit["event_id"], &hit["origin_server_ts"]), (&json!(second), &json!(late)));
    assert_eq!(event_at(&alice, &room, late - 1, "b").await.fine()["event_id"], first);
    event_at(&alice, &room, late + 60_000, "f").await.refused(404, "M_NOT_FOUND");
    event_at(&alice, &room, 1, "b").await.refused(404, "M_NOT_FOUND");
    event_at(&carol, &room, early, "f").await.refused(403, "M_FORBIDDEN");
    let base = format!("/_matrix/client/v1/rooms/{room}/timestamp_to_event");
    alice.get(&base).await.refused(400, "M_MISSING_PARAM");
    alice.get(&format!("{base}?ts=1&dir=x")).await.refused(400, "M_INVALID_PARAM");
    // More than a join brings along, so that Bob's server has not the first.
    for number in 0..30 {
        alice.send_sealed(&room, &format!("more{number}")).await.fine();
    }
    join(&bob, &room, NAMES[0]).await;
    assert_eq!(event_at(&bob, &room, early, "f").await.fine()["event_id"], first);
    assert_eq!(event_at(&bob, &room, late, "b").await.fine()["event_id"], second);
    // From there one reads on in both directions.
    let context = bob.get(&at(&room, &format!("context/{first}?limit=2"))).await.fine();
    assert_eq!(context["event"]["event_id"], first);
    assert!(context["start"].is_string() && context["end"].is_string(), "{context}");
    // Who came when only joined people may read does not find what was before.
    let hidden = json!({"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}});
    let private = alice.create_room(json!({"preset": "public_chat", "initial_state": [hidden]})).await;
    let (before, time) = letter(&alice, &private, "1").await;
    join(&carol, &private, NAMES[0]).await;
    let (after, _) = letter(&alice, &private, "2").await;
    let hit = event_at(&carol, &private, time, "f").await.fine();
    assert_ne!(hit["event_id"], before);
    carol.get(&at(&private, &format!("context/{before}"))).await.refused(404, "M_NOT_FOUND");
    let context = carol.get(&at(&private, &format!("context/{after}?limit=10"))).await.fine();
    assert!(!context.to_string().contains(&before), "{context}");
}
