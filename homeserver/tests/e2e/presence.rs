//! Who is there, as every node knows it; and the user directory, which has those first who are near.

use crate::http::Raw;
use crate::site::{Shape, Site};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longer than a change takes to go round, shorter than anybody notices.
const AT_ONCE: Duration = Duration::from_secs(3);

fn status(user: &str) -> String {
    format!("/_matrix/client/v3/presence/{user}/status")
}

/// The state of `of` in an answer to a sync, if it is there.
fn state(body: &Value, of: &str) -> Option<String> {
    let events = body["presence"]["events"].as_array()?;
    let event = events.iter().rfind(|event| event["sender"] == of)?;
    Some(event["content"]["presence"].as_str()?.to_owned())
}

async fn on_every_node(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let room = alice.create_room(json!({"preset": "public_chat"})).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let first = alice.at(&site.nodes[0].client_url());
    let last = bob.at(&site.nodes[site.nodes.len() - 1].client_url());
    // Whoever says how they are reads it at once, where they said it.
    for (presence, words) in [("online", "here"), ("unavailable", "tea"), ("online", "back")] {
        let body = json!({"presence": presence, "status_msg": words});
        first.put(&status(&alice.user), body).await.fine();
        let seen = first.get(&status(&alice.user)).await.fine();
        assert_eq!((&seen["presence"], &seen["status_msg"]), (&json!(presence), &json!(words)));
    }
    let began = Instant::now();
    loop {
        let seen = last.get(&status(&alice.user)).await.fine();
        if seen["status_msg"] == "back" && seen["currently_active"] == true {
            break;
        }
        assert!(began.elapsed() < AT_ONCE, "{seen}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A sync that waits at one node wakes for what was said at another; an answer of one goes on at the other.
    let sync = |since: &str, wait: u32| {
        format!("/_matrix/client/v3/sync?since={since}&timeout={wait}&set_presence=offline")
    };
    let mut body = last.get("/_matrix/client/v3/sync?set_presence=offline").await.fine();
    for presence in ["unavailable", "online", "unavailable"] {
        let since = body["next_batch"].as_str().unwrap().to_owned();
        let (waiting, path) = (last.clone(), sync(&since, 10_000));
        let waiting = tokio::spawn(async move {
            let mut path = path;
            loop {
                let body = waiting.get(&path).await.fine();
                if state(&body, "@alice:localhost").is_some() {
                    return body;
                }
                let since = body["next_batch"].as_str().unwrap();
                path = format!("/_matrix/client/v3/sync?since={since}&timeout=10000&set_presence=offline");
            }
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        first.put(&status(&alice.user), json!({"presence": presence})).await.fine();
        body = waiting.await.unwrap();
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        assert_eq!(state(&body, &alice.user).as_deref(), Some(presence));
        // Whoever has seen it is not told again, at whichever node.
        let since = body["next_batch"].as_str().unwrap().to_owned();
        for node in &site.nodes {
            let again = last.at(&node.client_url()).get(&sync(&since, 0)).await.fine();
            assert_eq!(state(&again, &alice.user), None, "{again}");
        }
    }
}

in_each_shape!(on_every_node);

/// A node that has just begun asks who is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_begins_asks_who_is_there() {
    let Some(mut site) = Site::start(Shape::TwoNodes).await else { return };
    let alice = Raw::register(&site.url, "alice").await.at(&site.nodes[0].client_url());
    alice.put(&status(&alice.user), json!({"presence": "online", "status_msg": "before"})).await.fine();
    site.nodes[1].stop().await;
    site.nodes[1].start().await;
    let other = alice.at(&site.nodes[1].client_url());
    let began = Instant::now();
    while other.get(&status(&alice.user)).await.fine()["status_msg"] != "before" {
        assert!(began.elapsed() < AT_ONCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// People who share a room come before strangers, and names that begin with the word before those that hold it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_has_those_first_who_are_near() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let searcher = Raw::register(&site.url, "searcher").await;
    let room = searcher.create_room(json!({"preset": "public_chat", "visibility": "public"})).await;
    let mut people = Vec::new();
    for (name, shown, near) in [
        ("a1", "Robin Stranger", false),
        ("a2", "The Robin", true),
        ("a3", "Robin Near", true),
        ("robin", "Somebody", true),
    ] {
        let who = Raw::register(&site.url, name).await;
        let path = format!("/_matrix/client/v3/profile/{}/displayname", who.user);
        who.put(&path, json!({"displayname": shown})).await.fine();
        if near {
            who.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
        } else {
            let body = json!({"preset": "public_chat", "visibility": "public"});
            who.create_room(body).await;
        }
        people.push(who);
    }
    let search = "/_matrix/client/v3/user_directory/search";
    let found = searcher.post(search, json!({"search_term": "robin"})).await.fine();
    let order: Vec<&str> =
        found["results"].as_array().unwrap().iter().map(|one| one["user_id"].as_str().unwrap()).collect();
    assert_eq!(order, ["@a3:localhost", "@robin:localhost", "@a2:localhost", "@a1:localhost"]);
    let found = searcher.post(search, json!({"search_term": "robin", "limit": 3})).await.fine();
    assert_eq!((found["results"].as_array().unwrap().len(), &found["limited"]), (3, &json!(true)));
}
