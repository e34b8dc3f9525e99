//! Making a room.

use super::append::{Draft, append, append_create, raw};
use super::error::TimelineError;
use super::{Author, Timeline};
use ruma::events::TimelineEventType;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomVersionId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::version;
use waxwing_storage::Tx;

/// Users that createRoom invites at most: each is an event in one transaction.
const MAX_INVITES: usize = 200;
/// State events that createRoom takes at most.
const MAX_INITIAL_STATE: usize = 200;
/// Rooms that one user makes alike in one millisecond at most: as many as requests that wait for one group of writes.
const MOST_ALIKE: u32 = 256;

/// A set of first rules. <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// By invitation; guests may join; history for members.
    PrivateChat,
    /// The same, and those invited get the creator's power.
    TrustedPrivateChat,
    /// Open to all.
    PublicChat,
}

/// What the room shall be.
#[derive(Clone, Debug)]
pub struct CreateRoom {
    /// Who makes it.
    pub author: Author,
    /// The version; none takes the default.
    pub version: Option<RoomVersionId>,
    /// More content of the create event.
    pub creation_content: Map<String, Value>,
    /// First rules.
    pub preset: Preset,
    /// State events over the preset's: (type, state key, content).
    pub initial_state: Vec<(String, String, Box<RawValue>)>,
    /// The name.
    pub name: Option<String>,
    /// The topic.
    pub topic: Option<String>,
    /// An alias of this server that shall point at it.
    pub alias: Option<OwnedRoomAliasId>,
    /// Fields that replace the default power levels'.
    pub power_levels: Map<String, Value>,
    /// Whom to invite.
    pub invite: Vec<OwnedUserId>,
    /// Whether the invitations are for a direct chat.
    pub is_direct: bool,
    /// Whether it is listed in the room directory.
    pub published: bool,
}

impl Timeline {
    /// Makes a room, in one transaction: all of it or nothing. Users of other servers among `invite` are left to the
    /// caller, who invites them afterwards over federation.
    ///
    /// # Errors
    /// [`TimelineError::UnsupportedVersion`], [`TimelineError::RoomInUse`] for a taken alias,
    /// [`TimelineError::Exclusive`] for one that is an application service's,
    /// [`TimelineError::InvalidRoomState`] when the parameters contradict the room's rules.
    pub async fn create_room(&self, wanted: CreateRoom) -> Result<OwnedRoomId, TimelineError> {
        let version =
            wanted.version.clone().unwrap_or_else(|| self.core.settings.default_room_version.clone());
        if version::rules(&version).is_none() {
            return Err(TimelineError::UnsupportedVersion(version.to_string()));
        }
        if wanted.invite.len() > MAX_INVITES || wanted.initial_state.len() > MAX_INITIAL_STATE {
            return Err(TimelineError::InvalidParam("too many invitations or state events".to_owned()));
        }
        if wanted.alias.as_ref().is_some_and(|alias| !self.may_make_alias(&wanted.author, alias)) {
            return Err(TimelineError::Exclusive);
        }
        for user in wanted.invite.iter().filter(|user| self.core.is_local(user)) {
            self.ask_for_user(user).await?;
            self.invite_allowed(&wanted.author.user, user).await?;
        }
        let profile = super::membership::profile_content(&self.core, &wanted.author.user).await?;
        let origin = Origin::new(&self.core, &version)?;
        let plan = Arc::new(Plan::of(self, wanted, version, origin, profile)?);
        let core = self.core.clone();
        self.core
            .store
            .write("create room", Vec::new(), move |tx| {
                let (core, plan) = (core.clone(), Arc::clone(&plan));
                Box::pin(async move { plan.run(&core, tx).await })
            })
            .await
    }
}

/// What the id of a new room is made of. The same twice makes the same room, if the rest is the same too.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The id, for a room whose id is not the hash of its first event.
    room_id: Option<OwnedRoomId>,
    /// When it is made.
    at: MilliSecondsSinceUnixEpoch,
}

impl Origin {
    /// For a new room of this version, now.
    pub(crate) fn new(core: &crate::Core, version: &RoomVersionId) -> Result<Origin, TimelineError> {
        let hashed = version::rules(version).is_some_and(|r| r.authorization.room_create_event_id_as_room_id);
        let room_id = if hashed {
            None
        } else {
            let text = format!("!{}:{}", waxwing_model::opaque_id(18), core.server_name);
            Some(OwnedRoomId::try_from(text).map_err(|error| TimelineError::Internal(error.to_string()))?)
        };
        Ok(Origin { room_id, at: core.clock.now() })
    }
}

/// The events of the new room in their order, but for the create event.
pub(crate) struct Plan {
    version: RoomVersionId,
    creator: OwnedUserId,
    create: Box<RawValue>,
    origin: Origin,
    drafts: Vec<Draft>,
    alias: Option<OwnedRoomAliasId>,
    published: bool,
}

impl Plan {
    /// The events that make the room that is wanted, beginning at `origin`. `profile` is what the creator's member event says beside the
    /// membership.
    ///
    /// # Errors
    /// [`TimelineError::InvalidParam`] for parameters that contradict each other.
    pub(crate) fn of(
        timeline: &Timeline,
        wanted: CreateRoom,
        version: RoomVersionId,
        origin: Origin,
        profile: Map<String, Value>,
    ) -> Result<Plan, TimelineError> {
        let creator = wanted.author.user.clone();
        let create = create_content(&wanted, &version)?;
        let is_space = create.get("type").and_then(Value::as_str) == Some("m.space");
        let mut state = StatePlan { creator: creator.clone(), drafts: Vec::new() };
        let mut member = profile;
        member.insert("membership".to_owned(), "join".into());
        state.set("m.room.member", creator.as_str(), &member)?;
        state.set("m.room.power_levels", "", &power_levels(&wanted, &version, &create)?)?;
        if let Some(alias) = &wanted.alias {
            state.set("m.room.canonical_alias", "", &json!({ "alias": alias }))?;
        }
        preset_state(&mut state, wanted.preset, &wanted)?;
        // The server itself has no keys to write its notices with.
        let notices = timeline.core.is_notices_user(&creator);
        let sealed = !timeline.core.settings.plaintext.accept && !is_space && !notices;
        if sealed
            && !wanted
                .initial_state
                .iter()
                .any(|(kind, key, _)| kind == "m.room.encryption" && key.is_empty())
        {
            state.set("m.room.encryption", "", &json!({ "algorithm": "m.megolm.v1.aes-sha2" }))?;
        }
        for (kind, key, content) in &wanted.initial_state {
            if kind == "m.room.create" || kind == "m.room.member" && *key == *creator.as_str() {
                continue;
            }
            if kind == "m.room.encryption" && sealed && !has_algorithm(content) {
                return Err(TimelineError::InvalidParam("this server makes only encrypted rooms".to_owned()));
            }
            state.drafts.push(Draft::state(
                creator.clone(),
                TimelineEventType::from(kind.as_str()),
                key.clone(),
                content.clone(),
            ));
        }
        if let Some(name) = &wanted.name {
            state.set("m.room.name", "", &json!({ "name": name }))?;
        }
        if let Some(topic) = &wanted.topic {
            let rich = json!({ "topic": topic, "m.topic": { "m.text": [{ "body": topic }] } });
            state.set("m.room.topic", "", &rich)?;
        }
        for user in wanted.invite.iter().filter(|user| timeline.core.is_local(user) && **user != creator) {
            let mut content = json!({ "membership": "invite" });
            if wanted.is_direct {
                content["is_direct"] = true.into();
            }
            state.set("m.room.member", user.as_str(), &content)?;
        }
        Ok(Plan {
            version,
            creator,
            create: raw(&create)?,
            origin,
            drafts: state.drafts,
            alias: wanted.alias,
            published: wanted.published,
        })
    }

    /// Makes the room.
    ///
    /// # Errors
    /// [`TimelineError::RoomInUse`] for a taken alias, [`TimelineError::InvalidRoomState`] where the rules forbid one of
    /// the events.
    pub(crate) async fn run(&self, core: &crate::Core, tx: &mut Tx) -> Result<OwnedRoomId, TimelineError> {
        if let Some(alias) = &self.alias
            && tx.alias_load(alias).await?.is_some()
        {
            return Err(TimelineError::RoomInUse);
        }
        let create = self.append_create(core, tx).await?;
        let room = create.room_id.clone();
        if let Some(alias) = &self.alias {
            tx.alias_save(alias, &room, &self.creator).await?;
        }
        for draft in &self.drafts {
            append(core, tx, &room, draft).await.map_err(|error| match error {
                TimelineError::Forbidden(why) => {
                    TimelineError::InvalidRoomState(format!("{}: {why}", draft.kind))
                }
                other => other,
            })?;
        }
        if self.published {
            let mut row = super::append::room_row(tx, &room).await?;
            row.published = true;
            tx.room_put(row).await?;
        }
        Ok(room)
    }

    /// The create event. Where its hash is the id of the room, two that are alike in the same millisecond would be one
    /// room: the later one is dated a little later.
    async fn append_create(&self, core: &crate::Core, tx: &mut Tx) -> Result<Arc<Event>, TimelineError> {
        let Origin { room_id, at: MilliSecondsSinceUnixEpoch(at) } = &self.origin;
        for later in 0..MOST_ALIKE {
            let draft = waxwing_rooms::EventDraft {
                kind: TimelineEventType::RoomCreate,
                content: self.create.clone(),
                state_key: Some(String::new()),
                sender: self.creator.clone(),
                redacts: None,
                origin_server_ts: MilliSecondsSinceUnixEpoch(at.saturating_add(later.into())),
                sticky_ms: None,
            };
            match append_create(core, tx, &self.version, room_id.clone(), draft).await {
                Err(TimelineError::RoomInUse) if room_id.is_none() => {}
                appended => return appended,
            }
        }
        Err(TimelineError::RoomInUse)
    }
}

struct StatePlan {
    creator: OwnedUserId,
    drafts: Vec<Draft>,
}

impl StatePlan {
    fn set(&mut self, kind: &str, key: &str, content: &impl serde::Serialize) -> Result<(), TimelineError> {
        let draft = Draft::state(self.creator.clone(), TimelineEventType::from(kind), key, raw(content)?);
        self.drafts.push(draft);
        Ok(())
    }
}

fn has_algorithm(content: &RawValue) -> bool {
    serde_json::from_str::<Map<String, Value>>(content.get()).is_ok_and(|content| {
        content.get("algorithm").is_some_and(|name| name.as_str().is_some_and(|n| !n.is_empty()))
    })
}

fn create_content(wanted: &CreateRoom, version: &RoomVersionId) -> Result<Map<String, Value>, TimelineError> {
    let mut content = wanted.creation_content.clone();
    content.insert("room_version".to_owned(), version.as_str().into());
    let rules =
        version::rules(version).ok_or_else(|| TimelineError::UnsupportedVersion(version.to_string()))?;
    if rules.authorization.use_room_create_sender {
        content.remove("creator");
    } else {
        content.insert("creator".to_owned(), wanted.author.user.as_str().into());
    }
    if rules.authorization.additional_room_creators {
        let mut more: Vec<Value> = match content.get("additional_creators") {
            None => Vec::new(),
            Some(Value::Array(users)) => users.clone(),
            Some(_) => {
                return Err(TimelineError::InvalidParam("additional_creators must be a list".to_owned()));
            }
        };
        for user in &more {
            if user.as_str().is_none_or(|user| UserId::parse(user).is_err()) {
                return Err(TimelineError::InvalidParam("additional_creators must be user ids".to_owned()));
            }
        }
        if wanted.preset == Preset::TrustedPrivateChat {
            for user in wanted.invite.iter().map(|user| Value::from(user.as_str())) {
                if !more.contains(&user) {
                    more.push(user);
                }
            }
        }
        if more.is_empty() {
            content.remove("additional_creators");
        } else {
            content.insert("additional_creators".to_owned(), more.into());
        }
    }
    Ok(content)
}

fn power_levels(
    wanted: &CreateRoom,
    version: &RoomVersionId,
    create: &Map<String, Value>,
) -> Result<Map<String, Value>, TimelineError> {
    let privileged =
        version::rules(version).is_some_and(|rules| rules.authorization.explicitly_privilege_room_creators);
    let mut users = Map::new();
    if !privileged {
        users.insert(wanted.author.user.to_string(), 100.into());
        if wanted.preset == Preset::TrustedPrivateChat {
            users.extend(wanted.invite.iter().map(|user| (user.to_string(), 100.into())));
        }
    }
    let tombstone = if privileged { 150 } else { 100 };
    // Where everyone may join, inviting means to vouch for somebody; elsewhere members bring in whom they like.
    let invite = if wanted.preset == Preset::PublicChat { 50 } else { 0 };
    let mut levels = match json!({
        "users": users,
        "users_default": 0,
        "events": {
            "m.room.name": 50, "m.room.power_levels": 100, "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50, "m.room.avatar": 50, "m.room.tombstone": tombstone,
            "m.room.server_acl": 100, "m.room.encryption": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50, "kick": 50, "redact": 50, "invite": invite,
    }) {
        Value::Object(levels) => levels,
        _ => Map::new(),
    };
    if create.get("type").and_then(Value::as_str) == Some("m.space") {
        levels.insert("events_default".to_owned(), 100.into());
    }
    for (field, value) in &wanted.power_levels {
        levels.insert(field.clone(), value.clone());
    }
    if privileged && let Some(Value::Object(named)) = levels.get("users") {
        let creators =
            create.get("additional_creators").and_then(Value::as_array).cloned().unwrap_or_default();
        let is_creator = |user: &str| {
            user == wanted.author.user || creators.iter().any(|other| other.as_str() == Some(user))
        };
        if named.keys().any(|user| is_creator(user)) {
            return Err(TimelineError::InvalidParam("creators cannot be given a power level".to_owned()));
        }
    }
    Ok(levels)
}

fn preset_state(state: &mut StatePlan, preset: Preset, wanted: &CreateRoom) -> Result<(), TimelineError> {
    let join_rule = if preset == Preset::PublicChat { "public" } else { "invite" };
    let given =
        |kind: &str| wanted.initial_state.iter().any(|(other, key, _)| other == kind && key.is_empty());
    if !given("m.room.join_rules") {
        state.set("m.room.join_rules", "", &json!({ "join_rule": join_rule }))?;
    }
    if !given("m.room.history_visibility") {
        state.set("m.room.history_visibility", "", &json!({ "history_visibility": "shared" }))?;
    }
    // Without the event guests are forbidden, as a public room wants it.
    if preset != Preset::PublicChat && !given("m.room.guest_access") {
        state.set("m.room.guest_access", "", &json!({ "guest_access": "can_join" }))?;
    }
    Ok(())
}
