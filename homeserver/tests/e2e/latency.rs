//! How long a letter takes from one node to a long poll at the other.

use crate::http::Raw;
use crate::node::say;
use crate::site::{Shape, Site};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const LETTERS: usize = 50;
/// Time for the poll to reach the server and wait there.
const PARKED: Duration = Duration::from_millis(40);
/// The promise is 200 ms for 99 of 100, in a release build on an idle machine. Without the hint between nodes the
/// median would be half a second, because nodes look by themselves once a second only. The tail is printed, not judged:
/// other tests crash and restart servers beside this one.
const MOST_MEDIAN: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_crosses_nodes_quickly() {
    let Some(site) = Site::start(Shape::TwoNodes).await else { return };
    let [first, second] = [0, 1].map(|node: usize| site.nodes[node].client_url());
    let alice = Raw::register(&first, "alice").await;
    let bob = Raw::register(&second, "bob").await;
    let room = alice.create_room(json!({"preset": "private_chat", "invite": [bob.user]})).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    let mut since = poll(&bob, None, 0).await.0;
    // What the join brought.
    since = poll(&bob, Some(&since), 0).await.0;

    let mut took = Vec::with_capacity(LETTERS);
    for number in 0..LETTERS {
        let (reader, from, wanted) = (bob.clone(), since.clone(), room.clone());
        let waiting = tokio::spawn(async move { wait_for_letter(&reader, from, &wanted).await });
        tokio::time::sleep(PARKED).await;
        let began = Instant::now();
        alice.send_sealed(&room, &format!("letter-{number}")).await.fine();
        let (arrived, next) = waiting.await.unwrap();
        took.push(arrived - began);
        since = next;
    }
    took.sort_unstable();
    let at = |share: usize| took[(LETTERS * share).div_ceil(100) - 1];
    let (median, p99) = (at(50), at(99));
    say(&format!(
        "letter sent at one node, received at the other: median {median:.1?}, p90 {:.1?}, p99 {p99:.1?} of {LETTERS}",
        at(90)
    ));
    assert!(median < MOST_MEDIAN, "{took:?}");
}

/// Polls until a letter is there; returns when it came and from where to go on.
async fn wait_for_letter(reader: &Raw, mut since: String, room: &str) -> (Instant, String) {
    loop {
        let (next, body) = poll(reader, Some(&since), 10_000).await;
        let events = &body["rooms"]["join"][room]["timeline"]["events"];
        let came = events
            .as_array()
            .is_some_and(|events| events.iter().any(|event| event["type"] == "m.room.encrypted"));
        if came {
            return (Instant::now(), next);
        }
        since = next;
    }
}

async fn poll(who: &Raw, since: Option<&str>, timeout: u32) -> (String, Value) {
    let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
    let body = who.get(&format!("/_matrix/client/v3/sync?timeout={timeout}{since}")).await.fine();
    (body["next_batch"].as_str().unwrap().to_owned(), body)
}
