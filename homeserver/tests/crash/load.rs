//! Sixty-four at a time who send, join and leave, claim keys and upload files, and remember what was acknowledged.

use crate::harness::dice::Dice;
use crate::harness::http::{Account, Tally, client, mark_of, sealed};
use futures_util::future::join_all;
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const SENDERS: usize = 36;
const MOVERS: usize = 10;
const CLAIMERS: usize = 9;
const UPLOADERS: usize = 9;
/// Rooms that senders share.
const ROOMS: usize = 6;
/// Keys that are uploaded when there are none.
const KEYS: u64 = 20;
/// A round is not waited for longer.
const BUSY: Duration = Duration::from_secs(4);
/// Questions at a time, when what was acknowledged is looked up.
const AT_ONCE: usize = 16;
/// A file: several parts on its way.
const FILE: usize = 100_000;

/// Somebody who joins and leaves.
struct Mover {
    account: Account,
    /// What was acknowledged last.
    is: &'static str,
    /// What was asked for and not acknowledged.
    may_be: Option<&'static str>,
}

#[derive(Default)]
struct Book {
    /// Acknowledged events, by mark.
    said: BTreeMap<String, String>,
    /// Those of the last round.
    newest: Vec<(usize, String)>,
    /// Not acknowledged: to be sent again, by sender.
    open: BTreeMap<usize, String>,
    keys: BTreeSet<String>,
    /// Acknowledged files with what is in them; those of the last round.
    files: BTreeMap<String, String>,
    newest_files: Vec<String>,
}

pub struct Load {
    people: Vec<Account>,
    rooms: Vec<String>,
    movers: Vec<tokio::sync::Mutex<Mover>>,
    book: Mutex<Book>,
    next: AtomicU64,
    acknowledged: AtomicU64,
    joins: AtomicU64,
    next_key: AtomicU64,
    dice: Arc<Dice>,
}

/// One round: until the server is gone.
pub struct Round {
    over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Round {
    /// Waits until everybody has noticed.
    pub async fn end(mut self) {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

impl Load {
    /// Makes the accounts and the rooms.
    pub async fn prepare(base: &str, dice: Arc<Dice>) -> Arc<Load> {
        let (client, tally) = (client(), Arc::<Tally>::default());
        let mut people = Vec::new();
        for number in 0..ROOMS {
            people.push(Account::register(base, &format!("person{number}"), &client, &tally).await);
        }
        let mut rooms = Vec::new();
        for person in &people {
            let rules = json!({"preset": "public_chat", "initial_state": [
                {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
            ]});
            let made = person.sure(Method::POST, "/_matrix/client/v3/createRoom", &rules).await;
            rooms.push(made["room_id"].as_str().unwrap().to_owned());
        }
        let mut movers = Vec::new();
        for number in 0..MOVERS {
            let account = Account::register(base, &format!("mover{number}"), &client, &tally).await;
            movers.push(tokio::sync::Mutex::new(Mover { account, is: "", may_be: None }));
        }
        Arc::new(Load {
            people,
            rooms,
            movers,
            book: Mutex::default(),
            next: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            joins: AtomicU64::new(0),
            next_key: AtomicU64::new(0),
            dice,
        })
    }

    /// Everybody begins.
    pub fn begin(self: &Arc<Self>) -> Round {
        {
            let mut book = self.book.lock();
            book.newest.clear();
            book.newest_files.clear();
        }
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for worker in 0..SENDERS + MOVERS + CLAIMERS + UPLOADERS {
            let (this, over) = (Arc::clone(self), Arc::clone(&over));
            tasks.spawn(async move {
                while !over.load(Ordering::Relaxed) && this.work(worker).await {
                    this.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Round { over, tasks }
    }

    /// Waits until so much more was acknowledged, or for a while where the machine has other work too.
    pub async fn until_acknowledged(&self, more: u64) {
        let (before, deadline) = (self.acknowledged.load(Ordering::Relaxed), Instant::now() + BUSY);
        while self.acknowledged.load(Ordering::Relaxed) < before + more && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// One piece of work; false when the server is gone.
    async fn work(&self, worker: usize) -> bool {
        match worker {
            0..SENDERS => self.send(worker).await,
            _ if worker < SENDERS + MOVERS => self.travel(worker - SENDERS).await,
            _ if worker < SENDERS + MOVERS + CLAIMERS => self.claim(worker).await,
            _ => self.upload(worker).await,
        }
    }

    async fn send(&self, worker: usize) -> bool {
        let room = worker % ROOMS;
        // What was not acknowledged is sent again, as clients do.
        let mark = self.book.lock().open.remove(&worker);
        let mark = mark.unwrap_or_else(|| format!("{room}.{}.", self.next.fetch_add(1, Ordering::Relaxed)));
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.encrypted/{mark}", self.rooms[room]);
        match self.people[room].once(Method::PUT, &path, &sealed(&mark)).await {
            Ok((200, said)) => {
                let id = said["event_id"].as_str().unwrap().to_owned();
                let mut book = self.book.lock();
                book.said.insert(mark, id.clone());
                book.newest.push((room, id));
                true
            }
            failed => {
                self.book.lock().open.insert(worker, mark);
                only_gone(failed)
            }
        }
    }

    async fn travel(&self, number: usize) -> bool {
        let mut mover = self.movers[number].lock().await;
        let room = &self.rooms[number % ROOMS];
        let next = if mover.is == "join" { "leave" } else { "join" };
        mover.may_be = Some(next);
        let path = format!("/_matrix/client/v3/rooms/{room}/{next}");
        match mover.account.once(Method::POST, &path, &json!({})).await {
            Ok((200, _)) => {
                mover.is = next;
                mover.may_be = None;
                self.joins.fetch_add(1, Ordering::Relaxed);
                true
            }
            failed => only_gone(failed),
        }
    }

    async fn claim(&self, worker: usize) -> bool {
        let of = self.people[worker % ROOMS].clone();
        let body = json!({"one_time_keys": {&of.user: {"DEVICE": "signed_curve25519"}}});
        let got = match of.once(Method::POST, "/_matrix/client/v3/keys/claim", &body).await {
            Ok((200, got)) => got,
            failed => return only_gone(failed),
        };
        let keys = got["one_time_keys"][&of.user]["DEVICE"].as_object();
        if let Some(key) = keys.and_then(|keys| keys.values().next()).and_then(|key| key["key"].as_str()) {
            let new = self.book.lock().keys.insert(key.to_owned());
            assert!(new, "the key {key} was handed out twice");
            return true;
        }
        let first = self.next_key.fetch_add(KEYS, Ordering::Relaxed);
        let keys: serde_json::Map<String, Value> = (first..first + KEYS)
            .map(|key| {
                (format!("signed_curve25519:K{key:07}"), json!({"key": format!("{key}"), "signatures": {}}))
            })
            .collect();
        let body = json!({ "one_time_keys": keys });
        match of.once(Method::POST, "/_matrix/client/v3/keys/upload", &body).await {
            Ok((200, _)) => true,
            failed => only_gone(failed),
        }
    }

    async fn upload(&self, worker: usize) -> bool {
        let content = format!("{}-{}", self.dice.below(u64::MAX), "x".repeat(FILE));
        let person = &self.people[worker % ROOMS];
        match person.once(Method::POST, "/_matrix/media/v3/upload", &Value::String(content.clone())).await {
            Ok((200, made)) => {
                let address = made["content_uri"].as_str().unwrap().trim_start_matches("mxc://").to_owned();
                let mut book = self.book.lock();
                book.files.insert(address.clone(), content);
                book.newest_files.push(address);
                true
            }
            failed => only_gone(failed),
        }
    }

    /// What was acknowledged in the last round is there.
    pub async fn check_newest(&self) {
        let (events, files) = {
            let book = self.book.lock();
            (book.newest.clone(), book.newest_files.clone())
        };
        for some in events.chunks(AT_ONCE) {
            join_all(some.iter().map(|(room, id)| self.check_event(*room, id))).await;
        }
        let movers = self.movers.iter().enumerate();
        join_all(
            movers.map(async |(number, mover)| self.check_mover(number, &mut *mover.lock().await).await),
        )
        .await;
        self.check_files(&files).await;
    }

    async fn check_event(&self, room: usize, id: &str) {
        let path = format!("/_matrix/client/v3/rooms/{}/event/{}", self.rooms[room], id.replace('$', "%24"));
        let found = self.people[room].sure(Method::GET, &path, &Value::Null).await;
        assert_eq!(found["event_id"], id);
    }

    async fn check_mover(&self, number: usize, mover: &mut Mover) {
        let room = number % ROOMS;
        let path = format!(
            "/_matrix/client/v3/rooms/{}/state/m.room.member/{}",
            self.rooms[room], mover.account.user
        );
        let deadline = Instant::now() + Duration::from_secs(10);
        let found = loop {
            match self.people[room].once(Method::GET, &path, &Value::Null).await {
                Ok((200, found)) => break found["membership"].as_str().unwrap().to_owned(),
                Ok((404, _)) => break String::new(),
                other => assert!(Instant::now() < deadline, "{other:?}"),
            }
        };
        let user = &mover.account.user;
        if found == mover.is {
            mover.may_be = None;
        } else if mover.may_be == Some(found.as_str()) {
            mover.is = mover.may_be.take().unwrap();
        } else {
            panic!("{user}: {found:?} is neither {:?} nor {:?}", mover.is, mover.may_be);
        }
    }

    async fn check_files(&self, addresses: &[String]) {
        for some in addresses.chunks(AT_ONCE) {
            join_all(some.iter().map(|address| self.check_file(address))).await;
        }
    }

    async fn check_file(&self, address: &str) {
        let wanted = self.book.lock().files[address].clone();
        let path = format!("/_matrix/client/v1/media/download/{address}");
        let found = self.people[0].sure(Method::GET, &path, &Value::Null).await;
        assert!(found == Value::String(wanted), "{address} is not what was uploaded");
    }

    /// Everything that was ever acknowledged is there, once.
    pub async fn check_all(&self) {
        let mut there: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (room, person) in self.rooms.iter().zip(&self.people) {
            let mut path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=f&limit=500");
            loop {
                let page = person.sure(Method::GET, &path, &Value::Null).await;
                for event in page["chunk"].as_array().into_iter().flatten() {
                    if let Some(mark) = mark_of(event) {
                        let id = event["event_id"].as_str().unwrap().to_owned();
                        there.entry(mark.to_owned()).or_default().push(id);
                    }
                }
                let Some(end) = page["end"].as_str() else { break };
                path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=f&limit=500&from={end}");
            }
        }
        let (said, files) = {
            let book = self.book.lock();
            (book.said.clone(), book.files.keys().cloned().collect::<Vec<_>>())
        };
        for (mark, ids) in &there {
            assert_eq!(ids.len(), 1, "{mark} is there as {ids:?}");
        }
        for (mark, id) in said {
            assert_eq!(there.get(&mark), Some(&vec![id]), "{mark} was acknowledged");
        }
        self.check_files(&files).await;
    }

    /// What was done.
    pub fn summary(&self) -> String {
        let book = self.book.lock();
        format!(
            "{} events, {} joins and leaves, {} keys, {} files acknowledged",
            book.said.len(),
            self.joins.load(Ordering::Relaxed),
            book.keys.len(),
            book.files.len(),
        )
    }
}

/// A server that was killed does not answer; what it answers must be right. Always false: the round is over.
fn only_gone(outcome: Result<(u16, Value), String>) -> bool {
    if let Ok((status, body)) = outcome {
        assert!(status >= 500, "{status} {body}");
    }
    false
}
