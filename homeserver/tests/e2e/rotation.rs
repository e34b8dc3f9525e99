//! The key with which a server signs is changed while it runs.

use crate::federation::{Federation, NAMES};
use crate::http::{Answer, careless};
use crate::node::Node;
use crate::site::{PATIENCE, Shape, Site, room_of_two};
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// What a node publishes of the server's keys.
async fn published(node: &Node) -> Value {
    let url = format!("{}/_matrix/key/v2/server", node.federation_url());
    Answer::of(careless().get(url).send().await.unwrap()).await.fine()
}

fn current(document: &Value) -> Vec<&String> {
    document["verify_keys"].as_object().unwrap().keys().collect()
}

/// Rotates the key by the command line; gives the id of the old one.
async fn rotate(node: &Node) -> String {
    let before = published(node).await;
    let old = current(&before)[0].clone();
    let said = node.run(&["key", "rotate"]).await;
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stdout).contains(&old));
    old
}

/// Waits until the node signs with another key than `old`, and publishes that one as an old key.
async fn rotated(node: &Node, old: &str) -> Value {
    for _ in 0..100 {
        let document = published(node).await;
        if current(&document) != [old] {
            assert_eq!(current(&document).len(), 1, "{document}");
            let retired = &document["old_verify_keys"][old];
            assert!(retired["key"].is_string() && retired["expired_ts"].is_u64(), "{document}");
            // Signed by the new key.
            let signatures = document["signatures"].as_object().unwrap().values().next().unwrap();
            assert!(signatures.get(current(&document)[0]).is_some(), "{document}");
            return document;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the node still signs with {old}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_changes_its_key_is_believed_at_once_and_after_a_restart() {
    let mut federation = Federation::start().await;
    let (alice, bob) = federation.people().await;
    let room = room_of_two(&alice, &bob).await;
    alice.send_text(&room, "with the first key").await.unwrap();
    bob.wait_for_text(&room, "with the first key", PATIENCE).await.unwrap();
    // Nobody asks a server for its keys twice in ten seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let old = rotate(&federation.nodes[0]).await;
    rotated(&federation.nodes[0], &old).await;
    alice.send_text(&room, "with the new key").await.unwrap();
    bob.wait_for_text(&room, "with the new key", PATIENCE).await.unwrap();
    bob.send_text(&room, "I believe it").await.unwrap();
    alice.wait_for_text(&room, "I believe it", PATIENCE).await.unwrap();
    // As a notary, beta has the new document, signed by both.
    let url = format!("{}/_matrix/key/v2/query/{}", federation.nodes[1].federation_url(), NAMES[0]);
    let answer = Answer::of(careless().get(url).send().await.unwrap()).await.fine();
    let passed_on = &answer["server_keys"][0];
    assert!(passed_on["old_verify_keys"][&old].is_object(), "{passed_on}");
    let signers: Vec<&String> = passed_on["signatures"].as_object().unwrap().keys().collect();
    assert_eq!(signers, NAMES);
    // Once more while the server is off: the file has the key in use, and all old ones are published.
    let second = current(&published(&federation.nodes[0]).await)[0].clone();
    federation.nodes[0].stop().await;
    let said = federation.nodes[0].run(&["key", "rotate"]).await;
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    federation.nodes[0].start().await;
    let document = published(&federation.nodes[0]).await;
    let retired: Vec<&String> = document["old_verify_keys"].as_object().unwrap().keys().collect();
    assert!(retired.contains(&&old) && retired.contains(&&second), "{document}");
    let line = fs::read_to_string(federation.nodes[0].data().join("signing.key")).unwrap();
    let version = line.split_whitespace().nth(1).unwrap();
    assert_eq!(current(&document), [&format!("ed25519:{version}")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_nodes_take_a_rotated_key_over() {
    let Some(site) = Site::start(Shape::TwoNodes).await else { return };
    let old = rotate(&site.nodes[0]).await;
    let [first, second] = [&site.nodes[0], &site.nodes[1]];
    assert_eq!(current(&rotated(first, &old).await), current(&rotated(second, &old).await));
    let key = |node: &Node| fs::read_to_string(node.data().join("signing.key")).unwrap();
    assert_eq!(key(first), key(second));
}
