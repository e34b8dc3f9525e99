//! Forgetting: a room, or the history of a room before a place or a time.
//!
//! It is done while the server runs, in slices with pauses between them. How far a purge has come is a row of the
//! database, written in the transaction of each slice: whoever goes on after a crash, or another node, knows.
//!
//! Of a room's history the messages go. State events stay, without a place in the timeline, because what is left of
//! the room is authorised by them; so do the ends of the room. Files go with the messages that named them. Other servers
//! keep what they have.
//! The shape of the endpoints is Synapse's:
//! <https://element-hq.github.io/synapse/latest/admin_api/rooms.html#version-2-new-version>
//! <https://element-hq.github.io/synapse/latest/admin_api/purge_history_api.html>

mod history;
mod media;
mod nodes;
mod policy;
mod room;
mod run;

pub use policy::{Lifetime, RetentionSettings};

use crate::Core;
use crate::timeline::{Timeline, TimelineError};
use ruma::{OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::Notify;
use waxwing_model::opaque_id;
pub use waxwing_storage::{PurgeKind, PurgePhase};
use waxwing_storage::{PurgeRow, StoreError};

/// Purges listed at once.
const MOST_LISTED: i64 = 100;
/// Purges that may wait at the same time.
const MOST_WAITING: i64 = 1000;

/// How purges are done.
#[derive(Clone, Debug)]
pub struct PurgeSettings {
    /// What is forgotten without being asked.
    pub retention: RetentionSettings,
    /// Events of one slice.
    pub slice: u32,
    /// The pause after each slice, in which others write.
    pub pause: Duration,
    /// Nodes of states that were written so shortly before a purge are left, because something that is not written
    /// yet may need them.
    pub grace: Duration,
}

impl Default for PurgeSettings {
    fn default() -> PurgeSettings {
        PurgeSettings {
            retention: RetentionSettings::default(),
            // A slice takes some ten milliseconds: other writes hardly notice.
            slice: 200,
            pause: Duration::from_millis(100),
            grace: Duration::from_mins(10),
        }
    }
}

/// What shall become of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomPurge {
    /// Nobody of this server may enter it again.
    pub block: bool,
    /// All that is stored of it goes. Else the users of this server only leave it.
    pub purge: bool,
    /// It goes even if not all users of this server could leave.
    pub force: bool,
    /// Who makes a new room, into which the users of this server are moved.
    pub new_room_user: Option<OwnedUserId>,
    /// The name of the new room.
    pub room_name: Option<String>,
    /// What the new room says: its topic.
    pub message: Option<String>,
    /// Who asked for it; empty for the operator.
    pub by: String,
}

/// Which history shall go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPurge {
    /// Up to where.
    pub before: Before,
    /// Also what users of this server sent. Else their messages stay stored (nobody else may have them), but are shown
    /// no more.
    pub local: bool,
}

/// Where a purge of history ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Before {
    /// Before this event.
    Event(OwnedEventId),
    /// Before this moment, milliseconds since the epoch, by the clocks of the events' senders.
    Time(u64),
}

/// How far a purge has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Users of this server that were put out.
    pub kicked: Vec<OwnedUserId>,
    /// Users of this server that could not be put out.
    pub failed: Vec<OwnedUserId>,
    /// Aliases of this server that pointed at the room.
    pub aliases: Vec<OwnedRoomAliasId>,
    /// The room that was made in its place.
    pub new_room: Option<OwnedRoomId>,
    /// Events that are gone.
    pub events: u64,
    /// Events that stay stored without being shown.
    pub kept: u64,
    /// Other rows that are gone.
    pub rows: u64,
    /// Nodes of states that are gone.
    pub nodes: u64,
    /// Files that are gone.
    pub media: u64,
    /// Those who are to leave have been written down.
    listed: bool,
    /// Until when other servers may take what waits for them, milliseconds since the epoch.
    telling_until: Option<u64>,
    /// The last event that was looked at: when it was sent, and its number.
    cursor: Option<(i64, i64)>,
    /// The number before which history goes.
    upto: Option<i64>,
    /// The table that is being emptied.
    table: usize,
}

/// A purge as others see it.
#[derive(Clone, Debug)]
pub struct Purge {
    /// Names it.
    pub id: String,
    /// Of which room.
    pub room: OwnedRoomId,
    /// A room, or its history.
    pub kind: PurgeKind,
    /// Where it stands.
    pub phase: PurgePhase,
    /// What has been done.
    pub progress: Progress,
    /// What it does not get on with, or why it was given up.
    pub error: Option<String>,
    /// When it was asked for, milliseconds since the epoch.
    pub created_at: u64,
}

/// Why a purge is not begun.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The timeline.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// The room is not known here.
    #[error("the room is not known here")]
    NoRoom,
    /// The event is not part of the room.
    #[error("the event is not part of the room's history")]
    NoEvent,
    /// One purge of a room at a time.
    #[error("a purge of this room is under way")]
    UnderWay,
    /// Too many wait.
    #[error("too many purges wait")]
    TooMany,
    /// The new room cannot be made as it was asked for.
    #[error("{0}")]
    Invalid(&'static str),
    /// What was written down of it cannot be read.
    #[error("corrupt: {0}")]
    Corrupt(String),
}

/// The service. A handle: clones share everything.
#[derive(Clone)]
pub struct Purges {
    core: Core,
    timeline: Timeline,
    settings: Arc<PurgeSettings>,
    wake: Arc<Notify>,
    owner: Arc<str>,
    /// When it is looked again for rooms with a policy, milliseconds since the epoch.
    next_look: Arc<AtomicU64>,
    /// The files that profiles and account data name.
    held: Arc<media::Held>,
}

impl Purges {
    /// Does nothing before [`Purges::run`] but to take orders.
    pub fn new(core: Core, timeline: Timeline, settings: PurgeSettings) -> Purges {
        Purges {
            core,
            timeline,
            settings: Arc::new(settings),
            wake: Arc::default(),
            owner: opaque_id(16).into(),
            next_look: Arc::default(),
            held: Arc::default(),
        }
    }

    /// Begins to forget a room. It need not be known here: then it can only be blocked.
    ///
    /// # Errors
    /// [`PurgeError::UnderWay`], [`PurgeError::Invalid`] for a creator of the new room who is not of this server.
    pub async fn purge_room(&self, room: &RoomId, wanted: RoomPurge) -> Result<String, PurgeError> {
        if wanted.new_room_user.as_ref().is_some_and(|user| !self.core.is_local(user)) {
            return Err(PurgeError::Invalid("the creator of the new room must be a user of this server"));
        }
        if wanted.room_name.is_some() && wanted.new_room_user.is_none() {
            return Err(PurgeError::Invalid("a new room needs somebody who makes it"));
        }
        self.begin(PurgeKind::Room, room, &wanted, PurgePhase::Leaving).await
    }

    /// Begins to forget history.
    ///
    /// # Errors
    /// [`PurgeError::NoRoom`], [`PurgeError::NoEvent`], [`PurgeError::UnderWay`].
    pub async fn purge_history(&self, room: &RoomId, wanted: HistoryPurge) -> Result<String, PurgeError> {
        self.core.store.read().await?.room_load(room).await?.ok_or(PurgeError::NoRoom)?;
        if let Before::Event(id) = &wanted.before {
            let stored = self.core.store.event(id).await?;
            stored
                .filter(|stored| stored.event.room_id == room && !stored.flags.outlier)
                .ok_or(PurgeError::NoEvent)?;
        }
        self.begin(PurgeKind::History, room, &wanted, PurgePhase::Events).await
    }

    async fn begin(
        &self,
        kind: PurgeKind,
        room: &RoomId,
        parameters: &impl Serialize,
        phase: PurgePhase,
    ) -> Result<String, PurgeError> {
        let json = |error: serde_json::Error| PurgeError::Corrupt(error.to_string());
        let now = self.core.now() as i64;
        let row = PurgeRow {
            purge_id: opaque_id(16),
            kind,
            room_id: room.to_owned(),
            phase,
            parameters: serde_json::to_string(parameters).map_err(json)?,
            progress: serde_json::to_string(&Progress::default()).map_err(json)?,
            error: None,
            created_at: now,
            updated_at: now,
        };
        let id = row.purge_id.clone();
        let row = Arc::new(row);
        self.core
            .store
            .write("begin purge", Vec::new(), move |tx| {
                let row = Arc::clone(&row);
                Box::pin(async move {
                    let waiting = tx.purges_under_way(MOST_WAITING).await?;
                    if waiting.iter().any(|other| other.room_id == row.room_id) {
                        return Err(PurgeError::UnderWay);
                    }
                    if waiting.len() as i64 >= MOST_WAITING {
                        return Err(PurgeError::TooMany);
                    }
                    tx.purge_insert(&row).await?;
                    Ok(())
                })
            })
            .await?;
        self.wake.notify_one();
        Ok(id)
    }

    /// A purge, if it was asked for in the last days.
    pub async fn status(&self, id: &str) -> Result<Option<Purge>, PurgeError> {
        let row = self.core.store.read().await?.purge_load(id).await?;
        row.map(shown).transpose()
    }

    /// The purges of a room, the oldest first.
    pub async fn of_room(&self, room: &RoomId) -> Result<Vec<Purge>, PurgeError> {
        let rows = self.core.store.read().await?.purges_of_room(room, MOST_LISTED).await?;
        rows.into_iter().map(shown).collect()
    }

    /// The newest purges.
    pub async fn newest(&self) -> Result<Vec<Purge>, PurgeError> {
        let rows = self.core.store.read().await?.purges_newest(MOST_LISTED).await?;
        rows.into_iter().map(shown).collect()
    }

    /// Who blocked a room, if somebody did; an empty name stands for a purge under way.
    pub async fn blocked_by(&self, room: &RoomId) -> Result<Option<String>, PurgeError> {
        Ok(self.core.store.read().await?.room_blocked_by(room).await?)
    }

    /// Blocks a room, or lets people enter it again.
    pub async fn block(&self, room: &RoomId, by: &str, on: bool) -> Result<(), PurgeError> {
        let input = Arc::new((room.to_owned(), by.to_owned()));
        let now = self.core.now() as i64;
        self.core
            .store
            .write("block room", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (room, by) = &*input;
                    if on { tx.room_block(room, by, now).await } else { tx.room_unblock(room, false).await }
                })
            })
            .await
            .map_err(PurgeError::Store)
    }
}

fn shown(row: PurgeRow) -> Result<Purge, PurgeError> {
    let progress =
        serde_json::from_str(&row.progress).map_err(|error| PurgeError::Corrupt(error.to_string()))?;
    Ok(Purge {
        id: row.purge_id,
        room: row.room_id,
        kind: row.kind,
        phase: row.phase,
        progress,
        error: row.error,
        created_at: row.created_at as u64,
    })
}

/// What was done so far, in words for people and log lines.
impl std::fmt::Display for Purge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Progress { events, kept, rows, nodes, media, .. } = &self.progress;
        let counts = BTreeMap::from([
            ("events", events),
            ("hidden", kept),
            ("rows", rows),
            ("nodes", nodes),
            ("files", media),
        ]);
        let what = match self.kind {
            PurgeKind::Room => "room",
            PurgeKind::History => "history of",
        };
        write!(f, "{} {what} {}: {:?}", self.id, self.room, self.phase)?;
        for (name, count) in counts.into_iter().filter(|(_, count)| **count > 0) {
            write!(f, ", {count} {name}")?;
        }
        match &self.error {
            Some(error) => write!(f, " ({error})"),
            None => Ok(()),
        }
    }
}
