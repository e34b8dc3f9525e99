//! Between two servers: messages from one to people on the other, and joins of large rooms.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use memchr::memmem;
use serde::Serialize;
use serde_json::json;

use super::{
    Outcome,
    accounts::User,
    context::Context,
    delivery::{self, Hall, Room, Search},
    http::{Call, Connection, escape},
    measure::{Measure, Tally},
    rooms::{self, Letters},
};

/// A join of a large room is watched this long until all members are there.
const COMPLETE_WITHIN: Duration = Duration::from_mins(10);
/// How often it is asked whether they are.
const ASKED_EVERY: Duration = Duration::from_millis(250);
/// Sending right after a join is tried this often.
const SEND_TRIES: u32 = 200;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);
/// The largest room.
const MOST_MEMBERS: usize = 50_000;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Federated {
    /// Rooms
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub rooms: usize,
    /// Members of each room on the second server, who all hold a long poll
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub members: usize,
    /// Messages a second on the first server, all rooms together
    #[arg(long, default_value_t = 5.0, value_name = "PER_SECOND")]
    pub rate: f64,
    /// Raise or lower the rate to the highest at which 99 % of deliveries take less than 500 ms
    #[arg(long)]
    pub step: bool,
    /// How long each rate is measured
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub seconds: f64,
}

#[derive(Debug, Clone, Args, Serialize)]
pub struct RemoteJoin {
    /// Members of the room on the first server, before somebody of the second one joins
    #[arg(long, default_value_t = 1_000, value_name = "COUNT")]
    pub members: usize,
    /// Messages in the room
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    pub messages: usize,
}

pub async fn run(context: &Context, options: &Federated) -> Result<Outcome> {
    ensure!(options.rooms > 0 && options.members > 0, "at least one room with one member");
    let creators: Vec<Arc<User>> = shared(context.people(&context.server, options.rooms).await?);
    let guests: Vec<Arc<User>> =
        shared(context.people(context.other()?, options.rooms * options.members).await?);
    let lists: Vec<Vec<&User>> = creators
        .iter()
        .zip(guests.chunks(options.members))
        .map(|(creator, guests)| std::iter::once(creator).chain(guests).map(AsRef::as_ref).collect())
        .collect();
    let ids = rooms::gather(context, &lists).await?;
    let rooms = ids.into_iter().zip(creators.iter().zip(guests.chunks(options.members)));
    let rooms = rooms.map(|(id, (creator, guests))| Room {
        id,
        senders: vec![Arc::clone(creator)],
        listeners: guests.to_vec(),
    });
    let hall = Hall::open(context, Arc::new(rooms.collect()), 32).await?;
    let search = Search {
        name: "deliver to the other server",
        rate: options.rate,
        seconds: options.seconds,
        step: options.step,
    };
    delivery::measure_hall(&hall, &search).await
}

fn shared(people: Vec<User>) -> Vec<Arc<User>> {
    people.into_iter().map(Arc::new).collect()
}

pub async fn join(context: &Context, options: &RemoteJoin) -> Result<Outcome> {
    ensure!((1..=MOST_MEMBERS).contains(&options.members), "from 1 to {MOST_MEMBERS} members");
    let people = context.people(&context.server, options.members).await?;
    let lists: [Vec<&User>; 1] = [people.iter().collect()];
    let room = rooms::gather(context, &lists).await?.remove(0);
    let letters = Letters::new();
    let mut connection = Connection::new(&context.server);
    for _ in 0..options.messages {
        let call = letters.sending(&context.mark, &people[0], &room, context.unique());
        connection.prepare(&call).await?;
    }
    let guest = context.people(context.other()?, 1).await?.remove(0);
    let mut connection = Connection::new(context.other()?);
    connection.open().await?;

    context.progress.stage(&format!("joining a room of {}", options.members));
    let samples = (context.sample(), context.other_sampler.sample());
    let began = Instant::now();
    let mut tally = Tally::default();
    let call = rooms::joining(&guest, &room, Some(people[0].server_name()));
    connection.prepare(&call).await.context("cannot join over federation")?;
    tally.note(began.elapsed(), &Ok(0));
    usable(context, &mut connection, &letters, &guest, &room).await?;
    let usable = began.elapsed();
    complete(&mut connection, &guest, &room, options.members + 1).await?;
    let complete = began.elapsed();
    let used = samples.0.until(&context.sample());
    let other = samples.1.until(&context.other_sampler.sample());

    let mut measure = Measure::new("remote join", &tally, &used);
    measure.figures.remove("per_second");
    measure.set("usable_ms", usable.as_secs_f64() * 1e3);
    measure.set("complete_ms", complete.as_secs_f64() * 1e3);
    measure.set_some("other_cpu_ms_each", other.server.map(|server| server.cpu_ms));
    measure.set_some("other_pss_mb", other.server.map(|server| server.pss / 1e6));
    let mut outcome = Outcome { measures: vec![measure], ..Outcome::default() };
    outcome.facts.insert("room_members".to_owned(), json!(options.members));
    Ok(outcome)
}

/// Sends a message as soon as the server lets the new member.
async fn usable(
    context: &Context,
    connection: &mut Connection,
    letters: &Letters,
    guest: &User,
    room: &str,
) -> Result<()> {
    let call = letters.sending(&context.mark, guest, room, context.unique());
    for _ in 0..SEND_TRIES {
        if connection.call(&call).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
    connection.call(&call).await.context("cannot send into the room that was joined")?;
    Ok(())
}

/// Asks for the members until all are known.
async fn complete(connection: &mut Connection, guest: &User, room: &str, members: usize) -> Result<()> {
    let call = Call::get(format!("/_matrix/client/v3/rooms/{}/joined_members", escape(room))).by(guest);
    let deadline = Instant::now() + COMPLETE_WITHIN;
    let mut known = 0;
    while Instant::now() < deadline {
        // Each member is a key, and begins with @; names of these people do not.
        known =
            connection.call(&call).await.map_or(known, |answer| memmem::find_iter(&answer, b"\"@").count());
        if known >= members {
            return Ok(());
        }
        tokio::time::sleep(ASKED_EVERY).await;
    }
    bail!("after {COMPLETE_WITHIN:?} only {known} of {members} members are known")
}
