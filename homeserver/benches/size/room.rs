//! The room, and our side of it.

use crate::elsewhere::Way;
use futures_util::{StreamExt, stream};
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, ServerName, UserId};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use waxwing_federation::ports::Timeline as _;
use waxwing_model::{Clock, Event, StateKey};
use waxwing_rooms::build::build_event;
use waxwing_rooms::resolve::StateMap;
use waxwing_rooms::state_tree::NodeId;
use waxwing_rooms::{AuthMap, EventDraft, KeyPair, PrevEvent, RoomContext};
use waxwing_services::federation::{Edus, Federation, Outgoing};
use waxwing_services::keys::Keys;
use waxwing_services::outgoing::Nowhere;
use waxwing_services::presence::PresenceService;
use waxwing_services::receipts::Receipts;
use waxwing_services::timeline::{Author, CreateRoom, Draft, JoinRoom, Preset, Removal, Timeline};
use waxwing_services::to_device::ToDevice;
use waxwing_services::typing::Typing;
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use waxwing_storage::Store;

/// Of the keys: ours, and the next for the other server.
pub const SEED: u8 = 1;
/// Our name: where a server over this database may be started, to be joined from elsewhere.
const NAME: &str = "localhost:8448";
/// The room's version: the newest, whose state resolution looks at most.
const VERSION: RoomVersionId = RoomVersionId::V12;
/// Requests at the same time.
const TOGETHER: usize = 64;
/// Entries that events of this room are authorised by, beside the members.
const AUTHORISING: [&str; 4] = ["m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.topic"];
/// Times that a measurement is repeated.
const ROUNDS: usize = 20;

/// Our server.
pub struct Home {
    core: Core,
    timeline: Timeline,
    federation: Federation,
    creator: OwnedUserId,
    room: Option<OwnedRoomId>,
    renamed: usize,
}

/// A place in the room: what a new event there follows, and by what it is authorised.
pub struct Tip {
    room: OwnedRoomId,
    prev: Vec<Arc<Event>>,
    state: BTreeMap<StateKey, Arc<Event>>,
}

impl Tip {
    /// To after an event made here.
    pub fn advance(&mut self, event: &Arc<Event>) {
        self.prev = vec![Arc::clone(event)];
        self.state.extend(event.state_entry().map(|entry| (entry, Arc::clone(event))));
    }

    pub fn content(&self, kind: &str, key: &str) -> Value {
        let event = &self.state[&(kind.into(), key.to_owned())];
        event.content_as().expect("JSON")
    }
}

/// A signed state event at a place.
pub fn build(
    tip: &Tip,
    who: &UserId,
    kind: &str,
    key: &str,
    content: &Value,
    server: &ServerName,
    pair: &KeyPair,
) -> Event {
    let draft = EventDraft {
        kind: kind.into(),
        content: to_raw_value(content).expect("JSON"),
        state_key: Some(key.to_owned()),
        sender: who.to_owned(),
        redacts: None,
        origin_server_ts: Clock::System.now(),
        sticky_ms: None,
    };
    let prev = tip.prev.iter().map(|event| PrevEvent::of(event, &VERSION).expect("an event"));
    let context = RoomContext {
        version: VERSION,
        room_id: Some(tip.room.clone()),
        prev_events: prev.collect(),
        state: AuthMap::from_iter(tip.state.clone()),
    };
    build_event(draft, &context, server, pair).expect("an event")
}

fn settings() -> Settings {
    Settings {
        registration: RegistrationMode::Closed,
        registration_shared_secret: None,
        plaintext: PlaintextPolicy { accept: true, ..PlaintextPolicy::default() },
        default_room_version: VERSION,
        presence: false,
        max_upload_bytes: 1,
        password: PasswordCost { memory_kib: 8, iterations: 1 },
        everyone_publishes_rooms: true,
        federation: true,
        push: waxwing_services::PushSettings::default(),
        accounts: waxwing_services::AccountSettings::default(),
    }
}

impl Home {
    pub async fn open(database: &Path) -> Home {
        let store = Store::open(&format!("sqlite:{}", database.display())).await.expect("a database");
        let core = Core {
            server_name: NAME.try_into().expect("a name"),
            clock: Clock::System,
            store,
            key: Arc::new(KeyPair::from_seed([SEED; 32], "k").expect("a key")),
            settings: Arc::new(settings()),
        };
        let outgoing = Outgoing::over(&core, Arc::new(Way)).expect("a key");
        let timeline = Timeline::new(core.clone(), Some(outgoing.remote.clone()));
        let edus = Edus {
            typing: Typing::new(core.clone(), Arc::new(Nowhere)),
            receipts: Receipts::new(core.clone(), Arc::new(Nowhere)),
            presence: PresenceService::new(core.clone(), None),
            keys: Keys::new(core.clone(), Some(outgoing.client.clone())),
            to_device: ToDevice::new(core.clone()),
        };
        let federation = Federation::new(core.clone(), outgoing, timeline.clone(), edus);
        let creator = user("creator");
        Home { core, timeline, federation, creator, room: None, renamed: 0 }
    }

    fn room(&self) -> &OwnedRoomId {
        self.room.as_ref().expect("the room is made")
    }

    /// Gives how many state events that took.
    pub async fn create(&mut self) -> usize {
        let wish = CreateRoom {
            author: Author::new(self.creator.clone()),
            version: Some(VERSION),
            creation_content: Map::new(),
            preset: Preset::PublicChat,
            initial_state: Vec::new(),
            name: Some("Large".to_owned()),
            topic: Some("All of us".to_owned()),
            alias: None,
            power_levels: Map::new(),
            invite: Vec::new(),
            is_direct: false,
            published: false,
        };
        self.room = Some(self.timeline.create_room(wish).await.expect("a room"));
        self.entries().await.len()
    }

    pub async fn join_all(&self, members: usize) -> usize {
        stream::iter(0..members)
            .for_each_concurrent(TOGETHER, |number| async move {
                let mut content = Map::new();
                content.insert("displayname".to_owned(), json!(format!("Member {number}")));
                let author = Author::new(member(number));
                let wish = JoinRoom { author, room: self.room().clone(), via: Vec::new(), content };
                self.timeline.join(wish).await.expect("an open room");
            })
            .await;
        members
    }

    /// So many members take other names.
    pub async fn rename(&mut self, count: usize, members: usize) -> usize {
        let from = self.renamed;
        self.renamed += count;
        let this = &*self;
        stream::iter(from..from + count)
            .for_each_concurrent(TOGETHER, |number| async move {
                let who = member(number.wrapping_mul(7919) % members);
                let name = format!("Member {number}, renamed");
                let content = json!({ "membership": "join", "displayname": name });
                this.set(&who, "m.room.member", who.as_str(), &content).await;
            })
            .await;
        count
    }

    async fn set(&self, who: &OwnedUserId, kind: &str, key: &str, content: &Value) {
        let content = to_raw_value(content).expect("JSON");
        let draft = Draft::state(who.clone(), kind.into(), key.to_owned(), content);
        self.timeline.set_state(&Author::new(who.clone()), self.room(), draft).await.expect("allowed");
    }

    pub async fn promote(&self, whom: &OwnedUserId) -> usize {
        let mut levels = self.tip().await.content("m.room.power_levels", "");
        levels["users"][whom.as_str()] = 90.into();
        levels["events"]["m.room.power_levels"] = 50.into();
        self.set(&self.creator, "m.room.power_levels", "", &levels).await;
        1
    }

    /// Says what the other server says otherwise at the same time: the topic, and who is in the room.
    pub async fn contradict(&self, branch: usize, whom: &OwnedUserId) -> usize {
        self.set(&self.creator, "m.room.topic", "", &json!({ "topic": format!("Home, branch {branch}") }))
            .await;
        let author = Author::new(self.creator.clone());
        let kicked = self.timeline.remove(&author, self.room(), whom, Removal::Kick, None).await;
        1 + usize::from(kicked.is_ok())
    }

    async fn root(&self) -> NodeId {
        let mut conn = self.core.store.read().await.expect("a connection");
        conn.room_load(self.room()).await.expect("rooms").expect("the room").state_root
    }

    async fn entries(&self) -> StateMap {
        let root = self.root().await;
        let mut conn = self.core.store.read().await.expect("a connection");
        self.core.store.state(&mut conn).entries(root).await.expect("the state").into_iter().collect()
    }

    /// Where the room ends now.
    pub async fn tip(&self) -> Tip {
        let store = &self.core.store;
        let mut conn = store.read().await.expect("a connection");
        let row = conn.room_load(self.room()).await.expect("rooms").expect("the room");
        let guests = (0..crate::GUESTS).map(|n| format!("@guest{n}:{}", crate::elsewhere::NAME));
        let mut keys: Vec<StateKey> = guests.map(|user| ("m.room.member".into(), user)).collect();
        keys.push(("m.room.member".into(), self.creator.to_string()));
        keys.extend(AUTHORISING.map(|kind| (kind.into(), String::new())));
        let found = store.state(&mut conn).get_many(row.state_root, &keys).await.expect("the state");
        drop(conn);
        let ids: Vec<OwnedEventId> = found.iter().flatten().cloned().collect();
        let events = store.events(&ids).await.expect("events");
        let state = keys.into_iter().zip(found);
        let state = state.filter_map(|(key, id)| Some((key, Arc::clone(&events.get(&id?)?.event)))).collect();
        let ends: Vec<OwnedEventId> = row.extremities.into_iter().map(|(id, _)| id).collect();
        let prev =
            store.events(&ends).await.expect("events").into_values().map(|stored| Arc::clone(&stored.event));
        Tip { room: self.room().clone(), prev: prev.take(20).collect(), state }
    }

    /// Takes an event of another server in.
    pub async fn receive(&self, origin: &ServerName, event: &Event) -> Duration {
        let began = Instant::now();
        let received = self.federation.inbound().receive_event(origin, self.room(), &event.json).await;
        received.expect("an event that can be received");
        began.elapsed()
    }

    /// What the parts of a resolution take, alone: two states of the room that differ in so many members.
    pub async fn measure_states(&self) {
        let root = self.root().await;
        let now = self.entries().await;
        for (changes, known) in [(1, true), (10, true), (100, true), (1, false)] {
            let other = self.with_last_names(&now, changes, known).await;
            let (other, apart, took) = self.difference(root, &other).await;
            assert_eq!(apart, changes);
            let what = if known { "states that differ in" } else { "one that lacks" };
            println!("{what:<21} {changes:<3}{took:>9.2} ms to find what differs, by their trees");
            let (asked, took) = self.resolution(root, other).await;
            println!("  made one              {took:>10.2} ms, {asked} lookups in the database");
        }
    }

    async fn difference(&self, root: NodeId, other: &StateMap) -> (NodeId, usize, f64) {
        let store = &self.core.store;
        let changes = {
            let now = self.entries().await;
            let changed = now.into_iter().filter(|(key, id)| other.get(key) != Some(id));
            Arc::new(changed.map(|(key, _)| (key.clone(), other.get(&key).cloned())).collect::<Vec<_>>())
        };
        let other = store
            .write("other state", Vec::new(), move |tx| {
                let changes = Arc::clone(&changes);
                Box::pin(async move { tx.state_update(root, &changes).await })
            })
            .await
            .expect("a state");
        let (mut found, began) = (0, Instant::now());
        for _ in 0..ROUNDS {
            let mut conn = store.read().await.expect("a connection");
            found = store.state(&mut conn).diff(root, other).await.expect("a difference").len();
        }
        (other, found, began.elapsed().as_secs_f64() * 1000.0 / ROUNDS as f64)
    }

    /// The state as it would be had some members kept their last names; or, unless they are `known`, had never come.
    async fn with_last_names(&self, now: &StateMap, changes: usize, known: bool) -> StateMap {
        let mut other = now.clone();
        let mut left = changes;
        let members = now.iter().filter(|(key, _)| key.0 == StateEventType::RoomMember);
        for (key, id) in members.filter(|(key, _)| key.1.starts_with("@member")) {
            if left == 0 {
                break;
            }
            let event = self.core.store.event(id).await.expect("events").expect("the event");
            let auth = self.core.store.events(&event.event.auth_events).await.expect("events");
            let last = auth.values().find(|stored| stored.event.is_state_of(&key.0, &key.1));
            match (known, last) {
                (true, Some(last)) => drop(other.insert(key.clone(), last.event.event_id.clone())),
                (true, None) => continue,
                (false, _) => drop(other.remove(key)),
            }
            left -= 1;
        }
        other
    }

    /// As for an event that follows both: how often the database was asked, the first time, and the time on average, ms.
    async fn resolution(&self, one: NodeId, other: NodeId) -> (u64, f64) {
        let (mut asked, before, began) = (None, self.core.store.lookups(), Instant::now());
        for _ in 0..ROUNDS {
            self.timeline.state_join(self.room(), &[], &[one, other]).await.expect("a state");
            asked.get_or_insert(self.core.store.lookups() - before);
        }
        (asked.unwrap_or_default(), began.elapsed().as_secs_f64() * 1000.0 / ROUNDS as f64)
    }
}

fn user(name: &str) -> OwnedUserId {
    OwnedUserId::try_from(format!("@{name}:{NAME}")).expect("a user")
}

fn member(number: usize) -> OwnedUserId {
    user(&format!("member{number}"))
}
