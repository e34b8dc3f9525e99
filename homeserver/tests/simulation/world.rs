//! Servers, the people on them, and what happens to them.

use crate::dice::Dice;
use crate::net::{ECHOES, Link, Net};
use crate::node::{Act, Node, View};
use crate::pure::Pure;
use crate::whole::Whole;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use waxwing_federation::transport::Transport;
use waxwing_model::Clock;
use waxwing_rooms::{KeyPair, version};

/// When a simulation begins, milliseconds since the epoch.
const START: u64 = 1_700_000_000_000;
/// After an outage of so long a destination is sent the newest event of each room only, as the sender does.
const CATCH_UP_AFTER: u64 = 60 * 60 * 1000;

/// What the servers of a simulation are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Our federation and room packages over memory.
    Pure,
    /// Our services over databases.
    Whole,
}

/// A transaction under way: sent again as it is until it is accepted.
#[derive(Clone)]
struct Open {
    txn: String,
    body: Arc<RawValue>,
    upto: i64,
}

pub struct World {
    pub kind: Kind,
    pub dice: Dice,
    pub net: Arc<Net>,
    pub nodes: Vec<Arc<dyn Node>>,
    /// The server that plays foul; its software is ours, so that it knows what honest ones believe.
    pub hostile: Option<usize>,
    pub rooms: Vec<OwnedRoomId>,
    pub trace: Vec<String>,
    pub counter: u64,
    /// Servers nobody of which may speak in a room: they cannot say what they have seen alone.
    pub speechless: BTreeSet<(usize, OwnedRoomId)>,
    open: BTreeMap<(usize, OwnedServerName), Open>,
    failing: BTreeMap<(usize, OwnedServerName), u64>,
    echoes: Vec<(usize, OwnedServerName, Open)>,
}

fn server_name(index: usize) -> OwnedServerName {
    OwnedServerName::try_from(format!("s{index}.test")).expect("a name")
}

/// The people of a server.
pub fn users_of(index: usize) -> [OwnedUserId; 2] {
    ["a", "b"].map(|name| OwnedUserId::try_from(format!("@{name}:{}", server_name(index))).expect("a user"))
}

fn is_privileged(version: &RoomVersionId) -> bool {
    version::rules(version).is_some_and(|rules| rules.authorization.explicitly_privilege_room_creators)
}

impl World {
    pub async fn new(kind: Kind, seed: u64, folder: &Path) -> World {
        waxwing_model::repeat_ids(seed);
        let mut dice = Dice::new(seed);
        let net = Net::new(seed);
        let count = 3 + dice.below(2);
        let hostile = dice.chance(60).then_some(count - 1);
        let mut nodes: Vec<Arc<dyn Node>> = Vec::new();
        for index in 0..count {
            let key = KeyPair::from_seed([index as u8 + 1; 32], "k").expect("a key");
            let clock = Clock::manual(START + dice.draw() % 3000);
            let node: Arc<dyn Node> = match kind {
                Kind::Pure => Arc::new(Pure::start(&net, server_name(index), key, clock)),
                Kind::Whole => Arc::new(Whole::start(&net, server_name(index), key, clock, folder).await),
            };
            net.add(Arc::clone(&node));
            nodes.push(node);
        }
        World {
            kind,
            dice,
            net,
            nodes,
            hostile,
            rooms: Vec::new(),
            trace: Vec::new(),
            counter: 0,
            speechless: BTreeSet::new(),
            open: BTreeMap::new(),
            failing: BTreeMap::new(),
            echoes: Vec::new(),
        }
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.trace.push(text.into());
    }

    pub fn honest(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| Some(*index) != self.hostile).collect()
    }

    pub fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Time goes on for everybody.
    pub fn pass(&mut self, millis: u64) {
        self.net.step();
        for node in &self.nodes {
            node.clock().advance(millis);
        }
    }

    /// A room with users of each server in it.
    pub async fn found(&mut self, version: &RoomVersionId) {
        let creator = users_of(0)[0].clone();
        let mut users = serde_json::Map::new();
        for index in 0..self.nodes.len() {
            for user in users_of(index) {
                let level = *self.dice.pick(&[0, 0, 50, 50, 60, 100]);
                if level > 0 && user != creator {
                    users.insert(user.to_string(), level.into());
                }
            }
        }
        if !is_privileged(version) {
            users.insert(creator.to_string(), 100.into());
        }
        let levels = json!({
            "users": users, "users_default": 0, "events_default": 0, "state_default": 50,
            "ban": 50, "kick": 50, "invite": 0, "redact": 50, "events": { "m.room.power_levels": 50 },
        });
        let name = self.next_number();
        let create = Act::Create { user: creator, version: version.clone(), levels, name };
        let room = self.nodes[0].act(&create).await.expect("a room").expect("its id");
        self.note(format!("{room} of version {version}"));
        self.rooms.push(room.clone());
        self.pass(1000);
        for index in 0..self.nodes.len() {
            for user in users_of(index) {
                if user.localpart() == "a" || self.dice.chance(50) {
                    let join = Act::Join { room: room.clone(), user, via: vec![server_name(0)] };
                    self.nodes[index].act(&join).await.expect("an open room");
                    self.pass(100);
                }
            }
            self.flush().await;
            // Half of the servers begin without the members of others.
            if self.kind == Kind::Whole && self.dice.chance(50) {
                self.take_members(false).await;
            }
        }
    }

    /// Something happens.
    pub async fn step(&mut self) {
        let millis = 1 + self.dice.draw() % 4000;
        self.pass(millis);
        // Of a hundred: acts, deliveries, weather, echoes, staged events, members, hours that pass; the rest is foul play.
        let bounds = match self.kind {
            Kind::Pure => [45, 75, 84, 88, 90, 90, 92],
            Kind::Whole => [43, 73, 82, 86, 88, 91, 93],
        };
        let roll = self.dice.below(100);
        match bounds.iter().position(|bound| roll < *bound) {
            Some(0) => self.somebody_acts().await,
            Some(1) => {
                for _ in 0..=self.dice.below(3) {
                    self.deliver_some().await;
                }
            }
            Some(2) => self.weather(),
            Some(3) => self.echo().await,
            Some(4) => self.take_staged().await,
            Some(5) => self.take_members(true).await,
            Some(6) => self.pass(2 * CATCH_UP_AFTER),
            _ => crate::hostile::strike(self).await,
        }
    }

    async fn deliver_some(&mut self) {
        let from = self.dice.below(self.nodes.len());
        if let Some(sent) = self.nodes[from].send_due().await {
            self.note(format!("s{from} sends what is due: {sent}"));
            return;
        }
        let waiting = self.nodes[from].waiting().await;
        if !waiting.is_empty() {
            let to = self.dice.pick(&waiting).clone();
            self.deliver(from, &to).await;
        }
    }

    /// One transaction, as the sender makes it. Whether it was accepted.
    async fn deliver(&mut self, from: usize, to: &OwnedServerName) -> bool {
        let node = Arc::clone(&self.nodes[from]);
        let now = node.clock().millis();
        let key = (from, to.clone());
        let open = match self.open.get(&key) {
            Some(open) => open.clone(),
            None => {
                let catch_up = self.failing.get(&key).is_some_and(|since| now - since >= CATCH_UP_AFTER);
                let Some(batch) = node.batch(to, catch_up).await else { return false };
                let pdus: Vec<&RawValue> = batch.pdus.iter().map(|pdu| &**pdu).collect();
                let edus: Vec<&RawValue> = batch.edus.iter().map(|edu| &**edu).collect();
                let body =
                    json!({ "origin": node.name(), "origin_server_ts": now, "pdus": pdus, "edus": edus });
                let body = Arc::from(to_raw_value(&body).expect("JSON"));
                let open = Open { txn: batch.txn_id.to_string(), body, upto: batch.upto };
                self.open.insert(key.clone(), open.clone());
                open
            }
        };
        let sent = node.client().send_transaction(to, &open.txn, &open.body).await;
        self.note(format!("{} sends {} to {to}: {sent:?}", node.name(), open.txn));
        if sent.is_err() {
            self.failing.entry(key).or_insert(now);
            return false;
        }
        node.delivered(to, open.upto).await;
        self.open.remove(&key);
        self.failing.remove(&key);
        if self.echoes.len() < ECHOES {
            self.echoes.push((from, to.clone(), open));
        }
        true
    }

    /// A transaction that was accepted comes once more, long after.
    async fn echo(&mut self) {
        if self.kind == Kind::Whole {
            self.echo_of_the_network().await;
            return;
        }
        if self.echoes.is_empty() {
            return;
        }
        let (from, to, open) = self.dice.pick(&self.echoes).clone();
        let sent = self.nodes[from].client().send_transaction(&to, &open.txn, &open.body).await;
        self.note(format!("{} repeats {} to {to}: {sent:?}", self.nodes[from].name(), open.txn));
    }

    async fn echo_of_the_network(&mut self) {
        let Some((from, request)) = self.net.accepted(|count| self.dice.below(count)) else { return };
        let (path, to) = (request.path_and_query.clone(), request.destination.clone());
        let link = Link { net: Arc::clone(&self.net), from: from.clone() };
        let answer = link.send(request).await.map(|answer| answer.status);
        self.note(format!("{from} repeats {path} to {to}: {answer:?}"));
    }

    /// Every server gets to what it put aside, as far as it is due.
    pub async fn take_staged(&mut self) {
        for node in self.nodes.clone() {
            let rooms = node.inbound().take_staged_once().await.expect("the staging table");
            if rooms > 0 {
                self.note(format!("{} comes back to what it put aside in {rooms} rooms", node.name()));
            }
        }
    }

    /// Members arrive in rooms that were joined without them, if whoever is asked has them.
    pub async fn take_members(&mut self, crashes: bool) {
        for node in self.nodes.clone() {
            let steps = (crashes && self.dice.chance(50)).then(|| self.dice.below(60));
            if node.take_members(steps).await {
                self.note(format!("{} still lacks members", node.name()));
            }
        }
    }

    fn weather(&mut self) {
        let (from, to) = (self.dice.below(self.nodes.len()), self.dice.below(self.nodes.len()));
        let (a, b) = (server_name(from), server_name(to));
        let (lost, unanswered) = (*self.dice.pick(&[0, 0, 100, 400]), *self.dice.pick(&[0, 0, 100, 400]));
        let choice = self.dice.below(6);
        let net = Arc::clone(&self.net);
        let mut faults = net.faults.lock();
        match choice {
            0 => faults.cut.clear(),
            1 => {
                faults.cut.insert((a, b));
            }
            2 => {
                faults.cut.insert((a.clone(), b.clone()));
                faults.cut.insert((b, a));
            }
            // One against all.
            3 => {
                for other in (0..self.nodes.len()).map(server_name) {
                    faults.cut.insert((a.clone(), other.clone()));
                    faults.cut.insert((other, a.clone()));
                }
            }
            _ => (faults.lost, faults.unanswered) = (lost, unanswered),
        }
        drop(faults);
        self.note(format!("weather {choice}: s{from} s{to}, {lost} lost, {unanswered} unanswered"));
    }

    /// Sends all that waits, between servers that can be reached. Whether all went.
    pub async fn flush(&mut self) -> bool {
        for _ in 0..200 {
            let mut sent = false;
            for from in 0..self.nodes.len() {
                if let Some(some) = self.nodes[from].send_due().await {
                    sent |= some;
                    continue;
                }
                for to in self.nodes[from].waiting().await {
                    sent |= self.deliver(from, &to).await;
                }
            }
            if !sent {
                return true;
            }
        }
        false
    }

    async fn somebody_acts(&mut self) {
        let index = self.dice.below(self.nodes.len());
        let room = self.dice.pick(&self.rooms).clone();
        let user = self.dice.pick(&users_of(index)).clone();
        let node = Arc::clone(&self.nodes[index]);
        let view = node.view(&room).await;
        let joined = view.as_ref().is_some_and(|view| view.joined().contains(&user));
        let act = match view {
            Some(view) if joined => self.choose(&view, &room, &user),
            _ => {
                let mut via: Vec<OwnedServerName> = (0..self.nodes.len()).map(server_name).collect();
                self.dice.shuffle(&mut via);
                Act::Join { room, user, via }
            }
        };
        self.act(index, act).await;
    }

    /// Whether it was allowed.
    pub async fn act(&mut self, index: usize, act: Act) -> bool {
        let made = self.nodes[index].act(&act).await;
        self.note(format!("s{index}: {act:?}: {made:?}"));
        let allowed = made.is_ok();
        if let Ok(Some(room)) = made {
            self.rooms.push(room);
        }
        allowed
    }

    fn choose(&mut self, view: &View, room: &OwnedRoomId, user: &OwnedUserId) -> Act {
        let (room, user) = (room.clone(), user.clone());
        let number = self.next_number();
        let whose = self.dice.below(self.nodes.len());
        let target = self.dice.pick(&users_of(whose)).clone();
        let set = |kind, key: &str, content| Act::Set {
            room: room.clone(),
            user: user.clone(),
            kind,
            key: key.to_owned(),
            content,
        };
        match self.dice.below(100) {
            0..25 => Act::Say { room, user, body: format!("message {number}") },
            25..40 => set("m.room.topic", "", json!({ "topic": format!("topic {number}") })),
            40..60 => {
                let content = self.other_levels(view, &target);
                set("m.room.power_levels", "", content)
            }
            60..75 => Act::Remove { room, user, target, ban: self.dice.chance(60) },
            75..82 => Act::Leave { room, user },
            82..88 => Act::Invite { room, user, target },
            88..94 => {
                let rule = *self.dice.pick(&["public", "public", "invite"]);
                set("m.room.join_rules", "", json!({ "join_rule": rule }))
            }
            94..97 if self.kind == Kind::Whole && self.rooms.len() < 4 => {
                let version = self.dice.pick(&version::SUPPORTED).clone();
                Act::Upgrade { room, user, version }
            }
            _ => set("org.example.thing", target.as_str(), json!({ "number": number })),
        }
    }

    fn other_levels(&mut self, view: &View, target: &OwnedUserId) -> Value {
        let now = view.holds("m.room.power_levels", "");
        let mut levels: Value = now.and_then(|event| event.content_as().ok()).unwrap_or_else(|| json!({}));
        let creator = view.holds("m.room.create", "").map(|event| event.sender.clone());
        let level = *self.dice.pick(&[0, 0, 50, 50, 99, 100]);
        if self.dice.chance(75) {
            if !(is_privileged(&view.version) && creator.as_ref() == Some(target)) {
                levels["users"][target.as_str()] = level.into();
            }
        } else {
            let field = *self.dice.pick(&["ban", "kick", "state_default", "invite"]);
            levels[field] = (*self.dice.pick(&[0, 50, 60])).into();
        }
        levels
    }
}
