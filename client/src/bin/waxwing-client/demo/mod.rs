//! The demonstration: two servers, two people, and what the servers really store of their conversation.

mod evidence;
mod servers;
mod steps;
mod story;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use console::style;

use crate::{
    cli::Demo,
    demo::{
        servers::Server,
        steps::{Steps, note},
    },
};

/// Steps shown as "n of N".
const STEPS: usize = 11;
/// Lines of a server's log to show when something failed.
const LOG_LINES: usize = 30;

pub async fn run(options: &Demo) -> Result<()> {
    let binary = options
        .server_binary
        .canonicalize()
        .with_context(|| format!("no server program at {}", options.server_binary.display()))?;
    let mut directory = tempfile::Builder::new().prefix("waxwing-demo-").tempdir()?;
    if options.keep {
        directory.disable_cleanup(true);
        println!("keeping everything in {}", directory.path().display());
    }
    println!("{}", style("Waxwing: two servers, two people, sealed letters").bold());
    let limit = Duration::from_secs(options.limit);
    let mut steps = Steps::new(STEPS);
    let shown = tokio::select! {
        shown = tokio::time::timeout(limit, show(&binary, directory.path(), &mut steps)) => {
            shown.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {} seconds", options.limit)))
        }
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if shown.is_err() {
        steps.fail();
        print_logs(directory.path());
    } else {
        let seconds = steps.elapsed().as_secs_f32();
        println!("{}", style(format!("All steps passed in {seconds:.1} seconds.")).green().bold());
    }
    shown
}

async fn show(binary: &Path, directory: &Path, steps: &mut Steps) -> Result<()> {
    let [alpha, beta] = steps
        .run("two servers with names and certificates of their own", servers::start(binary, directory))
        .await?;
    note(&format!("{} at {}", alpha.name, alpha.client_url()));
    note(&format!("{} at {}", beta.name, beta.client_url()));
    let letters = story::tell(&alpha, &beta, directory, steps).await?;
    let rows = steps.run("the rows both databases hold", evidence::rows(&[&alpha, &beta], &letters)).await?;
    for line in &rows {
        note(line);
    }
    steps
        .run("no file of either server holds the words", evidence::search(&[&alpha, &beta], &letters))
        .await?;
    let verdicts = steps.run("waxwing audit on both", evidence::audit(&[&alpha, &beta])).await?;
    for line in &verdicts {
        note(line);
    }
    for server in [alpha, beta] {
        server.stop().await;
    }
    Ok(())
}

fn print_logs(directory: &Path) {
    for name in servers::NAMES {
        let Ok(log) = std::fs::read_to_string(Server::log_path(directory, name)) else { continue };
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("{}", style(format!("the last lines of {name}'s log:")).dim());
        for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
            eprintln!("    {}", crate::output::clean(line));
        }
    }
}
