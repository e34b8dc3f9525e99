//! Search on the server, where it can read: what each person finds is what each may see.

use crate::http::{Raw, at};
use crate::site::{Shape, Site};
use serde_json::{Value, json};

const SEARCH: &str = "/_matrix/client/v3/search";

async fn join(who: &Raw, room: &str) {
    who.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
}

async fn say(who: &Raw, room: &str, words: &str) -> String {
    let content = json!({"msgtype": "m.text", "body": words});
    let transaction = words.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let path = at(room, &format!("send/m.room.message/{transaction}"));
    who.put(&path, content).await.fine()["event_id"].as_str().unwrap().to_owned()
}

/// What `who` finds with these criteria.
async fn find(who: &Raw, criteria: Value) -> Value {
    let answer = who.post(SEARCH, json!({"search_categories": {"room_events": criteria}})).await.fine();
    answer["search_categories"]["room_events"].clone()
}

fn ids(found: &Value) -> Vec<String> {
    let results = found["results"].as_array().unwrap().iter();
    results.map(|hit| hit["result"]["event_id"].as_str().unwrap().to_owned()).collect()
}

async fn ids_of(who: &Raw, term: &str) -> Vec<String> {
    let mut found = ids(&find(who, json!({"search_term": term, "filter": {"limit": 100}})).await);
    found.sort_unstable();
    found
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort_unstable();
    ids
}

/// A server that takes messages in the clear, in each of two shapes.
async fn sites() -> Vec<Site> {
    let mut sites = Vec::new();
    for shape in [Shape::Sqlite, Shape::Postgres] {
        sites.extend(Site::start_with(shape, &["plaintext=accept".to_owned()]).await);
    }
    sites
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_find_what_they_may_see() {
    for site in sites().await {
        let (alice, bob) = (Raw::register(&site.url, "alice").await, Raw::register(&site.url, "bob").await);
        let carol = Raw::register(&site.url, "carol").await;
        let joined =
            json!({"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}});
        let room = alice.create_room(json!({"preset": "public_chat", "initial_state": [joined]})).await;
        let shared = alice.create_room(json!({"preset": "public_chat"})).await;
        let early = say(&alice, &room, "an owl at dusk").await;
        let open = say(&alice, &shared, "an owl in the open").await;
        join(&bob, &room).await;
        join(&bob, &shared).await;
        let middle = say(&alice, &room, "the owl calls").await;
        let own = say(&bob, &room, "which owl").await;
        // Before he came he may not see, where the room says so; where it does not, he may.
        assert_eq!(
            ids_of(&alice, "owl").await,
            sorted(vec![early.clone(), open.clone(), middle.clone(), own.clone()])
        );
        assert_eq!(ids_of(&bob, "owl").await, sorted(vec![open.clone(), middle.clone(), own.clone()]));
        assert_eq!(ids_of(&carol, "owl").await, Vec::<String>::new());
        // A room that he left is searched up to then.
        bob.post(&at(&room, "leave"), json!({})).await.fine();
        let late = say(&alice, &room, "the owl is gone").await;
        assert_eq!(ids_of(&bob, "owl").await, sorted(vec![open.clone(), middle.clone(), own.clone()]));
        assert!(ids_of(&alice, "owl").await.contains(&late));
        bob.post(&at(&room, "forget"), json!({})).await.fine();
        assert_eq!(ids_of(&bob, "owl").await, vec![open.clone()]);
        // Whom somebody ignores is not found.
        let ignored = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", alice.user);
        alice.put(&ignored, json!({"ignored_users": {&bob.user: {}}})).await.fine();
        assert!(!ids_of(&alice, "owl").await.contains(&own));
        let around = json!({"search_term": "calls", "event_context": {"after_limit": 2}});
        let found = find(&alice, around).await;
        let after = found["results"][0]["context"]["events_after"].to_string();
        assert!(!after.contains(&own), "{found}");
        // Redacted words are gone, edited ones are found by either.
        alice.put(&at(&room, &format!("redact/{early}/1")), json!({})).await.fine();
        assert!(!ids_of(&alice, "dusk").await.contains(&early));
        let edit = json!({
            "msgtype": "m.text", "body": "* the kestrel calls",
            "m.new_content": {"msgtype": "m.text", "body": "the kestrel calls"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": middle},
        });
        let edit = alice.put(&at(&room, "send/m.room.message/edit"), edit).await.fine();
        assert_eq!(ids_of(&alice, "kestrel").await, vec![edit["event_id"].as_str().unwrap()]);
        let old =
            find(&alice, json!({"search_term": "calls", "keys": ["content.body"], "order_by": "recent"}))
                .await;
        let shown = &old["results"][1]["result"];
        assert_eq!(shown["event_id"], middle, "{old}");
        assert_eq!(shown["unsigned"]["m.relations"]["m.replace"]["event_id"], edit["event_id"], "{old}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_ordered_grouped_and_in_pages() {
    for site in sites().await {
        let (alice, bob) = (Raw::register(&site.url, "alice").await, Raw::register(&site.url, "bob").await);
        let avatar = format!("/_matrix/client/v3/profile/{}/displayname", alice.user);
        alice.put(&avatar, json!({"displayname": "Alice A."})).await.fine();
        let first = alice.create_room(json!({"preset": "public_chat", "topic": "About tea"})).await;
        let second = alice.create_room(json!({"preset": "public_chat", "name": "Tea room"})).await;
        for room in [&first, &second] {
            join(&bob, room).await;
        }
        let best = say(&alice, &first, "tea").await;
        say(&bob, &second, "a cup of tea with a friend").await;
        let newest = say(&bob, &second, "is there any more of that tea").await;
        // The best match, and the newest.
        let body = json!({"search_term": "tea", "keys": ["content.body"]});
        assert_eq!(ids(&find(&bob, body.clone()).await)[0], best);
        let mut recent = body.clone();
        recent["order_by"] = json!("recent");
        assert_eq!(ids(&find(&bob, recent.clone()).await)[0], newest);
        // Names and topics are other keys; a room that is not asked for is not searched.
        let kinds = |found: &Value| {
            let results = found["results"].as_array().unwrap().iter();
            let mut kinds: Vec<String> =
                results.map(|hit| hit["result"]["type"].as_str().unwrap().to_owned()).collect();
            kinds.sort_unstable();
            kinds
        };
        let found =
            find(&bob, json!({"search_term": "TEA", "keys": ["content.name", "content.topic"]})).await;
        assert_eq!(kinds(&found), ["m.room.name", "m.room.topic"]);
        let found = find(&bob, json!({"search_term": "tea", "filter": {"rooms": [second]}})).await;
        assert_eq!(found["count"], 3, "{found}");
        let found = find(&bob, json!({"search_term": "tea", "filter": {"not_rooms": [second]}})).await;
        assert_eq!(found["count"], 2, "{found}");
        let found = find(&bob, json!({"search_term": "tea", "filter": {"senders": [bob.user]}})).await;
        assert_eq!(found["count"], 2, "{found}");
        // Groups of what the page has.
        let mut grouped = recent.clone();
        grouped["groupings"] = json!({"group_by": [{"key": "room_id"}, {"key": "sender"}]});
        let found = find(&bob, grouped).await;
        let rooms = &found["groups"]["room_id"];
        assert_eq!(rooms[&second]["results"].as_array().unwrap().len(), 2, "{found}");
        assert_eq!((&rooms[&second]["order"], &rooms[&first]["order"]), (&json!(1), &json!(2)));
        assert_eq!(found["groups"]["sender"][&alice.user]["results"], json!([best]));
        // What stands around it, with those who said it, and the state of the rooms.
        let mut around = recent.clone();
        around["event_context"] = json!({"before_limit": 1, "after_limit": 1, "include_profile": true});
        around["include_state"] = json!(true);
        let found = find(&bob, around).await;
        let context = &found["results"][2]["context"];
        assert_eq!(found["results"][2]["result"]["event_id"], best);
        assert_eq!(context["events_before"].as_array().unwrap().len(), 1, "{found}");
        assert_eq!(context["events_after"], json!([]));
        assert_eq!(context["profile_info"][&alice.user]["displayname"], "Alice A.");
        let before =
            at(&first, &format!("messages?dir=b&limit=1&from={}", context["start"].as_str().unwrap()));
        let before = bob.get(&before).await.fine();
        assert_ne!(before["chunk"][0]["event_id"], context["events_before"][0]["event_id"]);
        let state = found["state"][&first].as_array().unwrap();
        assert!(state.iter().any(|event| event["type"] == "m.room.topic"), "{found}");
        // Page by page, each once, and no page after the last.
        recent["filter"] = json!({"limit": 2});
        let page = find(&bob, recent.clone()).await;
        assert_eq!((page["count"].as_u64(), ids(&page).len()), (Some(3), 2));
        let next = format!("{SEARCH}?next_batch={}", page["next_batch"].as_str().unwrap());
        let last = bob.post(&next, json!({"search_categories": {"room_events": recent}})).await.fine();
        let last = &last["search_categories"]["room_events"];
        assert_eq!(ids(last), vec![best.clone()]);
        assert!(last["next_batch"].is_null(), "{last}");
        assert!(page["highlights"].as_array().unwrap().contains(&json!("tea")));
        what_is_no_search(&bob, body).await;
    }
}

async fn what_is_no_search(bob: &Raw, good: Value) {
    let wrong = |criteria: Value| json!({"search_categories": {"room_events": criteria}});
    bob.post(SEARCH, json!({})).await.refused(400, "M_MISSING_PARAM");
    bob.post(SEARCH, wrong(json!({}))).await.refused(400, "M_MISSING_PARAM");
    bob.post(SEARCH, wrong(json!({"search_term": 7}))).await.refused(400, "M_BAD_JSON");
    let nonsense = format!("{SEARCH}?next_batch=nonsense");
    bob.post(&nonsense, wrong(good)).await.refused(400, "M_INVALID_PARAM");
}
