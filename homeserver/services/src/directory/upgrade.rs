//! Replacing a room by one of another version.
//! <https://spec.matrix.org/v1.19/client-server-api/#room-upgrades>

use super::{Directory, DirectoryError};
use crate::timeline::{Author, CreateRoom, Draft, Preset, TimelineError, raw};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::{Event, StateKey};
use waxwing_rooms::version;

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
/// State events taken over at most: bans and the children of a space come last.
const MAX_COPIED: usize = 200;
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
}

impl Old {
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
}

fn privileged(version: &RoomVersionId) -> bool {
    version::rules(version).is_some_and(|rules| rules.authorization.explicitly_privilege_room_creators)
}

impl Directory {
    /// Makes a room of version `to` that takes the place of `room`, and closes `room`.
    ///
    /// # Errors
    /// [`TimelineError::UnsupportedVersion`]; [`TimelineError::Forbidden`] for whoever may not set the tombstone.
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
        let old = self.old_room(room).await?;
        if !self.may_set(&author.user, room, &TimelineEventType::RoomTombstone).await? {
            return Err(DirectoryError::Forbidden("you may not upgrade this room"));
        }
        let levels = levels_for(&old, &to, &author.user, &additional_creators);
        let wanted = self.plan(author, room, &old, &to, &levels, &additional_creators).await?;
        let new = self.timeline.create_room(wanted).await?;
        self.settle_levels(author, &new, &to, levels).await?;
        let tombstone = json!({ "body": "This room has been replaced", "replacement_room": new });
        self.set(author, room, TimelineEventType::RoomTombstone, &tombstone).await?;
        self.move_names(author, room, &new, &old).await?;
        if let Err(error) = self.silence(author, room, &old).await {
            tracing::info!(%room, %error, "people may still speak in a room that was replaced");
        }
        Ok(new)
    }

    async fn old_room(&self, room: &RoomId) -> Result<Old, DirectoryError> {
        let (row, entries) = {
            let mut conn = self.core.store.read().await?;
            let row = conn.room_load(room).await?.ok_or(DirectoryError::NotFound("room"))?;
            let entries = self.core.store.state(&mut conn).entries(row.state_root).await?;
            (row, entries)
        };
        let ids: Vec<OwnedEventId> = entries.iter().map(|(_, id)| id.clone()).collect();
        let events = self.core.store.events(&ids).await?;
        let state = entries
            .into_iter()
            .filter_map(|(key, id)| Some((key, Arc::clone(&events.get(&id)?.event))))
            .collect();
        let newest = row.extremities.iter().max_by_key(|(_, depth)| *depth).map(|(id, _)| id.clone());
        Ok(Old { version: row.version, state, newest, published: row.published })
    }

    async fn plan(
        &self,
        author: &Author,
        room: &RoomId,
        old: &Old,
        to: &RoomVersionId,
        levels: &Map<String, Value>,
        additional_creators: &[OwnedUserId],
    ) -> Result<CreateRoom, DirectoryError> {
        let mut create = old.content(StateEventType::RoomCreate);
        for field in ["creator", "room_version", "predecessor", "additional_creators"] {
            create.remove(field);
        }
        let mut predecessor = json!({ "room_id": room });
        if let Some(newest) = old.newest.as_ref().filter(|_| !privileged(to)) {
            predecessor["event_id"] = newest.as_str().into();
        }
        create.insert("predecessor".to_owned(), predecessor);
        if privileged(to) && !additional_creators.is_empty() {
            let users = additional_creators.iter().map(|user| Value::from(user.as_str())).collect();
            create.insert("additional_creators".to_owned(), Value::Array(users));
        }
        let mut first_levels = levels.clone();
        if !privileged(to) {
            lift(&mut first_levels, &author.user);
        }
        Ok(CreateRoom {
            author: author.clone(),
            version: Some(to.clone()),
            creation_content: create,
            preset: Preset::PrivateChat,
            initial_state: copied(old, &author.user),
            name: None,
            topic: None,
            alias: None,
            power_levels: first_levels,
            invite: Vec::new(),
            is_direct: false,
            published: false,
        })
    }

    /// The power levels that the room shall have in the end, where the one who made it needed more to make it.
    async fn settle_levels(
        &self,
        author: &Author,
        new: &RoomId,
        to: &RoomVersionId,
        levels: Map<String, Value>,
    ) -> Result<(), DirectoryError> {
        let mut first = levels.clone();
        lift(&mut first, &author.user);
        if privileged(to) || first == levels {
            return Ok(());
        }
        let defaults = self.state_content(new, StateEventType::RoomPowerLevels).await?;
        let mut content = defaults.unwrap_or_default();
        content.extend(levels);
        self.set(author, new, TimelineEventType::RoomPowerLevels, &Value::Object(content)).await
    }

    /// Moves aliases, the canonical alias and the place in the room list.
    async fn move_names(
        &self,
        author: &Author,
        room: &RoomId,
        new: &RoomId,
        old: &Old,
    ) -> Result<(), DirectoryError> {
        let (from, to) = (room.to_owned(), new.to_owned());
        self.core
            .store
            .write("move aliases", Vec::new(), move |tx| {
                let (from, to) = (from.clone(), to.clone());
                Box::pin(async move {
                    tx.aliases_move(&from, &to).await?;
                    Ok::<(), DirectoryError>(())
                })
            })
            .await?;
        if old.published {
            self.set_published(new, true).await?;
            self.set_published(room, false).await?;
        }
        let content = old.content(StateEventType::RoomCanonicalAlias);
        if content.is_empty() {
            return Ok(());
        }
        let kind = TimelineEventType::RoomCanonicalAlias;
        let moved = [(room, json!({})), (new, Value::Object(content))];
        for (room, content) in moved {
            if let Err(error) = self.set(author, room, kind.clone(), &content).await {
                tracing::info!(%room, %error, "a canonical alias was not moved");
            }
        }
        Ok(())
    }

    /// From now on speaking and inviting in the old room needs a moderator.
    async fn silence(&self, author: &Author, room: &RoomId, old: &Old) -> Result<(), DirectoryError> {
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
        self.set(author, room, TimelineEventType::RoomPowerLevels, &Value::Object(content)).await
    }

    async fn set(
        &self,
        author: &Author,
        room: &RoomId,
        kind: TimelineEventType,
        content: &Value,
    ) -> Result<(), DirectoryError> {
        let draft = Draft::state(author.user.clone(), kind, "", raw(content)?);
        self.timeline.set_state(author, room, draft).await?;
        Ok(())
    }
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
        } else if kind == "m.room.member" && *key != user.as_str() && ban(event)
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
