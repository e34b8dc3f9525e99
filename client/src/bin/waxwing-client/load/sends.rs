//! Closed-loop sends: each sender sends its next message when the last is acknowledged. The other members are silent.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    Outcome,
    accounts::User,
    context::Context,
    measure::{Loop, closed_loop},
    rooms::{self, Letters},
};

/// How many senders at most: each has a connection.
const MOST_SENDERS: usize = 2_000;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Sends {
    /// People who send at the same time
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    pub senders: usize,
    /// Whether each sends into a room of their own, all into one, or one after the other is measured
    #[arg(long, value_enum, default_value_t = Spread::Both)]
    pub spread: Spread,
    /// Members of a room, with the sender
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub members: usize,
    /// How long each is measured
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// How many messages are sent at most
    #[arg(long, default_value_t = 1_000_000, value_name = "COUNT")]
    pub most: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    Each,
    One,
    Both,
}

/// A first stretch that is not measured, as a part of the measured one.
const WARM_UP: f64 = 0.15;

pub async fn run(context: &Context, options: &Sends) -> Result<Outcome> {
    ensure!((1..=MOST_SENDERS).contains(&options.senders), "from 1 to {MOST_SENDERS} senders");
    ensure!(options.members > 0, "a room has at least one member");
    let senders = context.people(&context.server, options.senders).await?;
    let others = context.people(&context.server, options.members - 1).await?;
    let mut outcome = Outcome::default();
    if options.spread != Spread::One {
        let lists: Vec<Vec<&User>> =
            senders.iter().map(|sender| std::iter::once(sender).chain(&others).collect()).collect();
        let own = rooms::gather(context, &lists).await?;
        measure(context, options, &mut outcome, "send, own rooms", &senders, &own).await?;
    }
    if options.spread != Spread::Each {
        let everybody: Vec<&User> =
            senders.iter().chain(&others).take(options.senders.max(options.members)).collect();
        let one = rooms::gather(context, &[everybody]).await?;
        let one = vec![one[0].clone(); senders.len()];
        measure(context, options, &mut outcome, "send, one room", &senders, &one).await?;
    }
    Ok(outcome)
}

async fn measure(
    context: &Context,
    options: &Sends,
    outcome: &mut Outcome,
    name: &str,
    senders: &[User],
    rooms: &[String],
) -> Result<()> {
    context.progress.stage(name);
    let letters = Letters::new();
    let mut plan = Loop {
        name,
        connections: senders.len(),
        seconds: options.seconds * WARM_UP,
        most: (options.most as f64 * WARM_UP).ceil() as u64,
    };
    for measured in [false, true] {
        let sent = closed_loop(context, &context.server, &plan, async |connection, turn| {
            let sender = &senders[turn.connection];
            let call = letters.sending(&context.mark, sender, &rooms[turn.connection], context.unique());
            Ok(connection.call(&call).await?.len() as u64)
        });
        let sent = sent.await?;
        if measured {
            outcome.measures.push(sent);
        }
        (plan.seconds, plan.most) = (options.seconds, options.most);
    }
    Ok(())
}
