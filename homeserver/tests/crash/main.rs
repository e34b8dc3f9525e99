//! One node that is killed at random moments under load, on both engines: after each start everything that was
//! acknowledged is there, and the database is whole.
//!
//! `WAXWING_CRASH_ROUNDS` says how often a node is killed on both engines together, `WAXWING_CRASH_SECONDS` after how long
//! no further round begins (0: never); `WAXWING_CRASH_SEED` repeats the choices of a run, not its timing.
//! `WAXWING_CRASH_ROUNDS=1000 WAXWING_CRASH_SECONDS=0 cargo test -p waxwing --test crash` takes a quarter of an hour.

#[path = "../harness/mod.rs"]
mod harness;
mod load;
#[path = "../e2e/node.rs"]
#[expect(dead_code, reason = "these tests need a part of what the end-to-end tests need")]
mod node;
#[path = "../e2e/postgres.rs"]
#[expect(dead_code, reason = "these tests need a part of what the end-to-end tests need")]
mod postgres;

use harness::dice::{Dice, number};
use harness::examine;
use load::Load;
use node::{Node, say};
use postgres::Database;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A node that was killed is ready at once: in a debug build, on a machine that has other work too.
const READY: Duration = Duration::from_secs(20);
/// The doctor looks after each of so many rounds, and after the last.
const EXAMINE_EVERY: u64 = 20;
/// Kills without a word of how many.
const ROUNDS: f64 = 200.0;
/// A machine that has other work too must come to an end.
const SECONDS: f64 = 300.0;
/// The node is killed when so much was acknowledged in a round, and less than so much more, and less than so many milliseconds
/// later: whatever the machine does beside it, there is something that must survive, and work of every kind under way.
const ACKNOWLEDGED: (u64, u64) = (5, 60);
const LATER: u64 = 50;

/// Rounds that were begun on either engine.
static BEGUN: AtomicU64 = AtomicU64::new(0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    survive("SQLite", folder.path(), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_on_postgres() {
    let Some(database) = Database::create() else { return };
    let folder = tempfile::tempdir().unwrap();
    survive("PostgreSQL", folder.path(), &[format!("database={}", database.url())]).await;
}

/// How long a start takes until the server says that it is ready.
async fn start(server: &mut Node) -> Duration {
    let began = Instant::now();
    server.start().await;
    began.elapsed()
}

async fn survive(engine: &str, folder: &Path, settings: &[String]) {
    let quiet = ["federation.enabled=false", "push.enabled=false"].map(str::to_owned);
    let mut server = Node::new(folder, &[settings, &quiet].concat());
    let dice = Arc::new(Dice::from_environment("WAXWING_CRASH_SEED"));
    let rounds = number("WAXWING_CRASH_ROUNDS", ROUNDS) as u64;
    let limit = number("WAXWING_CRASH_SECONDS", SECONDS);
    let mut starts = vec![start(&mut server).await];
    let load = Load::prepare(&server.client_url(), Arc::clone(&dice)).await;
    let began = Instant::now();
    let mut done = 0;
    let in_time = || limit == 0.0 || began.elapsed().as_secs_f64() < limit;
    while in_time() && BEGUN.fetch_add(1, Ordering::Relaxed) < rounds {
        let round = load.begin();
        load.until_acknowledged(ACKNOWLEDGED.0 + dice.below(ACKNOWLEDGED.1)).await;
        tokio::time::sleep(Duration::from_millis(dice.below(LATER))).await;
        server.kill().await;
        round.end().await;
        starts.push(start(&mut server).await);
        load.check_newest().await;
        done += 1;
        if done % EXAMINE_EVERY == 0 {
            examine(&server).await;
        }
    }
    let took = began.elapsed().as_secs_f64();
    load.check_all().await;
    let examined = examine(&server).await;
    server.stop().await;
    starts.sort_unstable();
    let longest = starts[starts.len() - 1];
    say(&format!(
        "crash on {engine}: killed {done} times in {took:.0} s ({:.2} s each), {}; ready again after {:.2} s, at most {:.2} s",
        took / done as f64,
        load.summary(),
        starts[starts.len() / 2].as_secs_f64(),
        longest.as_secs_f64(),
    ));
    assert!(examined.contains("the database is whole"), "{examined}");
    assert!(longest < READY, "a start took {longest:?}");
    assert!(done > 0);
}
