//! Runs Complement, the test suite of Matrix homeservers, against Waxwing without a container engine.
//!
//! It speaks the part of a container engine's HTTP interface that Complement uses and starts each container as a
//! process of this machine, with an address, a hosts file and a name server of its own. It is no container engine:
//! there is one image, nothing is isolated but names, and whoever may reach its port may start processes.

mod archive;
mod certificate;
mod compare;
mod container;
mod dns;
mod engine;
mod error;
mod http_api;
mod labels;
mod network;
mod process;
mod proxy;
mod results;
mod tests_run;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use compare::compare;
use engine::Engine;
use results::{Outcome, Results, listed, parse, render};
use tests_run::{Plan, Run, asked_to_end, minutes, order, packages};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the container interface until interrupted.
    Serve {
        #[command(flatten)]
        runner: Runner,
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Run compiled test packages and compare the results with the expected ones.
    Test {
        #[command(flatten)]
        runner: Runner,
        #[command(flatten)]
        selection: Selection,
        /// The list of expected results.
        #[arg(long)]
        expected: PathBuf,
        /// Write the list instead of comparing with it.
        #[arg(long)]
        update: bool,
    },
    /// Compare a file of results with the expected ones.
    Compare {
        #[arg(long)]
        expected: PathBuf,
        #[arg(long)]
        results: PathBuf,
    },
}

#[derive(Args)]
struct Runner {
    /// The server, which is called as `BINARY serve --config FILE`.
    #[arg(long)]
    server_binary: PathBuf,
    /// Where logs and results go. The servers' logs are in `servers` below it.
    #[arg(long)]
    output: PathBuf,
    /// Where the containers' files are while they run. A file system in memory saves the servers' waits for the disk.
    #[arg(long)]
    state: PathBuf,
}

#[derive(Args)]
struct Selection {
    /// The directory of the compiled packages.
    #[arg(long)]
    tests: PathBuf,
    /// Run the tests that match, and do not compare.
    #[arg(long)]
    only: Option<String>,
    /// Run the package whose name ends so, and do not compare.
    #[arg(long)]
    package: Option<String>,
    /// How many packages to run at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

// One thread: a child asks to be ended with the thread that started it, and threads of a pool come and go.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Serve { runner, listen } => serve(&runner, listen).await,
        Command::Test { runner, selection, expected, update } => {
            let complete = selection.only.is_none() && selection.package.is_none();
            if update && !complete {
                bail!("only a run of all tests can update the list");
            }
            let Some(found) = test(&runner, selection, &expected).await? else {
                return Ok(ExitCode::from(130));
            };
            if !complete {
                return Ok(summary(&found));
            }
            if update {
                fs::write(&expected, render(&found)).context("writing the list")?;
            }
            agree(&expected, &found)
        }
        Command::Compare { expected, results } => agree(&expected, &read(&results)?),
    }
}

/// The container interface while it is served.
struct Served {
    engine: Arc<Engine>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Served {
    async fn begin(runner: &Runner, listen: SocketAddr) -> Result<Self> {
        // Each run has a directory of its own, so that two of them can share the place.
        let state = runner.state.join(format!("waxwing-complement-{}", std::process::id()));
        let engine = Arc::new(Engine::new(&runner.server_binary, state, runner.output.join("servers"))?);
        let listener = TcpListener::bind(listen).await.context("binding the container interface")?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(http_api::serve(listener, engine.clone()));
        Ok(Self { engine, address, task })
    }

    async fn end(self) -> Result<()> {
        self.task.abort();
        self.engine.shut_down().await
    }
}

async fn serve(runner: &Runner, listen: SocketAddr) -> Result<ExitCode> {
    let served = Served::begin(runner, listen).await?;
    println!("DOCKER_HOST=tcp://{}", served.address);
    asked_to_end().await?;
    served.end().await?;
    Ok(ExitCode::SUCCESS)
}

/// The top-level tests and leaves, or nothing if it was interrupted.
async fn test(runner: &Runner, selection: Selection, expected: &Path) -> Result<Option<Results>> {
    let began = Instant::now();
    fs::create_dir_all(&runner.output)?;
    let mut packages = packages(&selection.tests, selection.only.as_deref(), selection.package.as_deref())?;
    if packages.is_empty() {
        bail!("no test matches");
    }
    // A list that cannot be read matters when it is compared with, not for the order.
    order(&mut packages, &read(expected).unwrap_or_default());
    let served = Served::begin(runner, SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let run = Arc::new(Run::new(Plan {
        packages,
        only: selection.only,
        jobs: selection.jobs.max(1),
        output: fs::canonicalize(&runner.output)?,
        docker_host: format!("tcp://{}", served.address),
    }));
    let outcome = tokio::select! {
        found = run.all() => found.map(Some),
        asked = asked_to_end() => asked.map(|()| None),
    };
    run.interrupt();
    served.end().await?;
    let Some(found) = outcome?.map(|found| listed(&found)) else { return Ok(None) };
    fs::write(runner.output.join("results.txt"), render(&found))?;
    println!("finished after {}; logs are in {}", minutes(began.elapsed()), runner.output.display());
    Ok(Some(found))
}

fn read(path: &Path) -> Result<Results> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn count(results: &Results, outcome: Outcome) -> usize {
    results.values().filter(|found| **found == outcome).count()
}

fn agree(expected: &Path, found: &Results) -> Result<ExitCode> {
    let comparison = compare(&read(expected)?, found);
    println!("{comparison}");
    Ok(if comparison.agrees() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(found: &Results) -> ExitCode {
    for (test, _) in found.iter().filter(|(_, outcome)| **outcome == Outcome::Fail) {
        println!("fail {} {}", test.package, test.name);
    }
    let [passed, failed, skipped] =
        [Outcome::Pass, Outcome::Fail, Outcome::Skip].map(|outcome| count(found, outcome));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
