//! A server of the simulation, whatever is behind it.

use async_trait::async_trait;
use bytes::Bytes;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName,
};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use url::Url;
use waxwing_federation::client::Client;
use waxwing_federation::inbound::Inbound;
use waxwing_federation::keys::KeyRing;
use waxwing_federation::ports::{Batch, Flags};
use waxwing_federation::transport::Request;
use waxwing_model::{Clock, Event, StateKey};
use waxwing_rooms::KeyPair;
use waxwing_rooms::state_tree::NodeId;

/// Why a server does not answer: status and error code.
#[derive(Debug)]
pub struct Refusal(pub u16, pub &'static str);

/// What a user does.
#[derive(Clone, Debug)]
pub enum Act {
    /// Makes a public room.
    Create { user: OwnedUserId, version: RoomVersionId, levels: Value, name: u64 },
    /// Says something.
    Say { room: OwnedRoomId, user: OwnedUserId, body: String },
    /// Sets a state entry.
    Set { room: OwnedRoomId, user: OwnedUserId, kind: &'static str, key: String, content: Value },
    /// Joins.
    Join { room: OwnedRoomId, user: OwnedUserId, via: Vec<OwnedServerName> },
    /// Leaves.
    Leave { room: OwnedRoomId, user: OwnedUserId },
    /// Invites.
    Invite { room: OwnedRoomId, user: OwnedUserId, target: OwnedUserId },
    /// Kicks, bans (`ban`), or lets somebody back (`leave` of one who is banned).
    Remove { room: OwnedRoomId, user: OwnedUserId, target: OwnedUserId, ban: bool },
    /// Replaces the room.
    Upgrade { room: OwnedRoomId, user: OwnedUserId, version: RoomVersionId },
}

/// An event as a server has it.
#[derive(Clone)]
pub struct Seen {
    pub event: Arc<Event>,
    pub flags: Flags,
    /// The root of the state before it.
    pub before: Option<NodeId>,
}

/// A room as a server has it.
pub struct View {
    pub version: RoomVersionId,
    pub extremities: Vec<OwnedEventId>,
    pub state: BTreeMap<StateKey, OwnedEventId>,
    pub events: BTreeMap<OwnedEventId, Seen>,
    /// Where its history ends.
    pub backward: Vec<OwnedEventId>,
}

impl View {
    pub fn event(&self, id: &EventId) -> Option<&Arc<Event>> {
        self.events.get(id).map(|seen| &seen.event)
    }

    /// The event that holds a state entry.
    pub fn holds(&self, kind: &str, key: &str) -> Option<&Arc<Event>> {
        let id = self.state.get(&(kind.into(), key.to_owned()))?;
        self.event(id)
    }

    pub fn joined(&self) -> Vec<OwnedUserId> {
        let members = self.state.iter().filter(|(key, _)| key.0.to_string() == "m.room.member");
        members
            .filter(|(_, id)| {
                self.event(id).is_some_and(|event| event.content_str("membership").as_deref() == Some("join"))
            })
            .filter_map(|(key, _)| OwnedUserId::try_from(key.1.as_str()).ok())
            .collect()
    }

    pub fn has_server(&self, server: &ServerName) -> bool {
        self.joined().iter().any(|user| user.server_name() == server)
    }
}

#[async_trait]
pub trait Node: Send + Sync {
    fn name(&self) -> &ServerName;
    fn clock(&self) -> &Clock;
    fn client(&self) -> &Client;
    fn ring(&self) -> &KeyRing;
    fn inbound(&self) -> &Inbound;
    fn key(&self) -> &KeyPair;

    fn key_document(&self) -> Value {
        let document = self.ring().own().document(self.clock().millis()).expect("our document");
        serde_json::from_str(document.get()).expect("JSON")
    }

    /// Gives the room that it makes, if it does.
    async fn act(&self, act: &Act) -> Result<Option<OwnedRoomId>, String>;
    async fn answer(&self, origin: &ServerName, question: Question) -> Result<Value, Refusal>;
    /// Sends what is due, by the sender that the program runs. Whether somebody accepted something; `None` where the
    /// simulation hands transactions over itself.
    async fn send_due(&self) -> Option<bool> {
        None
    }
    /// A server spoke to this one.
    fn heard_from(&self, _origin: &ServerName) {}
    /// Destinations for which something waits.
    async fn waiting(&self) -> Vec<OwnedServerName>;
    async fn batch(&self, to: &ServerName, catch_up: bool) -> Option<Batch>;
    async fn delivered(&self, to: &ServerName, upto: i64);
    async fn view(&self, room: &RoomId) -> Option<View>;
    /// Asks once for the members of rooms that were joined without them. Whether some are still missing. With `steps` the server
    /// crashes after so many, unless it is done by then.
    async fn take_members(&self, _steps: Option<usize>) -> bool {
        false
    }
    /// Fetches history. Whether there may be more.
    async fn backfill(&self, room: &RoomId) -> bool;
}

/// What is asked of a server by another.
#[derive(Debug)]
pub enum Question {
    Send { txn: String, body: Bytes },
    Event(OwnedEventId),
    EventAuth(OwnedRoomId, OwnedEventId),
    State(OwnedRoomId, OwnedEventId),
    StateIds(OwnedRoomId, OwnedEventId),
    Backfill { room: OwnedRoomId, from: Vec<OwnedEventId>, limit: usize },
    Missing { room: OwnedRoomId, query: MissingQuery },
    MakeJoin { room: OwnedRoomId, user: OwnedUserId, versions: Vec<RoomVersionId> },
    SendJoin { room: OwnedRoomId, event: OwnedEventId, json: Box<RawValue>, omit_members: bool },
    MakeLeave { room: OwnedRoomId, user: OwnedUserId },
    SendLeave { room: OwnedRoomId, event: OwnedEventId, json: Box<RawValue> },
    Invite { room: OwnedRoomId, event: OwnedEventId, body: InviteBody },
}

#[derive(Debug, Deserialize)]
pub struct MissingQuery {
    pub limit: usize,
    #[serde(default)]
    pub min_depth: u64,
    pub earliest_events: Vec<OwnedEventId>,
    pub latest_events: Vec<OwnedEventId>,
}

#[derive(Debug, Deserialize)]
pub struct InviteBody {
    pub room_version: RoomVersionId,
    pub event: Box<RawValue>,
    #[serde(default)]
    pub invite_room_state: Vec<Box<RawValue>>,
}

fn decoded(segment: &str) -> String {
    let pair = format!("s={}", segment.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).next().map_or(String::new(), |(_, text)| text.into_owned())
}

impl Question {
    pub fn read(request: &Request) -> Option<Question> {
        let url = Url::parse(&format!("https://x{}", request.path_and_query)).ok()?;
        let segments: Vec<String> = url.path_segments()?.map(decoded).collect();
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let all = |name: &str| {
            query.iter().filter(|(key, _)| key == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>()
        };
        let body = request.body.clone().unwrap_or_default();
        let texts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let room = |text: &str| OwnedRoomId::try_from(text).ok();
        let id = |text: &str| OwnedEventId::try_from(text).ok();
        let at = || id(all("event_id").first()?);
        let json = || serde_json::from_slice::<Box<RawValue>>(&body).ok();
        Some(match texts.get(2..)? {
            ["v1", "send", txn] => Question::Send { txn: (*txn).to_owned(), body },
            ["v1", "event", event] => Question::Event(id(event)?),
            ["v1", "event_auth", r, event] => Question::EventAuth(room(r)?, id(event)?),
            ["v1", "state", r] => Question::State(room(r)?, at()?),
            ["v1", "state_ids", r] => Question::StateIds(room(r)?, at()?),
            ["v1", "backfill", r] => Question::Backfill {
                room: room(r)?,
                from: all("v").into_iter().filter_map(id).collect(),
                limit: all("limit").first()?.parse().ok()?,
            },
            ["v1", "get_missing_events", r] => {
                Question::Missing { room: room(r)?, query: serde_json::from_slice(&body).ok()? }
            }
            ["v1", "make_join", r, user] => Question::MakeJoin {
                room: room(r)?,
                user: OwnedUserId::try_from(*user).ok()?,
                versions: all("ver").into_iter().filter_map(|v| RoomVersionId::try_from(v).ok()).collect(),
            },
            ["v2", "send_join", r, event] => {
                let omit_members = all("omit_members").first() == Some(&"true");
                Question::SendJoin { room: room(r)?, event: id(event)?, json: json()?, omit_members }
            }
            ["v1", "make_leave", r, user] => {
                Question::MakeLeave { room: room(r)?, user: OwnedUserId::try_from(*user).ok()? }
            }
            ["v2", "send_leave", r, event] => {
                Question::SendLeave { room: room(r)?, event: id(event)?, json: json()? }
            }
            ["v2", "invite", r, event] => Question::Invite {
                room: room(r)?,
                event: id(event)?,
                body: serde_json::from_slice(&body).ok()?,
            },
            _ => return None,
        })
    }
}

/// Events as they are sent.
pub fn raw_list(events: &[Box<RawValue>]) -> Value {
    Value::Array(events.iter().map(|event| serde_json::from_str(event.get()).expect("JSON")).collect())
}
