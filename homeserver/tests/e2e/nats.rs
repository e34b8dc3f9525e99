//! Hints between nodes over NATS: they go there, over TLS with a password where that is asked for; while it is away all goes
//! on over the database; and what strangers say there does no harm.

use crate::http::Raw;
use crate::nats_server::NatsServer;
use crate::site::{Shape, Site};
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const SUBJECT: &str = "waxwing.test";
const UP: &str = "hints go over NATS";
const DOWN: &str = "hints over NATS are cut off";
const LETTERS: usize = 12;
/// Without any hint a node looks once a second.
const MOST_MEDIAN: Duration = Duration::from_millis(250);
const SOON: Duration = Duration::from_secs(30);

fn settings(port: u16, more: &[String]) -> Vec<String> {
    // Presence would end the polls that letters are to end.
    let mut settings = vec![
        format!("cluster.nats=nats://127.0.0.1:{port}"),
        format!("cluster.nats_subject={SUBJECT}"),
        "presence=false".to_owned(),
    ];
    settings.extend_from_slice(more);
    settings
}

/// Waits until every node has said `what` so many times.
async fn said(site: &Site, what: &str, times: usize) {
    let deadline = Instant::now() + SOON;
    while !site.nodes.iter().all(|node| node.logged().matches(what).count() >= times) {
        assert!(Instant::now() < deadline, "{what:?} {times} times: {}", site.nodes[0].logged());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two people, each at a node, and their room.
async fn two(site: &Site) -> ([Raw; 2], String) {
    let alice = Raw::register(&site.nodes[0].client_url(), "alice").await;
    let bob = Raw::register(&site.nodes[1].client_url(), "bob").await;
    let room = alice.create_room(json!({"preset": "private_chat", "invite": [bob.user]})).await;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await.fine();
    ([alice, bob], room)
}

/// How long letters take to polls at the other node; `before` each something else is done.
async fn crossings(people: &[Raw; 2], room: &str, name: &str, before: impl Fn()) -> Vec<Duration> {
    let mut took = Vec::new();
    for number in 0..LETTERS {
        let [writer, reader] =
            if number.is_multiple_of(2) { [0, 1] } else { [1, 0] }.map(|of| people[of].clone());
        let first = reader.get("/_matrix/client/v3/sync?timeout=0").await.fine();
        let since = first["next_batch"].as_str().unwrap().to_owned();
        before();
        let poll = tokio::spawn(async move {
            let path = format!("/_matrix/client/v3/sync?timeout=20000&since={since}");
            (reader.get(&path).await.fine(), Instant::now())
        });
        tokio::time::sleep(Duration::from_millis(40)).await;
        let began = Instant::now();
        let sent = writer.send_sealed(room, &format!("{name}-{number}")).await.fine();
        let (answer, arrived) = poll.await.unwrap();
        assert!(answer.to_string().contains(sent["event_id"].as_str().unwrap()), "{answer}");
        took.push(arrived.saturating_duration_since(began));
    }
    took.sort_unstable();
    took
}

/// Somebody else at the NATS server.
struct Stranger {
    lines: BufReader<OwnedReadHalf>,
    out: OwnedWriteHalf,
}

impl Stranger {
    async fn at(port: u16) -> Stranger {
        let (lines, mut out) = TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_split();
        let hello =
            format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB {SUBJECT} 1\r\nPING\r\n");
        out.write_all(hello.as_bytes()).await.unwrap();
        Stranger { lines: BufReader::new(lines), out }
    }

    /// What is said on the subject, for so long.
    async fn listen(&mut self, time: Duration) -> Vec<String> {
        let mut heard = Vec::new();
        let listening = async {
            loop {
                let mut line = String::new();
                if self.lines.read_line(&mut line).await.unwrap() == 0 {
                    return;
                }
                if line.starts_with("MSG ") {
                    let length: usize = line.split_whitespace().last().unwrap().parse().unwrap();
                    let mut payload = vec![0; length + 2];
                    self.lines.read_exact(&mut payload).await.unwrap();
                    heard.push(String::from_utf8_lossy(&payload[..length]).into_owned());
                } else if line.starts_with("PING") {
                    self.out.write_all(b"PONG\r\n").await.unwrap();
                }
            }
        };
        let _ = tokio::time::timeout(time, listening).await;
        heard
    }

    async fn say(&mut self, payload: &[u8]) {
        let head = format!("PUB {SUBJECT} {}\r\n", payload.len());
        self.out.write_all(&[head.as_bytes(), payload, b"\r\n"].concat()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_cross_over_nats_and_without_it() {
    let Some(mut server) = NatsServer::new(&[]) else { return };
    server.start();
    let Some(site) = Site::start_with(Shape::TwoNodes, &settings(server.port, &[])).await else { return };
    said(&site, UP, 1).await;
    let (people, room) = two(&site).await;
    let mut stranger = Stranger::at(server.port).await;
    // The database tells nobody anything.
    let database = site.database.as_ref().unwrap();
    let deafen = || {
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        );
    };
    let over_nats = crossings(&people, &room, "nats", deafen).await;
    let heard = stranger.listen(Duration::from_millis(300)).await;
    let positions: Vec<i64> = heard.iter().filter_map(|hint| hint.parse().ok()).collect();
    assert!(positions.len() == heard.len() && positions.len() >= LETTERS, "{heard:?}");
    // What is no position, and what never was one.
    for payload in
        [&b"hello"[..], b"", b"-5", b"9223372036854775807", b"9999999999999999999999", &[0xff; 900]]
    {
        stranger.say(payload).await;
    }
    for _ in 0..2000 {
        stranger.say(b"9223372036854775806").await;
    }
    let under_lies = crossings(&people, &room, "lies", || {}).await;
    server.kill();
    said(&site, DOWN, 1).await;
    let without = crossings(&people, &room, "without", || {}).await;
    server.start();
    said(&site, UP, 2).await;
    let again = crossings(&people, &room, "again", || {}).await;
    for took in [&over_nats, &under_lies, &without, &again] {
        assert!(took[LETTERS / 2] < MOST_MEDIAN, "{over_nats:?} {under_lies:?} {without:?} {again:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_asks_for_tls_a_certificate_and_a_password_which_nobody_reads_in_the_log() {
    const SECRET: &str = "NotForTheLog17";
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    fs::write(file("cert.pem"), made.cert.pem()).unwrap();
    fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let (cert, key) = (file("cert.pem"), file("key.pem"));
    let tls = ["--tls", "--tlscert", &cert, "--tlskey", &key, "--user", "waxwing", "--pass", SECRET];
    let Some(mut server) = NatsServer::new(&tls) else { return };
    server.start();
    let more = |password: &str| {
        [
            format!("cluster.nats=tls://127.0.0.1:{}", server.port),
            "cluster.nats_user=waxwing".to_owned(),
            format!("cluster.nats_password={password}"),
            format!("cluster.nats_ca={cert}"),
            "log.level=debug".to_owned(),
        ]
    };
    // With the wrong password hints go over the database, and the log says why without saying it.
    let Some(site) = Site::start_with(Shape::TwoNodes, &settings(server.port, &more("wrong"))).await else {
        return;
    };
    said(&site, DOWN, 1).await;
    let (people, room) = two(&site).await;
    crossings(&people, &room, "refused", || {}).await;
    drop(site);
    let Some(site) = Site::start_with(Shape::TwoNodes, &settings(server.port, &more(SECRET))).await else {
        return;
    };
    said(&site, UP, 1).await;
    let (people, room) = two(&site).await;
    crossings(&people, &room, "tls", || {}).await;
    let in_address = format!("cluster.nats=tls://waxwing:{SECRET}@127.0.0.1:{}", server.port);
    let more = [in_address, format!("cluster.nats_ca={cert}"), "log.level=trace".to_owned()];
    let Some(other) = Site::start_with(Shape::TwoNodes, &settings(server.port, &more)).await else { return };
    said(&other, UP, 1).await;
    for node in site.nodes.iter().chain(&other.nodes) {
        assert!(!node.logged().contains(SECRET), "{}", node.logged());
    }
}
