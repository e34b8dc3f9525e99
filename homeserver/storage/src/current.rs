//! What is so now, from memory: the rows of rooms, memberships and account data that requests ask for again and again,
//! and the newest events of a room's timeline. What was read once holds until a row of the log says otherwise.
//!
//! On SQLite, where one process writes, memory is never behind what was answered. On PostgreSQL another node may have
//! written: [`Store::now`] asks where the log ends, and memory counts only when it reaches there.

use crate::engine::{Conn, Engine, on_engine};
use crate::error::StoreResult;
use crate::events::StoredEvent;
use crate::log::{Fact, LogRow};
use crate::members::MemberRow;
use crate::sql::statements;
use crate::store::Store;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_rooms::state_tree::NodeId;

statements! {
    TIMELINE = "SELECT sn, event_id FROM events WHERE room_id = $1 AND sn < $2 AND flags = 0 ORDER BY sn DESC LIMIT $3";
    PARENTS = "SELECT DISTINCT parent_id FROM relations WHERE room_id = $1 AND rel_type IN ('m.thread', 'm.replace', 'm.reference') LIMIT $2";
}

/// Rooms whose rows are kept: those that are read at the same time. About 300 bytes each.
const ROOMS: usize = 8192;
/// Memberships that are kept: of those who read at the same time. About 500 bytes each.
const MEMBERS: usize = 8192;
/// Bytes of lists of joined members that are kept: one of a room of 5,000 takes about 1 MB.
const JOINED_BYTES: u64 = 8 * 1024 * 1024;
/// A guess of the lists in that many bytes.
const JOINED_ITEMS: usize = 1000;
/// Bytes of account data that are kept: push rules and ignored users of some 20,000 who sync at the same time, of whom
/// most have none of their own.
const ACCOUNT_DATA_BYTES: u64 = 8 * 1024 * 1024;
/// A guess of the entries in that many bytes.
const ACCOUNT_DATA_ITEMS: usize = 20_000;
/// Rooms of which it is kept which events others relate to.
const PARENT_ROOMS: usize = 2048;
/// Events of one room with others that relate to them which are kept; where there are more the database is asked.
const PARENTS_KEPT: usize = 256;

/// What a room's row says that changes seldom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomNow {
    /// Its version.
    pub version: RoomVersionId,
    /// The root of the current state.
    pub state_root: NodeId,
    /// Its state lacks members: they are being fetched.
    pub partial: bool,
}

/// A joined member of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedRow {
    /// Who.
    pub user_id: OwnedUserId,
    /// The display name in this room.
    pub display_name: Option<String>,
    /// The avatar in this room.
    pub avatar_url: Option<String>,
}

#[derive(Clone)]
pub(crate) struct JoinedWeight;

impl Weighter<OwnedRoomId, (LogPosition, Arc<[JoinedRow]>)> for JoinedWeight {
    fn weight(&self, _: &OwnedRoomId, (_, rows): &(LogPosition, Arc<[JoinedRow]>)) -> u64 {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let of = |row: &JoinedRow| 160 + text(&row.display_name) + text(&row.avatar_url);
        256 + rows.iter().map(of).sum::<usize>() as u64
    }
}

#[derive(Clone)]
pub(crate) struct DataWeight;

impl Weighter<DataKey, Read<Option<Arc<str>>>> for DataWeight {
    fn weight(&self, key: &DataKey, (_, content): &Read<Option<Arc<str>>>) -> u64 {
        (160 + key.0.as_str().len() + key.1.len() + content.as_ref().map_or(0, |text| text.len())) as u64
    }
}

/// Something with the position at which it was read.
type Read<T> = (LogPosition, T);
type DataKey = (OwnedUserId, String);

/// The events of a room that others relate to as threads, edits and references; `None`: too many to keep.
type Parents = Option<HashSet<OwnedEventId>>;

/// What a node of the cluster remembers.
pub(crate) struct Current {
    rooms: Cache<OwnedRoomId, Read<Option<Arc<RoomNow>>>>,
    members: Cache<(OwnedRoomId, OwnedUserId), Read<Option<Arc<MemberRow>>>>,
    joined: Cache<OwnedRoomId, Read<Arc<[JoinedRow]>>, JoinedWeight>,
    account_data: Cache<DataKey, Read<Option<Arc<str>>>, DataWeight>,
    parents: Cache<OwnedRoomId, Arc<Mutex<Parents>>>,
    /// How often relations were written: what was read before one was is not kept.
    related: Mutex<u64>,
}

impl Default for Current {
    fn default() -> Current {
        Current {
            rooms: Cache::new(ROOMS),
            members: Cache::new(MEMBERS),
            joined: Cache::with_weighter(JOINED_ITEMS, JOINED_BYTES, JoinedWeight),
            account_data: Cache::with_weighter(ACCOUNT_DATA_ITEMS, ACCOUNT_DATA_BYTES, DataWeight),
            parents: Cache::new(PARENT_ROOMS),
            related: Mutex::default(),
        }
    }
}

impl Current {
    /// Others relate to these events now. Called after the commit that says so, before it is answered.
    pub fn relate(&self, related: &[(OwnedRoomId, OwnedEventId)]) {
        if related.is_empty() {
            return;
        }
        let mut count = self.related.lock();
        *count += 1;
        for (room, parent) in related {
            let Some(parents) = self.parents.get(room) else { continue };
            let mut parents = parents.lock();
            if let Some(known) = parents.as_mut() {
                known.insert(parent.clone());
            }
            if parents.as_ref().is_some_and(|known| known.len() > PARENTS_KEPT) {
                *parents = None;
            }
        }
    }

    /// Keeps what was read when relations had been written `count` times.
    fn keep_parents(&self, room: &RoomId, count: u64, parents: Parents) {
        let now = self.related.lock();
        if *now == count {
            self.parents.insert(room.to_owned(), Arc::new(Mutex::new(parents)));
        }
    }
}

/// The present, as of [`Store::now`], or of a position that was reached. Ask anew for each request.
pub struct Now<'a> {
    store: &'a Store,
    head: LogPosition,
    /// Memory has everything that was committed up to `head`.
    level: bool,
}

/// Rows that may change what a room's row says beside its extremities.
fn changes_room(row: &LogRow) -> bool {
    match row.fact {
        Fact::Event => row.event.as_ref().is_none_or(|stored| stored.event.is_state()),
        Fact::State | Fact::Room | Fact::EventChanged => true,
        _ => false,
    }
}

/// Rows that may change who is in a room.
fn changes_members(row: &LogRow) -> bool {
    match row.fact {
        Fact::Event | Fact::State | Fact::Outside | Fact::Forgotten => row.user.is_some(),
        Fact::Room | Fact::EventChanged => true,
        _ => false,
    }
}

/// Rows of a user that may change which keys the user's devices have, or what the user sees of others'.
fn changes_keys(row: &LogRow) -> bool {
    row.fact == Fact::Account || row.fact == Fact::DeviceList && row.room.is_none()
}

impl Store {
    /// The present.
    ///
    /// # Errors
    /// The database failed; on SQLite it is not asked.
    pub async fn now(&self) -> StoreResult<Now<'_>> {
        let head = self.tail().head();
        let level = match self.engine() {
            Engine::Sqlite => true,
            Engine::Postgres => self.read().await?.log_head().await? <= head,
        };
        Ok(Now { store: self, head, level })
    }

    /// What was at `position`, which this node has reached, or later.
    pub fn as_of(&self, position: LogPosition) -> Now<'_> {
        Now { store: self, head: position, level: true }
    }

    /// The room's visible events with `sn` below `before`, newest first, at most `limit`: from the tail of the log as
    /// far as it reaches, the rest by their ids, so that events which memory has are not read again. What ceased to be
    /// visible a moment ago may still be among them, with flags that say so.
    pub async fn timeline_backward(
        &self,
        room: &RoomId,
        before: i64,
        limit: usize,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let now = self.now().await?;
        let tail = if now.level { self.tail().newest_of_room(room, before, limit) } else { None };
        let Some(newest) = tail else {
            return self.read_backward(room, before, limit).await;
        };
        let mut events = newest.events;
        if !newest.changed.is_empty() {
            let changed: Vec<OwnedEventId> = newest.changed.into_iter().collect();
            let changed = self.events(&changed).await?;
            for stored in &mut events {
                if let Some(now) = changed.get(&stored.event.event_id) {
                    *stored = Arc::clone(now);
                }
            }
        }
        if events.len() < limit {
            let below = before.min(newest.floor.0.saturating_add(1));
            events.extend(self.read_backward(room, below, limit - events.len()).await?);
        }
        Ok(events)
    }

    /// The same for many rooms at once, `limit` events of each.
    pub async fn timelines_backward(
        &self,
        rooms: &[OwnedRoomId],
        before: i64,
        limit: usize,
    ) -> StoreResult<HashMap<OwnedRoomId, Vec<Arc<StoredEvent>>>> {
        let now = self.now().await?;
        let mut all = HashMap::with_capacity(rooms.len());
        let mut elsewhere = Vec::new();
        for room in rooms {
            let newest = if now.level { self.tail().newest_of_room(room, before, limit) } else { None };
            match newest {
                Some(newest) if newest.changed.is_empty() && newest.events.len() == limit => {
                    all.insert(room.clone(), newest.events);
                }
                _ => elsewhere.push(room.clone()),
            }
        }
        if elsewhere.is_empty() {
            return Ok(all);
        }
        let mut ids = self.read().await?.timelines_ids(&elsewhere, before, limit as i64).await?;
        let wanted: Vec<OwnedEventId> = ids.values().flatten().cloned().collect();
        let events = self.events(&wanted).await?;
        for room in elsewhere {
            let ids = ids.remove(&room).unwrap_or_default();
            all.insert(room, ids.iter().filter_map(|id| events.get(id).cloned()).collect());
        }
        Ok(all)
    }

    async fn read_backward(
        &self,
        room: &RoomId,
        before: i64,
        limit: usize,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let ids = self.read().await?.timeline_ids(room, before, limit as i64).await?;
        let mut events = self.events(&ids).await?;
        Ok(ids.iter().filter_map(|id| events.remove(id)).collect())
    }

    /// Whether no threads, edits or references of these events of one room exist, as far as memory knows: `false` may
    /// be wrong.
    pub async fn unrelated(&self, room: &RoomId, ids: &[OwnedEventId]) -> StoreResult<bool> {
        // Relations of history are not in the log: other nodes do not learn of them.
        if self.engine() != Engine::Sqlite {
            return Ok(false);
        }
        let current = &self.inner.current;
        if let Some(parents) = current.parents.get(room) {
            let parents = parents.lock();
            return Ok(parents.as_ref().is_some_and(|parents| !ids.iter().any(|id| parents.contains(id))));
        }
        let count = *current.related.lock();
        let found = self.read().await?.parents_of_room(room, PARENTS_KEPT as i64 + 1).await?;
        let parents: Parents = (found.len() <= PARENTS_KEPT).then(|| found.into_iter().collect());
        let unrelated = parents.as_ref().is_some_and(|parents| !ids.iter().any(|id| parents.contains(id)));
        current.keep_parents(room, count, parents);
        Ok(unrelated)
    }
}

impl Now<'_> {
    /// Whether what was read at `read` of a room still holds: no row since then is one that `changes` it.
    fn holds(&self, room: &RoomId, read: LogPosition, changes: impl Fn(&LogRow) -> bool) -> bool {
        self.level
            && (read >= self.head
                || self.store.tail().room_has(room, read, self.head, changes).is_some_and(|has| !has))
    }

    /// Where the log ends, as far as this node knows.
    pub fn head(&self) -> LogPosition {
        self.head
    }

    /// Whether the keys of one of our users' devices, the user's cross-signing keys, and the signatures that the user made,
    /// which were read at `read` (or later), are the same still.
    pub fn keys_hold(&self, user: &UserId, read: LogPosition) -> bool {
        let changed = || self.store.tail().user_has(user, read, self.head, changes_keys);
        self.level && (read >= self.head || changed().is_some_and(|has| !has))
    }

    /// The room's row, but for what every event changes.
    pub async fn room(&self, room: &RoomId) -> StoreResult<Option<Arc<RoomNow>>> {
        let cache = &self.store.inner.current.rooms;
        if let Some((read, row)) = cache.get(room)
            && self.holds(room, read, changes_room)
        {
            if read < self.head {
                cache.insert(room.to_owned(), (self.head, row.clone()));
            }
            return Ok(row);
        }
        let row = self.store.read().await?.room_load(room).await?;
        let row = row.map(|row| {
            Arc::new(RoomNow { version: row.version, state_root: row.state_root, partial: row.partial })
        });
        // A room that is not here is nothing to remember: anybody may ask for any.
        if row.is_some() {
            cache.insert(room.to_owned(), (self.head, row.clone()));
        }
        Ok(row)
    }

    /// The user's membership of the room.
    pub async fn member(&self, room: &RoomId, user: &UserId) -> StoreResult<Option<Arc<MemberRow>>> {
        let cache = &self.store.inner.current.members;
        let key = (room.to_owned(), user.to_owned());
        let changes = |row: &LogRow| changes_members(row) && row.user.as_deref().is_none_or(|of| of == user);
        if let Some((read, row)) = cache.get(&key)
            && self.holds(room, read, changes)
        {
            if read < self.head {
                cache.insert(key, (self.head, row.clone()));
            }
            return Ok(row);
        }
        let row = self.store.read().await?.member_load(room, user).await?.map(Arc::new);
        if row.is_some() {
            cache.insert(key, (self.head, row.clone()));
        }
        Ok(row)
    }

    /// The joined members of the room, in the order in which they became so.
    pub async fn joined(&self, room: &RoomId) -> StoreResult<Arc<[JoinedRow]>> {
        let cache = &self.store.inner.current.joined;
        if let Some((read, rows)) = cache.get(room)
            && self.holds(room, read, changes_members)
        {
            if read < self.head {
                cache.insert(room.to_owned(), (self.head, Arc::clone(&rows)));
            }
            return Ok(rows);
        }
        let rows = self.store.read().await?.members_of(room, "join").await?;
        let rows = rows.into_iter().map(|row| JoinedRow {
            user_id: row.user_id,
            display_name: row.display_name,
            avatar_url: row.avatar_url,
        });
        let rows: Arc<[JoinedRow]> = rows.collect();
        cache.insert(room.to_owned(), (self.head, Arc::clone(&rows)));
        Ok(rows)
    }

    /// The user's account data of this type, of no room.
    pub async fn account_data(&self, user: &UserId, kind: &str) -> StoreResult<Option<Arc<str>>> {
        let cache = &self.store.inner.current.account_data;
        let key = (user.to_owned(), kind.to_owned());
        let changes = |row: &LogRow| row.fact == Fact::AccountData && row.reference.as_deref() == Some(kind);
        if let Some((read, content)) = cache.get(&key)
            && self.level
            && (read >= self.head
                || self.store.tail().user_has(user, read, self.head, changes).is_some_and(|has| !has))
        {
            if read < self.head {
                cache.insert(key, (self.head, content.clone()));
            }
            return Ok(content);
        }
        let content = self.store.read().await?.account_data_load(user, None, kind).await?;
        let content = content.map(Arc::<str>::from);
        cache.insert(key, (self.head, content.clone()));
        Ok(content)
    }
}

impl Conn {
    /// The ids of the room's visible events with `sn` below `before`, newest first, at most `limit`.
    pub(crate) async fn timeline_ids(
        &mut self,
        room: &RoomId,
        before: i64,
        limit: i64,
    ) -> StoreResult<Vec<OwnedEventId>> {
        let found: Vec<(i64, String)> = on_engine!(self, |c| sqlx::query_as(TIMELINE)
            .bind(room.as_str())
            .bind(before)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        Ok(found.into_iter().filter_map(|(_, id)| id.try_into().ok()).collect())
    }

    async fn parents_of_room(&mut self, room: &RoomId, limit: i64) -> StoreResult<Vec<OwnedEventId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(PARENTS).bind(room.as_str()).bind(limit).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::room_id;

    #[test]
    fn what_was_read_before_a_relation_was_written_is_not_kept() {
        let (current, room) = (Current::default(), room_id!("!r:x"));
        let parent: OwnedEventId = "$p".try_into().unwrap();
        let count = *current.related.lock();
        current.relate(&[(room.to_owned(), parent.clone())]);
        current.keep_parents(room, count, Some(HashSet::new()));
        assert!(current.parents.get(room).is_none());
        let count = *current.related.lock();
        current.keep_parents(room, count, Some(HashSet::new()));
        current.relate(&[(room.to_owned(), parent.clone())]);
        assert!(current.parents.get(room).unwrap().lock().as_ref().unwrap().contains(&parent));
        let many = |number| (room.to_owned(), OwnedEventId::try_from(format!("$p{number}")).unwrap());
        current.relate(&(0..=PARENTS_KEPT).map(many).collect::<Vec<_>>());
        assert!(current.parents.get(room).unwrap().lock().is_none());
    }
}
