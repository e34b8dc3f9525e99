//! What a room looks like from outside.
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias>

use super::{Directory, DirectoryError};
use ruma::events::StateEventType;
use ruma::{
    OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, ServerName, UserId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use waxwing_model::{Event, StateKey, state_key};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::RoomRow;

/// Servers asked about a room that this server is not in.
const MAX_SERVERS: usize = 4;

/// A room from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Its avatar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    /// Its main alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canonical_alias: Option<OwnedRoomAliasId>,
    /// `m.space`, or another type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
    /// How many are joined.
    #[serde(default)]
    pub num_joined_members: u64,
    /// How one may join.
    #[serde(default = "public")]
    pub join_rule: String,
    /// The rooms whose members may join, where the join rule names such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_room_ids: Option<Vec<OwnedRoomId>>,
    /// Whether everyone may read it.
    #[serde(default)]
    pub world_readable: bool,
    /// Whether guests may join.
    #[serde(default)]
    pub guest_can_join: bool,
    /// The encryption algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// The version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_version: Option<String>,
}

fn public() -> String {
    "public".to_owned()
}

impl Summary {
    /// Whether it is a space.
    pub fn is_space(&self) -> bool {
        self.room_type.as_deref() == Some("m.space")
    }

    /// Whether anyone may know of it.
    pub(super) fn is_open(&self) -> bool {
        self.world_readable || matches!(self.join_rule.as_str(), "public" | "knock" | "knock_restricted")
    }
}

/// What a state says of its room: everything but the number of members.
pub(super) struct Facts(Summary);

fn keys() -> [StateKey; 9] {
    [
        StateEventType::RoomCreate,
        StateEventType::RoomName,
        StateEventType::RoomTopic,
        StateEventType::RoomAvatar,
        StateEventType::RoomCanonicalAlias,
        StateEventType::RoomJoinRules,
        StateEventType::RoomHistoryVisibility,
        StateEventType::RoomGuestAccess,
        StateEventType::RoomEncryption,
    ]
    .map(|kind| state_key(kind, ""))
}

fn text(content: &Map<String, Value>, field: &str) -> Option<String> {
    content.get(field)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn facts(row: &RoomRow, events: &[Option<Arc<Event>>]) -> Facts {
    let content = |index: usize| -> Map<String, Value> {
        let event = events.get(index).and_then(Option::as_ref);
        event.and_then(|event| event.content_as().ok()).unwrap_or_default()
    };
    let join_rules = content(5);
    let join_rule = text(&join_rules, "join_rule").unwrap_or_else(|| "invite".to_owned());
    let restricted = matches!(join_rule.as_str(), "restricted" | "knock_restricted");
    let alias = text(&content(4), "alias").and_then(|alias| RoomAliasId::parse(alias).ok());
    Facts(Summary {
        room_id: row.room_id.clone(),
        name: text(&content(1), "name"),
        topic: text(&content(2), "topic"),
        avatar_url: text(&content(3), "url"),
        canonical_alias: alias,
        room_type: text(&content(0), "type"),
        num_joined_members: 0,
        allowed_room_ids: restricted.then(|| allowed(&join_rules)),
        join_rule,
        world_readable: text(&content(6), "history_visibility").as_deref() == Some("world_readable"),
        guest_can_join: text(&content(7), "guest_access").as_deref() == Some("can_join"),
        encryption: text(&content(8), "algorithm"),
        room_version: Some(row.version.to_string()),
    })
}

/// The rooms whose members a restricted room admits.
fn allowed(join_rules: &Map<String, Value>) -> Vec<OwnedRoomId> {
    let rules = join_rules.get("allow").and_then(Value::as_array);
    rules
        .into_iter()
        .flatten()
        .filter(|rule| rule.get("type").and_then(Value::as_str) == Some("m.room_membership"))
        .filter_map(|rule| RoomId::parse(rule.get("room_id")?.as_str()?).ok())
        .collect()
}

impl Directory {
    /// The summary of a room that is known here.
    pub(super) async fn summary_here(&self, room: &RoomId) -> Result<Option<Summary>, DirectoryError> {
        let (row, joined) = {
            let mut conn = self.core.store.read().await?;
            let Some(row) = conn.room_load(room).await? else { return Ok(None) };
            let counts = conn.member_counts(room).await?;
            let joined = counts.iter().find(|(membership, _)| membership == "join");
            (row, joined.map_or(0, |(_, count)| u64::try_from(*count).unwrap_or(0)))
        };
        let facts = self.facts(&row).await?;
        Ok(Some(Summary { num_joined_members: joined, ..facts.0.clone() }))
    }

    async fn facts(&self, row: &RoomRow) -> Result<Arc<Facts>, DirectoryError> {
        let root: NodeId = row.state_root;
        if let Some(known) = self.facts.get(&root) {
            return Ok(known);
        }
        let ids = {
            let mut conn = self.core.store.read().await?;
            self.core.store.state(&mut conn).get_many(root, &keys()).await?
        };
        let wanted: Vec<OwnedEventId> = ids.iter().flatten().cloned().collect();
        let events = self.core.store.events(&wanted).await?;
        let events: Vec<Option<Arc<Event>>> = ids
            .iter()
            .map(|id| id.as_ref().and_then(|id| events.get(id)).map(|stored| Arc::clone(&stored.event)))
            .collect();
        let facts = Arc::new(facts(row, &events));
        self.facts.insert(root, Arc::clone(&facts));
        Ok(facts)
    }

    /// Whether this server takes part in the room, so that what it knows of it is current.
    pub(super) async fn takes_part(&self, room: &RoomId) -> Result<bool, DirectoryError> {
        Ok(self.timeline.resident(room).await?)
    }

    /// Whether the user may know what the room is: it is open, or the user is in it or invited, or is in a room whose
    /// members it admits. `None` asks for someone without an account.
    pub(super) async fn user_may_know(
        &self,
        user: Option<&UserId>,
        summary: &Summary,
    ) -> Result<bool, DirectoryError> {
        if summary.is_open() {
            return Ok(true);
        }
        let Some(user) = user else { return Ok(false) };
        let mut conn = self.core.store.read().await?;
        let member = conn.member_load(&summary.room_id, user).await?;
        if member.is_some_and(|member| matches!(member.membership.as_str(), "join" | "invite")) {
            return Ok(true);
        }
        for room in summary.allowed_room_ids.iter().flatten() {
            let member = conn.member_load(room, user).await?;
            if member.is_some_and(|member| member.membership == "join") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The same for a server: one of its users may.
    pub(super) async fn server_may_know(
        &self,
        server: &ServerName,
        summary: &Summary,
    ) -> Result<bool, DirectoryError> {
        if summary.is_open() {
            return Ok(true);
        }
        let mut conn = self.core.store.read().await?;
        if conn.server_is_in(&summary.room_id, server).await? {
            return Ok(true);
        }
        let invited = conn.members_of(&summary.room_id, "invite").await?;
        if invited.iter().any(|member| member.user_id.server_name() == server) {
            return Ok(true);
        }
        for room in summary.allowed_room_ids.iter().flatten() {
            if conn.server_is_in(room, server).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The summary of a room for a user, or for someone without an account, and the user's membership of it. Rooms
    /// that this server is not in are asked for at `via`.
    ///
    /// # Errors
    /// [`DirectoryError::NotFound`] for a room that does not exist or that the user may not know of.
    pub async fn summary(
        &self,
        user: Option<&UserId>,
        room: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<(Summary, Option<String>), DirectoryError> {
        let missing = DirectoryError::NotFound("room");
        let member = match user {
            Some(user) => self.core.store.read().await?.member_load(room, user).await?,
            None => None,
        };
        let summary = if self.takes_part(room).await? {
            self.summary_here(room).await?.ok_or(missing)?
        } else {
            let mut servers = via.to_vec();
            servers.extend(member.as_ref().map(|member| member.sender.server_name().to_owned()));
            self.summary_elsewhere(room, &servers).await?.ok_or(missing)?
        };
        if !self.user_may_know(user, &summary).await? {
            return Err(DirectoryError::NotFound("room"));
        }
        let membership = member.map_or_else(|| "leave".to_owned(), |member| member.membership);
        Ok((summary, user.is_some().then_some(membership)))
    }

    async fn summary_elsewhere(
        &self,
        room: &RoomId,
        servers: &[OwnedServerName],
    ) -> Result<Option<Summary>, DirectoryError> {
        let others = servers.iter().filter(|server| **server != self.core.server_name);
        for server in others.take(MAX_SERVERS) {
            if let Some(found) = self.hierarchy_from(server, room, false).await {
                return Ok(Some(found.room.summary.clone()));
            }
        }
        Ok(None)
    }
}
