//! A simulated network and a resident server with a room in it.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use ruma::canonical_json::CanonicalJsonObject;
use ruma::events::TimelineEventType;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    RoomVersionId, UInt,
};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use url::Url;
use waxwing_federation::Health;
use waxwing_federation::client::Client;
use waxwing_federation::keys::{KeyRing, KeyRingConfig, OwnKeys};
use waxwing_federation::ports::{KeyStore, PortResult, ReplayKey, Replays, ServerKeyRecord, Staged, Staging};
use waxwing_federation::signing::Identity;
use waxwing_federation::transport::{Request, Response, Transport, TransportError, WebRequest};
use waxwing_model::{Clock, Event, StateKey};
use waxwing_rooms::{AuthMap, EventDraft, KeyPair, PrevEvent, RoomContext};

pub const VERSION: RoomVersionId = RoomVersionId::V10;
pub const NOW: u64 = 1_700_000_000_000;

type Handler = Arc<dyn Fn(&Request) -> Option<(u16, Value)> + Send + Sync>;

/// Servers by name. Who is not there cannot be reached.
#[derive(Default)]
pub struct Network {
    servers: Mutex<BTreeMap<OwnedServerName, Handler>>,
    pub log: Mutex<Vec<(OwnedServerName, String)>>,
}

impl Network {
    pub fn add(
        &self,
        name: &str,
        handler: impl Fn(&Request) -> Option<(u16, Value)> + Send + Sync + 'static,
    ) {
        self.servers.lock().insert(name.try_into().unwrap(), Arc::new(handler));
    }

    pub fn remove(&self, name: &str) {
        self.servers.lock().remove(<&ruma::ServerName>::try_from(name).unwrap());
    }

    /// How often a path with this in it was asked for.
    pub fn count(&self, part: &str) -> usize {
        self.log.lock().iter().filter(|(_, path)| path.contains(part)).count()
    }
}

#[async_trait]
impl Transport for Network {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        self.log.lock().push((request.destination.clone(), request.path_and_query.clone()));
        // A real network takes time; without a pause nothing ever happens at the same time.
        tokio::task::yield_now().await;
        let handler = self.servers.lock().get(&request.destination).cloned();
        let handler = handler.ok_or_else(|| TransportError::Connection("no such server".into()))?;
        let (status, body) = handler(&request).unwrap_or((404, json!({ "errcode": "M_NOT_FOUND" })));
        let body = Bytes::from(serde_json::to_vec(&body).unwrap());
        Ok(Response::complete(StatusCode::from_u16(status).unwrap(), HeaderMap::new(), body))
    }

    async fn fetch(&self, _: &Url, _: Duration) -> Result<Response, TransportError> {
        Err(TransportError::Connection("no web here".into()))
    }

    async fn call(&self, _: WebRequest) -> Result<Response, TransportError> {
        Err(TransportError::Connection("no web here".into()))
    }
}

/// Keys in memory.
#[derive(Default)]
pub struct Keys(pub Mutex<BTreeMap<OwnedServerName, ServerKeyRecord>>);

#[async_trait]
impl KeyStore for Keys {
    async fn server_keys_load(&self, server: &ruma::ServerName) -> PortResult<Option<ServerKeyRecord>> {
        Ok(self.0.lock().get(server).cloned())
    }

    async fn server_keys_save(&self, server: &ruma::ServerName, record: &ServerKeyRecord) -> PortResult<()> {
        self.0.lock().insert(server.to_owned(), record.clone());
        Ok(())
    }
}

/// Answers in memory.
#[derive(Default)]
pub struct Answers(pub Mutex<Vec<(ReplayKey, String)>>);

#[async_trait]
impl Replays for Answers {
    async fn answer_load(&self, key: &ReplayKey) -> PortResult<Option<String>> {
        let kept = self.0.lock();
        Ok(kept.iter().find(|(other, _)| other == key).map(|(_, answer)| answer.clone()))
    }

    async fn answer_keep(&self, key: &ReplayKey, answer: &str) -> PortResult<()> {
        self.0.lock().push((key.clone(), answer.to_owned()));
        Ok(())
    }
}

/// Events put aside, in memory: their time has always come.
#[derive(Default)]
pub struct Shelf(pub Mutex<Vec<(OwnedRoomId, Staged)>>);

#[async_trait]
impl Staging for Shelf {
    async fn staged_put(&self, room: &RoomId, events: Vec<Staged>, _: Duration) -> PortResult<()> {
        let mut shelf = self.0.lock();
        for event in events {
            if !shelf.iter().any(|(_, other)| other.event_id == event.event_id) {
                shelf.push((room.to_owned(), event));
            }
        }
        Ok(())
    }

    async fn staged_rooms(&self, limit: usize) -> PortResult<Vec<OwnedRoomId>> {
        let rooms: BTreeSet<OwnedRoomId> = self.0.lock().iter().map(|(room, _)| room.clone()).collect();
        Ok(rooms.into_iter().take(limit).collect())
    }

    async fn staged_load(&self, room: &RoomId, limit: usize) -> PortResult<Vec<Staged>> {
        let shelf = self.0.lock();
        let of_room = shelf.iter().filter(|(other, _)| other == room);
        Ok(of_room.map(|(_, event)| event.clone()).take(limit).collect())
    }

    async fn staged_remove(&self, _: &RoomId, events: &[OwnedEventId]) -> PortResult<()> {
        self.0.lock().retain(|(_, event)| !events.contains(&event.event_id));
        Ok(())
    }

    async fn staged_later(&self, _: &RoomId, events: &[OwnedEventId], _: Duration) -> PortResult<()> {
        for (_, event) in self.0.lock().iter_mut().filter(|(_, event)| events.contains(&event.event_id)) {
            event.attempts += 1;
        }
        Ok(())
    }
}

pub fn identity(name: &str, seed: u8) -> Identity {
    let key = KeyPair::from_seed([seed; 32], "k1").unwrap();
    Identity::new(name.try_into().unwrap(), Arc::new(key)).unwrap()
}

/// Our side: a client and a key ring on the network.
pub struct Us {
    pub network: Arc<Network>,
    pub client: Client,
    pub ring: Arc<KeyRing>,
    pub keys: Arc<Keys>,
    pub clock: Clock,
}

pub fn us(network: &Arc<Network>, notaries: &[&str]) -> Us {
    let clock = Clock::manual(NOW);
    let identity = identity("us.test", 1);
    let health = Arc::new(Health::new(clock.clone()));
    let client = Client::new(identity.clone(), Arc::clone(network) as Arc<dyn Transport>, health);
    let keys = Arc::new(Keys::default());
    let config =
        KeyRingConfig { notaries: notaries.iter().map(|name| (*name).try_into().unwrap()).collect() };
    let own = OwnKeys::new(identity, Vec::new());
    let store = Arc::clone(&keys) as Arc<dyn KeyStore>;
    let ring = Arc::new(KeyRing::new(config, own, client.clone(), store, clock.clone()));
    Us { network: Arc::clone(network), client, ring, keys, clock }
}

/// A server with a room: makes events as its own users.
pub struct Resident {
    pub identity: Identity,
    pub room: OwnedRoomId,
    pub events: Vec<Arc<Event>>,
    pub state: AuthMap,
    ts: u64,
}

impl Resident {
    /// `@creator` makes a public room.
    pub fn new(name: &str, seed: u8) -> Resident {
        let room = OwnedRoomId::try_from(format!("!room:{name}")).unwrap();
        let identity = identity(name, seed);
        let mut this =
            Resident { identity, room, events: Vec::new(), state: AuthMap::new(), ts: NOW - 1_000_000 };
        let creator = this.user("creator");
        this.add("creator", "m.room.create", Some(""), json!({ "creator": creator, "room_version": "10" }));
        this.join("creator");
        let power = json!({ "users": { creator: 100 }, "events_default": 0, "state_default": 50 });
        this.add("creator", "m.room.power_levels", Some(""), power);
        this.add("creator", "m.room.join_rules", Some(""), json!({ "join_rule": "public" }));
        this
    }

    pub fn user(&self, local: &str) -> OwnedUserId {
        OwnedUserId::try_from(format!("@{local}:{}", self.identity.server)).unwrap()
    }

    pub fn join(&mut self, local: &str) -> Arc<Event> {
        let user = self.user(local);
        self.add(local, "m.room.member", Some(user.as_str()), json!({ "membership": "join" }))
    }

    pub fn message(&mut self, local: &str, body: &str) -> Arc<Event> {
        self.add(local, "m.room.message", None, json!({ "msgtype": "m.text", "body": body }))
    }

    /// Adds an event at the end.
    pub fn add(&mut self, local: &str, kind: &str, key: Option<&str>, content: Value) -> Arc<Event> {
        let prev: Vec<Arc<Event>> = self.events.last().cloned().into_iter().collect();
        let state = self.state.clone();
        let event = self.make(local, kind, key, content, &prev, &state);
        if let Some(entry) = event.state_entry() {
            self.state.insert(entry, Arc::clone(&event));
        }
        self.events.push(Arc::clone(&event));
        event
    }

    /// Makes an event anywhere.
    pub fn make(
        &mut self,
        local: &str,
        kind: &str,
        key: Option<&str>,
        content: Value,
        prev: &[Arc<Event>],
        state: &AuthMap,
    ) -> Arc<Event> {
        self.ts += 1000;
        let draft = EventDraft {
            kind: TimelineEventType::from(kind),
            content: to_raw_value(&content).unwrap(),
            state_key: key.map(ToOwned::to_owned),
            sender: self.user(local),
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.ts)),
            sticky_ms: None,
        };
        let context = RoomContext {
            version: VERSION,
            room_id: Some(self.room.clone()),
            prev_events: prev.iter().map(|event| PrevEvent::of(event, &VERSION).unwrap()).collect(),
            state: state.clone(),
        };
        let event =
            waxwing_rooms::build::build_event(draft, &context, &self.identity.server, &self.identity.key);
        Arc::new(event.unwrap())
    }

    pub fn find(&self, id: &str) -> Option<Arc<Event>> {
        self.events.iter().find(|event| event.event_id == id).cloned()
    }

    /// The state before the event at `index`, by ids.
    pub fn state_ids_before(&self, index: usize) -> Vec<OwnedEventId> {
        let mut state: BTreeMap<StateKey, OwnedEventId> = BTreeMap::new();
        for event in &self.events[..index] {
            if let Some(entry) = event.state_entry() {
                state.insert(entry, event.event_id.clone());
            }
        }
        state.into_values().collect()
    }

    pub fn key_document(&self) -> Value {
        let own = OwnKeys::new(self.identity.clone(), Vec::new());
        serde_json::from_str(own.document(NOW).unwrap().get()).unwrap()
    }

    /// Answers key requests, `event`, `state_ids`, `event_auth`, and `get_missing_events` with up to `gap` events.
    pub fn serve(self: &Arc<Resident>, network: &Network, gap: usize) {
        let this = Arc::clone(self);
        network.add(self.identity.server.as_str(), move |request| this.answer(request, gap));
    }

    fn answer(&self, request: &Request, gap: usize) -> Option<(u16, Value)> {
        let url = Url::parse(&format!("https://x{}", request.path_and_query)).unwrap();
        let segments: Vec<&str> = url.path_segments().unwrap().collect();
        let query: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
        let raw = |event: &Arc<Event>| serde_json::from_str::<Value>(event.json.get()).unwrap();
        match segments[1..] {
            ["key", "v2", "server"] => Some((200, self.key_document())),
            ["federation", "v1", "event", id] => {
                let event = self.find(id)?;
                Some((200, json!({ "pdus": [raw(&event)] })))
            }
            ["federation", "v1", "get_missing_events", _] => {
                let body: Value = serde_json::from_slice(request.body.as_ref().unwrap()).unwrap();
                let latest = body["latest_events"][0].as_str().unwrap();
                let earliest: Vec<&str> = body["earliest_events"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|id| id.as_str().unwrap())
                    .collect();
                let end = self.events.iter().position(|event| event.event_id == latest)?;
                let start = self.events.iter().position(|event| earliest.contains(&event.event_id.as_str()));
                let start = start.map_or(0, |at| at + 1).max(end.saturating_sub(gap));
                let events: Vec<Value> = self.events[start.min(end)..end].iter().map(raw).collect();
                Some((200, json!({ "events": events })))
            }
            ["federation", "v1", "state_ids", _] => {
                let at = self.events.iter().position(|event| event.event_id == query["event_id"])?;
                let chain: Vec<&OwnedEventId> =
                    self.events[..at].iter().map(|event| &event.event_id).collect();
                Some((200, json!({ "pdu_ids": self.state_ids_before(at), "auth_chain_ids": chain })))
            }
            _ => None,
        }
    }
}

/// A transaction's body.
pub fn transaction(pdus: &[&Event], edus: &[Value]) -> Vec<u8> {
    let pdus: Vec<&RawValue> = pdus.iter().map(|event| &*event.json).collect();
    serde_json::to_vec(&json!({ "origin": "ignored", "origin_server_ts": 1, "pdus": pdus, "edus": edus }))
        .unwrap()
}

pub fn no_content() -> CanonicalJsonObject {
    CanonicalJsonObject::new()
}
