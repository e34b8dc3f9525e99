use http::Method;
use ruma::room_version_rules::RoomVersionRules;
use ruma::{EventId, OwnedServerName, RoomId, RoomVersionId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;

use super::{Call, Client, ClientError, LIST_BODY, path, to_body, with_query};

/// `send_join` answers with a room's whole state: the largest public rooms make 100 MB and more of it.
const JOIN_BODY: usize = 512 << 20;
/// And their servers take minutes to put it together.
const JOIN_TIMEOUT: Duration = Duration::from_mins(5);

/// The answer to `make_join`, `make_knock`, `make_leave`.
#[derive(Debug, Deserialize)]
pub struct Template {
    /// The room's version; version 1 when absent.
    #[serde(default)]
    pub room_version: Option<RoomVersionId>,
    /// The event to complete and sign.
    pub event: Box<RawValue>,
}

/// The answer to `send_join`.
#[derive(Debug, Deserialize)]
pub struct SendJoin {
    /// The state before the join.
    pub state: Vec<Box<RawValue>>,
    /// What authorises it and the join.
    pub auth_chain: Vec<Box<RawValue>>,
    /// The join event with the resident server's signature added.
    #[serde(default)]
    pub event: Option<Box<RawValue>>,
    /// Whether membership events were left out of `state`.
    #[serde(default)]
    pub members_omitted: bool,
    /// Servers in the room before the join.
    #[serde(default)]
    pub servers_in_room: Option<Vec<OwnedServerName>>,
}

/// What an invite carries.
#[derive(Debug)]
pub struct InviteRequest<'a> {
    /// The room.
    pub room: &'a RoomId,
    /// Its version.
    pub room_version: &'a RoomVersionId,
    /// The invite's id.
    pub event_id: &'a EventId,
    /// The invite, signed by us.
    pub event: &'a RawValue,
    /// State for the invited user to recognise the room by, as full PDUs.
    pub state: &'a [Box<RawValue>],
}

#[derive(Serialize)]
struct InviteV2<'a> {
    room_version: &'a RoomVersionId,
    event: &'a RawValue,
    invite_room_state: &'a [Box<RawValue>],
}

#[derive(Deserialize)]
struct Invited {
    event: Box<RawValue>,
}

#[derive(Deserialize)]
struct Knocked {
    #[serde(default)]
    knock_room_state: Vec<Box<RawValue>>,
}

impl Client {
    async fn template(
        &self,
        destination: &ServerName,
        kind: &str,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, ClientError> {
        let path = path(&["_matrix", "federation", "v1", kind, room.as_str(), user.as_str()]);
        let query: Vec<(&str, &str)> = versions.iter().map(|version| ("ver", version.as_str())).collect();
        self.json(Call::get(destination, with_query(path, &query)).insistent()).await
    }

    /// `GET /make_join`. `versions`: the room versions that we can take part in.
    pub async fn make_join(
        &self,
        destination: &ServerName,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, ClientError> {
        self.template(destination, "make_join", room, user, versions).await
    }

    /// `GET /make_knock`.
    pub async fn make_knock(
        &self,
        destination: &ServerName,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, ClientError> {
        self.template(destination, "make_knock", room, user, versions).await
    }

    /// `GET /make_leave`.
    pub async fn make_leave(
        &self,
        destination: &ServerName,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Template, ClientError> {
        self.template(destination, "make_leave", room, user, &[]).await
    }

    fn send_path(version: &str, kind: &str, room: &RoomId, event: &EventId) -> String {
        path(&["_matrix", "federation", version, kind, room.as_str(), event.as_str()])
    }

    /// `PUT v2/send_join`.
    pub async fn send_join(
        &self,
        destination: &ServerName,
        room: &RoomId,
        event_id: &EventId,
        event: &RawValue,
        omit_members: bool,
    ) -> Result<SendJoin, ClientError> {
        let omit = if omit_members { "true" } else { "false" };
        let path =
            with_query(Client::send_path("v2", "send_join", room, event_id), &[("omit_members", omit)]);
        let call = Call::new(destination, Method::PUT, path).body(event);
        self.json(call.timeout(JOIN_TIMEOUT).limit(JOIN_BODY).insistent()).await
    }

    /// `PUT v2/send_leave`.
    pub async fn send_leave(
        &self,
        destination: &ServerName,
        room: &RoomId,
        event_id: &EventId,
        event: &RawValue,
    ) -> Result<(), ClientError> {
        let path = Client::send_path("v2", "send_leave", room, event_id);
        self.bytes(Call::new(destination, Method::PUT, path).body(event).insistent()).await.map(drop)
    }

    /// `PUT v1/send_knock`; gives the state to recognise the room by.
    pub async fn send_knock(
        &self,
        destination: &ServerName,
        room: &RoomId,
        event_id: &EventId,
        event: &RawValue,
    ) -> Result<Vec<Box<RawValue>>, ClientError> {
        let path = Client::send_path("v1", "send_knock", room, event_id);
        let call = Call::new(destination, Method::PUT, path).body(event).limit(LIST_BODY).insistent();
        Ok(self.json::<Knocked>(call).await?.knock_room_state)
    }

    /// `PUT v2/invite`, for the oldest rooms falling back to `v1/invite`; gives the event with the invited server's
    /// signature added.
    pub async fn invite(
        &self,
        destination: &ServerName,
        invite: &InviteRequest<'_>,
    ) -> Result<Box<RawValue>, ClientError> {
        let path = Client::send_path("v2", "invite", invite.room, invite.event_id);
        let body = to_body(&InviteV2 {
            room_version: invite.room_version,
            event: invite.event,
            invite_room_state: invite.state,
        })?;
        let call = Call::new(destination, Method::PUT, path).body(&body).insistent();
        match self.json::<Invited>(call).await {
            Err(error) if error.is_unrecognized() && speaks_v1(invite.room_version) => {
                self.invite_v1(destination, invite).await
            }
            answer => answer.map(|invited| invited.event),
        }
    }

    async fn invite_v1(
        &self,
        destination: &ServerName,
        invite: &InviteRequest<'_>,
    ) -> Result<Box<RawValue>, ClientError> {
        let nonsense = |error: serde_json::Error| ClientError::Unwritable(error.to_string());
        let mut event: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(invite.event.get()).map_err(nonsense)?;
        event.insert("unsigned".into(), serde_json::json!({ "invite_room_state": invite.state }));
        let path = Client::send_path("v1", "invite", invite.room, invite.event_id);
        let call = Call::new(destination, Method::PUT, path).body(&to_body(&event)?).insistent();
        let (_, invited): (serde::de::IgnoredAny, Invited) = self.json(call).await?;
        Ok(invited.event)
    }
}

/// `v1/invite` says nothing of the room's version: it is for versions 1 and 2.
fn speaks_v1(version: &RoomVersionId) -> bool {
    version.rules().is_some_and(|rules: RoomVersionRules| {
        rules.event_id_format == ruma::room_version_rules::EventIdFormatVersion::V1
    })
}
