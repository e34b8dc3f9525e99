//! What all scenarios share: the servers, who may register, what is sampled, and the line of progress.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::future;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    accounts::{self, Registration, User},
    find::Mark,
    http::{Connection, Server},
    sample::{Sample, Sampler},
};

/// Connections that prepare what a scenario needs. More would not be faster on small machines.
pub const PREPARERS: usize = 16;
/// How often the line of progress is written at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

pub struct Context {
    pub server: Server,
    /// The second server, for what happens between two.
    pub other: Option<Server>,
    pub registration: Registration,
    pub sampler: Sampler,
    pub other_sampler: Sampler,
    /// Stands in everything that this run sends.
    pub mark: Mark,
    pub progress: Progress,
    /// Begins the names of this run's users; no two runs have the same.
    run: String,
    next: Cell<u64>,
}

impl Context {
    pub fn new(
        server: Server,
        other: Option<Server>,
        registration: Registration,
        samplers: [Sampler; 2],
    ) -> Self {
        let run = format!("{:x}", rand::random::<u32>() | 0x1000_0000);
        let [sampler, other_sampler] = samplers;
        let mark = Mark::new(&format!("WXL{run}n"));
        let (progress, next) = (Progress::new(), Cell::new(0));
        Self { server, other, registration, sampler, other_sampler, mark, progress, run, next }
    }

    /// All servers, each once.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        let other = self.other.as_ref().filter(|other| other.url() != self.server.url());
        std::iter::once(&self.server).chain(other)
    }

    pub fn sample(&self) -> Sample {
        self.sampler.sample()
    }

    pub fn other(&self) -> Result<&Server> {
        self.other.as_ref().context("this needs a second server: --to URL")
    }

    /// A number that no other call of this run gets.
    pub fn unique(&self) -> u64 {
        self.unique_run(1)
    }

    /// The first of so many numbers, one after the other, that no other call of this run gets.
    pub fn unique_run(&self, count: u64) -> u64 {
        self.next.replace(self.next.get() + count)
    }

    /// Registers so many people.
    pub async fn people(&self, server: &Server, count: usize) -> Result<Vec<User>> {
        self.progress.stage(&format!("registering {count} people"));
        self.each(server, PREPARERS, 0..count, async |connection, _| {
            let name = format!("load-{}-{}", self.run, self.unique());
            accounts::register(connection, server, &self.registration, &name).await
        })
        .await
    }

    /// Works on all items over a number of connections; returns the results in the order of the items. The first
    /// failure ends it.
    pub async fn each<I, O>(
        &self,
        server: &Server,
        connections: usize,
        items: impl IntoIterator<Item = I>,
        work: impl AsyncFn(&mut Connection, I) -> Result<O>,
    ) -> Result<Vec<O>> {
        let items = std::cell::RefCell::new(items.into_iter().enumerate());
        let worker = async |mut connection: Connection| {
            let mut done = Vec::new();
            loop {
                let next = items.borrow_mut().next();
                let Some((number, item)) = next else { return Ok::<_, anyhow::Error>(done) };
                done.push((number, work(&mut connection, item).await?));
                self.progress.show(|| number.to_string());
            }
        };
        let workers = (0..connections).map(|_| worker(Connection::new(server)));
        let mut done: Vec<(usize, O)> = future::try_join_all(workers).await?.into_iter().flatten().collect();
        done.sort_by_key(|(number, _)| *number);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }
}

/// The line on standard error that says what is going on. Without a terminal there is none.
pub struct Progress {
    bar: ProgressBar,
    shown: Cell<Instant>,
}

impl Progress {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {prefix} {msg}") {
            bar.set_style(style);
        }
        Self { bar, shown: Cell::new(Instant::now()) }
    }

    /// What the scenario does now.
    pub fn stage(&self, what: &str) {
        self.bar.set_prefix(what.to_owned());
        self.bar.set_message("");
    }

    /// How far it is. The text is made only if it is shown.
    pub fn show(&self, text: impl FnOnce() -> String) {
        if !self.bar.is_hidden() && self.shown.get().elapsed() >= PROGRESS_EVERY {
            self.shown.set(Instant::now());
            self.bar.set_message(text());
            self.bar.tick();
        }
    }

    /// Takes the line away, so that a result can be printed.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
        self.bar.reset();
    }
}
