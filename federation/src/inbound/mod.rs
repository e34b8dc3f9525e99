//! Receiving: what another server pushes to us, checked step by step before it becomes part of a room.
//!
//! The seven checks of <https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu> and
//! where they are: 1 `parse`, 2 and 3 `verify`, 4 and 5 `authorise`, 6 `persist`, 7 `policy`. Before 4, `fetch_missing` and `fetch_state` get what the event refers to and we lack.

mod acl;
mod authorise;
mod edu;
mod event;
mod fetch_missing;
mod fetch_state;
pub(crate) mod judge;
mod locks;
mod outside;
pub(crate) mod parse;
mod persist;
mod policy;
mod staged;
mod state_before;
mod transaction;
pub(crate) mod verify;

pub use transaction::{MAX_TXN_ID, TransactionError, TransactionResult};

use moka::future::Cache;
use ruma::{OwnedEventId, OwnedServerName, RoomId, RoomVersionId, ServerName};
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::keys::KeyRing;
use crate::ports::{EduSink, PortError, ReplayKey, Replays, Staging, StateRoot, Timeline};
use event::{RoomWork, Source};
use locks::RoomLocks;

/// What an event may follow: <https://spec.matrix.org/v1.19/server-server-api/#pdus>.
const MAX_PREV_EVENTS: usize = 20;
/// Events of an auth chain that are looked at.
const MAX_AUTH_CHAIN: usize = 10_000;
/// Answers to transactions kept in memory for repetitions, beside those in the database: a sender repeats within
/// minutes, one transaction at a time, and while the first attempt is still being worked on.
const REPLAYS: u64 = 10_000;
const REPLAY_TTL: Duration = Duration::from_mins(30);

/// Why an event did not make it. The text of `Dropped` goes to the server that sent it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Our own trouble: says nothing of the event.
    #[error("internal: {0}")]
    Port(#[from] PortError),
    /// It is not accepted in any form.
    #[error("{0}")]
    Dropped(String),
    /// What it follows cannot be had: nothing is wrong with it, and its sender can do nothing about it.
    #[error("{0}")]
    Stranded(&'static str),
}

impl Trouble {
    fn dropped(reason: impl Into<String>) -> Trouble {
        Trouble::Dropped(reason.into())
    }

    /// What another server may read of it.
    fn to_remote(&self) -> String {
        match self {
            Trouble::Port(_) => "internal error".into(),
            Trouble::Dropped(reason) => reason.clone(),
            Trouble::Stranded(reason) => (*reason).to_owned(),
        }
    }
}

/// What the receiving side works with.
pub struct InboundParts {
    /// Fetches what is missing.
    pub client: Client,
    /// Verifies signatures.
    pub ring: Arc<KeyRing>,
    /// The rooms.
    pub timeline: Arc<dyn Timeline>,
    /// Takes ephemeral data.
    pub edus: Arc<dyn EduSink>,
    /// Keeps answers for repetitions.
    pub replays: Arc<dyn Replays>,
    /// Keeps events that are still to be taken in.
    pub staging: Arc<dyn Staging>,
}

pub(crate) struct Context {
    client: Client,
    ring: Arc<KeyRing>,
    timeline: Arc<dyn Timeline>,
    edus: Arc<dyn EduSink>,
    rooms: RoomLocks,
    kept: Arc<dyn Replays>,
    staging: Arc<dyn Staging>,
    replays: Cache<ReplayKey, Arc<TransactionResult>>,
}

/// Receives events and ephemeral data. A handle: clones share everything.
#[derive(Clone)]
pub struct Inbound {
    context: Arc<Context>,
}

impl Inbound {
    /// Puts the parts together.
    pub fn new(parts: InboundParts) -> Inbound {
        let replays = Cache::builder().max_capacity(REPLAYS).time_to_live(REPLAY_TTL).build();
        let InboundParts { client, ring, timeline, edus, replays: kept, staging } = parts;
        let rooms = RoomLocks::default();
        Inbound { context: Arc::new(Context { client, ring, timeline, edus, rooms, kept, staging, replays }) }
    }

    /// Receives one event of a room outside a transaction, as the endpoints for joins, leaves, knocks and invites to a
    /// known room do after their own checks: the same checks, the same way into the room. `Err` carries the reason for
    /// the sender; a rejected or soft-failed event is `Ok`: look at its flags.
    pub async fn receive_event(
        &self,
        origin: &ServerName,
        room: &RoomId,
        json: &serde_json::value::RawValue,
    ) -> Result<OwnedEventId, String> {
        let received = self.receive_one(origin, room, json).await;
        received.map_err(|trouble| trouble.to_remote())
    }

    /// Checks 1 to 3 alone, for an event of a room that we need not be in: an invitation. A content hash that does not
    /// match is a reason to refuse it.
    pub async fn verify_event(
        &self,
        room: &RoomId,
        version: &RoomVersionId,
        json: &serde_json::value::RawValue,
    ) -> Result<(), String> {
        let pdu = parse::parse(json, room, version)?;
        let original = Arc::clone(&pdu.event.json);
        let verified = verify::verify_all(&self.context.ring, version, vec![pdu]).await;
        let mut verified = verified.map_err(|_| "internal error".to_owned())?;
        let (_, event) = verified.pop().ok_or("not verified")?;
        if event?.json.get() == original.get() {
            Ok(())
        } else {
            Err("the content hash does not match".into())
        }
    }

    async fn receive_one(
        &self,
        origin: &ServerName,
        room: &RoomId,
        json: &serde_json::value::RawValue,
    ) -> Result<OwnedEventId, Trouble> {
        let context = &*self.context;
        let version = context.timeline.room_version(room).await?;
        let version = version.ok_or_else(|| Trouble::dropped("unknown room"))?;
        let pdu = parse::parse(json, room, &version).map_err(Trouble::Dropped)?;
        let id = pdu.event.event_id.clone();
        let mut verified = verify::verify_all(&context.ring, &version, vec![pdu]).await?;
        let (_, event) = verified.pop().ok_or_else(|| Trouble::dropped("not verified"))?;
        let event = event.map_err(Trouble::Dropped)?;
        let _turn = context.rooms.enter_patiently(room).await;
        RoomWork { context, origin, room, version: &version }.receive(event, Source::Pushed).await?;
        Ok(id)
    }

    /// Keeps events that another server gave about the relations of one (MSC2836), with what authorises them, outside the
    /// timeline. Gives the ids of `events` in their order; none for those that failed a check.
    pub async fn related(
        &self,
        room: &RoomId,
        origin: &ServerName,
        events: Vec<Box<serde_json::value::RawValue>>,
        auth_chain: Vec<Box<serde_json::value::RawValue>>,
    ) -> Result<Vec<Option<OwnedEventId>>, PortError> {
        let context = &*self.context;
        let Some(version) = context.timeline.room_version(room).await? else {
            return Ok(vec![None; events.len()]);
        };
        let ids: Vec<Option<OwnedEventId>> = events
            .iter()
            .map(|json| parse::parse_old(json, room, &version).ok().map(|pdu| pdu.event.event_id))
            .collect();
        let _turn = context.rooms.enter_patiently(room).await;
        let work = RoomWork { context, origin, room, version: &version };
        let all = auth_chain.into_iter().take(MAX_AUTH_CHAIN).chain(events).collect();
        let verified = work.parse_and_verify(all, Source::Pulled).await?;
        work.store_outliers(verified).await?;
        Ok(ids)
    }

    /// The state before an event that the room was joined with, as `origin` tells it: the states after its
    /// `prev_events`, resolved into one. What is fetched is stored; the room's lock is not taken, since a large state
    /// takes minutes and events keep coming.
    ///
    /// # Errors
    /// What went wrong, for the log: another server may know better.
    pub async fn state_before_join(
        &self,
        origin: &ServerName,
        room: &RoomId,
        prev_events: &[OwnedEventId],
    ) -> Result<StateRoot, String> {
        let context = &*self.context;
        let version = context.timeline.room_version(room).await.map_err(|error| error.to_string())?;
        let version = version.ok_or_else(|| "unknown room".to_owned())?;
        let work = RoomWork { context, origin, room, version: &version };
        let mut fetched = Vec::new();
        for id in prev_events.iter().take(MAX_PREV_EVENTS) {
            let state = work.fetch_state_after(id).await.map_err(|trouble| trouble.to_string())?;
            fetched.push(state.ok_or_else(|| "the state could not be fetched".to_owned())?);
        }
        context.timeline.state_join(room, &[], &fetched).await.map_err(|error| error.to_string())
    }

    /// Fetches history before `from` (backward extremities) from the first of `servers` that has some which we lack and
    /// can take in. Gives how many events are new.
    pub async fn backfill(
        &self,
        room: &RoomId,
        servers: &[OwnedServerName],
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<usize, PortError> {
        let context = &*self.context;
        let Some(version) = context.timeline.room_version(room).await? else { return Ok(0) };
        for origin in servers {
            let events = match context.client.backfill(origin, room, from, limit).await {
                Ok(events) if !events.is_empty() => events,
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%origin, %room, %error, "no history");
                    continue;
                }
            };
            let _turn = context.rooms.enter_patiently(room).await;
            let work = RoomWork { context, origin, room, version: &version };
            let stored = match work.take_history(events).await {
                Ok(stored) => stored,
                Err(Trouble::Port(error)) => return Err(error),
                Err(Trouble::Dropped(_) | Trouble::Stranded(_)) => 0,
            };
            if stored > 0 {
                return Ok(stored);
            }
        }
        Ok(0)
    }
}
