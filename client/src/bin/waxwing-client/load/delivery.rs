//! Open-loop delivery: messages at a fixed rate into rooms whose members all hold a long poll, whatever the server
//! makes of it. The rate can be raised to the highest at which the slowest hundredth still arrives in time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use super::{
    Outcome,
    accounts::User,
    context::Context,
    http::Connection,
    listeners::{self, Arrivals, Board},
    measure::{Measure, Tally, round},
    rooms::{self, Letters},
    sample::Used,
};

/// The slowest hundredth of deliveries must be faster than this for a rate to count as held.
const IN_TIME_MS: f64 = 500.0;
/// How many messages may be due and not yet sent, in seconds of the rate: with more, the server does not hold it.
const BACKLOG_SECONDS: f64 = 2.0;
/// After the last message was sent, arrivals are waited for this long.
const DRAIN: Duration = Duration::from_secs(10);
/// Messages of one stretch at most.
const MOST_MESSAGES: u64 = 2_000_000;
/// Long polls at most.
const MOST_LISTENERS: usize = 10_000;
/// Stretches of a search for the highest rate at most.
const MOST_STEPS: usize = 24;
/// The search ends when the lowest rate that failed is no more than this above the highest that held.
const CLOSE_ENOUGH: f64 = 1.1;
/// Below this rate, in messages a second, the search is given up.
const LOWEST_RATE: f64 = 0.25;
/// The rest after a rate that was too high.
const REST: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args, Serialize)]
pub struct Delivery {
    /// Rooms
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub rooms: usize,
    /// Members of each room who hold a long poll; no two rooms share any
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub members: usize,
    /// Further members of each room who are not connected
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub silent: usize,
    /// Messages a second, all rooms together
    #[arg(long, default_value_t = 5.0, value_name = "PER_SECOND")]
    pub rate: f64,
    /// Raise or lower the rate to the highest at which 99 % of deliveries take less than 500 ms
    #[arg(long)]
    pub step: bool,
    /// How long each rate is measured
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// Connections over which messages are sent
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    pub senders: usize,
}

/// A room with those who send and those who listen.
pub struct Room {
    pub id: String,
    pub senders: Vec<Arc<User>>,
    pub listeners: Vec<Arc<User>>,
}

/// Rooms whose listeners hold their polls, as long as it exists.
pub struct Hall<'a> {
    context: &'a Context,
    rooms: Arc<Vec<Room>>,
    board: Arc<Board>,
    letters: Arc<Letters>,
    senders: usize,
    _polls: JoinSet<()>,
}

/// One stretch at one rate.
pub struct Stretch {
    pub measure: Measure,
    /// Whether the rate was held: everything arrived, and in time.
    pub held: bool,
}

pub async fn run(context: &Context, options: &Delivery) -> Result<Outcome> {
    ensure!(options.rooms > 0 && options.members > 0, "at least one room with one member");
    ensure!(options.rate > 0.0 && options.seconds > 0.0, "the rate and the seconds must be above nothing");
    let rooms = local_rooms(context, options.rooms, options.members, options.silent).await?;
    let hall = Hall::open(context, Arc::new(rooms), options.senders).await?;
    let search = Search { name: "deliver", rate: options.rate, seconds: options.seconds, step: options.step };
    measure_hall(&hall, &search).await
}

/// What is measured in a hall.
pub struct Search<'a> {
    pub name: &'a str,
    /// Messages a second, at first.
    pub rate: f64,
    pub seconds: f64,
    /// Whether the highest rate that holds is looked for.
    pub step: bool,
}

/// Measures one rate, or the highest that holds.
pub async fn measure_hall(hall: &Hall<'_>, search: &Search<'_>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    // What is made on first use is not of interest.
    hall.stretch("warm-up", search.rate, search.seconds.min(2.0)).await?;
    if search.step {
        highest(hall, search, &mut outcome).await?;
    } else {
        outcome.measures.push(hall.stretch(search.name, search.rate, search.seconds).await?.measure);
    }
    Ok(outcome)
}

/// Rooms of members who listen and members who do not; the silent ones are the same in all rooms.
pub async fn local_rooms(
    context: &Context,
    rooms: usize,
    members: usize,
    silent: usize,
) -> Result<Vec<Room>> {
    let people = context.people(&context.server, rooms * members).await?;
    let people: Vec<Arc<User>> = people.into_iter().map(Arc::new).collect();
    let silent = context.people(&context.server, silent).await?;
    let lists: Vec<Vec<&User>> =
        people.chunks(members).map(|list| list.iter().map(AsRef::as_ref).chain(&silent).collect()).collect();
    let ids = rooms::gather(context, &lists).await?;
    let room = |(id, members): (String, &[Arc<User>])| Room {
        id,
        senders: members.to_vec(),
        listeners: members.to_vec(),
    };
    Ok(ids.into_iter().zip(people.chunks(members)).map(room).collect())
}

async fn highest(hall: &Hall<'_>, search: &Search<'_>, outcome: &mut Outcome) -> Result<()> {
    let name = format!("{} at the highest rate", search.name);
    let (mut rate, mut held, mut failed) = (search.rate, None::<(f64, Measure)>, None::<f64>);
    let mut steps = Vec::new();
    for _ in 0..MOST_STEPS {
        let stretch = hall.stretch(&name, rate, search.seconds).await?;
        let p99 = stretch.measure.figure("p99_ms");
        steps.push(json!({"rate": round(rate), "p99_ms": p99, "held": stretch.held}));
        if stretch.held {
            held = Some((rate, stretch.measure));
        } else {
            failed = Some(rate);
            tokio::time::sleep(REST).await;
        }
        match next_rate(held.as_ref().map(|(rate, _)| *rate), failed) {
            Some(next) => rate = next,
            None => break,
        }
    }
    outcome.facts.insert("steps".to_owned(), json!(steps));
    ensure!(held.is_some(), "no rate was held, however low");
    outcome.measures.extend(held.map(|(_, measure)| measure));
    Ok(())
}

/// The rate to try after the highest that held and the lowest that failed; `None` when they are close enough.
fn next_rate(held: Option<f64>, failed: Option<f64>) -> Option<f64> {
    match (held, failed) {
        (Some(held), Some(failed)) => (failed > held * CLOSE_ENOUGH).then(|| (held * failed).sqrt()),
        (Some(held), None) => Some(held * 2.0),
        (None, Some(failed)) => Some(failed / 2.0).filter(|rate| *rate >= LOWEST_RATE),
        (None, None) => None,
    }
}

impl<'a> Hall<'a> {
    /// Lets all listeners poll. They must be members already.
    pub async fn open(context: &'a Context, rooms: Arc<Vec<Room>>, senders: usize) -> Result<Self> {
        let people: Vec<Arc<User>> = rooms.iter().flat_map(|room| room.listeners.clone()).collect();
        ensure!(people.len() <= MOST_LISTENERS, "at most {MOST_LISTENERS} long polls");
        super::limits::files(people.len() + senders)?;
        let ready = listeners::ready(context, &people).await?;
        let board = Arc::new(Board::default());
        let polls = listeners::listen(&board, &context.mark, ready).await?;
        let letters = Arc::new(Letters::new());
        Ok(Self { context, rooms, board, letters, senders, _polls: polls })
    }

    /// Sends at the rate for so long, and measures when it arrives. Costs are per message, not per delivery.
    pub async fn stretch(&self, name: &str, rate: f64, seconds: f64) -> Result<Stretch> {
        let count = ((rate * seconds).ceil() as u64).clamp(1, MOST_MESSAGES);
        self.context.progress.stage(&format!("{name}: {rate:.1} messages a second"));
        let first = self.context.unique_run(count);
        let mut connections = Vec::new();
        for _ in 0..self.senders {
            let mut connection = Connection::new(&self.context.server);
            connection.open().await?;
            connections.push(connection);
        }
        let (before, other) = (self.context.sample(), self.context.other_sampler.sample());
        let (began, interval) = (Instant::now(), Duration::from_secs_f64(1.0 / rate));
        self.board.begin(first, count, began, interval);
        let room_for = (rate * BACKLOG_SECONDS).ceil() as usize + self.senders;
        let (due, queue) = mpsc::channel(room_for);
        let overloaded = Arc::new(AtomicBool::new(false));
        let pacer = std::thread::spawn({
            let overloaded = Arc::clone(&overloaded);
            move || pace(began, interval, first..first + count, &due, &overloaded)
        });
        let sent = self.send_all(connections, queue).await?;
        let _ = pacer.join();
        let arrivals = self.board.finish(sent.deliveries, DRAIN).await;
        let used = before.until(&self.context.sample());
        let overloaded = overloaded.load(Ordering::Relaxed);
        let mut measure = measure(name, rate, &sent, &arrivals, &used, overloaded);
        if let Some(server) = other.until(&self.context.other_sampler.sample()).server {
            measure.set("other_cpu_ms_each", server.cpu_ms / sent.tally.times.count().max(1) as f64);
        }
        let in_time = measure.figure("p99_ms").is_some_and(|p99| p99 < IN_TIME_MS);
        let held = in_time && !overloaded && sent.tally.failures == 0 && arrivals.missing == 0;
        Ok(Stretch { measure, held })
    }

    async fn send_all(&self, connections: Vec<Connection>, queue: mpsc::Receiver<u64>) -> Result<Sent> {
        let queue = Arc::new(Mutex::new(queue));
        let mut tasks = JoinSet::new();
        for mut connection in connections {
            let (rooms, queue) = (Arc::clone(&self.rooms), Arc::clone(&queue));
            let (letters, mark) = (Arc::clone(&self.letters), self.context.mark.clone());
            tasks.spawn(async move {
                let mut sent = Sent::default();
                loop {
                    let next = queue.lock().await.recv().await;
                    let Some(number) = next else { return sent };
                    let (room, sender) = place(&rooms, number);
                    let call = letters.sending(&mark, sender, &room.id, number);
                    let began = Instant::now();
                    let outcome = connection.call(&call).await.map(|_| 0);
                    if outcome.is_ok() {
                        sent.deliveries += room.listeners.len() as u64;
                    }
                    sent.tally.note(began.elapsed(), &outcome);
                }
            });
        }
        let mut all = Sent::default();
        while let Some(sent) = tasks.join_next().await {
            let sent = sent?;
            all.deliveries += sent.deliveries;
            all.tally.merge(&sent.tally);
        }
        Ok(all)
    }
}

/// What the senders did.
#[derive(Default)]
struct Sent {
    tally: Tally,
    /// How many deliveries the messages that were taken must lead to.
    deliveries: u64,
}

/// The room and the sender of a message: all rooms in turn, and in each room all senders in turn.
fn place(rooms: &[Room], number: u64) -> (&Room, &User) {
    let number = number as usize;
    let room = &rooms[number % rooms.len()];
    (room, &room.senders[number / rooms.len() % room.senders.len()])
}

/// Gives each message out when it is due. In a thread of its own: the runtime's timers round to whole milliseconds.
fn pace(
    began: Instant,
    interval: Duration,
    numbers: std::ops::Range<u64>,
    due: &mpsc::Sender<u64>,
    overloaded: &AtomicBool,
) {
    let first = numbers.start;
    for number in numbers {
        let at = began + Duration::from_secs_f64(interval.as_secs_f64() * (number - first) as f64);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        match due.try_send(number) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                overloaded.store(true, Ordering::Relaxed);
                return;
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

fn measure(
    name: &str,
    rate: f64,
    sent: &Sent,
    arrivals: &Arrivals,
    used: &Used,
    overloaded: bool,
) -> Measure {
    let messages = sent.tally.times.count();
    let tally =
        Tally { times: arrivals.times.clone(), errors: sent.tally.errors.clone(), ..Tally::default() };
    let mut measure = Measure::new(name, &tally, used);
    // A message's cost is of interest; how many people it reaches is part of the question.
    measure.set_costs(messages, used);
    measure.set("rate", rate);
    measure.set("messages", messages as f64);
    measure.set_some("send_p50_ms", sent.tally.times.quantile(0.5));
    measure.set_some("send_p99_ms", sent.tally.times.quantile(0.99));
    let odd = [("missing", arrivals.missing), ("repeated", arrivals.repeated)];
    for (what, count) in odd.into_iter().chain([("failed_polls", arrivals.failed_polls)]) {
        if count > 0 {
            measure.set(what, count as f64);
        }
    }
    if overloaded {
        measure.set("overloaded", 1.0);
    }
    measure
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that holds rates up to a limit.
    fn find(limit: f64, start: f64) -> (Option<f64>, usize) {
        let (mut rate, mut held, mut failed) = (start, None, None);
        for step in 1..=MOST_STEPS {
            if rate <= limit {
                held = Some(rate);
            } else {
                failed = Some(rate);
            }
            match next_rate(held, failed) {
                Some(next) => rate = next,
                None => return (held, step),
            }
        }
        (held, MOST_STEPS)
    }

    #[test]
    fn the_search_ends_close_below_the_limit() {
        for (limit, start) in [(10.4, 5.0), (1300.0, 100.0), (3.0, 100.0), (1.0, 1.0)] {
            let (found, steps) = find(limit, start);
            let found = found.unwrap();
            assert!(found <= limit && found * CLOSE_ENOUGH >= limit, "{found} for {limit}");
            assert!(steps < 14, "{steps} steps for {limit}");
        }
        assert_eq!(find(0.01, 5.0).0, None);
    }

    #[test]
    fn messages_are_due_at_their_time_and_a_full_queue_ends_it() {
        let (due, mut queue) = mpsc::channel(100);
        let overloaded = AtomicBool::new(false);
        let began = Instant::now();
        pace(began, Duration::from_millis(2), 7..17, &due, &overloaded);
        assert!(began.elapsed() >= Duration::from_millis(18) && !overloaded.load(Ordering::Relaxed));
        let numbers: Vec<u64> = std::iter::from_fn(|| queue.try_recv().ok()).collect();
        assert_eq!(numbers, (7..17).collect::<Vec<_>>());
        let (due, _queue) = mpsc::channel(3);
        pace(Instant::now(), Duration::ZERO, 0..10, &due, &overloaded);
        assert!(overloaded.load(Ordering::Relaxed));
    }
}
