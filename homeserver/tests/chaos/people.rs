//! The people: each holds a long poll and says, writes, reads and claims, and tries again what failed.

use crate::harness::dice::Dice;
use crate::harness::http::{Account, Tally, mark_of, sealed};
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// People to a room: each message wakes so many long polls.
pub const ROOM: usize = 8;
/// How long a poll waits.
const POLL_MS: u64 = 8000;
/// One-time keys that each begins with, and more when so few are left.
const KEYS: u64 = 10;
const FEW_KEYS: u64 = 4;
/// Requests of the preparations at a time.
const AT_ONCE: usize = 8;

/// What one has seen.
#[derive(Default)]
pub struct Seen {
    /// Events of their room, in the order in which they came: ids and marks.
    pub events: Vec<(String, String)>,
    /// How often each letter came.
    pub letters: HashMap<String, usize>,
    /// Receipts as they came: whose, and of which event.
    pub receipts: Vec<(String, String)>,
    /// Answers that had to be filled up.
    pub gaps: usize,
}

/// What was acknowledged to anybody.
#[derive(Default)]
pub struct Book {
    /// Events by mark.
    pub said: BTreeMap<String, String>,
    /// Letters by mark: the number of whom they are for.
    pub letters: BTreeMap<String, usize>,
    /// One-time keys by name: how often each was handed out.
    pub keys: BTreeMap<String, usize>,
    /// When events were acknowledged.
    pub times: Vec<Instant>,
}

pub struct Person {
    pub number: usize,
    pub account: Account,
    pub room: String,
    pub seen: Mutex<Seen>,
    since: Mutex<Option<String>>,
    next_key: Mutex<u64>,
}

/// All of them, and what they have in common.
pub struct People {
    pub all: Vec<Arc<Person>>,
    pub book: Mutex<Book>,
    pub tally: Arc<Tally>,
    pub dice: Arc<Dice>,
    /// No more is said.
    pub quiet: AtomicBool,
    /// No more is read.
    pub over: AtomicBool,
}

impl People {
    /// Registers `count` of them, in rooms of [`ROOM`].
    pub async fn gather(base: &str, count: usize, dice: Arc<Dice>) -> Arc<People> {
        use futures_util::{StreamExt, stream};
        let (client, tally) = (crate::harness::http::client(), Arc::<Tally>::default());
        let accounts: Vec<Account> = stream::iter(0..count)
            .map(|number| {
                let (base, client, tally) = (base.to_owned(), client.clone(), Arc::clone(&tally));
                async move {
                    let account = Account::register(&base, &format!("p{number:03}"), &client, &tally).await;
                    upload_keys(&account, 0, KEYS).await;
                    account
                }
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let groups: Vec<Vec<Account>> = accounts.chunks(ROOM).map(<[Account]>::to_vec).collect();
        let rooms: Vec<String> = stream::iter(groups).map(meet).buffered(AT_ONCE).collect().await;
        let all: Vec<Arc<Person>> = accounts
            .into_iter()
            .enumerate()
            .map(|(number, account)| {
                let room = rooms[number / ROOM].clone();
                let (seen, since, next_key) = (Mutex::default(), Mutex::default(), Mutex::new(KEYS));
                Arc::new(Person { number, account, room, seen, since, next_key })
            })
            .collect();
        Arc::new(People {
            all,
            book: Mutex::default(),
            tally,
            dice,
            quiet: AtomicBool::new(false),
            over: AtomicBool::new(false),
        })
    }

    /// One does something, and does it until it is done. With `deadline`, until then.
    pub async fn act(&self, person: &Person, mark: &str, what: u64, deadline: Instant) -> bool {
        match what {
            0..=4 => self.say(person, mark, deadline).await,
            5..=7 => self.write(person, mark, deadline).await,
            8 => person.read_up_to(deadline).await,
            _ => self.claim(person, deadline).await,
        }
    }

    async fn say(&self, person: &Person, mark: &str, deadline: Instant) -> bool {
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.encrypted/{mark}", person.room);
        let Some(said) = person.account.until(Method::PUT, &path, &sealed(mark), deadline).await else {
            return false;
        };
        let id = said["event_id"].as_str().unwrap().to_owned();
        let mut book = self.book.lock();
        book.said.insert(mark.to_owned(), id);
        book.times.push(Instant::now());
        true
    }

    async fn write(&self, person: &Person, mark: &str, deadline: Instant) -> bool {
        let to = self.anybody();
        let path = format!("/_matrix/client/v3/sendToDevice/m.room.encrypted/{mark}");
        let body = json!({"messages": {&to.account.user: {"DEVICE": sealed(mark)}}});
        let sent = person.account.until(Method::PUT, &path, &body, deadline).await.is_some();
        if sent {
            self.book.lock().letters.insert(mark.to_owned(), to.number);
        }
        sent
    }

    fn anybody(&self) -> &Person {
        &self.all[self.dice.below(self.all.len() as u64) as usize]
    }

    async fn claim(&self, person: &Person, deadline: Instant) -> bool {
        let whose = &self.anybody().account.user;
        if let Some(key) = claim(&person.account, whose, deadline).await {
            *self.book.lock().keys.entry(key).or_default() += 1;
        }
        true
    }

    /// Acts now and then: `rate` times a second, all together.
    pub async fn live(self: Arc<Self>, person: Arc<Person>, rate: f64) {
        let mean = self.all.len() as f64 / rate;
        for number in 0.. {
            let wait = Duration::from_millis(self.dice.below((mean * 2000.0) as u64));
            tokio::time::sleep(wait).await;
            if self.quiet.load(Ordering::Relaxed) {
                return;
            }
            let mark = format!("m{:03}.{number}.", person.number);
            // What is begun is brought to its end.
            let deadline = Instant::now() + Duration::from_mins(5);
            let done = self.act(&person, &mark, self.dice.below(10), deadline).await;
            assert!(done, "{mark} was not served for minutes");
        }
    }

    /// Holds a long poll until the end.
    pub async fn listen(self: Arc<Self>, person: Arc<Person>) {
        while !self.over.load(Ordering::Relaxed) {
            person.sync(POLL_MS).await;
        }
    }
}

/// Uploads `count` one-time keys, numbered from `first`.
async fn upload_keys(account: &Account, first: u64, count: u64) {
    let keys: serde_json::Map<String, Value> = (first..first + count)
        .map(|number| {
            let name = format!("{}-{number}", account.user);
            (format!("signed_curve25519:K{number:05}"), json!({"key": name, "signatures": {}}))
        })
        .collect();
    account.sure(Method::POST, "/_matrix/client/v3/keys/upload", &json!({ "one_time_keys": keys })).await;
}

/// Claims a one-time key of `whose`; its name, if there was one.
async fn claim(account: &Account, whose: &str, deadline: Instant) -> Option<String> {
    let body = json!({"one_time_keys": {whose: {"DEVICE": "signed_curve25519"}}});
    let got = account.until(Method::POST, "/_matrix/client/v3/keys/claim", &body, deadline).await?;
    let keys = got["one_time_keys"][whose]["DEVICE"].as_object()?;
    Some(keys.values().next()?["key"].as_str()?.to_owned())
}

/// A room of these people.
async fn meet(people: Vec<Account>) -> String {
    let rules = json!({"preset": "public_chat", "initial_state": [
        {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
    ]});
    let made = people[0].sure(Method::POST, "/_matrix/client/v3/createRoom", &rules).await;
    let room = made["room_id"].as_str().unwrap().to_owned();
    for person in &people[1..] {
        person.sure(Method::POST, &format!("/_matrix/client/v3/join/{room}"), &json!({})).await;
    }
    room
}

impl Person {
    /// One sync, until it is answered; what is new is noted.
    pub async fn sync(&self, wait: u64) {
        const FILTER: &str = "%7B%22presence%22%3A%7B%22limit%22%3A0%7D%2C%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A200%7D%7D%7D";
        let since = self.since.lock().clone();
        let mut path = format!("/_matrix/client/v3/sync?timeout={wait}&filter={FILTER}");
        if let Some(since) = &since {
            path.push_str("&since=");
            path.push_str(since);
        }
        let answer = self.account.sure(Method::GET, &path, &Value::Null).await;
        let room = &answer["rooms"]["join"][&self.room];
        let timeline = &room["timeline"];
        let mut events: Vec<(String, String)> = sealed_of(&timeline["events"]);
        if since.is_some() && timeline["limited"] == true {
            events = self.fill(timeline["prev_batch"].as_str().unwrap(), events).await;
        }
        let few =
            answer["device_one_time_keys_count"]["signed_curve25519"].as_u64().is_some_and(|n| n < FEW_KEYS);
        {
            let mut seen = self.seen.lock();
            seen.events.extend(events);
            for letter in answer["to_device"]["events"].as_array().into_iter().flatten() {
                if let Some(mark) = mark_of(letter) {
                    *seen.letters.entry(mark.to_owned()).or_default() += 1;
                }
            }
            for event in room["ephemeral"]["events"].as_array().into_iter().flatten() {
                let receipts = event["content"].as_object().filter(|_| event["type"] == "m.receipt");
                for (id, kinds) in receipts.into_iter().flatten() {
                    for user in kinds["m.read"].as_object().into_iter().flatten().map(|(user, _)| user) {
                        seen.receipts.push((user.clone(), id.clone()));
                    }
                }
            }
        }
        *self.since.lock() = answer["next_batch"].as_str().map(str::to_owned);
        if few {
            let first = {
                let mut next = self.next_key.lock();
                *next += KEYS;
                *next - KEYS
            };
            upload_keys(&self.account, first, KEYS).await;
        }
    }

    /// What is between the newest event that is known and `events`, and these.
    async fn fill(&self, prev: &str, events: Vec<(String, String)>) -> Vec<(String, String)> {
        let newest = self.seen.lock().events.last().map(|(id, _)| id.clone());
        let mut missing = Vec::new();
        let mut from = prev.to_owned();
        'pages: loop {
            let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100&from={from}", self.room);
            let page = self.account.sure(Method::GET, &path, &Value::Null).await;
            for event in sealed_of(&page["chunk"]) {
                if Some(&event.0) == newest.as_ref() {
                    break 'pages;
                }
                missing.push(event);
            }
            match page["end"].as_str() {
                Some(end) => end.clone_into(&mut from),
                None => break,
            }
        }
        self.seen.lock().gaps += 1;
        missing.reverse();
        missing.extend(events);
        missing
    }

    /// Says that it has read what it has seen.
    async fn read_up_to(&self, deadline: Instant) -> bool {
        let newest = self.seen.lock().events.last().map(|(id, _)| id.clone());
        let Some(id) = newest else { return true };
        let path =
            format!("/_matrix/client/v3/rooms/{}/receipt/m.read/{}", self.room, id.replace('$', "%24"));
        self.account.until(Method::POST, &path, &json!({}), deadline).await.is_some()
    }

    /// All events of the room, oldest first, as the node at `base` tells them.
    pub async fn history(&self, base: &str) -> Vec<(String, String)> {
        let mut account = self.account.clone();
        base.clone_into(&mut account.base);
        let mut all = Vec::new();
        let mut path = format!("/_matrix/client/v3/rooms/{}/messages?dir=f&limit=500", self.room);
        loop {
            let page = account.sure(Method::GET, &path, &Value::Null).await;
            all.extend(sealed_of(&page["chunk"]));
            let Some(end) = page["end"].as_str() else { return all };
            path = format!("/_matrix/client/v3/rooms/{}/messages?dir=f&limit=500&from={end}", self.room);
        }
    }
}

/// The sealed ones of these events: ids and marks.
fn sealed_of(events: &Value) -> Vec<(String, String)> {
    let events = events.as_array().into_iter().flatten();
    events
        .filter(|event| event["type"] == "m.room.encrypted")
        .filter_map(|event| Some((event["event_id"].as_str()?.to_owned(), mark_of(event)?.to_owned())))
        .collect()
}
