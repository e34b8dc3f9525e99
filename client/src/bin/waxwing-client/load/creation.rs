//! Rooms created and joined.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{
    Outcome,
    context::Context,
    find,
    http::Failure,
    measure::{Loop, closed_loop},
    rooms,
};

/// What each kind may take, in seconds.
const MOST_SECONDS: f64 = 120.0;
const MOST_ROOMS: u64 = 100_000;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Creation {
    /// Rooms that are created, and joined by somebody else
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    pub rooms: u64,
    /// Connections at the same time
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub connections: usize,
}

pub async fn run(context: &Context, options: &Creation) -> Result<Outcome> {
    ensure!((1..=MOST_ROOMS).contains(&options.rooms), "from 1 to {MOST_ROOMS} rooms");
    ensure!(options.connections > 0, "at least one connection");
    let people = context.people(&context.server, 2).await?;
    let (creator, guest) = (&people[0], &people[1]);
    let made = RefCell::new(Vec::new());
    let mut plan = Loop {
        name: "createRoom",
        connections: options.connections,
        seconds: MOST_SECONDS,
        most: options.rooms,
    };
    context.progress.stage(plan.name);
    let created = closed_loop(context, &context.server, &plan, async |connection, _| {
        let answer = connection.call(&rooms::creation(creator, "Load")).await?;
        let room = find::text_after(&answer, b"\"room_id\":").ok_or(Failure::Malformed("room_id"))?;
        made.borrow_mut().push(room.to_owned());
        Ok(answer.len() as u64)
    });
    let created = created.await?;
    let made = made.into_inner();
    (plan.name, plan.most) = ("join", made.len() as u64);
    context.progress.stage(plan.name);
    let joined = closed_loop(context, &context.server, &plan, async |connection, turn| {
        let call = rooms::joining(guest, &made[turn.number as usize], None);
        Ok(connection.call(&call).await?.len() as u64)
    });
    Ok(Outcome { measures: vec![created, joined.await?], ..Outcome::default() })
}
