//! What a connection has sent: in memory where this node has it, else from the database. A version never changes once
//! it is written, so what memory has is right; only what answers change is written.

use super::SlidingError;
use super::config::RequiredState;
use super::pos::Pos;
use crate::Core;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rand::RngExt;
use ruma::OwnedRoomId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use waxwing_storage::{SlidingChange, SlidingKey, StoreError, StoreResult};

/// Bytes of connection states that a node keeps: two of each connection, and one of a thousand rooms takes 160,000. Those of
/// connections that have been quiet are read again.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// A guess of the states in that many bytes.
const CACHE_ITEMS: usize = 1_000;
/// Sets of required state of one connection: a client has a handful; one that invents them begins anew.
const MAX_CONFIGS: usize = 500;
/// A connection that has not changed for so long (milliseconds) goes when room is made for another.
const UNUSED: u64 = 60 * 24 * 60 * 60 * 1000;

/// What the client has of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sent {
    /// Only what happened up to here has been sent; none: everything up to the position of the answer.
    #[serde(rename = "u", skip_serializing_if = "Option::is_none", default)]
    pub upto: Option<i64>,
    /// The newest events that it has without a gap, at least.
    #[serde(rename = "n")]
    pub events: usize,
    /// The required state that was last asked for.
    #[serde(rename = "c")]
    pub config: i64,
    /// Whether the room was said to be one for direct messages.
    #[serde(rename = "d", skip_serializing_if = "std::ops::Not::not", default)]
    pub direct: bool,
}

/// The state of a connection at one version.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub rooms: HashMap<OwnedRoomId, Sent>,
    pub configs: BTreeMap<i64, Arc<RequiredState>>,
}

#[derive(Clone)]
struct Weight;

impl Weighter<(i64, i64), Arc<State>> for Weight {
    fn weight(&self, _: &(i64, i64), state: &Arc<State>) -> u64 {
        300 + state.rooms.len() as u64 * 160 + state.configs.len() as u64 * 1000
    }
}

/// The states that this node has in memory, by connection and version.
pub(in crate::sync) struct States(Cache<(i64, i64), Arc<State>, Weight>);

impl Default for States {
    fn default() -> States {
        States(Cache::with_weighter(CACHE_ITEMS, CACHE_BYTES, Weight))
    }
}

impl States {
    /// The state that a position belongs to.
    ///
    /// # Errors
    /// [`SlidingError::UnknownPos`] when it is no more, or was another's.
    pub(super) async fn load(
        &self,
        core: &Core,
        key: &SlidingKey,
        pos: &Pos,
    ) -> Result<Arc<State>, SlidingError> {
        if pos.owner != super::pos::owner(key) {
            return Err(SlidingError::UnknownPos);
        }
        if pos.connection == 0 {
            return Ok(Arc::default());
        }
        let name = (pos.connection, pos.version);
        if let Some(state) = self.0.get(&name) {
            return Ok(state);
        }
        let found = core.store.read().await?.sliding_load(key, pos.connection, pos.version).await?;
        let found = found.ok_or(SlidingError::UnknownPos)?;
        let corrupt = |error| StoreError::corrupt("sliding_rooms", pos.connection.to_string(), error);
        let mut state = State::default();
        for (room, data) in found.rooms {
            state.rooms.insert(room, serde_json::from_str(&data).map_err(corrupt)?);
        }
        for (config, json) in found.configs {
            state.configs.insert(config, Arc::new(serde_json::from_str(&json).map_err(corrupt)?));
        }
        let state = Arc::new(state);
        self.0.insert(name, Arc::clone(&state));
        Ok(state)
    }

    /// Writes what an answer changed, and gives the connection's name and version for its position.
    pub(super) async fn save(
        &self,
        core: &Core,
        key: SlidingKey,
        base: (i64, i64),
        draft: Draft,
    ) -> Result<(i64, i64), SlidingError> {
        if draft.rooms.is_empty() {
            return Ok(base);
        }
        if draft.state.configs.len() + draft.configs.len() > MAX_CONFIGS {
            return Err(SlidingError::UnknownPos);
        }
        let connection = if base.0 == 0 { rand::rng().random_range(1..=i64::MAX) } else { base.0 };
        let change = draft.change(key, connection, base.1, core.now())?;
        let written = core
            .store
            .write("sliding sync", Vec::new(), move |tx| {
                let change = change.clone();
                Box::pin(async move { tx.sliding_save(&change).await })
            })
            .await?;
        let version = written.ok_or(SlidingError::UnknownPos)?;
        self.0.insert((connection, version), Arc::new(draft.into_state()));
        Ok((connection, version))
    }
}

/// What an answer changes.
pub(super) struct Draft {
    state: Arc<State>,
    rooms: BTreeMap<OwnedRoomId, Sent>,
    configs: BTreeMap<i64, Arc<RequiredState>>,
}

impl Draft {
    /// Of a connection in this state.
    pub fn new(state: Arc<State>) -> Draft {
        Draft { state, rooms: BTreeMap::new(), configs: BTreeMap::new() }
    }

    /// The room is now known so to the client.
    pub fn set(&mut self, room: &OwnedRoomId, sent: Sent, config: Option<&Arc<RequiredState>>) {
        if let Some(config) = config.filter(|_| !self.state.configs.contains_key(&sent.config)) {
            self.configs.entry(sent.config).or_insert_with(|| Arc::clone(config));
        }
        if self.state.rooms.get(room) != Some(&sent) {
            self.rooms.insert(room.clone(), sent);
        }
    }

    fn change(&self, key: SlidingKey, connection: i64, base: i64, now: u64) -> StoreResult<SlidingChange> {
        let json = |error| StoreError::corrupt("sliding_rooms", connection.to_string(), error);
        let rooms = self.rooms.iter();
        let rooms = rooms.map(|(room, sent)| Ok((room.clone(), serde_json::to_string(sent).map_err(json)?)));
        let configs = self.configs.iter();
        let configs =
            configs.map(|(name, config)| Ok((*name, serde_json::to_string(&**config).map_err(json)?)));
        Ok(SlidingChange {
            key,
            connection,
            base,
            rooms: rooms.collect::<StoreResult<_>>()?,
            configs: configs.collect::<StoreResult<_>>()?,
            now,
            expired: now.saturating_sub(UNUSED),
        })
    }

    fn into_state(self) -> State {
        let mut state = State::clone(&self.state);
        state.rooms.extend(self.rooms);
        state.configs.extend(self.configs);
        state
    }
}
