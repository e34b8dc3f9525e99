//! Replacing a room by one of another version.
//! <https://spec.matrix.org/v1.19/client-server-api/#room-upgrades>

use super::{Directory, DirectoryError};
use crate::Core;
use crate::timeline::append::{append, state_events};
use crate::timeline::effects::power_at;
use crate::timeline::membership::profile_content;
use crate::timeline::{
    Approvals, Author, CreateRoom, Draft, Origin, Preset, RoomPlan, Timeline, TimelineError, must_be_joined,
    raw,
};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::{Event, StateKey};
use waxwing_rooms::{PowerLevels, version};
use waxwing_storage::{Fact, NewRow, Tx};

/// State that a new room takes over from the old one.
const COPIED: &[&str] = &[
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.policy",
    "m.room.related_groups",
];
/// Spaces in which the new room takes the place of the old one.
const MAX_PARENTS: usize = 20;
/// State events taken over at most: bans and the children of a space come last.
const MAX_COPIED: usize = 200;
/// Policy servers asked during one upgrade: for three events of the old room and two of each space; and again where one
/// of them has moved on meanwhile.
const MAX_ASKED: usize = 100;
/// What may set the tombstone in a room whose creators stand above all levels.
const TOMBSTONE: i64 = 150;
/// What a creator has where creators do not stand above all levels.
const CREATOR: i64 = 100;
/// What speaking in the old room needs from then on.
const MODERATOR: i64 = 50;

type State = BTreeMap<StateKey, Arc<Event>>;

/// The old room as it was.
struct Old {
    version: RoomVersionId,
    state: State,
    newest: Option<OwnedEventId>,
    published: bool,
    power: Option<PowerLevels>,
}

impl Old {
    async fn load(tx: &mut Tx, room: &RoomId) -> Result<Old, DirectoryError> {
        let row = tx.room(room).await?.ok_or(DirectoryError::NotFound("room"))?;
        let entries = tx.state().entries(row.state_root).await?;
        let ids: Vec<OwnedEventId> = entries.iter().map(|(_, id)| id.clone()).collect();
        let events: BTreeMap<OwnedEventId, Arc<Event>> = tx
            .events_known(&ids)
            .await?
            .into_iter()
            .map(|stored| (stored.event.event_id.clone(), Arc::clone(&stored.event)))
            .collect();
        let state =
            entries.into_iter().filter_map(|(key, id)| Some((key, Arc::clone(events.get(&id)?)))).collect();
        let newest = row.extremities.iter().max_by_key(|(_, depth)| *depth).map(|(id, _)| id.clone());
        let power = power_at(tx, &row.version, row.state_root).await?;
        Ok(Old { version: row.version, state, newest, published: row.published, power })
    }

    fn content(&self, kind: StateEventType) -> Map<String, Value> {
        let event = self.state.get(&(kind, String::new()));
        event.and_then(|event| event.content_as().ok()).unwrap_or_default()
    }

    fn creators(&self) -> Vec<String> {
        let create = self.state.get(&(StateEventType::RoomCreate, String::new()));
        let more = self.content(StateEventType::RoomCreate);
        let more = more.get("additional_creators").and_then(Value::as_array).cloned().unwrap_or_default();
        create
            .map(|create| create.sender.to_string())
            .into_iter()
            .chain(more.iter().filter_map(|user| user.as_str().map(str::to_owned)))
            .collect()
    }

    fn may_set(&self, user: &UserId, kind: &TimelineEventType) -> bool {
        self.power.as_ref().is_some_and(|power| power.can_send(user, kind, true))
    }
}

fn privileged(version: &RoomVersionId) -> bool {
    version::rules(version).is_some_and(|rules| rules.authorization.explicitly_privilege_room_creators)
}

impl Directory {
    /// Makes a room of version `to` that takes the place of `room`, and closes `room`: in one transaction, all of it or
    /// nothing. What local users keep for a room (tags, push rules) follows them into the new one.
    ///
    /// # Errors
    /// [`TimelineError::UnsupportedVersion`]; [`DirectoryError::Forbidden`] for whoever may not set the tombstone.
    pub async fn upgrade(
        &self,
        author: &Author,
        room: &RoomId,
        to: RoomVersionId,
        additional_creators: Vec<OwnedUserId>,
    ) -> Result<OwnedRoomId, DirectoryError> {
        if version::rules(&to).is_none() {
            return Err(TimelineError::UnsupportedVersion(to.to_string()).into());
        }
        let origin = Origin::new(&self.core, &to)?;
        let parents = self.parents(room).await?;
        let profile = profile_content(&self.core, &author.user).await?;
        let mut rooms = parents.clone();
        rooms.push(room.to_owned());
        let upgrade = Upgrade {
            author: author.clone(),
            room: room.to_owned(),
            to,
            additional_creators,
            profile,
            parents,
            origin,
            approvals: Approvals::default(),
        };
        let input = Arc::new((self.timeline.clone(), upgrade));
        for _ in 0..MAX_ASKED {
            let write = Arc::clone(&input);
            let done = self
                .core
                .store
                .write("upgrade room", rooms.clone(), move |tx| {
                    let input = Arc::clone(&write);
                    Box::pin(async move { input.1.run(&input.0, tx).await })
                })
                .await;
            let Err(DirectoryError::Timeline(TimelineError::Unapproved(unapproved))) = done else {
                return done;
            };
            if let Err(error) = self.timeline.ask_policy(&unapproved).await {
                let needed = unapproved.event().is_state_of(&StateEventType::RoomTombstone, "");
                if needed && unapproved.event().room_id == room {
                    return Err(error.into());
                }
                tracing::info!(%room, %error, kind = %unapproved.event().kind, "part of an upgrade is left out");
                unapproved.give_up();
            }
        }
        Err(TimelineError::Raced.into())
    }

    /// The spaces that the room names as its parents, those that this server knows.
    async fn parents(&self, room: &RoomId) -> Result<Vec<OwnedRoomId>, DirectoryError> {
        let mut conn = self.core.store.read().await?;
        let row = conn.room_load(room).await?.ok_or(DirectoryError::NotFound("room"))?;
        let kind = StateEventType::SpaceParent;
        let entries = self.core.store.state(&mut conn).entries_of_type(row.state_root, &kind).await?;
        let named: Vec<OwnedRoomId> = entries
            .into_iter()
            .filter_map(|(key, _)| key.try_into().ok())
            .filter(|parent: &OwnedRoomId| parent != room)
            .take(MAX_PARENTS)
            .collect();
        Ok(conn.rooms_load(&named).await?.into_keys().collect())
    }
}

/// An upgrade that was asked for.
struct Upgrade {
    author: Author,
    room: OwnedRoomId,
    to: RoomVersionId,
    additional_creators: Vec<OwnedUserId>,
    profile: Map<String, Value>,
    parents: Vec<OwnedRoomId>,
    /// What the new room begins with, the same in each run.
    origin: Origin,
    /// What the policy servers of the old room and of its spaces say.
    approvals: Approvals,
}

impl Upgrade {
    async fn run(&self, timeline: &Timeline, tx: &mut Tx) -> Result<OwnedRoomId, DirectoryError> {
        let core = &timeline.core;
        let old = Old::load(tx, &self.room).await?;
        must_be_joined(tx, &self.room, &self.author.user).await?;
        if !old.may_set(&self.author.user, &TimelineEventType::RoomTombstone) {
            return Err(DirectoryError::Forbidden("you may not upgrade this room"));
        }
        let levels = levels_for(&old, &self.to, &self.author.user, &self.additional_creators);
        let wanted = self.wanted(&old, &levels);
        let plan =
            RoomPlan::of(timeline, wanted, self.to.clone(), self.origin.clone(), self.profile.clone())?;
        let new = plan.run(core, tx).await?;
        self.settle_levels(core, tx, &new, levels).await?;
        let tombstone = json!({ "body": "This room has been replaced", "replacement_room": new });
        self.set(core, tx, &self.room, TimelineEventType::RoomTombstone, "", &tombstone).await?;
        self.move_names(core, tx, &new, &old).await?;
        self.move_in_spaces(core, tx, &new).await?;
        self.silence(core, tx, &old).await?;
        Ok(new)
    }

    /// The room to make.
    fn wanted(&self, old: &Old, levels: &Map<String, Value>) -> CreateRoom {
        let mut create = old.content(StateEventType::RoomCreate);
        for field in ["creator", "room_version", "predecessor", "additional_creators"] {
            create.remove(field);
        }
        let mut predecessor = json!({ "room_id": self.room });
        if let Some(newest) = old.newest.as_ref().filter(|_| !privileged(&self.to)) {
            predecessor["event_id"] = newest.as_str().into();
        }
        create.insert("predecessor".to_owned(), predecessor);
        if privileged(&self.to) && !self.additional_creators.is_empty() {
            let users = self.additional_creators.iter().map(|user| Value::from(user.as_str())).collect();
            create.insert("additional_creators".to_owned(), Value::Array(users));
        }
        let mut first_levels = levels.clone();
        if !privileged(&self.to) {
            lift(&mut first_levels, &self.author.user);
        }
        CreateRoom {
            author: self.author.clone(),
            version: Some(self.to.clone()),
            creation_content: create,
            preset: Preset::PrivateChat,
            initial_state: copied(old, &self.author.user),
            name: None,
            topic: None,
            alias: None,
            power_levels: first_levels,
            invite: Vec::new(),
            is_direct: false,
            published: false,
        }
    }

    /// The power levels that the room shall have in the end, where the one who made it needed more to make it.
    async fn settle_levels(
        &self,
        core: &Core,
        tx: &mut Tx,
        new: &RoomId,
        levels: Map<String, Value>,
    ) -> Result<(), DirectoryError> {
        let mut first = levels.clone();
        lift(&mut first, &self.author.user);
        if privileged(&self.to) || first == levels {
            return Ok(());
        }
        let mut content =
            content_now(tx, new, StateEventType::RoomPowerLevels, "").await?.unwrap_or_default();
        content.extend(levels);
        self.set(core, tx, new, TimelineEventType::RoomPowerLevels, "", &Value::Object(content)).await
    }

    /// Moves aliases, the canonical alias and the place in the room list.
    async fn move_names(
        &self,
        core: &Core,
        tx: &mut Tx,
        new: &RoomId,
        old: &Old,
    ) -> Result<(), DirectoryError> {
        tx.aliases_move(&self.room, new).await?;
        if old.published {
            for (room, published) in [(&*self.room, false), (new, true)] {
                let mut row = tx.room(room).await?.ok_or(DirectoryError::NotFound("room"))?;
                row.published = published;
                tx.room_put(row).await?;
                tx.log_append(NewRow::new(Fact::Room).room(room.to_owned()));
            }
        }
        let content = old.content(StateEventType::RoomCanonicalAlias);
        let kind = TimelineEventType::RoomCanonicalAlias;
        if content.is_empty() || !old.may_set(&self.author.user, &kind) {
            return Ok(());
        }
        self.set_if_allowed(core, tx, &self.room, kind.clone(), "", &json!({})).await?;
        self.set_if_allowed(core, tx, new, kind, "", &Value::Object(content)).await
    }

    /// Puts the new room in the place of the old one in the spaces where the user may.
    async fn move_in_spaces(&self, core: &Core, tx: &mut Tx, new: &RoomId) -> Result<(), DirectoryError> {
        for space in &self.parents {
            let kind = StateEventType::SpaceChild;
            let child = content_now(tx, space, kind, self.room.as_str()).await?;
            let Some(mut child) = child.filter(|child| child.get("via").is_some_and(Value::is_array)) else {
                continue;
            };
            if must_be_joined(tx, space, &self.author.user).await.is_err() {
                continue;
            }
            child.insert("via".to_owned(), json!([core.server_name]));
            let kind = TimelineEventType::SpaceChild;
            self.set_if_allowed(core, tx, space, kind.clone(), new.as_str(), &Value::Object(child)).await?;
            self.set_if_allowed(core, tx, space, kind, self.room.as_str(), &json!({})).await?;
        }
        Ok(())
    }

    /// From now on speaking and inviting in the old room needs a moderator.
    async fn silence(&self, core: &Core, tx: &mut Tx, old: &Old) -> Result<(), DirectoryError> {
        let mut content = old.content(StateEventType::RoomPowerLevels);
        let level = |content: &Map<String, Value>, field: &str| content.get(field).and_then(Value::as_i64);
        let floor = (level(&content, "users_default").unwrap_or(0) + 1).max(MODERATOR);
        let before = content.clone();
        for field in ["events_default", "invite"] {
            if level(&content, field).unwrap_or(0) < floor {
                content.insert(field.to_owned(), floor.into());
            }
        }
        if content == before {
            return Ok(());
        }
        let kind = TimelineEventType::RoomPowerLevels;
        self.set_if_allowed(core, tx, &self.room, kind, "", &Value::Object(content)).await
    }

    async fn set(
        &self,
        core: &Core,
        tx: &mut Tx,
        room: &RoomId,
        kind: TimelineEventType,
        key: &str,
        content: &Value,
    ) -> Result<(), DirectoryError> {
        let mut draft = Draft::state(self.author.user.clone(), kind, key, raw(content)?);
        draft.approvals = self.approvals.clone();
        append(core, tx, room, &draft).await?;
        Ok(())
    }

    /// The same, where the room's rules allow it; an event that they forbid is not written, and the rest goes on.
    async fn set_if_allowed(
        &self,
        core: &Core,
        tx: &mut Tx,
        room: &RoomId,
        kind: TimelineEventType,
        key: &str,
        content: &Value,
    ) -> Result<(), DirectoryError> {
        match self.set(core, tx, room, kind.clone(), key, content).await {
            Err(DirectoryError::Timeline(TimelineError::Forbidden(why))) => {
                tracing::info!(%room, %kind, why, "part of an upgrade was left out");
                Ok(())
            }
            other => other,
        }
    }
}

/// The content of a state entry.
async fn content_now(
    tx: &mut Tx,
    room: &RoomId,
    kind: StateEventType,
    key: &str,
) -> Result<Option<Map<String, Value>>, DirectoryError> {
    let Some(row) = tx.room(room).await? else { return Ok(None) };
    let key = (kind, key.to_owned());
    let state = state_events(tx, row.state_root, std::slice::from_ref(&key)).await?;
    Ok(state.get(&key).and_then(|event| event.content_as().ok()))
}

/// State events that the new room begins with.
fn copied(old: &Old, user: &UserId) -> Vec<(String, String, Box<RawValue>)> {
    let is_space =
        old.content(StateEventType::RoomCreate).get("type").and_then(Value::as_str) == Some("m.space");
    let ban = |event: &Event| event.content_str("membership").as_deref() == Some("ban");
    let mut first = Vec::new();
    let mut last = Vec::new();
    for ((kind, key), event) in &old.state {
        let kind = kind.to_string();
        let entry = || (kind.clone(), key.clone(), event.content.clone());
        if COPIED.contains(&kind.as_str()) && key.is_empty() {
            first.push(entry());
        } else if kind == "m.space.parent" && event.content.get() != "{}"
            || kind == "m.room.member" && *key != user.as_str() && ban(event)
            || is_space && kind == "m.space.child" && event.content.get() != "{}"
        {
            last.push(entry());
        }
    }
    first.extend(last);
    first.truncate(MAX_COPIED);
    first
}

/// The power levels of the new room. Creators of a room that privileges them have no levels; creators of a room that
/// did get one in a room that does not.
fn levels_for(
    old: &Old,
    to: &RoomVersionId,
    user: &UserId,
    additional_creators: &[OwnedUserId],
) -> Map<String, Value> {
    let mut levels = old.content(StateEventType::RoomPowerLevels);
    let mut users = levels.get("users").and_then(Value::as_object).cloned().unwrap_or_default();
    if privileged(to) {
        users.retain(|other, _| other != user.as_str() && !additional_creators.iter().any(|it| it == other));
        let mut events = levels.get("events").and_then(Value::as_object).cloned().unwrap_or_default();
        let now = events.get("m.room.tombstone").and_then(Value::as_i64).unwrap_or(0);
        events.insert("m.room.tombstone".to_owned(), now.max(TOMBSTONE).into());
        levels.insert("events".to_owned(), Value::Object(events));
    } else if privileged(&old.version) {
        for creator in old.creators() {
            users.insert(creator, CREATOR.into());
        }
    }
    levels.insert("users".to_owned(), Value::Object(users));
    levels
}

/// Gives the user what making a room takes: the most that any event of it needs.
fn lift(levels: &mut Map<String, Value>, user: &UserId) {
    let events = levels.get("events").and_then(Value::as_object);
    let needed = events.into_iter().flatten().filter_map(|(_, level)| level.as_i64());
    let state = levels.get("state_default").and_then(Value::as_i64);
    let ban = levels.get("ban").and_then(Value::as_i64);
    let needed = needed.chain(state).chain(ban).chain([CREATOR]).max().unwrap_or(CREATOR);
    let users = levels.entry("users").or_insert_with(|| Value::Object(Map::new()));
    if let Some(users) = users.as_object_mut() {
        let now = users.get(user.as_str()).and_then(Value::as_i64).unwrap_or(0);
        users.insert(user.to_string(), now.max(needed).into());
    }
}
