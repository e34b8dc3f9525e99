//! Who types where. Kept in memory: lost at a restart, when nobody notices.
//! <https://spec.matrix.org/v1.19/client-server-api/#typing-notifications>
//!
//! With several nodes over PostgreSQL each change rides on the log as a row of [`Fact::Other`] with the reference
//! `typing`, so that every node learns of it within a wake; on SQLite there is one node, and nothing is written.

use crate::Core;
use crate::outgoing::Volatile;
use parking_lot::Mutex;
use ruma::api::federation::transactions::edu::TypingContent;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use waxwing_federation::outbound::VolatileEdu;
use waxwing_model::Clock;
use waxwing_storage::{Engine, Fact, LogRow, NewRow, Store, StoreError};

/// The longest that one request lets somebody type.
const MAX_TIMEOUT_MS: u64 = 120_000;
/// The shortest: below it nobody would see it.
const MIN_TIMEOUT_MS: u64 = 1_000;
/// How long another server's user types without a word: its server repeats it while it goes on.
const REMOTE_TIMEOUT_MS: u64 = 30_000;
/// How often ended typing is looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// Users who type in one room: more no client shows.
const MAX_IN_ROOM: usize = 200;
/// The reference of rows that carry typing to other nodes.
const REFERENCE: &str = "typing";
/// A room in which nobody types is remembered this long, so that syncs learn that typing ended.
const REMEMBER_MS: u64 = 300_000;

/// Why typing was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TypingError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else's typing.
    #[error("you may only say of yourself that you type")]
    NotYours,
    /// Only who is in the room types there.
    #[error("you are not in this room")]
    NotInRoom,
}

#[derive(Default)]
struct Room {
    /// Until when, milliseconds since the Unix epoch.
    users: BTreeMap<OwnedUserId, u64>,
    /// The clock at the last change.
    changed: u64,
}

struct Inner {
    rooms: Mutex<HashMap<OwnedRoomId, Room>>,
    /// Grows with each change. Starts at the time, so that it never falls behind a token of before a restart.
    clock: watch::Sender<u64>,
    time: Clock,
}

/// Who types where, as this node knows.
#[derive(Clone)]
pub struct Typing {
    core: Core,
    outgoing: Arc<dyn Volatile>,
    inner: Arc<Inner>,
}

/// A change as it rides on the log.
#[derive(Serialize, Deserialize)]
struct Carried {
    /// Milliseconds since the Unix epoch; zero: stopped.
    until: u64,
}

impl Typing {
    /// Starts the task that ends typing, and with PostgreSQL the one that follows the other nodes; both end with the
    /// last handle.
    pub fn new(core: Core, outgoing: Arc<dyn Volatile>) -> Typing {
        let time = core.clock.clone();
        let inner =
            Arc::new(Inner { rooms: Mutex::default(), clock: watch::Sender::new(time.millis()), time });
        tokio::spawn(sweep(Arc::downgrade(&inner)));
        if core.store.engine() == Engine::Postgres {
            tokio::spawn(follow(Arc::downgrade(&inner), core.store.clone()));
        }
        Typing { core, outgoing, inner }
    }

    /// A user of this server types for `timeout` (none: stops).
    ///
    /// # Errors
    /// [`TypingError::NotYours`], [`TypingError::NotInRoom`].
    pub async fn set(
        &self,
        asking: &UserId,
        user: &UserId,
        room: &RoomId,
        timeout: Option<Duration>,
    ) -> Result<(), TypingError> {
        if asking != user {
            return Err(TypingError::NotYours);
        }
        let servers = {
            let mut conn = self.core.store.read().await?;
            match conn.member_load(room, user).await? {
                Some(member) if member.membership == "join" => {}
                _ => return Err(TypingError::NotInRoom),
            }
            conn.servers_in(room).await?
        };
        let until = timeout.map(|timeout| {
            let millis = u64::try_from(timeout.as_millis()).unwrap_or(MAX_TIMEOUT_MS);
            self.core.now() + millis.clamp(MIN_TIMEOUT_MS, MAX_TIMEOUT_MS)
        });
        self.change(room, user, until).await?;
        for server in servers.iter().filter(|server| **server != self.core.server_name) {
            let content = TypingContent::new(room.to_owned(), user.to_owned(), until.is_some());
            self.outgoing.push(server, VolatileEdu::Typing(content));
        }
        Ok(())
    }

    /// Takes the typing of another server's user. Of one who is not in the room it is dropped.
    pub async fn take(&self, content: TypingContent) -> Result<(), TypingError> {
        if self.core.is_local(&content.user_id) {
            return Ok(());
        }
        let mut conn = self.core.store.read().await?;
        let in_room = match conn.member_load(&content.room_id, &content.user_id).await? {
            Some(member) => member.membership == "join",
            // Its members may be still to come.
            None => conn
                .partial_servers(&content.room_id)
                .await?
                .iter()
                .any(|server| server == content.user_id.server_name()),
        };
        drop(conn);
        if !in_room {
            return Ok(());
        }
        let until = content.typing.then(|| self.core.now() + REMOTE_TIMEOUT_MS);
        self.change(&content.room_id, &content.user_id, until).await
    }

    /// Who types in a room now, in order of their ids.
    pub fn typists(&self, room: &RoomId) -> Vec<OwnedUserId> {
        let rooms = self.inner.rooms.lock();
        rooms.get(room).map(|room| room.users.keys().cloned().collect()).unwrap_or_default()
    }

    /// The clock now: what a sync token carries.
    pub fn clock(&self) -> u64 {
        *self.inner.clock.borrow()
    }

    /// The clock at the last change in a room; zero when nothing is known of it.
    pub fn changed_at(&self, room: &RoomId) -> u64 {
        self.inner.rooms.lock().get(room).map_or(0, |room| room.changed)
    }

    /// Rooms in which something changed after `clock`.
    pub fn rooms_changed_since(&self, clock: u64) -> Vec<OwnedRoomId> {
        let rooms = self.inner.rooms.lock();
        rooms.iter().filter(|(_, room)| room.changed > clock).map(|(id, _)| id.clone()).collect()
    }

    /// Follows the clock: it changes with each change, for waking syncs.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.clock.subscribe()
    }

    async fn change(&self, room: &RoomId, user: &UserId, until: Option<u64>) -> Result<(), TypingError> {
        if self.core.store.engine() == Engine::Sqlite {
            self.inner.apply(room, user, until);
        } else {
            let carried = Carried { until: until.unwrap_or_default() };
            let data = serde_json::to_string(&carried).unwrap_or_default();
            let row = NewRow::new(Fact::Other).room(room).user(user).reference(REFERENCE).data(data);
            self.core
                .store
                .write("typing", Vec::new(), move |tx| {
                    tx.log_append(row.clone());
                    Box::pin(async { Ok::<_, TypingError>(()) })
                })
                .await?;
        }
        Ok(())
    }
}

impl Inner {
    fn apply(&self, room: &RoomId, user: &UserId, until: Option<u64>) {
        let mut rooms = self.rooms.lock();
        let changed = match until {
            Some(until) => {
                let room = rooms.entry(room.to_owned()).or_default();
                if room.users.len() >= MAX_IN_ROOM && !room.users.contains_key(user) {
                    return;
                }
                room.users.insert(user.to_owned(), until).is_none()
            }
            None => rooms.get_mut(room).is_some_and(|room| room.users.remove(user).is_some()),
        };
        if changed && let Some(room) = rooms.get_mut(room) {
            room.changed = self.tick();
        }
    }

    /// The clock's next value: the time, or one more than before.
    fn tick(&self) -> u64 {
        let now = self.time.millis();
        let mut value = 0;
        self.clock.send_modify(|clock| {
            *clock = now.max(*clock + 1);
            value = *clock;
        });
        value
    }

    fn end_expired(&self) {
        let now = self.time.millis();
        let mut rooms = self.rooms.lock();
        rooms.retain(|_, room| {
            let before = room.users.len();
            room.users.retain(|_, until| *until > now);
            if room.users.len() != before {
                room.changed = self.tick();
            }
            !room.users.is_empty() || room.changed + REMEMBER_MS > now
        });
    }
}

async fn sweep(inner: Weak<Inner>) {
    let mut interval = tokio::time::interval(SWEEP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        inner.end_expired();
    }
}

/// Applies what the nodes wrote, this one too, in one order.
async fn follow(inner: Weak<Inner>, store: Store) {
    let mut head = store.tail().subscribe();
    let mut seen = store.tail().head();
    while head.changed().await.is_ok() {
        let Some(inner) = inner.upgrade() else { return };
        let upto = store.tail().head();
        // What the tail no longer has is over.
        for row in store.tail().range(seen, upto).unwrap_or_default() {
            apply_row(&inner, &row);
        }
        seen = upto;
    }
}

fn apply_row(inner: &Inner, row: &LogRow) {
    if row.fact != Fact::Other || row.reference.as_deref() != Some(REFERENCE) {
        return;
    }
    let (Some(room), Some(user), Some(data)) = (&row.room, &row.user, &row.data) else { return };
    let Ok(carried) = serde_json::from_str::<Carried>(data) else { return };
    inner.apply(room, user, (carried.until > inner.time.millis()).then_some(carried.until));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_ticks_with_changes_only() {
        let time = Clock::System;
        let inner = Inner { rooms: Mutex::default(), clock: watch::Sender::new(time.millis()), time };
        let (room, user): (OwnedRoomId, OwnedUserId) =
            ("!r:a.b".try_into().unwrap(), "@u:a.b".try_into().unwrap());
        let start = *inner.clock.borrow();
        let later = inner.time.millis() + 60_000;
        inner.apply(&room, &user, Some(later));
        let first = *inner.clock.borrow();
        assert!(first > start);
        inner.apply(&room, &user, Some(later + 1));
        assert_eq!(*inner.clock.borrow(), first);
        inner.apply(&room, &user, None);
        assert!(*inner.clock.borrow() > first);
        inner.apply(&room, &user, Some(1));
        inner.end_expired();
        assert!(inner.rooms.lock()[&room].users.is_empty());
    }
}
