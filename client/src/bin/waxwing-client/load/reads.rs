//! Reads that clients make all the time.

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{
    Outcome,
    accounts::User,
    context::{Context, PREPARERS},
    http::{Call, escape},
    measure::{Loop, closed_loop},
    rooms::{self, Letters},
};

/// Messages of one page of history.
const PAGE: usize = 50;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Reads {
    /// Members of the room
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub members: usize,
    /// Messages in the room
    #[arg(long, default_value_t = 500, value_name = "COUNT")]
    pub messages: usize,
    /// Connections that read at the same time
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    pub connections: usize,
    /// How long each kind of request is measured
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub seconds: f64,
}

pub async fn run(context: &Context, options: &Reads) -> Result<Outcome> {
    ensure!(options.members > 0 && options.connections > 0, "at least one of each");
    let people = context.people(&context.server, options.members).await?;
    let lists: [Vec<&User>; 1] = [people.iter().collect()];
    let room = rooms::gather(context, &lists).await?.remove(0);
    let letters = Letters::new();
    context.progress.stage(&format!("{} messages", options.messages));
    context
        .each(&context.server, PREPARERS, 0..options.messages, async |connection, number| {
            let by = &people[number % people.len()];
            let call = letters.sending(&context.mark, by, &room, context.unique());
            connection.prepare(&call).await.context("cannot send")
        })
        .await?;
    let base = format!("/_matrix/client/v3/rooms/{}", escape(&room));
    let kinds = [
        ("/messages, 50", format!("{base}/messages?dir=b&limit={PAGE}")),
        ("/state", format!("{base}/state")),
        ("/joined_members", format!("{base}/joined_members")),
        ("whoami", "/_matrix/client/v3/account/whoami".to_owned()),
    ];
    let mut outcome = Outcome::default();
    for (name, path) in kinds {
        context.progress.stage(name);
        let plan = Loop { name, connections: options.connections, seconds: options.seconds, most: u64::MAX };
        let read = closed_loop(context, &context.server, &plan, async |connection, turn| {
            let by = &people[turn.number as usize % people.len()];
            Ok(connection.call(&Call::get(path.as_str()).by(by)).await?.len() as u64)
        });
        outcome.measures.push(read.await?);
    }
    Ok(outcome)
}
