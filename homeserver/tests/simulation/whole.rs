//! A whole server: our services on a database of its own.

use crate::net::{Link, Net};
use crate::node::{Act, Node, Question, Refusal, Seen, View, raw_list};
use async_trait::async_trait;
use ruma::events::TimelineEventType;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, RoomVersionId, ServerName};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::OnceCell;
use waxwing_federation::client::Client;
use waxwing_federation::inbound::Inbound;
use waxwing_federation::keys::KeyRing;
use waxwing_federation::ports::{Batch, BatchLimits, Flags, Outbox};
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::directory::Directory;
use waxwing_services::federation::{
    Edus, Federation, FederationError, Invitation, MissingEvents, Outgoing, Template,
};
use waxwing_services::keys::Keys;
use waxwing_services::outgoing::Nowhere;
use waxwing_services::presence::PresenceService;
use waxwing_services::receipts::Receipts;
use waxwing_services::rooms_read::RemoteHistory;
use waxwing_services::timeline::{Author, CreateRoom, Draft, JoinRoom, Patience, Preset, Removal, Timeline};
use waxwing_services::to_device::ToDevice;
use waxwing_services::typing::Typing;
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, RegistrationMode, Settings};
use waxwing_storage::Store;

/// Events that are looked at in one read.
const SCAN: i64 = 10_000;

pub struct Whole {
    core: Core,
    timeline: Timeline,
    directory: Directory,
    federation: Federation,
}

/// An empty database with the newest schema and its journal, made once: migrating takes longer than the rest of a small
/// simulation.
async fn template() -> &'static (Vec<u8>, Vec<u8>) {
    static TEMPLATE: OnceCell<(Vec<u8>, Vec<u8>)> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("template.db");
            let store = Store::open(&format!("sqlite:{}", path.display())).await.expect("a database");
            let journal = std::fs::read(folder.path().join("template.db-wal")).unwrap_or_default();
            let copy = (std::fs::read(&path).expect("the database"), journal);
            drop(store);
            copy
        })
        .await
}

fn settings() -> Settings {
    Settings {
        registration: RegistrationMode::Closed,
        registration_shared_secret: None,
        plaintext: PlaintextPolicy { accept: true, ..PlaintextPolicy::default() },
        default_room_version: RoomVersionId::V12,
        presence: false,
        max_upload_bytes: 1,
        password: PasswordCost { memory_kib: 8, iterations: 1 },
        everyone_publishes_rooms: true,
        federation: true,
        push: waxwing_services::PushSettings::default(),
        accounts: waxwing_services::AccountSettings::default(),
    }
}

/// What would be done after so many steps is not done: as if the program had crashed.
async fn interrupted<F: Future>(work: F, mut steps: usize) -> Option<F::Output> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        if steps == 0 {
            return Poll::Ready(None);
        }
        steps -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

impl Whole {
    pub async fn start(
        net: &Arc<Net>,
        name: OwnedServerName,
        key: KeyPair,
        clock: Clock,
        folder: &Path,
    ) -> Whole {
        let path = folder.join(format!("{name}.db"));
        let (database, journal) = template().await;
        std::fs::write(&path, database).expect("a database");
        std::fs::write(folder.join(format!("{name}.db-wal")), journal).expect("its journal");
        let store = Store::open(&format!("sqlite:{}", path.display())).await.expect("a database");
        let core = Core {
            server_name: name.clone(),
            clock,
            store,
            key: Arc::new(key),
            settings: Arc::new(settings()),
        };
        let link = Arc::new(Link { net: Arc::clone(net), from: name });
        let outgoing = Outgoing::over(&core, link).expect("a key");
        // Nobody else does anything meanwhile: waiting for it would only take time.
        let none = Duration::ZERO;
        let patience = Patience { join: none, members: none, elsewhere: none, slice: 2 };
        let timeline = Timeline::new(core.clone(), Some(outgoing.remote.clone())).with_patience(patience);
        let edus = Edus {
            typing: Typing::new(core.clone(), Arc::new(Nowhere)),
            receipts: Receipts::new(core.clone(), Arc::new(Nowhere)),
            presence: PresenceService::new(core.clone(), None),
            keys: Keys::new(core.clone(), Some(outgoing.client.clone())),
            to_device: ToDevice::new(core.clone()),
        };
        let directory = Directory::new(core.clone(), timeline.clone(), Some(outgoing.client.clone()));
        let federation = Federation::new(core.clone(), outgoing, timeline.clone(), edus);
        Whole { core, timeline, directory, federation }
    }

    async fn create(
        &self,
        user: &ruma::UserId,
        version: &RoomVersionId,
        levels: &Value,
    ) -> Result<OwnedRoomId, String> {
        let wanted = CreateRoom {
            author: Author::new(user),
            version: Some(version.clone()),
            creation_content: Map::new(),
            preset: Preset::PublicChat,
            initial_state: Vec::new(),
            name: None,
            topic: None,
            alias: None,
            power_levels: levels.as_object().cloned().unwrap_or_default(),
            invite: Vec::new(),
            is_direct: false,
            published: false,
        };
        self.timeline.create_room(wanted).await.map_err(|error| error.to_string())
    }

    async fn run(&self, act: &Act) -> Result<(), String> {
        let text = |error: waxwing_services::timeline::TimelineError| error.to_string();
        let raw = |value: &Value| to_raw_value(value).expect("JSON");
        match act {
            Act::Create { .. } | Act::Upgrade { .. } => unreachable!("makes a room"),
            Act::Say { room, user, body } => {
                let content = raw(&json!({ "msgtype": "m.text", "body": body }));
                let draft = Draft::message(user.clone(), TimelineEventType::RoomMessage, content);
                self.timeline
                    .send(&Author::new(user.clone()), room, draft, None)
                    .await
                    .map(drop)
                    .map_err(text)
            }
            Act::Set { room, user, kind, key, content } => {
                let draft = Draft::state(user.clone(), (*kind).into(), key.clone(), raw(content));
                self.timeline.set_state(&Author::new(user.clone()), room, draft).await.map(drop).map_err(text)
            }
            Act::Join { room, user, via } => {
                let author = Author::new(user.clone());
                let join = JoinRoom { author, room: room.clone(), via: via.clone(), content: Map::new() };
                self.timeline.join(join).await.map_err(text)
            }
            Act::Leave { room, user } => {
                self.timeline.leave(&Author::new(user.clone()), room, None).await.map_err(text)
            }
            Act::Invite { room, user, target } => {
                self.timeline.invite(&Author::new(user.clone()), room, target, Map::new()).await.map_err(text)
            }
            Act::Remove { room, user, target, ban } => {
                let author = Author::new(user.clone());
                let now = self
                    .view(room)
                    .await
                    .and_then(|view| view.holds("m.room.member", target.as_str())?.content_str("membership"));
                let how = match (ban, now.as_deref()) {
                    (true, _) => Removal::Ban,
                    (false, Some("ban")) => Removal::Unban,
                    (false, _) => Removal::Kick,
                };
                self.timeline.remove(&author, room, target, how, None).await.map_err(text)
            }
        }
    }

    async fn ask(&self, origin: &ServerName, question: Question) -> Result<Value, FederationError> {
        let federation = &self.federation;
        let pdus =
            |events: &[_]| json!({ "origin": self.name(), "origin_server_ts": 1, "pdus": raw_list(events) });
        let template = |made: Template| json!({ "room_version": made.version, "event": made.event });
        Ok(match question {
            Question::Send { .. } => unreachable!("answered by inbound"),
            Question::Event(id) => pdus(&[federation.event(origin, &id).await?]),
            Question::EventAuth(room, id) => {
                json!({ "auth_chain": raw_list(&federation.event_auth(origin, &room, &id).await?) })
            }
            Question::State(room, id) => {
                let state = federation.room_state(origin, &room, &id).await?;
                json!({ "pdus": raw_list(&state.state_json()), "auth_chain": raw_list(&state.auth_chain_json()) })
            }
            Question::StateIds(room, id) => {
                let state = federation.room_state(origin, &room, &id).await?;
                json!({ "pdu_ids": state.state_ids(), "auth_chain_ids": state.auth_chain_ids() })
            }
            Question::Backfill { room, from, limit } => {
                pdus(&federation.backfill(origin, &room, &from, limit).await?)
            }
            Question::Missing { room, query } => {
                let query = MissingEvents {
                    earliest: query.earliest_events,
                    latest: query.latest_events,
                    limit: query.limit,
                    min_depth: query.min_depth,
                };
                json!({ "events": raw_list(&federation.missing_events(origin, &room, query).await?) })
            }
            Question::MakeJoin { room, user, versions } => {
                template(federation.make_join(origin, &room, &user, &versions).await?)
            }
            Question::SendJoin { room, event, json, omit_members } => {
                let joined = federation.send_join(origin, &room, &event, &json, omit_members).await?;
                json!({
                    "event": joined.event, "state": raw_list(&joined.state), "origin": self.name(),
                    "auth_chain": raw_list(&joined.auth_chain), "servers_in_room": joined.servers,
                    "members_omitted": joined.members_omitted,
                })
            }
            Question::MakeLeave { room, user } => {
                template(federation.make_leave(origin, &room, &user).await?)
            }
            Question::SendLeave { room, event, json } => {
                federation.send_leave(origin, &room, &event, &json).await?;
                json!({})
            }
            Question::Invite { room, event, body } => {
                let invitation = Invitation {
                    room,
                    event_id: event,
                    version: body.room_version,
                    event: body.event,
                    state: body.invite_room_state,
                };
                json!({ "event": federation.invite(origin, invitation).await? })
            }
        })
    }
}

/// What `inbound` makes of a transaction, as the endpoint answers it.
pub async fn transaction(
    inbound: &Inbound,
    origin: &ServerName,
    txn: &str,
    body: &[u8],
) -> Result<Value, Refusal> {
    let done = inbound.transaction(origin, txn, body).await.map_err(|_| Refusal(500, "M_UNKNOWN"))?;
    Ok(serde_json::from_str(&done.to_json()).expect("JSON"))
}

#[async_trait]
impl Node for Whole {
    fn name(&self) -> &ServerName {
        &self.core.server_name
    }
    fn clock(&self) -> &Clock {
        &self.core.clock
    }
    fn client(&self) -> &Client {
        &self.federation.outgoing().client
    }
    fn ring(&self) -> &KeyRing {
        &self.federation.outgoing().ring
    }
    fn inbound(&self) -> &Inbound {
        self.federation.inbound()
    }
    fn key(&self) -> &KeyPair {
        &self.core.key
    }

    async fn act(&self, act: &Act) -> Result<Option<OwnedRoomId>, String> {
        match act {
            Act::Create { user, version, levels, .. } => self.create(user, version, levels).await.map(Some),
            Act::Upgrade { room, user, version } => {
                let author = Author::new(user.clone());
                let made = self.directory.upgrade(&author, room, version.clone(), Vec::new()).await;
                made.map(Some).map_err(|error| error.to_string())
            }
            other => self.run(other).await.map(|()| None),
        }
    }

    async fn answer(&self, origin: &ServerName, question: Question) -> Result<Value, Refusal> {
        match question {
            Question::Send { txn, body } => transaction(self.inbound(), origin, &txn, &body).await,
            question => self.ask(origin, question).await.map_err(|error| match error {
                FederationError::NotFound(_) | FederationError::NoRoom => Refusal(404, "M_NOT_FOUND"),
                FederationError::InvalidParam(_) => Refusal(400, "M_INVALID_PARAM"),
                _ => Refusal(403, "M_FORBIDDEN"),
            }),
        }
    }

    async fn send_due(&self) -> Option<bool> {
        let outgoing = self.federation.outgoing();
        outgoing.deal().await.expect("the outbox");
        Some(outgoing.sender.serve_due().await > 0)
    }

    fn heard_from(&self, origin: &ServerName) {
        self.federation.outgoing().sender.heard_from(origin);
    }

    async fn waiting(&self) -> Vec<OwnedServerName> {
        let outgoing = self.federation.outgoing();
        outgoing.deal().await.expect("the outbox");
        let waiting = outgoing.outbox().destinations_waiting(100).await.expect("the outbox");
        waiting.into_iter().map(|state| state.destination).collect()
    }

    async fn batch(&self, to: &ServerName, catch_up: bool) -> Option<Batch> {
        let limits = BatchLimits { pdus: 50, edus: 80, catch_up };
        self.federation.outgoing().outbox().next_batch(to, limits).await.expect("the outbox")
    }

    async fn delivered(&self, to: &ServerName, upto: i64) {
        self.federation.outgoing().outbox().batch_done(to, upto).await.expect("the outbox");
    }

    async fn view(&self, room: &RoomId) -> Option<View> {
        let store = &self.core.store;
        let mut conn = store.read().await.expect("a connection");
        let row = conn.room_load(room).await.expect("rooms")?;
        let state = store.state(&mut conn).entries(row.state_root).await.expect("the state");
        let backward = conn.backward_extremities(room).await.expect("extremities");
        let mut events = std::collections::BTreeMap::new();
        let mut after = i64::MIN;
        loop {
            let some = conn.events_scan(after, SCAN).await.expect("events");
            let Some(last) = some.last() else { break };
            after = last.sn;
            for stored in some.iter().filter(|stored| stored.event.room_id == room) {
                let flags = Flags {
                    outlier: stored.flags.outlier,
                    rejected: stored.flags.rejected,
                    soft_failed: stored.flags.soft_failed,
                };
                let seen = Seen { event: Arc::clone(&stored.event), flags, before: stored.state_before };
                events.insert(stored.event.event_id.clone(), seen);
            }
        }
        let extremities = row.extremities.into_iter().map(|(id, _)| id).collect();
        Some(View { version: row.version, extremities, state: state.into_iter().collect(), events, backward })
    }

    async fn take_members(&self, steps: Option<usize>) -> bool {
        let fetching = self.federation.fetch_members_now();
        let left = match steps {
            Some(steps) => interrupted(fetching, steps).await.unwrap_or(Ok(1)),
            None => fetching.await,
        };
        left.expect("the rooms without members") > 0
    }

    async fn backfill(&self, room: &RoomId) -> bool {
        RemoteHistory::backfill(&self.federation, room, 100).await
    }
}
