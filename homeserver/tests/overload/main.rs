//! Ten times what a server can do, by clients that do not listen to reason, beside others that do not take what they ask for:
//! what is too much is refused at once, memory stays flat, who dawdles is cut off, and a moment after the end the server is as
//! fast as before.
//!
//! `WAXWING_OVERLOAD_SECONDS` says how long it lasts, `WAXWING_OVERLOAD_BIN` names another program, a release build for
//! example: `WAXWING_OVERLOAD_BIN=target/release/waxwing cargo test -p waxwing --test overload -- --nocapture`.

#[path = "../harness/mod.rs"]
#[expect(dead_code, reason = "this test needs a part of what crash and chaos need")]
mod harness;
mod line;
#[path = "../e2e/node.rs"]
#[expect(dead_code, reason = "this test needs a part of what the end-to-end tests need")]
mod node;

use harness::dice::number;
use harness::http::{Account, Tally, client};
use line::{Line, Outcome};
use node::{Node, say};
use reqwest::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Clients that a server serves as fast as it can.
const FEW: usize = 16;
/// And those that ask for ten times that: more than run at a time (`api/src/load.rs`), twice.
const MANY: usize = 2500;
const TIMES: f64 = 10.0;
/// How long it is measured how fast the server is.
const MEASURED: Duration = Duration::from_secs(4);
/// How fast it must be again, and after how long at most: a busy machine is not steady.
const AGAIN: f64 = 0.6;
const RECOVERED: Duration = Duration::from_secs(10);
/// Windows in which it is looked whether it is.
const WINDOW: Duration = Duration::from_millis(500);
/// What the server may grow by in the second half: caches fill.
const GROWS: u64 = 64 << 20;
/// Clients that take nothing of a large file, and how large it is: more than the system's buffers hold.
const DAWDLERS: usize = 40;
const FILE: usize = 16 << 20;
/// As in `src/taken.rs`, and a little more.
const CUT_OFF: Duration = Duration::from_secs(30 + 10);

/// What became of requests.
#[derive(Default)]
struct Counts {
    asked: AtomicU64,
    served: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    /// Says what became of them in the time that it `took`, where the server does `before` a second.
    fn report(&self, before: f64, took: Duration) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / took.as_secs_f64();
        say(&format!(
            "overload: {before:.0} letters a second of {FEW} clients; then {MANY} clients for {:.0} s asked {:.0} times a second \
             ({:.1} times as often): {:.0} served, {:.0} refused with 429 and Retry-After, {} failed",
            took.as_secs_f64(),
            of(&self.asked),
            of(&self.asked) / before,
            of(&self.served),
            of(&self.refused),
            self.failed.load(Ordering::Relaxed),
        ));
    }
}

struct World {
    port: u16,
    people: Vec<Account>,
    rooms: Vec<String>,
    next: AtomicU64,
}

impl World {
    async fn prepare(node: &Node) -> World {
        let (client, tally) = (client(), Arc::<Tally>::default());
        let (mut people, mut rooms) = (Vec::new(), Vec::new());
        for number in 0..FEW {
            let person =
                Account::register(&node.client_url(), &format!("person{number}"), &client, &tally).await;
            let made = person.sure(Method::POST, "/_matrix/client/v3/createRoom", &json!({})).await;
            rooms.push(made["room_id"].as_str().unwrap().to_owned());
            people.push(person);
        }
        World { port: node.client_port, people, rooms, next: AtomicU64::new(0) }
    }

    /// A letter into one of the rooms, as it goes over the line.
    fn letter(&self, worker: usize) -> Vec<u8> {
        let (room, person) = (&self.rooms[worker % FEW], &self.people[worker % FEW]);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/t{number}");
        let body = harness::http::sealed("a letter").to_string();
        line::request("PUT", &path, &person.token, body.as_bytes())
    }

    /// Sends as `clients` at a time until `end`: `rate` a second all together, or as fast as they are served.
    async fn send(self: &Arc<Self>, clients: usize, rate: Option<f64>, end: Instant) -> Arc<Counts> {
        let (counts, begin) = (Arc::<Counts>::default(), Instant::now());
        let mut tasks = JoinSet::new();
        for worker in 0..clients {
            let (world, counts) = (Arc::clone(self), Arc::clone(&counts));
            tasks.spawn(async move {
                let mut line = Line::new(world.port);
                loop {
                    let number = counts.asked.fetch_add(1, Ordering::Relaxed);
                    let turn =
                        rate.map_or(begin, |rate| begin + Duration::from_secs_f64(number as f64 / rate));
                    if turn.max(Instant::now()) >= end {
                        counts.asked.fetch_sub(1, Ordering::Relaxed);
                        return;
                    }
                    tokio::time::sleep_until(turn).await;
                    let count = match line.ask(&world.letter(worker)).await {
                        Outcome::Answered(200) => &counts.served,
                        Outcome::TooMuch => &counts.refused,
                        Outcome::Answered(_) | Outcome::Broken => &counts.failed,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        counts
    }

    /// Letters that are served in a second.
    async fn speed(self: &Arc<Self>, time: Duration) -> f64 {
        let (begin, end) = (Instant::now(), Instant::now() + time);
        let counts = self.send(FEW, None, end).await;
        assert_eq!(counts.refused.load(Ordering::Relaxed) + counts.failed.load(Ordering::Relaxed), 0);
        counts.served.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()
    }
}

fn resident(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The most that the process takes in each half of the time until `end`.
async fn watch(process: u32, end: Instant) -> [u64; 2] {
    let half = Instant::now() + (end - Instant::now()) / 2;
    let mut most = [0, 0];
    while Instant::now() < end {
        let now = usize::from(Instant::now() >= half);
        most[now] = most[now].max(resident(process));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_too_much_is_refused_and_a_moment_later_all_is_as_before() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::new(folder.path(), &["federation.enabled=false".to_owned()]);
    if let Some(program) = std::env::var_os("WAXWING_OVERLOAD_BIN") {
        node.is_run_by(fs::canonicalize(program).unwrap());
    }
    node.start().await;
    let world = Arc::new(World::prepare(&node).await);
    world.speed(Duration::from_secs(1)).await;
    let (before, idle) = (world.speed(MEASURED).await, resident(node.id()));

    let dawdlers = line::dawdle(&world.people[0], world.port, FILE, DAWDLERS).await;
    let time = Duration::from_secs_f64(number("WAXWING_OVERLOAD_SECONDS", 12.0));
    let (begin, end) = (Instant::now(), Instant::now() + time);
    let watching = tokio::spawn(watch(node.id(), end));
    let counts = world.send(MANY, Some(TIMES * before), end).await;
    let took = begin.elapsed();
    let most = watching.await.unwrap();
    counts.report(before, took);

    // What was let in before the end is answered first.
    let (mut again, mut after) = (Duration::ZERO, 0.0);
    while end.elapsed() < RECOVERED && after < AGAIN * before {
        again = end.elapsed();
        after = world.speed(WINDOW).await;
    }
    after = f64::max(after, world.speed(MEASURED).await);
    // Their answers began when there was room for them.
    tokio::time::sleep_until(end + CUT_OFF).await;
    let mut cut_off = 0;
    for dawdler in dawdlers {
        cut_off += usize::from(line::takes_the_rest(dawdler).await < FILE);
    }

    let mb = |bytes: u64| bytes / 1_000_000;
    say(&format!(
        "overload: {} MB before, {} and {} MB at most in the halves of it; {cut_off} of {DAWDLERS} dawdlers cut off; {:.1} s \
         later {after:.0} letters a second again",
        mb(idle),
        mb(most[0]),
        mb(most[1]),
        again.as_secs_f64(),
    ));
    assert!(counts.refused.load(Ordering::Relaxed) > 0 && counts.served.load(Ordering::Relaxed) > 0);
    assert_eq!(counts.failed.load(Ordering::Relaxed), 0, "refused is answered");
    assert!(most[1] < most[0] + GROWS, "memory grows: {} and {} MB", mb(most[0]), mb(most[1]));
    assert_eq!(cut_off, DAWDLERS);
    assert!(after >= AGAIN * before, "{after:.0} letters a second, {before:.0} before");
}
