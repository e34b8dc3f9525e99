//! Three nodes over one PostgreSQL with a replica, behind a round-robin, and people who use them while everything fails
//! that can: nodes are killed, stopped, cut off from the database and from each other; the database is restarted, crashes
//! and fails over; then hints go over NATS, which fails too. In the end nothing that was acknowledged may be missing, or
//! there twice.
//!
//! `WAXWING_CHAOS_MINUTES=120 cargo test -p waxwing --test chaos` goes on for two hours. `WAXWING_CHAOS_SEED` repeats the
//! choices of a run (not its timing), `WAXWING_CHAOS_PEOPLE` and `WAXWING_CHAOS_RATE` say how many people there are and
//! how much they do in a second, all together.

mod balancer;
mod cluster;
mod faults;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../e2e/nats_server.rs"]
mod nats_server;
#[path = "../e2e/node.rs"]
#[expect(dead_code, reason = "these tests need a part of what the end-to-end tests need")]
mod node;
mod people;
mod verdict;
mod wire;

use faults::{Fault, World};
use harness::dice::{Dice, number};
use node::say;
use people::People;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How many people do something at a time, where all do.
const AT_ONCE: usize = 8;
/// After the last fault everything settles in this time.
const SETTLED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_fails_what_was_acknowledged_is_there_once() {
    if !cluster::available() {
        return;
    }
    let began = Instant::now();
    let dice = Arc::new(Dice::from_environment("WAXWING_CHAOS_SEED"));
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path(), Arc::clone(&dice)).await;
    let count = number("WAXWING_CHAOS_PEOPLE", 200.0) as usize;
    let people = People::gather(&world.balancer.url, count, dice).await;
    say(&format!("{count} people are there after {:.0} s", began.elapsed().as_secs_f64()));
    let rate = number("WAXWING_CHAOS_RATE", 12.0);
    let mut tasks = Vec::new();
    let mut listeners = Vec::new();
    // Everybody's first sync comes before the first event.
    everybody_syncs(&people).await;
    for person in &people.all {
        tasks.push(tokio::spawn(Arc::clone(&people).live(Arc::clone(person), rate)));
        listeners.push(tokio::spawn(Arc::clone(&people).listen(Arc::clone(person))));
    }
    world.keep_a_lease(&people).await;
    let until = Instant::now() + Duration::from_secs_f64(number("WAXWING_CHAOS_MINUTES", 0.0) * 60.0);
    for fault in Fault::EACH.into_iter().chain(Fault::OVER_NATS) {
        world.suffer(fault, &people).await;
    }
    while Instant::now() < until {
        world.suffer(Fault::any(&people.dice), &people).await;
    }
    people.quiet.store(true, Ordering::Relaxed);
    for task in tasks {
        tokio::time::timeout(SETTLED, task).await.expect("everything settles").unwrap();
    }
    everybody_is_served(&people).await;
    people.over.store(true, Ordering::Relaxed);
    for listener in listeners {
        tokio::time::timeout(SETTLED, listener).await.expect("every poll ends").unwrap();
    }
    everybody_syncs(&people).await;
    let wrong = verdict::judge(&people, &world.urls()).await;
    report(&people, &world, began);
    let examined = world.examine().await;
    assert!(examined.contains("the database is whole"), "{examined}");
    assert!(wrong.is_empty(), "{} contradictions:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(world.failed_while_rolling, 0, "requests failed during a rolling restart");
}

/// When nothing fails any more, nobody is more than one retry away from service, whatever they want.
async fn everybody_is_served(people: &Arc<People>) {
    people.tally.most_tries.store(0, Ordering::Relaxed);
    for some in people.all.chunks(AT_ONCE) {
        let deadline = Instant::now() + SETTLED;
        let served = some.iter().map(|person| async move {
            let mark = format!("m{:03}.end.", person.number);
            let served = people.act(person, &mark, people.dice.below(10), deadline).await;
            assert!(served, "person {} is not served", person.number);
        });
        futures_util::future::join_all(served).await;
    }
    let most = people.tally.most_tries.load(Ordering::Relaxed);
    assert!(most <= 2, "somebody needed {most} tries when all was well again");
}

async fn everybody_syncs(people: &Arc<People>) {
    for some in people.all.chunks(AT_ONCE) {
        futures_util::future::join_all(some.iter().map(|person| person.sync(0))).await;
    }
}

fn report(people: &People, world: &World, began: Instant) {
    let book = people.book.lock();
    let gaps: usize = people.all.iter().map(|person| person.seen.lock().gaps).sum();
    let (served, failed) =
        (people.tally.served.load(Ordering::Relaxed), people.tally.failed.load(Ordering::Relaxed));
    say(&format!(
        "chaos: {} people, {} events, {} letters, {} keys; {served} requests served, {failed} failed and tried again, \
         {gaps} gaps filled; leased work went on after a node's loss within {:.1?} s; {} requests failed during rolling \
         restarts; {:.0} s",
        people.all.len(),
        book.said.len(),
        book.letters.len(),
        book.keys.len(),
        world.recoveries,
        world.failed_while_rolling,
        began.elapsed().as_secs_f64(),
    ));
}
