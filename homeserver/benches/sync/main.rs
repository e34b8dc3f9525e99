//! `cargo bench -p waxwing --bench sync`: what syncs cost.
//!
//! One account in a thousand rooms, one room with five thousand members; for SQLite, and for PostgreSQL where
//! `WAXWING_TEST_POSTGRES` names a cluster. The rooms are made through the services, the server is then started over
//! the database that they left and asked over HTTP: a first sync (cold, and again warm), both kinds of it; incremental
//! syncs with one new message; `/messages` and `/members`; and what an idle long poll takes in memory.

#[path = "../../tests/e2e/http.rs"]
#[expect(dead_code, reason = "the benchmark needs a part of what the end-to-end tests need")]
mod http;
mod make;
#[path = "../../tests/e2e/node.rs"]
#[expect(dead_code, reason = "the benchmark needs a part of what the end-to-end tests need")]
mod node;
#[path = "../../tests/e2e/postgres.rs"]
#[expect(dead_code, reason = "the benchmark needs a part of what the end-to-end tests need")]
mod postgres;

use http::Raw;
use node::Node;
use postgres::Database;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Rooms of the account.
pub const ROOMS: usize = 1000;
/// Members of the large room.
pub const MEMBERS: usize = 5000;
/// Incremental syncs, pages and lists of members that are measured.
const ROUNDS: usize = 50;
/// Clients that wait.
const WAITING: usize = 500;

const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
const LAZY: &str = "%7B%22room%22%3A%7B%22state%22%3A%7B%22lazy_load_members%22%3Atrue%7D%7D%7D";

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let url = format!("sqlite:{}", folder.path().join("sqlite/data/waxwing.db").display());
    measure("SQLite", &folder.path().join("sqlite"), &url).await;
    if let Some(database) = Database::create() {
        measure("PostgreSQL", &folder.path().join("postgres"), &database.url()).await;
    }
}

async fn measure(engine: &str, folder: &Path, url: &str) {
    println!("\n{engine}");
    let mut node = Node::new(folder, &[format!("database={url}")]);
    // The first start makes the schema and the accounts.
    node.start().await;
    let ann = Raw::register(&node.client_url(), "ann").await;
    let bob = Raw::register(&node.client_url(), "bob").await;
    let server = ann.user.split_once(':').unwrap().1.to_owned();
    node.stop().await;
    let began = Instant::now();
    let made = make::rooms(url, &server, &ann.user, &bob.user).await;
    println!("  {ROOMS} rooms made in   {:>10.1} s", began.elapsed().as_secs_f64());
    node.start().await;

    let all = format!("/_matrix/client/v3/sync?filter={LAZY}");
    let mut since = String::new();
    for which in ["first sync, cold", "first sync, warm"] {
        let (took, bytes, answer) = timed(&ann, &all).await;
        assert_eq!(answer["rooms"]["join"].as_object().unwrap().len(), ROOMS + 1);
        println!("  {which:<22}{took:>8.0} ms, {:.1} MB", bytes as f64 / 1e6);
        answer["next_batch"].as_str().unwrap().clone_into(&mut since);
    }
    incremental(&ann, &bob, &made, &since).await;
    sliding(&ann, &bob, &made).await;
    large_room(&ann, &made.large).await;
    idle(&node, &ann, &since).await;
    node.stop().await;
}

async fn timed(who: &Raw, path: &str) -> (f64, usize, Value) {
    let began = Instant::now();
    let answer = who.get(path).await.fine();
    let took = began.elapsed().as_secs_f64() * 1e3;
    (took, answer.to_string().len(), answer)
}

fn report(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!("  {what:<22}{median:>8.2} ms median, {:.2} ms worst", times[times.len() - 1]);
}

/// Bob speaks, ann's next sync has it.
async fn incremental(ann: &Raw, bob: &Raw, made: &make::Made, since: &str) {
    let mut since = since.to_owned();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        bob.send_sealed(&made.shared, &format!("v3-{round}")).await.fine();
        let path = format!("/_matrix/client/v3/sync?filter={LAZY}&since={since}");
        let (took, _, answer) = timed(ann, &path).await;
        assert!(answer["rooms"]["join"][&made.shared]["timeline"]["events"][0].is_object());
        answer["next_batch"].as_str().unwrap().clone_into(&mut since);
        times.push(took);
    }
    report("sync, one message", times);
}

async fn sliding(ann: &Raw, bob: &Raw, made: &make::Made) {
    let body = |last: usize| {
        json!({"conn_id": "list", "lists": {"all": {
            "ranges": [[0, last]], "timeline_limit": 1,
            "required_state": [
                ["m.room.name", ""], ["m.room.create", ""], ["m.room.encryption", ""],
                ["m.room.member", "$LAZY"], ["m.room.member", "$ME"],
            ],
            "filters": {"not_room_types": ["m.space"]},
        }}, "extensions": {"account_data": {"enabled": true}, "receipts": {"enabled": true}}})
    };
    let mut pos = String::new();
    for (what, last) in [("sliding, 20 rooms", 19), ("sliding, all rooms", ROOMS + 10)] {
        let path = if pos.is_empty() { SLIDING.to_owned() } else { format!("{SLIDING}?pos={pos}") };
        let began = Instant::now();
        let answer = ann.post(&path, body(last)).await.fine();
        let took = began.elapsed().as_secs_f64() * 1e3;
        println!("  {what:<22}{took:>8.0} ms, {:.1} MB", answer.to_string().len() as f64 / 1e6);
        answer["pos"].as_str().unwrap().clone_into(&mut pos);
    }
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        bob.send_sealed(&made.shared, &format!("sliding-{round}")).await.fine();
        let began = Instant::now();
        let answer = ann.post(&format!("{SLIDING}?pos={pos}"), body(ROOMS + 10)).await.fine();
        times.push(began.elapsed().as_secs_f64() * 1e3);
        assert_eq!(answer["rooms"].as_object().unwrap().len(), 1);
        answer["pos"].as_str().unwrap().clone_into(&mut pos);
    }
    report("sliding, one message", times);
}

async fn large_room(ann: &Raw, room: &str) {
    for (what, path) in [("messages", "messages?dir=b&limit=50"), ("members", "members?")] {
        let path = format!("/_matrix/client/v3/rooms/{room}/{path}");
        let (cold, _, _) = timed(ann, &path).await;
        let mut times = Vec::new();
        for _ in 0..10 {
            times.push(timed(ann, &path).await.0);
        }
        report(&format!("{what}, {MEMBERS} members"), times);
        println!("    cold{cold:>24.1} ms");
    }
}

/// What waiting clients take.
async fn idle(node: &Node, ann: &Raw, since: &str) {
    let before = resident(node.id());
    let mut polls = Vec::new();
    for _ in 0..WAITING {
        let (ann, path) = (ann.clone(), format!("/_matrix/client/v3/sync?timeout=8000&since={since}"));
        polls.push(tokio::spawn(async move { ann.get(&path).await }));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let each = (resident(node.id()) - before) * 1e3 / WAITING as f64;
    println!("  {WAITING} idle polls        {each:>8.1} KB each");
    for poll in polls {
        poll.abort();
    }
}

/// Memory of a process, shared and file-backed pages included, in MB.
fn resident(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024.0 / 1e6
}
