//! A server without database: our federation and room packages over rooms in memory. Cheap enough for a thousand seeds.

use crate::graph::{Entry, Graph, Inner, Room};
use crate::net::{Link, Net};
use crate::node::{Act, MissingQuery, Node, Question, Refusal, Seen, View};
use crate::whole::transaction;
use async_trait::async_trait;
use parking_lot::Mutex;
use ruma::api::federation::transactions::edu::{
    DeviceListUpdateContent, DirectDeviceContent, PresenceContent, SigningKeyUpdateContent, TypingContent,
};
use ruma::canonical_json::CanonicalJsonObject;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId,
};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::Health;
use waxwing_federation::client::Client;
use waxwing_federation::inbound::{Inbound, InboundParts};
use waxwing_federation::keys::{KeyRing, KeyRingConfig, OwnKeys};
use waxwing_federation::ports::{
    Batch, EduSink, Flags, KeyStore, PortResult, ReadReceipt, ReplayKey, Replays, ServerKeyRecord, Staged,
    Staging,
};
use waxwing_federation::remote::{JoinRequest, JoinedRoom, RemoteMemberships};
use waxwing_federation::signing::Identity;
use waxwing_model::{Clock, Event};
use waxwing_rooms::auth::{check_state_dependent, create_event_id, state_to_load};
use waxwing_rooms::build::{build_event, create_content, draft_without_signing};
use waxwing_rooms::format::{Counts, MAX_PREV_EVENTS};
use waxwing_rooms::state_tree::NodeId;
use waxwing_rooms::{AuthMap, EventDraft, KeyPair, PrevEvent, RoomContext, parse_pdu};

/// Events in one answer.
const MOST: usize = 50;

/// Keeps in memory what the database would.
#[derive(Default)]
struct Memory {
    keys: Mutex<BTreeMap<OwnedServerName, ServerKeyRecord>>,
    answers: Mutex<Vec<(ReplayKey, String)>>,
}

#[async_trait]
impl KeyStore for Memory {
    async fn server_keys_load(&self, server: &ServerName) -> PortResult<Option<ServerKeyRecord>> {
        Ok(self.keys.lock().get(server).cloned())
    }
    async fn server_keys_save(&self, server: &ServerName, record: &ServerKeyRecord) -> PortResult<()> {
        self.keys.lock().insert(server.to_owned(), record.clone());
        Ok(())
    }
}

#[async_trait]
impl Replays for Memory {
    async fn answer_load(&self, key: &ReplayKey) -> PortResult<Option<String>> {
        Ok(self.answers.lock().iter().find(|(other, _)| other == key).map(|(_, answer)| answer.clone()))
    }
    async fn answer_keep(&self, key: &ReplayKey, answer: &str) -> PortResult<()> {
        self.answers.lock().push((key.clone(), answer.to_owned()));
        Ok(())
    }
}

/// Events put aside, each with the time at which it is due.
struct Aside {
    clock: Clock,
    rooms: Mutex<BTreeMap<OwnedRoomId, Vec<(u64, Staged)>>>,
}

impl Aside {
    fn later(&self, wait: Duration) -> u64 {
        self.clock.millis() + wait.as_millis() as u64
    }
}

#[async_trait]
impl Staging for Aside {
    async fn staged_put(&self, room: &RoomId, events: Vec<Staged>, wait: Duration) -> PortResult<()> {
        let due = self.later(wait);
        let mut rooms = self.rooms.lock();
        let waiting = rooms.entry(room.to_owned()).or_default();
        for event in events {
            if !waiting.iter().any(|(_, known)| known.event_id == event.event_id) {
                waiting.push((due, event));
            }
        }
        Ok(())
    }
    async fn staged_rooms(&self, limit: usize) -> PortResult<Vec<OwnedRoomId>> {
        let now = self.clock.millis();
        let rooms = self.rooms.lock();
        let due = rooms.iter().filter(|(_, waiting)| waiting.iter().any(|(due, _)| *due <= now));
        Ok(due.map(|(room, _)| room.clone()).take(limit).collect())
    }
    async fn staged_load(&self, room: &RoomId, limit: usize) -> PortResult<Vec<Staged>> {
        let now = self.clock.millis();
        let rooms = self.rooms.lock();
        let waiting = rooms.get(room).into_iter().flatten();
        Ok(waiting.filter(|(due, _)| *due <= now).take(limit).map(|(_, event)| event.clone()).collect())
    }
    async fn staged_remove(&self, room: &RoomId, events: &[OwnedEventId]) -> PortResult<()> {
        if let Some(waiting) = self.rooms.lock().get_mut(room) {
            waiting.retain(|(_, event)| !events.contains(&event.event_id));
        }
        Ok(())
    }
    async fn staged_later(&self, room: &RoomId, events: &[OwnedEventId], wait: Duration) -> PortResult<()> {
        let later = self.later(wait);
        let mut rooms = self.rooms.lock();
        let waiting = rooms.get_mut(room).into_iter().flatten();
        for (due, event) in waiting.filter(|(_, event)| events.contains(&event.event_id)) {
            *due = later;
            event.attempts += 1;
        }
        Ok(())
    }
}

/// Rooms without ephemeral data.
struct NoEdus;

#[async_trait]
impl EduSink for NoEdus {
    async fn typing(&self, _: &ServerName, _: TypingContent) -> PortResult<()> {
        Ok(())
    }
    async fn receipts(&self, _: &ServerName, _: Vec<ReadReceipt>) -> PortResult<()> {
        Ok(())
    }
    async fn presence(&self, _: &ServerName, _: PresenceContent) -> PortResult<()> {
        Ok(())
    }
    async fn device_list_update(&self, _: &ServerName, _: DeviceListUpdateContent) -> PortResult<()> {
        Ok(())
    }
    async fn signing_key_update(&self, _: &ServerName, _: SigningKeyUpdateContent) -> PortResult<()> {
        Ok(())
    }
    async fn direct_to_device(&self, _: &ServerName, _: DirectDeviceContent) -> PortResult<()> {
        Ok(())
    }
}

pub struct Pure {
    identity: Identity,
    clock: Clock,
    client: Client,
    ring: Arc<KeyRing>,
    remote: RemoteMemberships,
    inbound: Inbound,
    graph: Arc<Graph>,
}

impl Pure {
    pub fn start(net: &Arc<Net>, name: OwnedServerName, key: KeyPair, clock: Clock) -> Pure {
        let identity = Identity::new(name.clone(), Arc::new(key)).expect("a key");
        let link = Arc::new(Link { net: Arc::clone(net), from: name });
        let client = Client::new(identity.clone(), link, Arc::new(Health::new(clock.clone())));
        let memory = Arc::new(Memory::default());
        let own = OwnKeys::new(identity.clone(), Vec::new());
        let keys = Arc::clone(&memory) as Arc<dyn KeyStore>;
        let ring = Arc::new(KeyRing::new(KeyRingConfig::default(), own, client.clone(), keys, clock.clone()));
        let remote = RemoteMemberships::new(client.clone(), Arc::clone(&ring), clock.clone());
        let graph = Arc::new(Graph::default());
        let inbound = Inbound::new(InboundParts {
            client: client.clone(),
            ring: Arc::clone(&ring),
            timeline: Arc::clone(&graph) as _,
            edus: Arc::new(NoEdus),
            replays: memory,
            staging: Arc::new(Aside { clock: clock.clone(), rooms: Mutex::default() }),
        });
        Pure { identity, clock, client, ring, remote, inbound, graph }
    }

    fn draft(&self, user: &UserId, kind: &str, key: Option<&str>, content: &Value) -> EventDraft {
        EventDraft {
            kind: kind.into(),
            content: to_raw_value(content).expect("JSON"),
            state_key: key.map(str::to_owned),
            sender: user.to_owned(),
            redacts: None,
            origin_server_ts: self.clock.now(),
            sticky_ms: None,
        }
    }

    /// Appends an event of one of our users, and queues it for the servers in the room.
    fn send(&self, room: &RoomId, draft: EventDraft) -> Result<(), String> {
        let mut inner = self.graph.0.lock();
        let (context, before) = context(&mut inner, room, &draft)?;
        let version = context.version.clone();
        let event = build_event(draft, &context, &self.identity.server, &self.identity.key);
        let event = Arc::new(event.map_err(|error| error.to_string())?);
        check_state_dependent(&event, &version, &context.state).map_err(|error| error.to_string())?;
        let entry = Entry { event: Arc::clone(&event), flags: Flags::default(), before: Some(before) };
        let target = event.state_key.as_deref().and_then(|key| UserId::parse(key).ok());
        let mut servers: BTreeSet<OwnedServerName> =
            inner.joined(room, before).iter().map(|user| user.server_name().to_owned()).collect();
        servers.extend(target.map(|user| user.server_name().to_owned()));
        inner.rooms.get_mut(room).ok_or("no room")?.events.insert(event.event_id.clone(), entry);
        inner.append(room, &event);
        self.queue(&mut inner, &event, servers);
        Ok(())
    }

    fn queue(&self, inner: &mut Inner, event: &Event, servers: BTreeSet<OwnedServerName>) {
        inner.position += 1;
        let row = (inner.position, event.room_id.clone(), event.event_id.clone());
        for server in servers.into_iter().filter(|server| *server != self.identity.server) {
            inner.outbox.entry(server).or_default().push(row.clone());
        }
    }

    fn create(
        &self,
        user: &UserId,
        version: &RoomVersionId,
        levels: &Value,
        name: u64,
    ) -> Result<OwnedRoomId, String> {
        let content = create_content(version, &user.to_owned(), CanonicalJsonObject::new());
        let content = serde_json::to_value(content.map_err(|error| error.to_string())?).expect("JSON");
        let hashed = create_event_id(<&RoomId>::try_from("!x").expect("an id"), version).is_some();
        let named = OwnedRoomId::try_from(format!("!room{name}:{}", self.identity.server)).expect("an id");
        let context = RoomContext {
            version: version.clone(),
            room_id: (!hashed).then_some(named),
            prev_events: Vec::new(),
            state: AuthMap::new(),
        };
        let draft = self.draft(user, "m.room.create", Some(""), &content);
        let create = build_event(draft, &context, &self.identity.server, &self.identity.key);
        let create = Arc::new(create.map_err(|error| error.to_string())?);
        let room = create.room_id.clone();
        {
            let mut inner = self.graph.0.lock();
            let entry =
                Entry { event: Arc::clone(&create), flags: Flags::default(), before: Some(NodeId::EMPTY) };
            let of = Room {
                version: version.clone(),
                events: BTreeMap::from([(create.event_id.clone(), entry)]),
                root: NodeId::EMPTY,
                extremities: Vec::new(),
                backward: BTreeSet::new(),
            };
            inner.rooms.insert(room.clone(), of);
            inner.append(&room, &create);
        }
        let member = json!({ "membership": "join" });
        self.send(&room, self.draft(user, "m.room.member", Some(user.as_str()), &member))?;
        self.send(&room, self.draft(user, "m.room.power_levels", Some(""), levels))?;
        let rules = json!({ "join_rule": "public" });
        self.send(&room, self.draft(user, "m.room.join_rules", Some(""), &rules))?;
        Ok(room)
    }

    /// Whether one of our users is in the room.
    fn resident(&self, room: &RoomId) -> bool {
        let inner = self.graph.0.lock();
        let Some(of) = inner.rooms.get(room) else { return false };
        inner.joined(room, of.root).iter().any(|user| user.server_name() == self.identity.server)
    }

    async fn join(&self, room: &RoomId, user: &UserId, via: &[OwnedServerName]) -> Result<(), String> {
        if self.resident(room) {
            let content = json!({ "membership": "join" });
            return self.send(room, self.draft(user, "m.room.member", Some(user.as_str()), &content));
        }
        let request = JoinRequest {
            room: room.to_owned(),
            user: user.to_owned(),
            servers: via.to_vec(),
            content: CanonicalJsonObject::new(),
            omit_members: false,
        };
        let joined = self.remote.join(&request).await.map_err(|error| error.to_string())?;
        self.enter(joined);
        Ok(())
    }

    fn enter(&self, joined: JoinedRoom) {
        let mut inner = self.graph.0.lock();
        let room = joined.join.room_id.clone();
        let before =
            inner.build(joined.state.iter().map(|(key, event)| (key.clone(), event.event_id.clone())));
        inner.rooms.entry(room.clone()).or_insert_with(|| Room {
            version: joined.version.clone(),
            events: BTreeMap::new(),
            root: before,
            extremities: Vec::new(),
            backward: BTreeSet::new(),
        });
        let state = joined
            .state
            .into_values()
            .map(|event| waxwing_federation::ports::Outlier { event, rejected: None });
        inner.keep(&room, state.chain(joined.auth_chain).collect());
        let of = inner.rooms.get_mut(&room).expect("the room");
        let (join, flags) = (joined.join, Flags::default());
        let entry = Entry { event: Arc::clone(&join), flags, before: Some(before) };
        of.events.insert(join.event_id.clone(), entry);
        of.extremities.clear();
        of.backward.remove(&join.event_id);
        for prev in &join.prev_events {
            if of.events.get(prev).is_none_or(|entry| entry.flags.outlier) {
                of.backward.insert(prev.clone());
            }
        }
        inner.append(&room, &join);
    }

    /// A membership event that a user of another server makes here.
    fn template(&self, room: &RoomId, user: &UserId, membership: &str) -> Result<Value, Refusal> {
        let draft =
            self.draft(user, "m.room.member", Some(user.as_str()), &json!({ "membership": membership }));
        let mut inner = self.graph.0.lock();
        let (context, _) = context(&mut inner, room, &draft).map_err(|_| Refusal(404, "M_NOT_FOUND"))?;
        let event = build_event(draft.clone(), &context, &self.identity.server, &self.identity.key);
        let event = event.map_err(|_| Refusal(400, "M_BAD_JSON"))?;
        check_state_dependent(&event, &context.version, &context.state)
            .map_err(|_| Refusal(403, "M_FORBIDDEN"))?;
        let event = draft_without_signing(draft, &context).map_err(|_| Refusal(400, "M_BAD_JSON"))?;
        Ok(json!({ "room_version": context.version, "event": event }))
    }

    /// Takes a membership event of another server's user in, and passes it on. Gives the state before it.
    async fn accept(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event: &RawValue,
    ) -> Result<(NodeId, Vec<OwnedEventId>), Refusal> {
        let id =
            self.inbound.receive_event(origin, room, event).await.map_err(|_| Refusal(403, "M_FORBIDDEN"))?;
        let mut inner = self.graph.0.lock();
        let entry = inner.rooms[room].events.get(&id).cloned().ok_or(Refusal(404, "M_NOT_FOUND"))?;
        let before =
            entry.before.filter(|_| entry.flags == Flags::default()).ok_or(Refusal(403, "M_FORBIDDEN"))?;
        let joined = inner.joined(room, before);
        let servers =
            joined.iter().map(|user| user.server_name().to_owned()).filter(|server| server != origin);
        let servers = servers.collect();
        self.queue(&mut inner, &entry.event, servers);
        let mut ids: Vec<OwnedEventId> = inner.entries(before).into_values().collect();
        ids.push(id);
        Ok((before, ids))
    }

    async fn ask(&self, origin: &ServerName, question: Question) -> Result<Value, Refusal> {
        const NONE: Refusal = Refusal(404, "M_NOT_FOUND");
        let graph = &self.graph.0;
        Ok(match question {
            Question::Send { txn, body } => return transaction(&self.inbound, origin, &txn, &body).await,
            Question::Event(id) => {
                let inner = graph.lock();
                let entry = inner.rooms.values().find_map(|room| room.events.get(&id)).ok_or(NONE)?;
                json!({ "pdus": [json_of(&entry.event)] })
            }
            Question::EventAuth(room, id) => json!({ "auth_chain": chain(&graph.lock(), &room, &[id])? }),
            Question::State(room, id) | Question::StateIds(room, id) if !inner_has(graph, &room, &id) => {
                let _ = (room, id);
                return Err(NONE);
            }
            Question::State(room, id) => {
                let (state, chain) = state_and_chain(&graph.lock(), &room, &id)?;
                json!({ "pdus": state, "auth_chain": chain })
            }
            Question::StateIds(room, id) => {
                let inner = graph.lock();
                let before = inner.rooms[&room].events[&id].before.ok_or(NONE)?;
                let state: Vec<OwnedEventId> = inner.entries(before).into_values().collect();
                let chain: Vec<OwnedEventId> = chain_of(&inner, &room, &state).into_iter().collect();
                json!({ "pdu_ids": state, "auth_chain_ids": chain })
            }
            Question::Backfill { room, from, limit } => {
                json!({ "pdus": older(&graph.lock(), &room, &from, limit)? })
            }
            Question::Missing { room, query } => json!({ "events": missing(&graph.lock(), &room, &query)? }),
            Question::MakeJoin { room, user, .. } => self.template(&room, &user, "join")?,
            Question::MakeLeave { room, user } => self.template(&room, &user, "leave")?,
            Question::SendJoin { room, json, .. } => {
                self.check_version(&room, &json)?;
                let (before, ids) = self.accept(origin, &room, &json).await?;
                let inner = graph.lock();
                let state: Vec<OwnedEventId> = inner.entries(before).into_values().collect();
                json!({ "event": json, "state": jsons(&inner, &room, &state), "auth_chain": chain(&inner, &room, &ids)? })
            }
            Question::SendLeave { room, json, .. } => {
                self.accept(origin, &room, &json).await?;
                json!({})
            }
            Question::Invite { .. } => return Err(Refusal(403, "M_FORBIDDEN")),
        })
    }

    fn check_version(&self, room: &RoomId, event: &RawValue) -> Result<(), Refusal> {
        let inner = self.graph.0.lock();
        let of = inner.rooms.get(room).ok_or(Refusal(404, "M_NOT_FOUND"))?;
        parse_pdu(event, &of.version, Counts::Limited).map(drop).map_err(|_| Refusal(400, "M_INVALID_PARAM"))
    }
}

fn inner_has(graph: &Mutex<Inner>, room: &RoomId, id: &ruma::EventId) -> bool {
    graph.lock().rooms.get(room).is_some_and(|room| room.events.get(id).is_some_and(|e| e.before.is_some()))
}

/// Where an event of ours goes, and the state there.
fn context(inner: &mut Inner, room: &RoomId, draft: &EventDraft) -> Result<(RoomContext, NodeId), String> {
    let of = inner.rooms.get(room).ok_or("no room")?;
    let version = of.version.clone();
    let mut deepest = of.extremities.clone();
    deepest.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    deepest.truncate(MAX_PREV_EVENTS);
    let ids: Vec<OwnedEventId> = deepest.into_iter().map(|(id, _)| id).collect();
    let prev = ids.iter().map(|id| PrevEvent::of(&of.events[id].event, &version).expect("a hash")).collect();
    let before = inner.state_of(room, &ids).ok_or("no state")?;
    let keys =
        state_to_load(&draft.kind, &draft.sender, draft.state_key.as_deref(), &draft.content, &version);
    let keys = keys.map_err(|error| error.to_string())?;
    let events = &inner.rooms[room].events;
    let state =
        inner.get(before, &keys).into_iter().map(|(key, id)| (key, Arc::clone(&events[&id].event))).collect();
    Ok((RoomContext { version, room_id: Some(room.to_owned()), prev_events: prev, state }, before))
}

fn json_of(event: &Event) -> Value {
    serde_json::from_str(event.json.get()).expect("JSON")
}

fn jsons<'a>(inner: &Inner, room: &RoomId, ids: impl IntoIterator<Item = &'a OwnedEventId>) -> Vec<Value> {
    let events = &inner.rooms[room].events;
    ids.into_iter().filter_map(|id| events.get(id)).map(|entry| json_of(&entry.event)).collect()
}

fn chain_of(inner: &Inner, room: &RoomId, ids: &[OwnedEventId]) -> BTreeSet<OwnedEventId> {
    let of = &inner.rooms[room];
    let mut found = BTreeSet::new();
    let mut next: Vec<OwnedEventId> = create_event_id(room, &of.version).into_iter().collect();
    next.extend(
        ids.iter().filter_map(|id| of.events.get(id)).flat_map(|entry| entry.event.auth_events.clone()),
    );
    while let Some(id) = next.pop() {
        if let Some(entry) = of.events.get(&id)
            && found.insert(id)
        {
            next.extend(entry.event.auth_events.iter().cloned());
        }
    }
    found
}

fn chain(inner: &Inner, room: &RoomId, ids: &[OwnedEventId]) -> Result<Vec<Value>, Refusal> {
    inner.rooms.get(room).ok_or(Refusal(404, "M_NOT_FOUND"))?;
    Ok(jsons(inner, room, &chain_of(inner, room, ids)))
}

fn state_and_chain(
    inner: &Inner,
    room: &RoomId,
    id: &ruma::EventId,
) -> Result<(Vec<Value>, Vec<Value>), Refusal> {
    let before = inner.rooms[room].events[id].before.ok_or(Refusal(404, "M_NOT_FOUND"))?;
    let state: Vec<OwnedEventId> = inner.entries(before).into_values().collect();
    Ok((jsons(inner, room, &state), chain(inner, room, &state)?))
}

fn older(inner: &Inner, room: &RoomId, from: &[OwnedEventId], limit: usize) -> Result<Vec<Value>, Refusal> {
    let of = inner.rooms.get(room).ok_or(Refusal(404, "M_NOT_FOUND"))?;
    let mut heap: BinaryHeap<(u64, OwnedEventId)> = BinaryHeap::new();
    let mut seen = BTreeSet::new();
    let in_graph = |id: &OwnedEventId| of.events.get(id).filter(|entry| !entry.flags.outlier);
    let push =
        |heap: &mut BinaryHeap<(u64, OwnedEventId)>, seen: &mut BTreeSet<OwnedEventId>, id: &OwnedEventId| {
            if let Some(entry) = in_graph(id).filter(|_| seen.insert(id.clone())) {
                heap.push((entry.event.depth.into(), id.clone()));
            }
        };
    for id in from {
        push(&mut heap, &mut seen, id);
    }
    let mut found = Vec::new();
    while let Some((_, id)) = heap.pop().filter(|_| found.len() < limit.min(MOST)) {
        let event = &of.events[&id].event;
        for prev in &event.prev_events {
            push(&mut heap, &mut seen, prev);
        }
        found.push(json_of(event));
    }
    Ok(found)
}

fn missing(inner: &Inner, room: &RoomId, query: &MissingQuery) -> Result<Vec<Value>, Refusal> {
    let of = inner.rooms.get(room).ok_or(Refusal(404, "M_NOT_FOUND"))?;
    let in_graph = |id: &OwnedEventId| of.events.get(id).filter(|entry| !entry.flags.outlier);
    let mut seen: BTreeSet<OwnedEventId> =
        query.earliest_events.iter().chain(&query.latest_events).cloned().collect();
    let mut queue: VecDeque<OwnedEventId> = query
        .latest_events
        .iter()
        .filter_map(in_graph)
        .flat_map(|entry| entry.event.prev_events.clone())
        .collect();
    let mut found = Vec::new();
    while let Some(id) = queue.pop_front().filter(|_| found.len() < query.limit.min(MOST)) {
        if let Some(entry) = in_graph(&id).filter(|_| seen.insert(id)) {
            queue.extend(entry.event.prev_events.iter().cloned());
            found.push(json_of(&entry.event));
        }
    }
    Ok(found)
}

#[async_trait]
impl Node for Pure {
    fn name(&self) -> &ServerName {
        &self.identity.server
    }
    fn clock(&self) -> &Clock {
        &self.clock
    }
    fn client(&self) -> &Client {
        &self.client
    }
    fn ring(&self) -> &KeyRing {
        &self.ring
    }
    fn inbound(&self) -> &Inbound {
        &self.inbound
    }
    fn key(&self) -> &KeyPair {
        &self.identity.key
    }

    async fn act(&self, act: &Act) -> Result<Option<OwnedRoomId>, String> {
        let member = |user: &UserId, target: &OwnedUserId, membership: &str| {
            self.draft(user, "m.room.member", Some(target.as_str()), &json!({ "membership": membership }))
        };
        match act {
            Act::Create { user, version, levels, name } => {
                return self.create(user, version, levels, *name).map(Some);
            }
            Act::Upgrade { .. } => Err("upgrades are made by the services".to_owned()),
            Act::Join { room, user, via } => self.join(room, user, via).await,
            Act::Say { room, user, body } => self.send(
                room,
                self.draft(user, "m.room.message", None, &json!({ "msgtype": "m.text", "body": body })),
            ),
            Act::Set { room, user, kind, key, content } => {
                self.send(room, self.draft(user, kind, Some(key), content))
            }
            Act::Leave { room, user } => self.send(room, member(user, user, "leave")),
            Act::Invite { room, user, target } => self.send(room, member(user, target, "invite")),
            Act::Remove { room, user, target, ban } => {
                self.send(room, member(user, target, if *ban { "ban" } else { "leave" }))
            }
        }
        .map(|()| None)
    }

    async fn answer(&self, origin: &ServerName, question: Question) -> Result<Value, Refusal> {
        self.ask(origin, question).await
    }

    async fn waiting(&self) -> Vec<OwnedServerName> {
        let inner = self.graph.0.lock();
        inner.outbox.iter().filter(|(_, rows)| !rows.is_empty()).map(|(server, _)| server.clone()).collect()
    }

    async fn batch(&self, to: &ServerName, catch_up: bool) -> Option<Batch> {
        let inner = self.graph.0.lock();
        let rows = inner.outbox.get(to).filter(|rows| !rows.is_empty())?;
        let last = rows.len().min(MOST);
        let newest = |room: &RoomId| rows.iter().rev().find(|row| row.1 == room).map(|row| row.0);
        let chosen = rows[..last].iter().filter(|row| !catch_up || newest(&row.1) == Some(row.0));
        let pdus = chosen.map(|(_, room, id)| Arc::clone(&inner.rooms[room].events[id].event.json)).collect();
        let upto = rows[last - 1].0;
        Some(Batch { txn_id: upto.to_string().into(), pdus, edus: Vec::new(), upto })
    }

    async fn delivered(&self, to: &ServerName, upto: i64) {
        if let Some(rows) = self.graph.0.lock().outbox.get_mut(to) {
            rows.retain(|row| row.0 > upto);
        }
    }

    async fn view(&self, room: &RoomId) -> Option<View> {
        let inner = self.graph.0.lock();
        let of = inner.rooms.get(room)?;
        let seen = |entry: &Entry| Seen {
            event: Arc::clone(&entry.event),
            flags: entry.flags,
            before: entry.before,
        };
        Some(View {
            version: of.version.clone(),
            extremities: of.extremities.iter().map(|(id, _)| id.clone()).collect(),
            state: inner.entries(of.root),
            events: of.events.iter().map(|(id, entry)| (id.clone(), seen(entry))).collect(),
            backward: of.backward.iter().cloned().collect(),
        })
    }

    async fn backfill(&self, room: &RoomId) -> bool {
        let (from, servers) = {
            let inner = self.graph.0.lock();
            let Some(of) = inner.rooms.get(room) else { return false };
            let servers: BTreeSet<OwnedServerName> =
                inner.joined(room, of.root).iter().map(|user| user.server_name().to_owned()).collect();
            (of.backward.iter().take(20).cloned().collect::<Vec<_>>(), servers)
        };
        let servers: Vec<OwnedServerName> =
            servers.into_iter().filter(|s| *s != self.identity.server).collect();
        !from.is_empty()
            && self.inbound.backfill(room, &servers, &from, 100).await.is_ok_and(|stored| stored > 0)
    }
}
