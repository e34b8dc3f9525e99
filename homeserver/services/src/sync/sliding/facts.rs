//! What lists ask about rooms and users, kept in memory until a row of the log says that it changed.

use super::super::account_data::unchanged;
use super::super::build::Build;
use crate::visibility::{LastJoined, last_stay};
use quick_cache::sync::Cache;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::{LogPosition, StateKey, state_key};
use waxwing_storage::{Fact, LogRow, MemberRow, StateQuestion, StoreResult, StoredEvent};

/// Rooms of which facts are kept.
const ROOMS: usize = 50_000;
/// Users of whom facts are kept.
const USERS: usize = 10_000;

/// What lists and headings say of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RoomFacts {
    pub room_type: Option<String>,
    pub encrypted: bool,
    pub name: Option<String>,
    pub avatar: Option<String>,
}

/// A room that the user is not joined to.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    pub row: MemberRow,
    /// Of one that the user left or was banned from: when the user was last joined.
    pub stay: LastJoined,
    /// The number of the event that ended it.
    pub end: i64,
    /// That event.
    pub ended: Option<Arc<StoredEvent>>,
}

impl Outside {
    /// Whether somebody else ended the user's stay.
    pub fn was_removed(&self) -> bool {
        self.stay != LastJoined::Never && self.row.sender != self.row.user_id
    }
}

type Known<T> = (LogPosition, Arc<T>);

/// The tags that the user gave to rooms.
pub(super) type Tags = HashMap<OwnedRoomId, BTreeSet<String>>;

/// The caches.
pub(in crate::sync) struct Facts {
    rooms: Cache<OwnedRoomId, Known<RoomFacts>>,
    children: Cache<OwnedRoomId, Known<BTreeSet<OwnedRoomId>>>,
    /// The newest event of rooms in which nothing happened since this node started.
    newest: Cache<OwnedRoomId, i64>,
    /// The newest event that bumps, and where it was looked for.
    pub(super) bumps: Cache<OwnedRoomId, (LogPosition, i64)>,
    outside: Cache<OwnedUserId, Known<BTreeMap<OwnedRoomId, Outside>>>,
    direct: Cache<OwnedUserId, Known<BTreeSet<OwnedRoomId>>>,
    tags: Cache<OwnedUserId, Known<Tags>>,
}

impl Default for Facts {
    fn default() -> Facts {
        Facts {
            rooms: Cache::new(ROOMS),
            children: Cache::new(ROOMS / 10),
            newest: Cache::new(ROOMS),
            bumps: Cache::new(ROOMS),
            outside: Cache::new(USERS),
            direct: Cache::new(USERS),
            tags: Cache::new(USERS),
        }
    }
}

#[derive(Deserialize)]
struct Child {
    via: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Tagged {
    #[serde(default)]
    tags: serde_json::Map<String, serde_json::Value>,
}

fn is_membership(row: &Arc<LogRow>) -> bool {
    matches!(row.fact, Fact::Event | Fact::State | Fact::Outside | Fact::Forgotten) && row.room.is_some()
}

impl Build<'_> {
    fn facts(&self) -> &Facts {
        &self.sync.facts
    }

    /// Facts of rooms that this server is in, in their order, those that are not known read together.
    pub(super) async fn room_facts(&self, rooms: &[OwnedRoomId]) -> StoreResult<Vec<Arc<RoomFacts>>> {
        let folds = self.sync.notifier.folds();
        let head = folds.head();
        let known = |room: &OwnedRoomId| {
            let (read, facts) = self.facts().rooms.get(room)?;
            (read >= folds.state_changed(room)).then_some(facts)
        };
        let mut found: Vec<Option<Arc<RoomFacts>>> = rooms.iter().map(known).collect();
        let missing: Vec<OwnedRoomId> = rooms
            .iter()
            .zip(&found)
            .filter(|(_, facts)| facts.is_none())
            .map(|(room, _)| room.clone())
            .collect();
        if !missing.is_empty() {
            let loaded = self.load_room_facts(&missing).await?;
            for (room, facts) in rooms.iter().zip(&mut found) {
                if facts.is_none() {
                    let loaded = loaded.get(room).cloned().unwrap_or_default();
                    self.facts().rooms.insert(room.clone(), (head, Arc::clone(&loaded)));
                    *facts = Some(loaded);
                }
            }
        }
        Ok(found.into_iter().map(Option::unwrap_or_default).collect())
    }

    async fn load_room_facts(
        &self,
        rooms: &[OwnedRoomId],
    ) -> StoreResult<HashMap<OwnedRoomId, Arc<RoomFacts>>> {
        const KINDS: [StateEventType; 4] = [
            StateEventType::RoomCreate,
            StateEventType::RoomEncryption,
            StateEventType::RoomName,
            StateEventType::RoomAvatar,
        ];
        let store = &self.core().store;
        let rows = store.read().await?.rooms_load(rooms).await?;
        let keys: Vec<StateKey> = KINDS.iter().map(|kind| state_key(kind.clone(), "")).collect();
        let questions: Vec<StateQuestion> = rows.values().map(|row| (row.state_root, keys.clone())).collect();
        let answers = store.states_get_many(&questions).await?;
        let wanted: Vec<OwnedEventId> = answers
            .iter()
            .flat_map(|ids| ids.iter().enumerate().filter(|(index, _)| *index != 1))
            .filter_map(|(_, id)| id.clone())
            .collect();
        let events = store.events(&wanted).await?;
        let mut facts = HashMap::with_capacity(rows.len());
        for (room, ids) in rows.into_keys().zip(answers) {
            let text = |index: usize, field: &str| {
                let id: Option<&OwnedEventId> = ids.get(index).and_then(Option::as_ref);
                let text = id.and_then(|id| events.get(id)).and_then(|it| it.event.content_str(field));
                text.filter(|text| !text.is_empty())
            };
            let of = RoomFacts {
                room_type: text(0, "type"),
                encrypted: ids.get(1).is_some_and(Option::is_some),
                name: text(2, "name"),
                avatar: text(3, "url"),
            };
            facts.insert(room, Arc::new(of));
        }
        Ok(facts)
    }

    /// The rooms that a space names as its children.
    pub(super) async fn space_children(
        &self,
        space: &OwnedRoomId,
    ) -> StoreResult<Arc<BTreeSet<OwnedRoomId>>> {
        let folds = self.sync.notifier.folds();
        if let Some((read, children)) = self.facts().children.get(space)
            && read >= folds.state_changed(space)
        {
            return Ok(children);
        }
        let head = folds.head();
        let store = &self.core().store;
        let mut children = BTreeSet::new();
        let row = store.read().await?.room_load(space).await?;
        if let Some(row) = row {
            let entries = store.state_of_type(row.state_root, &StateEventType::SpaceChild).await?;
            let ids: Vec<OwnedEventId> = entries.iter().map(|(_, id)| id.clone()).collect();
            let events = store.events(&ids).await?;
            for (key, id) in entries {
                // Without `via` it is no child any more.
                let content = events.get(&id).and_then(|it| it.event.content_as::<Child>().ok());
                let named = content.is_some_and(|child| child.via.is_some_and(|via| !via.is_empty()));
                if let (true, Ok(room)) = (named, OwnedRoomId::try_from(key)) {
                    children.insert(room);
                }
            }
        }
        let children = Arc::new(children);
        self.facts().children.insert(space.clone(), (head, Arc::clone(&children)));
        Ok(children)
    }

    /// The number of the newest event of each of these rooms, in their order.
    pub(super) async fn newest_events(&self, rooms: &[&OwnedRoomId]) -> StoreResult<Vec<i64>> {
        let activity = self.sync.notifier.folds().activity(rooms.iter().copied());
        let mut missing = Vec::new();
        let mut newest = Vec::with_capacity(rooms.len());
        for (room, activity) in rooms.iter().zip(&activity) {
            let known = if activity.last > LogPosition::START {
                Some(activity.last.0)
            } else {
                self.facts().newest.get(*room)
            };
            if known.is_none() {
                missing.push(OwnedRoomId::clone(room));
            }
            newest.push(known.unwrap_or_default());
        }
        if missing.is_empty() {
            return Ok(newest);
        }
        let found = self.core().store.read().await?.rooms_newest_events(&missing).await?;
        for (room, sn) in &found {
            self.facts().newest.insert(room.clone(), *sn);
        }
        for (room, sn) in rooms.iter().zip(&mut newest) {
            if let (0, Some(found)) = (*sn, found.get(*room)) {
                *sn = *found;
            }
        }
        Ok(newest)
    }

    /// The user's rooms that the user is not joined to and has not forgotten.
    pub(super) async fn outside_rooms(&self) -> StoreResult<Arc<BTreeMap<OwnedRoomId, Outside>>> {
        let (user, core) = (self.user(), self.core());
        if let Some((read, rooms)) = self.facts().outside.get(user)
            && let Some(rows) = core.store.tail().range_of_user(user, read, self.upto)
            && !rows.iter().any(is_membership)
        {
            self.facts().outside.insert(user.to_owned(), (read.max(self.upto), Arc::clone(&rooms)));
            return Ok(rooms);
        }
        let rows = core.store.read().await?.memberships_outside(user).await?;
        let mut rooms = BTreeMap::new();
        for row in rows {
            let gone = matches!(row.membership.as_str(), "leave" | "ban");
            let (stay, ended) =
                if gone { last_stay(core, user, &row.room_id).await? } else { (LastJoined::Never, None) };
            let end = ended.as_ref().map_or(row.sn, |ended| ended.sn);
            rooms.insert(row.room_id.clone(), Outside { row, stay, end, ended });
        }
        let rooms = Arc::new(rooms);
        self.facts().outside.insert(user.to_owned(), (self.upto, Arc::clone(&rooms)));
        Ok(rooms)
    }

    /// The rooms that the user marked as being for direct messages.
    /// <https://spec.matrix.org/v1.19/client-server-api/#mdirect>
    pub(super) async fn direct_rooms(&self) -> StoreResult<Arc<BTreeSet<OwnedRoomId>>> {
        let (user, core) = (self.user(), self.core());
        if let Some((read, direct)) = self.facts().direct.get(user)
            && unchanged(core, user, "m.direct", read, self.upto)
        {
            self.facts().direct.insert(user.to_owned(), (read.max(self.upto), Arc::clone(&direct)));
            return Ok(direct);
        }
        let content = core.store.read().await?.account_data_load(user, None, "m.direct").await?;
        let content: Option<BTreeMap<String, serde_json::Value>> =
            content.and_then(|content| serde_json::from_str(&content).ok());
        let rooms = content.unwrap_or_default().into_values();
        let rooms = rooms.filter_map(|rooms| serde_json::from_value::<Vec<OwnedRoomId>>(rooms).ok());
        let direct: Arc<BTreeSet<OwnedRoomId>> = Arc::new(rooms.flatten().collect());
        self.facts().direct.insert(user.to_owned(), (self.upto, Arc::clone(&direct)));
        Ok(direct)
    }

    /// The tags that the user gave to rooms. <https://spec.matrix.org/v1.19/client-server-api/#room-tagging>
    pub(super) async fn room_tags(&self) -> StoreResult<Arc<Tags>> {
        let (user, core) = (self.user(), self.core());
        if let Some((read, tags)) = self.facts().tags.get(user)
            && unchanged(core, user, "m.tag", read, self.upto)
        {
            self.facts().tags.insert(user.to_owned(), (read.max(self.upto), Arc::clone(&tags)));
            return Ok(tags);
        }
        let entries = core.store.read().await?.account_data_all(user).await?;
        let entries = entries.into_iter().filter(|(_, kind, _)| kind == "m.tag");
        let tags = entries.filter_map(|(room, _, content)| {
            let content: Tagged = serde_json::from_str(&content).ok()?;
            Some((room?, content.tags.into_iter().map(|(tag, _)| tag).collect()))
        });
        let tags: Arc<Tags> = Arc::new(tags.collect());
        self.facts().tags.insert(user.to_owned(), (self.upto, Arc::clone(&tags)));
        Ok(tags)
    }
}
