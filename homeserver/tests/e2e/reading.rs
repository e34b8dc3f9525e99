//! What each reader sees: aggregations without those whom the reader ignores, nothing that came after the reader left.

use crate::http::{Raw, at as path, sealed};
use crate::site::Site;
use serde_json::{Value, json};

in_each_shape!(
    aggregations_are_the_readers_own,
    who_left_sees_nothing_later,
    a_limited_timeline_is_followed_by_pages,
);

async fn join(who: &Raw, room: &str) {
    who.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
}

/// Sends a sealed letter that relates to another.
async fn relate(who: &Raw, room: &str, transaction: &str, rel_type: &str, to: &str) -> String {
    let mut content = sealed("QUJD");
    content["m.relates_to"] = json!({ "rel_type": rel_type, "event_id": to });
    let sent = who.put(&path(room, &format!("send/m.room.encrypted/{transaction}")), content).await.fine();
    sent["event_id"].as_str().unwrap().to_owned()
}

async fn letter(who: &Raw, room: &str, transaction: &str) -> String {
    who.send_sealed(room, transaction).await.fine()["event_id"].as_str().unwrap().to_owned()
}

/// What later events say of an event, as `who` sees it.
async fn relations(who: &Raw, room: &str, event: &str) -> Value {
    let shown = who.get(&path(room, &format!("event/{event}"))).await.fine();
    shown["unsigned"]["m.relations"].clone()
}

async fn ignore(who: &Raw, users: &[&str]) {
    let users: serde_json::Map<String, Value> =
        users.iter().map(|user| ((*user).to_owned(), json!({}))).collect();
    let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", who.user);
    who.put(&path, json!({ "ignored_users": users })).await.fine();
}

async fn aggregations_are_the_readers_own(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let carol = Raw::register(&site.url, "carol").await;
    let dave = Raw::register(&site.url, "dave").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for who in [&bob, &carol, &dave] {
        join(who, &room).await;
    }
    let root = letter(&alice, &room, "root").await;
    let first = relate(&bob, &room, "1", "m.thread", &root).await;
    let second = relate(&carol, &room, "2", "m.thread", &root).await;
    let edit = relate(&carol, &room, "3", "m.replace", &second).await;
    relate(&carol, &room, "4", "m.reference", &root).await;
    let thread = relations(&bob, &room, &root).await;
    let latest = &thread["m.thread"]["latest_event"];
    assert_eq!((&thread["m.thread"]["count"], &latest["event_id"]), (&json!(2), &json!(second)));
    assert_eq!(latest["unsigned"]["m.relations"]["m.replace"]["event_id"], edit, "{thread}");
    assert_eq!(thread["m.thread"]["current_user_participated"], true);
    assert_eq!(thread["m.reference"]["chunk"].as_array().unwrap().len(), 1);

    ignore(&dave, &[&carol.user]).await;
    let thread = relations(&dave, &room, &root).await;
    let latest = &thread["m.thread"]["latest_event"];
    assert_eq!((&thread["m.thread"]["count"], &latest["event_id"]), (&json!(1), &json!(first)), "{thread}");
    assert_eq!(thread["m.thread"]["current_user_participated"], false);
    assert!(thread.get("m.reference").is_none(), "{thread}");
    ignore(&dave, &[&bob.user, &carol.user]).await;
    assert!(relations(&dave, &room, &root).await.is_null());

    // A thread that someone ignored began is listed without the words.
    ignore(&dave, &[&alice.user]).await;
    let threads = format!("/_matrix/client/v1/rooms/{room}/threads");
    let listed = dave.get(&threads).await.fine();
    let shown = &listed["chunk"][0];
    assert_eq!((&shown["event_id"], &shown["content"]), (&json!(root), &json!({})), "{listed}");
    assert_eq!(shown["unsigned"]["m.relations"]["m.thread"]["count"], 2);
    assert_ne!(bob.get(&threads).await.fine()["chunk"][0]["content"], json!({}));
    // Nor do messages of ignored people show anywhere else; what they set does.
    let filter = "%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:100%7D%7D%7D";
    let synced = dave.get(&format!("/_matrix/client/v3/sync?filter={filter}")).await.fine();
    let shown = synced["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    assert!(shown.iter().any(|event| event["type"] == "m.room.power_levels"), "{synced}");
    assert!(shown.iter().all(|event| event["event_id"] != root), "{synced}");
    let page = dave.get(&path(&room, "messages?dir=b&limit=100")).await.fine();
    assert!(page["chunk"].as_array().unwrap().iter().all(|event| event["event_id"] != root), "{page}");
}

async fn who_left_sees_nothing_later(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    join(&bob, &room).await;
    let root = letter(&alice, &room, "root").await;
    let first = relate(&alice, &room, "1", "m.thread", &root).await;
    let edit = relate(&alice, &room, "2", "m.replace", &root).await;
    let token = bob.get("/_matrix/client/v3/sync").await.fine()["next_batch"].as_str().unwrap().to_owned();
    bob.post(&path(&room, "leave"), json!({})).await.fine();
    let late = relate(&alice, &room, "3", "m.thread", &root).await;
    let later = relate(&alice, &room, "4", "m.replace", &root).await;
    relate(&alice, &room, "5", "m.reference", &root).await;
    let name = json!({ "name": "after bob" });
    alice.put(&path(&room, "state/m.room.name/"), name).await.fine();

    let seen = relations(&bob, &room, &root).await;
    assert_eq!(seen["m.thread"]["latest_event"]["event_id"], first, "{seen}");
    assert_eq!((&seen["m.thread"]["count"], &seen["m.replace"]["event_id"]), (&json!(1), &json!(edit)));
    assert!(seen.get("m.reference").is_none(), "{seen}");
    let seen = relations(&alice, &room, &root).await;
    assert_eq!((&seen["m.thread"]["count"], &seen["m.replace"]["event_id"]), (&json!(2), &json!(later)));

    for rest in [
        "messages?dir=b&limit=100".to_owned(),
        format!("context/{root}?limit=100"),
        format!("messages?dir=f&limit=100&from={token}"),
    ] {
        let page = bob.get(&path(&room, &rest)).await.fine().to_string();
        assert!(!page.contains(&late) && !page.contains(&later) && !page.contains("after bob"), "{page}");
    }
    let children = bob.get(&format!("/_matrix/client/v1/rooms/{room}/relations/{root}")).await.fine();
    assert_eq!(children["chunk"].as_array().unwrap().len(), 2, "{children}");
    bob.get(&path(&room, &format!("event/{late}"))).await.refused(404, "M_NOT_FOUND");
    bob.get(&path(&room, "state/m.room.name/")).await.refused(404, "M_NOT_FOUND");

    // An incremental sync, and one that asks for rooms that were left, end with the leaving.
    let synced = bob.get(&format!("/_matrix/client/v3/sync?since={token}")).await.fine();
    let whole = "%7B%22room%22:%7B%22include_leave%22:true,%22timeline%22:%7B%22limit%22:100%7D%7D%7D";
    let archived = bob.get(&format!("/_matrix/client/v3/sync?filter={whole}")).await.fine();
    for answer in [synced, archived] {
        let left = &answer["rooms"]["leave"][&room];
        let events = left["timeline"]["events"].as_array().unwrap();
        let last = events.last().unwrap();
        assert_eq!(
            (&last["type"], &last["content"]["membership"]),
            (&json!("m.room.member"), &json!("leave"))
        );
        assert!(!left.to_string().contains("after bob"), "{left}");
    }
    let plain = bob.get("/_matrix/client/v3/sync").await.fine();
    assert!(plain["rooms"]["leave"].get(&room).is_none(), "{plain}");
}

/// Pages from the start of a first timeline show everything that it left out.
async fn a_limited_timeline_is_followed_by_pages(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let mut sent = Vec::new();
    for number in 0..25 {
        sent.push(letter(&alice, &room, &number.to_string()).await);
    }
    let filter =
        "%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:3,%22types%22:[%22m.room.encrypted%22]%7D%7D%7D";
    let synced = alice.get(&format!("/_matrix/client/v3/sync?filter={filter}")).await.fine();
    let timeline = &synced["rooms"]["join"][&room]["timeline"];
    let ids = |events: &Value| -> Vec<String> {
        events.as_array().unwrap().iter().map(|it| it["event_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((ids(&timeline["events"]), &timeline["limited"]), (sent[22..].to_vec(), &json!(true)));
    let from = timeline["prev_batch"].as_str().unwrap();
    let page = alice.get(&path(&room, &format!("messages?dir=b&limit=5&from={from}"))).await.fine();
    let mut page = ids(&page["chunk"]);
    page.reverse();
    assert_eq!(page, sent[17..22]);
}
