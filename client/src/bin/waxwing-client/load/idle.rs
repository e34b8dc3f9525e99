//! Idle long polls: what each client that only waits costs the server in memory.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{
    Outcome,
    accounts::User,
    context::Context,
    limits,
    listeners::{self, Board},
    measure::{Measure, Tally},
    rooms,
};

/// Long polls at most: what one address can hold to another, with some left.
const MOST: usize = 20_000;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Idle {
    /// People who hold a long poll each
    #[arg(long, default_value_t = 1_000, value_name = "COUNT")]
    pub clients: usize,
    /// People of a room; everybody is in one
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub members: usize,
    /// How long the waiting is measured; polls end after 30 seconds
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub seconds: f64,
}

/// How long the server may settle before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

pub async fn run(context: &Context, options: &Idle) -> Result<Outcome> {
    ensure!((1..=MOST).contains(&options.clients), "from 1 to {MOST} clients");
    ensure!(options.members > 0, "a room has at least one member");
    limits::files(options.clients)?;
    let people = context.people(&context.server, options.clients).await?;
    let people: Vec<Arc<User>> = people.into_iter().map(Arc::new).collect();
    let lists: Vec<Vec<&User>> =
        people.chunks(options.members).map(|list| list.iter().map(AsRef::as_ref).collect()).collect();
    rooms::gather(context, &lists).await?;
    let ready = listeners::ready(context, &people).await?;

    context.progress.stage("settling");
    tokio::time::sleep(SETTLE).await;
    let (before, opening) = (context.sampler.memory(), context.sample());
    let polls = listeners::listen(&Arc::new(Board::default()), &context.mark, ready).await?;
    context.progress.stage(&format!("{} long polls", options.clients));
    tokio::time::sleep(SETTLE).await;
    let waiting = context.sample();
    tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
    let (after, end) = (context.sampler.memory(), context.sample());
    drop(polls);

    let mut measure = Measure::new("idle long poll", &Tally::default(), &waiting.until(&end));
    measure.count = options.clients as u64;
    measure.figures.remove("per_second");
    let used = waiting.until(&end);
    measure.set_costs(measure.count, &used);
    if let Some(server) = opening.until(&waiting).server {
        measure.set("opening_cpu_ms_each", server.cpu_ms / options.clients as f64);
    }
    if let Some((before, after)) = before.zip(after) {
        measure.set("pss_mb_before", before as f64 / 1e6);
        measure.set("memory_kb_each", (after as f64 - before as f64) / 1024.0 / options.clients as f64);
    }
    Ok(Outcome { measures: vec![measure], ..Outcome::default() })
}
