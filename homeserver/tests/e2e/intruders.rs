//! A server of another organisation that plays foul, in numbers: requests replayed, signed again, for somebody else,
//! too large, in others' names. None of it gets in, nobody waits for it, and it costs little memory.

use crate::federation::NAMES;
use crate::http::{Answer, Raw, careless};
use crate::neighbours::Neighbours;
use crate::node::say;
use crate::site::Shape;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use waxwing_federation::signing::{Identity, authorization};
use waxwing_rooms::KeyPair;
use waxwing_rooms::sign::hash_and_sign_event;

/// Attempts in all, and at the same time.
const ATTEMPTS: usize = 600;
const TOGETHER: usize = 16;
/// More than a transaction may have.
const HUGE: usize = 20 * 1024 * 1024;
/// What somebody of ours waits for a message meanwhile, at most.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the server may take (a debug build with nothing else to do takes about 100 MB), MB.
const MOST_MEMORY: f64 = 500.0;

/// One way to play foul, and the answers that say so.
struct Foul {
    name: &'static str,
    path: &'static str,
    header: String,
    body: Vec<u8>,
    refused: &'static [u16],
}

const SEND: &str = "/_matrix/federation/v1/send/foul";
const OTHER: &str = "/_matrix/federation/v1/send/other";

fn signed(by: &Identity, to: &str, path: &str, body: &[u8]) -> String {
    authorization(by, to.try_into().unwrap(), "PUT", path, Some(body)).unwrap()
}

fn fouls(beta: &Identity, forged: &Value) -> Vec<Foul> {
    let key = Arc::new(KeyPair::generate().unwrap());
    let impostor = Identity::new(beta.server.clone(), key).unwrap();
    let alpha = Identity::new(NAMES[0].try_into().unwrap(), Arc::clone(&impostor.key)).unwrap();
    let empty = json!({"origin": NAMES[1], "origin_server_ts": 1, "pdus": []}).to_string().into_bytes();
    let other = json!({"origin": NAMES[1], "origin_server_ts": 2, "pdus": []}).to_string().into_bytes();
    let many = json!({"origin": NAMES[1], "origin_server_ts": 1, "pdus": vec![json!({}); 51]});
    let many = many.to_string().into_bytes();
    let false_event = json!({"origin": NAMES[1], "origin_server_ts": 1, "pdus": [forged]}).to_string();
    let huge = vec![b' '; HUGE];
    let good = signed(beta, NAMES[0], SEND, &empty);
    let foul = |name, path, header: &str, body: &[u8], refused| Foul {
        name,
        path,
        header: header.to_owned(),
        body: body.to_vec(),
        refused,
    };
    vec![
        foul("replayed elsewhere", OTHER, &good, &empty, &[401]),
        foul("replayed with another body", SEND, &good, &other, &[401]),
        foul("signed by an impostor", SEND, &signed(&impostor, NAMES[0], SEND, &empty), &empty, &[401]),
        foul("for somebody else", SEND, &signed(beta, "third.localhost", SEND, &empty), &empty, &[401]),
        foul("in our own name", SEND, &signed(&alpha, NAMES[0], SEND, &empty), &empty, &[401]),
        foul("without a signature", SEND, "X-Matrix origin=x", &empty, &[401]),
        foul("too many events", SEND, &signed(beta, NAMES[0], SEND, &many), &many, &[400]),
        foul("too large", SEND, &good, &huge, &[413]),
        // Answered, with an error for the event.
        foul(
            "in another's name",
            SEND,
            &signed(beta, NAMES[0], SEND, false_event.as_bytes()),
            false_event.as_bytes(),
            &[200],
        ),
    ]
}

async fn attempt(url: &str, foul: &Foul) -> Option<Answer> {
    let request = careless().request(Method::PUT, format!("{url}{}", foul.path));
    let request = request.header("authorization", &foul.header).body(foul.body.clone());
    // A body that is too large may be cut off.
    let answer = request.send().await.ok()?;
    Some(Answer::of(answer).await)
}

/// Memory of a process at most so far, MB.
fn peak(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_intruders_try_gets_nowhere_and_holds_nobody_up() {
    let neighbours = Neighbours::start(Shape::Sqlite).await.unwrap();
    let node = &neighbours.alpha.nodes[0];
    let alice = Raw::register(&node.client_url(), "alice").await;
    let guest = neighbours.joins(&alice, RoomVersionId::V12).await;
    let mut forged = neighbours.event_of(&guest, "m.room.topic", &json!({"topic": "forged"}));
    forged["sender"] = alice.user.clone().into();
    forged.as_object_mut().unwrap().remove("signatures");
    let mut object = serde_json::from_value(forged).unwrap();
    hash_and_sign_event(&mut object, &RoomVersionId::V12, &neighbours.beta.server, &neighbours.beta.key)
        .unwrap();
    let forged = serde_json::to_value(object).unwrap();
    let fouls = fouls(&neighbours.beta, &forged);

    let done = AtomicBool::new(false);
    let (url, shared) = (node.client_url(), &fouls);
    let tries = async {
        stream::iter(0..ATTEMPTS)
            .for_each_concurrent(TOGETHER, |number| {
                let url = &url;
                async move {
                    let foul = &shared[number % shared.len()];
                    let Some(answer) = attempt(url, foul).await else {
                        assert_eq!(foul.name, "too large");
                        return;
                    };
                    let status = answer.status.as_u16();
                    // Whoever asks so much is also told to ask less.
                    assert!(status == 429 || foul.refused.contains(&status), "{}: {answer:?}", foul.name);
                    if status == 200 {
                        let events = answer.body["pdus"].as_object().unwrap();
                        assert!(events.values().all(|event| event["error"].is_string()), "{answer:?}");
                    }
                }
            })
            .await;
        done.store(true, Ordering::SeqCst);
    };
    let life = async {
        let mut slowest = Duration::ZERO;
        let mut number = 0;
        while !done.load(Ordering::SeqCst) {
            let began = Instant::now();
            alice.send_sealed(&guest.room, &format!("life-{number}")).await.fine();
            slowest = slowest.max(began.elapsed());
            number += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (slowest, number)
    };
    let began = Instant::now();
    let ((), (slowest, sent)) = tokio::join!(tries, life);
    let memory = peak(node.id());
    let took = began.elapsed();
    say(&format!(
        "{ATTEMPTS} attempts in {took:?}: {sent} messages beside them took {slowest:?} at most, {memory:.0} MB at the peak"
    ));
    assert!(slowest < PATIENCE, "{slowest:?}");
    assert!(memory < MOST_MEMORY, "{memory} MB");
    let topic = alice.get(&format!("/_matrix/client/v3/rooms/{}/state/m.room.topic", guest.room)).await;
    topic.refused(404, "M_NOT_FOUND");
}
