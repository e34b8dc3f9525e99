//! Walking from event to event by what they relate to (MSC2836), through other servers where this one lacks some.
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/2836>

use crate::Core;
use crate::federation::{Federation, FederationError};
use crate::render::{Shown, Viewer, render};
use crate::rooms_read::{ReadError, RoomReader};
use crate::timeline::relation;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use waxwing_storage::{RelationQuery, StoreResult, StoredEvent};

/// Events of one answer at most.
const MAX_LIMIT: usize = 100;
/// Steps away from the first event.
const MAX_DEPTH: usize = 50;
/// Children looked at of one event.
const MAX_BREADTH: usize = 100;
/// Requests to other servers for one walk.
const MAX_REQUESTS: usize = 10;
/// Servers asked for the same thing.
const MAX_SERVERS: usize = 3;

/// Towards what an event relates to, or towards what relates to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Towards {
    /// Its children.
    #[default]
    Down,
    /// Its parents.
    Up,
}

/// Where to walk, as clients and servers ask.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RelationshipsQuery {
    /// Where it begins.
    pub event_id: OwnedEventId,
    /// Its room, for an event that is not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_id: Option<OwnedRoomId>,
    /// Steps away from the first event.
    #[serde(default = "three")]
    pub max_depth: usize,
    /// Children of one event.
    #[serde(default = "ten")]
    pub max_breadth: usize,
    /// Events in the answer.
    #[serde(default = "hundred")]
    pub limit: usize,
    /// A child's children before its siblings.
    #[serde(default)]
    pub depth_first: bool,
    /// The newest children first.
    #[serde(default = "yes")]
    pub recent_first: bool,
    /// With the parent of the first event.
    #[serde(default)]
    pub include_parent: bool,
    /// With the children of the first event.
    #[serde(default)]
    pub include_children: bool,
    /// The direction.
    #[serde(default)]
    pub direction: Towards,
}

fn three() -> usize {
    3
}
fn ten() -> usize {
    10
}
fn hundred() -> usize {
    100
}
fn yes() -> bool {
    true
}

/// What a walk has found, with how many events relate to each.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order of the walk, in the form of the one who asked.
    pub events: Vec<Value>,
    /// What authorises them; for servers.
    pub auth_chain: Vec<Box<RawValue>>,
    /// There was more than the limit.
    pub limited: bool,
}

/// Walks. A handle.
#[derive(Clone)]
pub struct Relationships {
    core: Core,
    reader: RoomReader,
    federation: Option<Federation>,
}

/// Who looks.
enum Eye<'a> {
    User(&'a Viewer),
    Server(&'a Federation, &'a ServerName),
}

struct Walk<'a> {
    service: &'a Relationships,
    eye: Eye<'a>,
    room: OwnedRoomId,
    query: &'a RelationshipsQuery,
    /// Events about which other servers were asked.
    asked: BTreeSet<OwnedEventId>,
    seen: BTreeSet<OwnedEventId>,
    found: Vec<Arc<StoredEvent>>,
    limit: usize,
    limited: bool,
}

impl Relationships {
    /// Over the rooms of `reader`; `federation` asks other servers (none without federation).
    pub fn new(core: Core, reader: RoomReader, federation: Option<Federation>) -> Relationships {
        Relationships { core, reader, federation }
    }

    /// A walk for a user.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] for a first event that the viewer may not see.
    pub async fn of_user(&self, viewer: &Viewer, query: &RelationshipsQuery) -> Result<Found, ReadError> {
        let missing = || ReadError::NotFound("event");
        let room = match self.core.store.event(&query.event_id).await? {
            Some(stored) => stored.event.room_id.clone(),
            None => query.room_id.clone().ok_or_else(missing)?,
        };
        self.reader.may_read(&viewer.user, &room).await.map_err(|error| match error {
            ReadError::Forbidden => missing(),
            other => other,
        })?;
        let mut walk = Walk::new(self, Eye::User(viewer), room, query);
        walk.run().await?;
        if walk.found.is_empty() {
            return Err(missing());
        }
        let shown = render(&self.core, viewer, &walk.found, Shown::EVERYWHERE).await?;
        let mut events = Vec::new();
        for (stored, shown) in walk.found.iter().zip(shown) {
            events.push(self.with_counts(stored, &shown).await?);
        }
        Ok(Found { events, auth_chain: Vec::new(), limited: walk.limited })
    }

    /// A walk for another server, which must be in the room; nobody else is asked for it.
    ///
    /// # Errors
    /// [`FederationError::NotFound`] for a first event that is not here or not for that server.
    pub async fn of_server(
        &self,
        federation: &Federation,
        origin: &ServerName,
        query: &RelationshipsQuery,
    ) -> Result<Found, FederationError> {
        let first = self.core.store.event(&query.event_id).await?;
        let first = first.ok_or(FederationError::NotFound("event"))?;
        let row = federation.room_of_member(origin, &first.event.room_id).await?;
        let room = row.room_id.clone();
        let mut walk = Walk::new(self, Eye::Server(federation, origin), room, query);
        walk.run().await?;
        if walk.found.is_empty() {
            return Err(FederationError::NotFound("event"));
        }
        let mut events = Vec::new();
        for stored in &walk.found {
            events.push(self.with_counts(stored, &stored.event.json).await?);
        }
        let chain = federation.auth_chain(&row, &walk.found).await?;
        let auth_chain = chain.iter().map(|stored| (*stored.event.json).to_owned()).collect();
        Ok(Found { events, auth_chain, limited: walk.limited })
    }

    /// The event with how many relate to it, and the hash of their ids.
    async fn with_counts(&self, stored: &StoredEvent, shown: &RawValue) -> StoreResult<Value> {
        let mut event: Value = serde_json::from_str(shown.get()).unwrap_or_default();
        let (children, hash) = self.counts(&stored.event.event_id).await?;
        if let (Some(event), false) = (event.as_object_mut(), children.is_empty()) {
            let unsigned = event.entry("unsigned").or_insert_with(|| Value::Object(Map::new()));
            if let Some(unsigned) = unsigned.as_object_mut() {
                unsigned.insert("children".to_owned(), serde_json::json!(children));
                unsigned.insert("children_hash".to_owned(), hash.into());
            }
        }
        Ok(event)
    }

    /// What is known here of the children of an event, or what another server said, if that is more.
    async fn counts(&self, event: &EventId) -> StoreResult<(BTreeMap<String, u64>, String)> {
        let children = self.children(event).await?;
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for (_, rel_type) in &children {
            *counts.entry(rel_type.clone()).or_default() += 1;
        }
        if let Some((claimed, hash)) = self.claim(event).await?
            && claimed.values().sum::<u64>() > counts.values().sum::<u64>()
        {
            return Ok((claimed, hash));
        }
        let mut ids: Vec<&str> = children.iter().map(|(id, _)| id.as_str()).collect();
        ids.sort_unstable();
        Ok((counts, STANDARD_NO_PAD.encode(Sha256::digest(ids.concat()))))
    }

    async fn claim(&self, event: &EventId) -> StoreResult<Option<(BTreeMap<String, u64>, String)>> {
        let claim = self.core.store.read().await?.relation_claim(event).await?;
        Ok(claim.and_then(|(children, hash)| Some((serde_json::from_str(&children).ok()?, hash))))
    }

    async fn children(&self, event: &EventId) -> StoreResult<Vec<(OwnedEventId, String)>> {
        let query = RelationQuery {
            beyond: i64::MIN,
            forward: true,
            limit: MAX_BREADTH as i64,
            ..RelationQuery::default()
        };
        let found = self.core.store.read().await?.relations_page(event, &query).await?;
        Ok(found.into_iter().map(|child| (child.event_id, child.rel_type)).collect())
    }
}

impl<'a> Walk<'a> {
    fn new(
        service: &'a Relationships,
        eye: Eye<'a>,
        room: OwnedRoomId,
        query: &'a RelationshipsQuery,
    ) -> Walk<'a> {
        Walk {
            service,
            eye,
            room,
            query,
            asked: BTreeSet::new(),
            seen: BTreeSet::new(),
            found: Vec::new(),
            limit: query.limit.clamp(1, MAX_LIMIT),
            limited: false,
        }
    }

    async fn run(&mut self) -> StoreResult<()> {
        let Some(first) = self.event(&self.query.event_id.clone()).await? else { return Ok(()) };
        self.take(&first);
        if self.query.include_parent
            && let Some((parent, _)) = relation(&first.event)
            && let Some(parent) = self.event(&parent).await?
        {
            self.take(&parent);
        }
        if self.query.include_children {
            for child in self.children_of(&first).await? {
                self.take(&child);
            }
        }
        match self.query.direction {
            Towards::Up => self.up(first).await,
            Towards::Down => self.down(first).await,
        }
    }

    async fn up(&mut self, mut event: Arc<StoredEvent>) -> StoreResult<()> {
        for _ in 0..self.query.max_depth.min(MAX_DEPTH) {
            let Some((parent, _)) = relation(&event.event) else { return Ok(()) };
            let Some(parent) = self.event(&parent).await? else { return Ok(()) };
            self.take(&parent);
            event = parent;
        }
        Ok(())
    }

    async fn down(&mut self, first: Arc<StoredEvent>) -> StoreResult<()> {
        let max_depth = self.query.max_depth.min(MAX_DEPTH);
        let mut open: VecDeque<(usize, Arc<StoredEvent>)> = VecDeque::from([(0, first)]);
        let mut walked: BTreeSet<OwnedEventId> = BTreeSet::new();
        while let Some((depth, event)) = open.pop_front() {
            self.take(&event);
            if self.limited {
                return Ok(());
            }
            if depth >= max_depth || !walked.insert(event.event.event_id.clone()) {
                continue;
            }
            let mut children = self.children_of(&event).await?;
            children.truncate(self.query.max_breadth.clamp(1, MAX_BREADTH));
            let next = children.into_iter().map(|child| (depth + 1, child));
            if self.query.depth_first {
                for child in next.rev() {
                    open.push_front(child);
                }
            } else {
                open.extend(next);
            }
        }
        Ok(())
    }

    /// Adds an event to the answer, once.
    fn take(&mut self, event: &Arc<StoredEvent>) {
        if self.seen.contains(&event.event.event_id) {
            return;
        }
        if self.found.len() >= self.limit {
            self.limited = true;
            return;
        }
        self.seen.insert(event.event.event_id.clone());
        self.found.push(Arc::clone(event));
    }

    /// An event of the room that may be seen, asked for elsewhere if it is not here.
    async fn event(&mut self, id: &EventId) -> StoreResult<Option<Arc<StoredEvent>>> {
        let store = &self.service.core.store;
        let mut stored = store.event(id).await?;
        if stored.is_none() && self.ask(id).await? {
            stored = store.event(id).await?;
        }
        let Some(stored) = stored.filter(|stored| stored.event.room_id == self.room) else { return Ok(None) };
        Ok(self.visible(vec![stored]).await?.pop())
    }

    /// The visible children of an event; other servers are asked where one said that there are more.
    async fn children_of(&mut self, event: &StoredEvent) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let id = event.event.event_id.clone();
        let mut children = self.service.children(&id).await?;
        let claimed = self.service.claim(&id).await?.map_or(0, |(counts, _)| counts.values().sum::<u64>());
        if claimed > children.len() as u64 && self.ask(&id).await? {
            children = self.service.children(&id).await?;
        }
        let ids: Vec<OwnedEventId> = children.into_iter().map(|(id, _)| id).collect();
        let mut events: Vec<Arc<StoredEvent>> =
            self.service.core.store.events(&ids).await?.into_values().collect();
        events.retain(|stored| stored.event.room_id == self.room);
        events.sort_by_key(|stored| (stored.event.origin_server_ts, stored.event.event_id.clone()));
        if self.query.recent_first {
            events.reverse();
        }
        self.visible(events).await
    }

    async fn visible(&self, events: Vec<Arc<StoredEvent>>) -> StoreResult<Vec<Arc<StoredEvent>>> {
        match &self.eye {
            Eye::User(viewer) => self.service.reader.visible_or_outside(viewer, &self.room, events).await,
            Eye::Server(federation, origin) => {
                let whole = events.into_iter().filter(|stored| stored.flags.visible()).collect::<Vec<_>>();
                let may = federation.may_see(origin, &self.room, &whole).await;
                let may = may.unwrap_or_else(|_| vec![false; whole.len()]);
                Ok(whole.into_iter().zip(may).filter_map(|(stored, may)| may.then_some(stored)).collect())
            }
        }
    }

    /// Asks other servers in the room for what surrounds an event; whether anything came.
    async fn ask(&mut self, id: &EventId) -> StoreResult<bool> {
        let (Eye::User(_), Some(federation)) = (&self.eye, &self.service.federation) else {
            return Ok(false);
        };
        if self.asked.len() >= MAX_REQUESTS || !self.asked.insert(id.to_owned()) {
            return Ok(false);
        }
        let servers: Vec<OwnedServerName> = {
            let servers = self.service.core.store.read().await?.servers_in(&self.room).await?;
            let ours = &self.service.core.server_name;
            servers.into_iter().filter(|server| server != ours).take(MAX_SERVERS).collect()
        };
        let query = RelationshipsQuery { event_id: id.to_owned(), ..self.query.clone() };
        Ok(federation.fetch_related(&self.room, &servers, &query).await)
    }
}

/// What another server says in `unsigned` of the children of an event.
#[derive(Deserialize)]
struct Claim {
    #[serde(default)]
    unsigned: ClaimedCounts,
}

#[derive(Deserialize, Default)]
struct ClaimedCounts {
    #[serde(default)]
    children: BTreeMap<String, u64>,
    #[serde(default)]
    children_hash: String,
}

impl Federation {
    /// Asks servers, one after the other, for events around one, and keeps them outside the timeline. Whether one had
    /// any.
    pub(crate) async fn fetch_related(
        &self,
        room: &RoomId,
        servers: &[OwnedServerName],
        query: &RelationshipsQuery,
    ) -> bool {
        let Ok(body) = serde_json::value::to_raw_value(query) else { return false };
        for server in servers {
            let answer = match self.outgoing().client.event_relationships(server, &body).await {
                Ok(answer) if !answer.events.is_empty() => answer,
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%server, %room, %error, "no related events");
                    continue;
                }
            };
            match self.keep_related(room, server, answer.events, answer.auth_chain).await {
                Ok(()) => return true,
                Err(error) => tracing::warn!(%server, %room, %error, "related events could not be kept"),
            }
        }
        false
    }

    async fn keep_related(
        &self,
        room: &RoomId,
        server: &ServerName,
        events: Vec<Box<RawValue>>,
        auth_chain: Vec<Box<RawValue>>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let claims: Vec<ClaimedCounts> = events
            .iter()
            .map(|event| serde_json::from_str::<Claim>(event.get()).map(|claim| claim.unsigned))
            .map(Result::unwrap_or_default)
            .collect();
        let ids = self.inbound().related(room, server, events, auth_chain).await?;
        let known: Vec<OwnedEventId> = ids.iter().flatten().cloned().collect();
        let stored = self.core.store.events(&known).await?;
        let mut kept = Vec::new();
        for (id, claim) in ids.into_iter().zip(claims) {
            let Some(event) = id.and_then(|id| stored.get(&id).cloned()) else { continue };
            kept.push((event, claim));
        }
        let kept = Arc::new(kept);
        self.core
            .store
            .write("related events", Vec::new(), move |tx| {
                let kept = Arc::clone(&kept);
                Box::pin(async move {
                    for (stored, claim) in kept.iter() {
                        let event = &stored.event;
                        if let Some((parent, rel_type)) = relation(event) {
                            tx.relation_note(&parent, event, &rel_type).await?;
                        }
                        if !claim.children.is_empty() {
                            let children = serde_json::json!(claim.children).to_string();
                            tx.relation_claim_save(&event.event_id, &children, &claim.children_hash).await?;
                        }
                    }
                    Ok::<(), waxwing_storage::StoreError>(())
                })
            })
            .await?;
        Ok(())
    }
}
