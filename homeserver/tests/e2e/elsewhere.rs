//! What somebody wrote at one node, read by them at another at once: no node may answer as if it had not been.

use crate::http::Raw;
use crate::site::{Shape, Site};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Writes and reads, at one node and the other in turn.
const ROUNDS: usize = 24;
/// Every so often the nodes do not hear each other's hints: nobody tells the second that there is news.
const DEAF_EVERY: usize = 4;
/// A read at another node takes a question to the database more than one at the same node; by itself a node looks once a
/// second only.
const MOST_MEDIAN: Duration = Duration::from_millis(250);
const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";

/// One person at both nodes, and their room.
struct Both {
    site: Site,
    at: [Raw; 2],
    room: String,
}

impl Both {
    async fn start() -> Option<Both> {
        let site = Site::start(Shape::TwoNodes).await?;
        let first = Raw::register(&site.nodes[0].client_url(), "alice").await;
        let second = first.at(&site.nodes[1].client_url());
        let room = first.create_room(json!({"preset": "private_chat"})).await;
        Some(Both { site, at: [first, second], room })
    }

    /// Ends the connections over which the nodes hear each other; they listen again a moment later.
    fn deafen(&self) {
        let database = self.site.database.as_ref().expect("two nodes have a database server");
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        );
    }

    /// Says something at one node, and reads it with `read` at the other. How long the reading took, in each round.
    async fn rounds(&self, name: &str, mut read: impl AsyncFnMut(&Raw) -> Value) -> Vec<Duration> {
        let mut took = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS {
            let (writer, reader) = (&self.at[round % 2], &self.at[(round + 1) % 2]);
            if round.is_multiple_of(DEAF_EVERY) {
                self.deafen();
            }
            let said = writer.send_sealed(&self.room, &format!("{name}-{round}")).await.fine();
            let began = Instant::now();
            let answer = read(reader).await;
            took.push(began.elapsed());
            let id = said["event_id"].as_str().unwrap();
            assert!(answer.to_string().contains(id), "round {round}: {id} is missing in {answer}");
        }
        took.sort_unstable();
        took
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_shows_what_was_just_said_at_the_other_node() {
    let Some(both) = Both::start().await else { return };
    let first = both.at[0].get("/_matrix/client/v3/sync?timeout=0").await.fine();
    let mut since = first["next_batch"].as_str().unwrap().to_owned();
    let took = both.rounds("v3", async |reader| {
        let answer = reader.get(&format!("/_matrix/client/v3/sync?timeout=0&since={since}")).await.fine();
        answer["next_batch"].as_str().unwrap().clone_into(&mut since);
        answer
    });
    let took = took.await;
    assert!(took[ROUNDS / 2] < MOST_MEDIAN, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sliding_sync_shows_what_was_just_said_at_the_other_node() {
    let Some(both) = Both::start().await else { return };
    let body = json!({
        "conn_id": "list",
        "lists": {"all": {"ranges": [[0, 19]], "timeline_limit": 5, "required_state": []}},
    });
    let first = both.at[0].post(SLIDING, body.clone()).await.fine();
    let mut pos = first["pos"].as_str().unwrap().to_owned();
    let took = both.rounds("sliding", async |reader| {
        let answer = reader.post(&format!("{SLIDING}&pos={pos}"), body.clone()).await.fine();
        answer["pos"].as_str().unwrap().clone_into(&mut pos);
        answer
    });
    let took = took.await;
    assert!(took[ROUNDS / 2] < MOST_MEDIAN, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_other_node_is_reached_before_the_answer() {
    let Some(both) = Both::start().await else { return };
    let [first, second] = &both.at;
    let begun = first.get("/_matrix/client/v3/sync?timeout=0").await.fine();
    let mut since = begun["next_batch"].as_str().unwrap().to_owned();
    let mut took = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        both.deafen();
        first.send_sealed(&both.room, &format!("ahead-{round}")).await.fine();
        let there = first.get(&format!("/_matrix/client/v3/sync?timeout=0&since={since}")).await.fine();
        there["next_batch"].as_str().unwrap().clone_into(&mut since);
        let began = Instant::now();
        let here = second.get(&format!("/_matrix/client/v3/sync?timeout=0&since={since}")).await.fine();
        took.push(began.elapsed());
        // It was shown already, and is not shown again; what follows it is not passed over.
        assert!(here["rooms"]["join"][&both.room]["timeline"].is_null(), "{here}");
        let next = second.send_sealed(&both.room, &format!("next-{round}")).await.fine();
        let here = second.get(&format!("/_matrix/client/v3/sync?timeout=0&since={since}")).await.fine();
        assert!(here.to_string().contains(next["event_id"].as_str().unwrap()), "{here}");
        here["next_batch"].as_str().unwrap().clone_into(&mut since);
    }
    took.sort_unstable();
    assert!(took[ROUNDS / 2] < MOST_MEDIAN, "{took:?}");
    // A token of a log that never was is not waited for.
    let began = Instant::now();
    second.get("/_matrix/client/v3/sync?timeout=0&since=s999999999_0_0").await.fine();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
