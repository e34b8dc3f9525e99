//! Servers of our real code over a network that drops, repeats, reorders and delays what they send and falls apart,
//! with people who contradict each other and a server that plays foul. When the network is whole again, all honest
//! servers must come to one state of each room, and no event may be lost.
//!
//! Everything follows from a seed. `SIMULATION_SEED=N cargo test -p waxwing --test simulation` repeats one, and prints
//! what happens in it; `SIMULATION_LOG=waxwing_federation=debug` shows what the servers say of it. `SIMULATION_SEEDS=FROM..TO`
//! runs others than usual.

mod dice;
mod graph;
mod heal;
mod hostile;
mod net;
mod node;
mod pure;
mod whole;
mod world;

use heal::Compared;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use waxwing_rooms::version;
use world::{Kind, World};

/// Seeds of the servers without database: a fifth of a second of one core each.
const PURE: Range<u64> = 0..1000;
/// Seeds of whole servers, which cost eight times as much.
const WHOLE: Range<u64> = 0..40;
/// A folder in memory where there is one: databases there are as good for this, and much faster.
fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder")
}

async fn simulate(kind: Kind, seed: u64, loud: bool) -> Result<Compared, String> {
    let folder = folder();
    let mut world = World::new(kind, seed, folder.path()).await;
    let version = &version::SUPPORTED[seed as usize % version::SUPPORTED.len()];
    world.found(version).await;
    let steps = 18 + world.dice.below(16);
    for _ in 0..steps {
        world.step().await;
    }
    world.heal().await;
    let compared = world.compare().await;
    if loud || compared.is_err() {
        for line in &world.trace {
            eprintln!("{line}");
        }
    }
    compared
}

fn run_one(kind: Kind, seed: u64, loud: bool) -> Result<Compared, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let run = AssertUnwindSafe(|| runtime.block_on(simulate(kind, seed, loud)));
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err("it panicked".to_owned()))
}

fn seeds(usual: Range<u64>) -> (Range<u64>, bool) {
    let number = |text: &str| text.trim().parse::<u64>().expect("a number");
    if let Ok(seed) = std::env::var("SIMULATION_SEED") {
        let seed = number(&seed);
        if let Ok(wanted) = std::env::var("SIMULATION_LOG") {
            let filter = tracing_subscriber::EnvFilter::try_new(wanted).expect("what to show");
            // Both tests may run.
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        return (seed..seed + 1, true);
    }
    match std::env::var("SIMULATION_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("FROM..TO");
            (number(from)..number(to), false)
        }
        Err(_) => (usual, false),
    }
}

fn run_all(kind: Kind, usual: Range<u64>) {
    let (seeds, loud) = seeds(usual);
    let next = AtomicU64::new(seeds.start);
    let failures = Mutex::new(Vec::new());
    let total = Mutex::new(Compared::default());
    // As many seeds at the same time as there are cores.
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    match run_one(kind, seed, loud) {
                        Ok(compared) => {
                            let mut total = total.lock().expect("a lock");
                            total.pairs += compared.pairs;
                            total.events += compared.events;
                        }
                        Err(why) => failures.lock().expect("a lock").push((seed, why)),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("a lock");
    for (seed, why) in &failures {
        eprintln!("{kind:?} servers, SIMULATION_SEED={seed}: {why}");
    }
    let total = total.into_inner().expect("a lock");
    eprintln!("{kind:?} servers, seeds {seeds:?}: {total:?}");
    assert!(failures.is_empty(), "{} of {} seeds failed", failures.len(), seeds.end - seeds.start);
    // Alone, a seed may end with everybody thrown out of the room.
    assert!(
        loud || total.pairs as u64 >= (seeds.end - seeds.start) / 2,
        "hardly anything was compared: {total:?}"
    );
}

#[test]
fn servers_without_database_agree() {
    run_all(Kind::Pure, PURE);
}

#[test]
fn whole_servers_agree() {
    run_all(Kind::Whole, WHOLE);
}
