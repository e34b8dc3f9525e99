//! Sync of a person in many rooms, over `/v3/sync` and over sliding sync: the first one, one with a change, one
//! without.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{
    Outcome,
    accounts::User,
    context::{Context, PREPARERS},
    find,
    http::{Call, Connection, Failure, escape},
    listeners::{next_batch, store_filter, syncing},
    measure::{Loop, Measure, Tally, closed_loop},
    rooms::{self, Letters},
};

/// Events of each room's timeline that clients ask for at first.
const TIMELINE: u64 = 20;
/// Rooms of the first page of a sliding sync.
const PAGE: u64 = 20;
/// First pages for each first sync, which takes much longer.
const PAGES_EACH: u64 = 4;
/// What one kind of sync may take, in seconds.
const MOST_SECONDS: f64 = 300.0;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Syncs {
    /// Rooms of the person who syncs
    #[arg(long, default_value_t = 1_000, value_name = "COUNT")]
    pub rooms: usize,
    /// Members of each room, with that person
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub members: usize,
    /// Messages in each room
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    pub messages: usize,
    /// First syncs that are measured
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub first: u64,
    /// Further syncs that are measured
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    pub further: u64,
}

/// Where a kind of sync stands, and how it goes on.
struct Kind<'a> {
    name: &'a str,
    /// The call that continues from a token.
    next: &'a dyn Fn(&str) -> Call,
    /// The token in an answer.
    token: fn(&[u8]) -> Result<&str, Failure>,
}

/// The rooms, and who is in them.
struct World {
    me: User,
    others: Vec<User>,
    rooms: Vec<String>,
    letters: Letters,
}

pub async fn run(context: &Context, options: &Syncs) -> Result<Outcome> {
    ensure!(options.rooms > 0 && options.members > 1, "at least one room of two members");
    let world = world(context, options).await?;
    let mut outcome = Outcome::default();
    v3(context, options, &world, &mut outcome).await?;
    sliding(context, options, &world, &mut outcome).await?;
    Ok(outcome)
}

/// Rooms made by others in turn; the person who syncs is in all of them.
async fn world(context: &Context, options: &Syncs) -> Result<World> {
    let mut people = context.people(&context.server, 1 + 2 * (options.members - 1)).await?;
    let me = people.remove(0);
    let others = people;
    let list = |room: usize| -> Vec<&User> {
        let some = others.iter().cycle().skip(room % others.len()).take(options.members - 1);
        some.chain(std::iter::once(&me)).collect()
    };
    let lists: Vec<Vec<&User>> = (0..options.rooms).map(list).collect();
    let rooms = rooms::gather(context, &lists).await?;
    let letters = Letters::new();
    context.progress.stage(&format!("{} messages", options.rooms * options.messages));
    context
        .each(&context.server, PREPARERS, 0..options.rooms * options.messages, async |connection, number| {
            let room = number % options.rooms;
            let call = letters.sending(&context.mark, lists[room][0], &rooms[room], context.unique());
            connection.prepare(&call).await.context("cannot send")
        })
        .await?;
    drop(lists);
    Ok(World { me, others, rooms, letters })
}

async fn v3(context: &Context, options: &Syncs, world: &World, outcome: &mut Outcome) -> Result<()> {
    let mut connection = Connection::new(&context.server);
    let filter = store_filter(&mut connection, &world.me, TIMELINE).await?;
    let last = RefCell::new(Bytes::new());
    let plan = Loop { name: "first sync", connections: 1, seconds: MOST_SECONDS, most: options.first };
    let first = closed_loop(context, &context.server, &plan, async |connection, turn| {
        // Some servers keep the answer to a sync for a while; another timeout makes it another sync.
        let answer = connection.call(&syncing(&world.me, &filter, None, turn.number)).await?;
        *last.borrow_mut() = answer.clone();
        Ok(answer.len() as u64)
    });
    outcome.measures.push(first.await?);
    let answer = last.into_inner();
    let next = |since: &str| syncing(&world.me, &filter, Some(since), 0);
    let kind = Kind { name: "sync", next: &next, token: next_batch };
    further(context, options, world, &kind, next_batch(&answer)?, outcome).await
}

async fn sliding(context: &Context, options: &Syncs, world: &World, outcome: &mut Outcome) -> Result<()> {
    let answer = Connection::new(&context.server).call(&paging(&world.me, "warm-up", None)).await;
    if let Err(Failure::Refused { status: 400..=499, code, .. }) = answer {
        outcome.facts.insert("sliding".to_owned(), json!(format!("not offered: {code}")));
        return Ok(());
    }
    let most = options.first * PAGES_EACH;
    let plan = Loop { name: "first page of sliding sync", connections: 1, seconds: MOST_SECONDS, most };
    let first = closed_loop(context, &context.server, &plan, async |connection, turn| {
        let call = paging(&world.me, &format!("c{}", turn.number), None);
        Ok(connection.call(&call).await?.len() as u64)
    });
    outcome.measures.push(first.await?);
    let answer = Connection::new(&context.server).call(&paging(&world.me, "last", None)).await?;
    let next = |since: &str| paging(&world.me, "last", Some(since));
    let kind = Kind { name: "sliding sync", next: &next, token: position };
    further(context, options, world, &kind, position(&answer)?, outcome).await
}

fn position(answer: &[u8]) -> Result<&str, Failure> {
    find::text_after(answer, b"\"pos\":").ok_or(Failure::Malformed("pos"))
}

/// A sliding sync as apps make it: a list of rooms with what is shown of each.
fn paging(user: &User, connection: &str, position: Option<&str>) -> Call {
    let body = json!({
        "conn_id": connection,
        "lists": {"rooms": {
            "ranges": [[0, PAGE - 1]],
            "timeline_limit": 1,
            "required_state": [
                ["m.room.create", ""], ["m.room.encryption", ""], ["m.room.name", ""], ["m.room.avatar", ""],
                ["m.room.power_levels", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"],
            ],
        }},
        "extensions": {
            "to_device": {"enabled": true}, "e2ee": {"enabled": true}, "account_data": {"enabled": true},
            "receipts": {"enabled": true}, "typing": {"enabled": true},
        },
    });
    let position = position.map(|position| format!("&pos={}", escape(position))).unwrap_or_default();
    let path = format!("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0{position}");
    Call::post(path, body.to_string()).by(user)
}

/// Syncs each after one new message, of which only the sync is timed; then syncs without any.
async fn further(
    context: &Context,
    options: &Syncs,
    world: &World,
    kind: &Kind<'_>,
    from: &str,
    outcome: &mut Outcome,
) -> Result<()> {
    let (mut since, mut tally) = (from.to_owned(), Tally::default());
    let (mut writer, mut reader) = (Connection::new(&context.server), Connection::new(&context.server));
    let (deadline, name) = (Instant::now() + Duration::from_secs_f64(MOST_SECONDS), kind.name);
    context.progress.stage(&format!("{name} with a change"));
    let before = context.sample();
    for number in 0..options.further {
        if Instant::now() > deadline {
            break;
        }
        // Rooms in which the first of the others is, who made them.
        let room =
            number as usize * world.others.len() % world.rooms.len().next_multiple_of(world.others.len());
        let Some(room) = world.rooms.get(room) else { continue };
        let letter = context.unique();
        writer.prepare(&world.letters.sending(&context.mark, &world.others[0], room, letter)).await?;
        let began = Instant::now();
        let answer = reader.call(&(kind.next)(&since)).await?;
        let took = began.elapsed();
        let came = context.mark.numbers(&answer).any(|number| number == letter);
        let outcome = if came { Ok(answer.len() as u64) } else { Err(Failure::Malformed("new message")) };
        tally.note(took, &outcome);
        since = (kind.token)(&answer)?.to_owned();
        context.progress.show(|| number.to_string());
    }
    let used = before.until(&context.sample());
    let mut measure = Measure::new(&format!("{name} with a change"), &tally, &used);
    // These would be the message's costs too.
    measure.figures.retain(|figure, _| figure.ends_with("_ms") || figure == "answer_bytes_each");
    outcome.measures.push(measure);

    let name = format!("{name} without a change");
    let plan = Loop { name: &name, connections: 1, seconds: 3.0, most: options.further * 10 };
    let since = RefCell::new(since);
    let quiet = closed_loop(context, &context.server, &plan, async |connection, _| {
        let call = (kind.next)(&since.borrow());
        let answer = connection.call(&call).await?;
        *since.borrow_mut() = (kind.token)(&answer)?.to_owned();
        Ok(answer.len() as u64)
    });
    outcome.measures.push(quiet.await?);
    Ok(())
}
