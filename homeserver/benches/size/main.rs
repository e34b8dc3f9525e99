//! `cargo bench -p waxwing --bench size [-- MEMBERS EVENTS FOLDER]`: what a large room takes.
//!
//! A room of 20,000 members and 100,000 state events (changes of names and of the topic, levels, bans) is made through
//! the services on an SQLite database. Every two thousand events another server speaks for a while without having seen
//! what happens here: twenty state events, among them some that contradict ours. Then: bytes for each state event, by
//! table; what it took to make one state out of two; memory. With a folder the database stays there.

mod disk;
mod elsewhere;
mod room;

use elsewhere::Elsewhere;
use room::{Home, Tip};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// State events between two times at which the other server goes its own way.
const BETWEEN_FORKS: usize = 2000;
/// State events of the other server in one branch, and of ours beside it.
const BRANCH: usize = 20;
/// Members of the other server.
const GUESTS: usize = 20;
/// Events of the other server on top of the room, for comparison with those that make a fork.
const PLAIN: usize = 100;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|text| text != "--bench").collect();
    let number =
        |at: usize, usual: usize| arguments.get(at).map_or(usual, |text| text.parse().expect("a number"));
    let (members, events) = (number(0, 20_000), number(1, 100_000));
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let folder = arguments.get(2).map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let database = folder.join("size.db");
    assert!(!database.exists(), "{} is there already", database.display());

    let mut home = Home::open(&database).await;
    let mut made = Made::default();
    made.grow(&mut home, members, events).await;
    made.report(&home).await;
    drop(home);
    disk::report(&database, made.events).await;
    println!("memory at most          {:>10.0} MB", memory("VmHWM"));
}

/// What was done, and how long it took.
#[derive(Default)]
struct Made {
    events: usize,
    /// Events of the other server that were taken in on top of the room.
    plain: Vec<Duration>,
    /// Those that made or carried on a branch: each takes a resolution.
    forked: Vec<Duration>,
    /// Our first after a branch, which brings the ends together.
    joined: Vec<Duration>,
}

impl Made {
    async fn grow(&mut self, home: &mut Home, members: usize, events: usize) {
        let began = Instant::now();
        self.events += home.create().await;
        self.events += home.join_all(members).await;
        println!("{members} members joined in {:.0} s", began.elapsed().as_secs_f64());
        let guests = Elsewhere::new(home, GUESTS).await;
        self.events += GUESTS;
        self.events += home.promote(guests.moderator()).await;
        let mut forks = 0;
        while self.events < events {
            let left = events - self.events;
            self.events += home.rename(BETWEEN_FORKS.min(left), members).await;
            if left > BETWEEN_FORKS {
                forks += 1;
                self.fork(home, &guests, forks, members).await;
            }
        }
        for number in 0..PLAIN {
            let tip = home.tip().await;
            let event = guests.renamed(&tip, number);
            self.plain.push(home.receive(guests.name(), &event).await);
            self.events += 1;
        }
        println!("{} state events, {forks} forks, in {:.0} s", self.events, began.elapsed().as_secs_f64());
    }

    /// Both sides speak without hearing each other.
    async fn fork(&mut self, home: &mut Home, guests: &Elsewhere, number: usize, members: usize) {
        let mut tip: Tip = home.tip().await;
        self.events += home.rename(BRANCH - 2, members).await;
        self.events += home.contradict(number, &guests.member(1 + number % (GUESTS - 1))).await;
        for step in 0..BRANCH {
            let event = guests.speak(&tip, number, step);
            self.forked.push(home.receive(guests.name(), &event).await);
            tip.advance(&event);
            self.events += 1;
        }
        let began = Instant::now();
        self.events += home.rename(1, members).await;
        self.joined.push(began.elapsed());
    }

    async fn report(&self, home: &Home) {
        for (what, times) in [
            ("event without conflict", &self.plain),
            ("event of a branch", &self.forked),
            ("first event after it", &self.joined),
        ] {
            let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
            times.sort_by(f64::total_cmp);
            if let (Some(last), count) = (times.last(), times.len()) {
                println!("{what:<24}{:>10.2} ms p50, {last:.2} ms at most ({count})", times[count / 2]);
            }
        }
        home.measure_states().await;
        println!("memory now              {:>10.0} MB", memory("VmRSS"));
    }
}

/// A line of this process's status, MB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the line");
    let kib: f64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    kib * 1024.0 / 1e6
}
