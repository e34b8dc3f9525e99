//! More than a server can do is answered, not suffered.

use super::http::Raw;
use super::node::Node;
use reqwest::{Method, StatusCode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::fs;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// As in `api/src/load.rs`.
const MOST_RUNNING: usize = 1024;
/// More than that, several times.
const FLOOD: usize = 4 * MOST_RUNNING;
/// How often it is looked whether the answers are there, two seconds apart: a busy machine needs some.
const TRIES: usize = 20;
/// What each connection of the flood may cost, bytes: buffers, a task, a parked request.
const EACH: u64 = 96 * 1024;
/// And all of them together beside it: what a debug build takes for the requests that do run.
const ALL: u64 = 200 * 1024 * 1024;

fn resident(node: &Node) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/statm", node.id())).unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A send whose body does not come.
async fn begun(node: &Node, token: &str, room: &str, number: usize) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", node.client_port)).await.unwrap();
    let head = format!(
        "PUT /_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{number} HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {token}\r\nContent-Length: 10\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Whether the answer is there, which says that there is too much to do.
async fn is_refused(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 2048];
    let read = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut buffer)).await;
    let Ok(Ok(count @ 1..)) = read else { return false };
    let text = String::from_utf8_lossy(&buffer[..count]).to_lowercase();
    assert!(text.starts_with("http/1.1 429 ") && text.contains("retry-after: 1"), "{text}");
    assert!(text.contains("m_limit_exceeded") && text.contains("\"retry_after_ms\":1000"), "{text}");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_is_refused_at_once_and_then_all_is_well_again() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::new(folder.path(), &[]);
    node.start().await;
    let alice = Raw::register(&node.client_url(), "alice").await;
    let room = alice.create_room(json!({})).await;
    let before = resident(&node);

    let mut flood = Vec::with_capacity(FLOOD);
    for number in 0..FLOOD {
        flood.push(begun(&node, &alice.token, &room, number).await);
    }
    // Those that are too many have their answer, all of it at once, and not one more.
    let mut answered = vec![false; FLOOD];
    for _ in 0..TRIES {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for (stream, answered) in flood.iter_mut().zip(&mut answered).filter(|(_, answered)| !**answered) {
            *answered = is_refused(stream).await;
        }
        if answered.iter().filter(|answered| **answered).count() >= FLOOD - MOST_RUNNING {
            break;
        }
    }
    let refused = answered.iter().filter(|answered| **answered).count();
    assert_eq!(refused, FLOOD - MOST_RUNNING);
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/one");
    let one = alice.send(Method::PUT, &path, super::http::sealed("one").to_string()).await;
    one.refused(429, "M_LIMIT_EXCEEDED");
    // Who waits for news, and who asks whether the server lives, is not in the way of anybody.
    alice.get("/_matrix/client/v3/sync?timeout=0").await.fine();
    assert_eq!(alice.get("/_waxwing/ready").await.status, StatusCode::OK);
    let grown = resident(&node).saturating_sub(before);
    assert!(grown < ALL + EACH * FLOOD as u64, "{} MB more", grown / 1_000_000);

    drop(flood);
    // The server has seen that they are gone when it has a place again.
    let mut served = false;
    for _ in 0..50 {
        let answer = alice.send(Method::PUT, &path, super::http::sealed("one").to_string()).await;
        served = answer.status == StatusCode::OK;
        if served {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(served, "it is not well again");
}
