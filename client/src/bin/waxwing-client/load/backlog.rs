//! Many to-device messages queued and drained, and whether messages cost more afterwards than before.

use std::{
    cell::RefCell,
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{
    Outcome,
    accounts::User,
    context::Context,
    delivery::{Hall, local_rooms},
    keys::{self, RECIPIENTS},
    listeners::{next_batch, store_filter, syncing},
    measure::{Loop, Measure, Tally, closed_loop},
    rooms::Letters,
};

/// What queueing or draining may take, in seconds.
const MOST_SECONDS: f64 = 900.0;
/// A queue that gives nothing this many times in a row is empty.
const EMPTY_ANSWERS: u32 = 2;
/// Messages at most.
const MOST_MESSAGES: usize = 1_000_000;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Backlog {
    /// To-device messages that are queued, for ten devices
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    pub messages: usize,
    /// Messages a second into the room of the ten, before and after
    #[arg(long, default_value_t = 20.0, value_name = "PER_SECOND")]
    pub rate: f64,
    /// How long these are measured
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub seconds: f64,
}

pub async fn run(context: &Context, options: &Backlog) -> Result<Outcome> {
    ensure!((1..=MOST_MESSAGES).contains(&options.messages), "from 1 to {MOST_MESSAGES} messages");
    let rooms = Arc::new(local_rooms(context, 1, RECIPIENTS, 0).await?);
    let people: Vec<Arc<User>> = rooms[0].listeners.clone();
    let people: Vec<&User> = people.iter().map(AsRef::as_ref).collect();
    keys::upload_identities(context, &people).await?;
    let mut outcome = Outcome::default();
    for name in ["deliver before", "deliver after"] {
        let hall = Hall::open(context, Arc::clone(&rooms), 8).await?;
        hall.stretch("warm-up", options.rate, options.seconds.min(2.0)).await?;
        outcome.measures.push(hall.stretch(name, options.rate, options.seconds).await?.measure);
        drop(hall);
        if outcome.measures.len() == 1 {
            let before = context.unique();
            fill(context, options, &people, &mut outcome).await?;
            drain(context, &people, before, &mut outcome).await?;
        }
    }
    Ok(outcome)
}

async fn fill(context: &Context, options: &Backlog, people: &[&User], outcome: &mut Outcome) -> Result<()> {
    let letters = Letters::new();
    let requests = options.messages.div_ceil(people.len()) as u64;
    let plan = Loop { name: "queue to ten devices", connections: 8, seconds: MOST_SECONDS, most: requests };
    context.progress.stage(plan.name);
    let queued = closed_loop(context, &context.server, &plan, async |connection, turn| {
        let by = people[turn.connection % people.len()];
        let call = keys::sending(context, &letters, by, people.iter().copied()).1;
        Ok(connection.call(&call).await?.len() as u64)
    });
    let queued = queued.await?;
    outcome.facts.insert("queued".to_owned(), json!(queued.count * people.len() as u64));
    outcome.measures.push(queued);
    Ok(())
}

/// Everybody syncs until their queue is empty of messages with numbers above `before`. The times are those of the syncs, the costs those of the messages.
async fn drain(context: &Context, people: &[&User], before: u64, outcome: &mut Outcome) -> Result<()> {
    const NAME: &str = "drain by syncs";
    context.progress.stage(NAME);
    let tally = RefCell::new(Tally::default());
    let (sample, deadline) = (context.sample(), Instant::now() + Duration::from_secs_f64(MOST_SECONDS));
    let drained = context
        .each(&context.server, people.len(), people, async |connection, user| {
            let filter = store_filter(connection, user, 1).await?;
            let (mut since, mut empty, mut seen) = (None::<String>, 0, HashSet::new());
            while empty < EMPTY_ANSWERS && Instant::now() < deadline {
                let began = Instant::now();
                let answer = connection.call(&syncing(user, &filter, since.as_deref(), 0)).await?;
                tally.borrow_mut().note(began.elapsed(), &Ok(answer.len() as u64));
                let had = seen.len();
                seen.extend(context.mark.numbers(&answer).filter(|number| *number > before));
                empty = if seen.len() == had { empty + 1 } else { 0 };
                since = Some(next_batch(&answer)?.to_owned());
            }
            Ok(seen.len() as u64)
        })
        .await?;
    let used = sample.until(&context.sample());
    let drained: u64 = drained.iter().sum();
    let mut measure = Measure::new(NAME, &tally.into_inner(), &used);
    measure.set_costs(drained, &used);
    outcome.measures.push(measure);
    outcome.facts.insert("drained".to_owned(), json!(drained));
    Ok(())
}
