//! `cargo bench -p waxwing --bench send`: what a server takes, and how much of what its database alone would take.
//!
//! For SQLite, and for PostgreSQL where `WAXWING_TEST_POSTGRES` names a cluster, 32 senders send sealed letters over
//! HTTP, each waiting for its answer (which means: signed, committed, fsynced). Then the rows that this wrote (events,
//! log, transactions) are inserted into an empty copy of the schema by plain statements over one connection, in
//! commits of as many letters as there are senders, and once more with one letter in each commit. Everything is
//! bounded by time and count, and uses the same disk.

#[path = "../../tests/e2e/http.rs"]
#[expect(dead_code, reason = "the benchmark needs a part of what the end-to-end tests need")]
mod http;
#[path = "../../tests/e2e/node.rs"]
#[expect(dead_code, reason = "the benchmark needs a part of what the end-to-end tests need")]
mod node;
#[path = "../../tests/e2e/postgres.rs"]
#[expect(dead_code, reason = "the benchmark needs a part of what the end-to-end tests need")]
mod postgres;
mod raw;

use http::{Raw, sealed};
use node::Node;
use postgres::Database;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SENDERS: usize = 32;
/// How long one measurement lasts at most, and how many letters it sends at most.
const LIMIT: Duration = Duration::from_secs(6);
const MOST_LETTERS: usize = 40_000;
const WARM_UP: Duration = Duration::from_secs(1);
/// A resting server is looked at after this long.
const REST: Duration = Duration::from_secs(3);
/// As long as the ciphertext of a sentence.
const CIPHERTEXT: usize = 360;

#[tokio::main]
async fn main() {
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_waxwing")).unwrap().len();
    println!("binary                 {:>10.1} MB", size as f64 / 1e6);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let url = format!("sqlite:{}", folder.path().join("sqlite/data/waxwing.db").display());
    let copy = format!("sqlite:{}", folder.path().join("copy.db").display());
    measure("SQLite", &folder.path().join("sqlite"), &url, &copy).await;
    if let (Some(database), Some(copy)) = (Database::create(), Database::create()) {
        measure("PostgreSQL", &folder.path().join("postgres"), &database.url(), &copy.url()).await;
    }
}

async fn measure(engine: &str, folder: &Path, url: &str, copy: &str) {
    println!("\n{engine}");
    let mut node = Node::new(folder, &[format!("database={url}")]);
    // The first start makes keys and the schema; the second is what people wait for.
    for which in ["first", "second"] {
        let began = Instant::now();
        node.start().await;
        println!("  {which:<6} start to ready{:>10.0} ms", began.elapsed().as_secs_f64() * 1e3);
        if which == "first" {
            node.stop().await;
        }
    }
    tokio::time::sleep(REST).await;
    println!("  memory at rest       {:>10.1} MB", resident(node.id()));

    let mut people = Vec::new();
    for number in 0..SENDERS {
        people.push(Raw::register(&node.client_url(), &format!("sender-{number}")).await);
    }
    let (own, one) = (own_rooms(&people).await, one_room(&people).await);
    send(&node, &people, &own, "warm-up", WARM_UP).await;
    let (own_rate, letters) = send(&node, &people, &own, "own", LIMIT).await;
    println!("  {SENDERS} senders, own rooms {own_rate:>10.0} letters/s");
    let (one_rate, _) = send(&node, &people, &one, "one", LIMIT).await;
    println!("  {SENDERS} senders, one room  {one_rate:>10.0} letters/s");
    println!("  memory after that    {:>10.1} MB", resident(node.id()));
    node.stop().await;

    // The schema, as a server makes it.
    drop(waxwing_storage::Store::open(copy).await.unwrap());
    let rows = raw::read(url, "own").await;
    assert_eq!(rows.len(), letters, "each letter that was answered has its rows");
    for together in [SENDERS, 1] {
        let alone = raw::insert(copy, &rows, together, LIMIT).await;
        println!("  rows alone, {together:>2}/commit {alone:>10.0} letters/s");
        println!("    own rooms reach    {:>10.2} of it", own_rate / alone);
        println!("    one room reaches   {:>10.2} of it", one_rate / alone);
    }
}

async fn own_rooms(people: &[Raw]) -> Vec<String> {
    let mut rooms = Vec::new();
    for person in people {
        rooms.push(person.create_room(json!({"preset": "private_chat"})).await);
    }
    rooms
}

async fn one_room(people: &[Raw]) -> Vec<String> {
    let room = people[0].create_room(json!({"preset": "public_chat"})).await;
    for person in &people[1..] {
        person.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    }
    vec![room; people.len()]
}

/// All send until the limit; returns letters a second and letters.
async fn send(node: &Node, people: &[Raw], rooms: &[String], prefix: &str, limit: Duration) -> (f64, usize) {
    let (sent, port) = (Arc::new(AtomicUsize::new(0)), node.client_port);
    let body = sealed(&"QUJD".repeat(CIPHERTEXT / 4)).to_string();
    let began = Instant::now();
    let mut tasks = Vec::new();
    for (person, room) in people.iter().zip(rooms) {
        let (token, room, body, sent) = (person.token.clone(), room.clone(), body.clone(), Arc::clone(&sent));
        let prefix = prefix.to_owned();
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::open(port).await;
            let mut number = 0;
            while began.elapsed() < limit && sent.load(Ordering::Relaxed) < MOST_LETTERS {
                let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{prefix}-{number}");
                connection.put(&path, &token, &body).await;
                sent.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let count = sent.load(Ordering::Relaxed);
    (count as f64 / began.elapsed().as_secs_f64(), count)
}

/// One connection that is kept open: as little work as possible, since it runs on the server's cores.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(port: u16) -> Connection {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream, buffer: vec![0; 4096] }
    }

    async fn put(&mut self, path: &str, token: &str, body: &str) {
        let request = format!(
            "PUT {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let mut filled = 0;
        loop {
            let count = self.stream.read(&mut self.buffer[filled..]).await.unwrap();
            assert!(count > 0, "the server closed the connection");
            filled += count;
            let answer = std::str::from_utf8(&self.buffer[..filled]).unwrap();
            if let Some((_, body)) = answer.split_once("\r\n\r\n")
                && body.ends_with('}')
            {
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                return;
            }
        }
    }
}

/// Memory of a process, shared and file-backed pages included, in MB.
fn resident(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024.0 / 1e6
}
