//! A server of another organisation that plays foul, in numbers: requests replayed, signed again, for somebody else,
//! too large, too slow, in others' names, with keys out of date. None of it gets in, nobody waits for it, and it costs
//! little memory.

use crate::federation::NAMES;
use crate::http::{Answer, Raw, careless};
use crate::neighbours::Neighbours;
use crate::node::{free_port, say};
use crate::site::Shape;
use axum::Router;
use axum_server::tls_rustls::RustlsConfig;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use waxwing_federation::keys::OwnKeys;
use waxwing_federation::signing::{Identity, authorization};
use waxwing_rooms::KeyPair;
use waxwing_rooms::sign::hash_and_sign_event;

/// Attempts in all, and at the same time.
const ATTEMPTS: usize = 600;
const TOGETHER: usize = 16;
/// More than a transaction may have.
const HUGE: usize = 20 * 1024 * 1024;
/// Requests whose bodies come a byte at a time, all the while.
const SLOW: usize = 64;
/// Messages sent before, to know how long one takes when nobody plays foul.
const ALONE: usize = 20;
/// A server whose newest key document is out of date.
const LAPSED: &str = "lapsed.localhost";
/// For so long.
const LAPSED_FOR: u64 = 30 * 24 * 60 * 60 * 1000;
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

fn fouls(beta: &Identity, lapsed: &Identity, forged: &Value) -> Vec<Foul> {
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
        foul("with a key out of date", SEND, &signed(lapsed, NAMES[0], SEND, &empty), &empty, &[401]),
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

/// A server that gives its keys as they were a month ago, and nothing else.
async fn serve_lapsed(folder: &Path, port: u16) -> Identity {
    let key = Arc::new(KeyPair::generate().unwrap());
    let identity = Identity::new(LAPSED.try_into().unwrap(), key).unwrap();
    let then = u64::from(MilliSecondsSinceUnixEpoch::now().get()) - LAPSED_FOR;
    let document = OwnKeys::new(identity.clone(), Vec::new()).document(then).unwrap().get().to_owned();
    let at = |what: &str| folder.join(format!("{LAPSED}.{what}.pem"));
    let tls = RustlsConfig::from_pem_file(at("certificate"), at("key")).await.unwrap();
    let app = Router::new().fallback(move || std::future::ready(document.clone()));
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    tokio::spawn(axum_server::from_tcp_rustls(listener, tls).unwrap().serve(app.into_make_service()));
    identity
}

/// A transaction that comes a byte at a time until `done`. What was answered to it by then.
async fn drip(host: String, header: &str, done: &AtomicBool) -> String {
    let mut socket = TcpStream::connect(host).await.unwrap();
    let head = format!(
        "PUT {SEND} HTTP/1.1\r\nhost: {}\r\nauthorization: {header}\r\ncontent-length: 1000000\r\n\r\n",
        NAMES[0]
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    while !done.load(Ordering::SeqCst) && socket.write_all(b" ").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut answer = [0; 64];
    let read = tokio::time::timeout(Duration::from_millis(100), socket.read(&mut answer)).await;
    let length = read.map_or(0, |read| read.unwrap_or(0));
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// Memory of a process now (`VmRSS`) or at most so far (`VmHWM`), MB.
fn memory(process: u32, which: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(which)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}

/// How long messages of `user` took, one after the other as long as `more` (given how many there were): sorted.
async fn latencies(user: &Raw, room: &str, name: &str, more: impl Fn(usize) -> bool) -> Vec<Duration> {
    let mut all = Vec::new();
    while more(all.len()) {
        let began = Instant::now();
        user.send_sealed(room, &format!("{name}-{}", all.len())).await.fine();
        all.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_intruders_try_gets_nowhere_and_holds_nobody_up() {
    let port = free_port();
    let neighbours = Neighbours::start_beside(Shape::Sqlite, &[(LAPSED, port)]).await.unwrap();
    let lapsed = serve_lapsed(neighbours.folder.path(), port).await;
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
    let fouls = fouls(&neighbours.beta, &lapsed, &forged);

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
    let alone = latencies(&alice, &guest.room, "alone", |sent| sent < ALONE).await;
    let before = memory(node.id(), "VmRSS");
    let life = latencies(&alice, &guest.room, "life", |_| !done.load(Ordering::SeqCst));
    let host = url.trim_start_matches("http://").to_owned();
    let header = fouls[0].header.as_str();
    let drips = futures_util::future::join_all((0..SLOW).map(|_| drip(host.clone(), header, &done)));
    let began = Instant::now();
    let ((), beside, drips) = tokio::join!(tries, life, drips);
    let took = began.elapsed();
    let (peak, after) = (memory(node.id(), "VmHWM"), memory(node.id(), "VmRSS"));
    let figures =
        |all: &[Duration]| format!("{:?} as a rule, {:?} at most", all[all.len() / 2], all[all.len() - 1]);
    say(&format!(
        "{ATTEMPTS} attempts in {took:?} beside {SLOW} slow ones. A message took {} before ({}), {} beside them ({}). \
         Memory: {before:.0} MB before, {peak:.0} at the peak, {after:.0} after",
        figures(&alone),
        alone.len(),
        figures(&beside),
        beside.len()
    ));
    let slowest = beside[beside.len() - 1];
    assert!(slowest < PATIENCE, "{slowest:?}");
    assert!(peak < MOST_MEMORY, "{peak} MB");
    assert!(drips.iter().all(|answer| !answer.contains(" 200 ")), "{drips:?}");
    let topic = alice.get(&format!("/_matrix/client/v3/rooms/{}/state/m.room.topic", guest.room)).await;
    topic.refused(404, "M_NOT_FOUND");
}
