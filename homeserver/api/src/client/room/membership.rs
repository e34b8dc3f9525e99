//! Joining, knocking, inviting, leaving, kicking, banning, forgetting:
//! <https://spec.matrix.org/v1.19/client-server-api/#room-membership>

use super::{author, third_party, third_party_error};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::knock::knock_room;
use ruma::api::client::membership::{
    ban_user, forget_room, invite_user, join_room_by_id, join_room_by_id_or_alias, kick_user, leave_room,
    unban_user,
};
use ruma::{OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value};
use waxwing_services::third_party::SignedInvite;
use waxwing_services::timeline::{JoinRoom, Removal};

fn with_reason(reason: Option<String>) -> Map<String, Value> {
    reason.map(|reason| ("reason".to_owned(), reason.into())).into_iter().collect()
}

/// Fields of a join's body that do not become part of the member event: the server says them itself, or they have a
/// meaning of their own.
const NOT_CONTENT: [&str; 6] = [
    "membership",
    "displayname",
    "avatar_url",
    "join_authorised_via_users_server",
    "third_party_signed",
    "third_party_invite",
];

/// What else the body of a join says becomes content of the member event, as other servers have it.
fn join_content(json: &[u8]) -> ApiResult<Map<String, Value>> {
    let mut content: Map<String, Value> =
        if json.is_empty() { Map::new() } else { crate::extract::json(json)? };
    content.retain(|field, _| !NOT_CONTENT.contains(&field.as_str()));
    Ok(content)
}

/// What an identity server signed of the user who joins: takes up the invitation by an address first.
async fn take_up(api: &Api, user: &UserId, room: &RoomId, json: &[u8]) -> ApiResult<()> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        third_party_signed: Option<Signed>,
    }
    #[derive(Deserialize)]
    struct Signed {
        sender: OwnedUserId,
        #[serde(flatten)]
        signed: SignedInvite,
    }
    let body: Body = crate::extract::json(if json.is_empty() { b"{}" } else { json })?;
    let Some(Signed { sender, mut signed }) = body.third_party_signed else { return Ok(()) };
    if signed.mxid != user {
        return Err(ApiError::forbidden("The invitation is of another user"));
    }
    // It is part of what was signed.
    signed.rest.insert("sender".to_owned(), sender.as_str().into());
    api.third_party.bound(room, &sender, &signed).await.map_err(third_party_error)
}

/// The room that an id or alias names, and servers that may help with it.
async fn find(
    api: &Api,
    id: OwnedRoomOrAliasId,
    mut via: Vec<OwnedServerName>,
) -> ApiResult<(OwnedRoomId, Vec<OwnedServerName>)> {
    match OwnedRoomId::try_from(id) {
        Ok(room) => Ok((room, via)),
        Err(alias) => {
            let (room, servers) = api.directory.resolve_alias(&alias).await?;
            via.extend(servers);
            via.retain(|server| *server != api.core.server_name);
            Ok((room, via))
        }
    }
}

/// `POST /rooms/{roomId}/join`.
pub async fn join_by_id(
    api: Api,
    args: Args<join_room_by_id::v3::Request>,
) -> ApiResult<join_room_by_id::v3::Response> {
    let request = args.request;
    take_up(&api, &args.requester.user_id, &request.room_id, &args.json).await?;
    let join = JoinRoom {
        author: author(&args.requester),
        room: request.room_id.clone(),
        via: Vec::new(),
        content: join_content(&args.json)?,
    };
    api.timeline.join(join).await?;
    Ok(join_room_by_id::v3::Response::new(request.room_id))
}

/// `POST /join/{roomIdOrAlias}`.
pub async fn join(
    api: Api,
    args: Args<join_room_by_id_or_alias::v3::Request>,
) -> ApiResult<join_room_by_id_or_alias::v3::Response> {
    let request = args.request;
    let (room, via) = find(&api, request.room_id_or_alias, request.via).await?;
    take_up(&api, &args.requester.user_id, &room, &args.json).await?;
    let join = JoinRoom {
        author: author(&args.requester),
        room: room.clone(),
        via,
        content: join_content(&args.json)?,
    };
    api.timeline.join(join).await?;
    Ok(join_room_by_id_or_alias::v3::Response::new(room))
}

/// `POST /knock/{roomIdOrAlias}`.
pub async fn knock(api: Api, args: Args<knock_room::v3::Request>) -> ApiResult<knock_room::v3::Response> {
    let request = args.request;
    let (room, via) = find(&api, request.room_id_or_alias, request.via).await?;
    let knock = JoinRoom {
        author: author(&args.requester),
        room: room.clone(),
        via,
        content: with_reason(request.reason),
    };
    api.timeline.knock(knock).await?;
    Ok(knock_room::v3::Response::new(room))
}

/// `POST /rooms/{roomId}/invite`.
pub async fn invite(api: Api, args: Args<invite_user::v3::Request>) -> ApiResult<invite_user::v3::Response> {
    let request = args.request;
    match request.recipient {
        invite_user::v3::InvitationRecipient::UserId(invited) => {
            let content = with_reason(invited.reason);
            let author = author(&args.requester);
            api.timeline.invite(&author, &request.room_id, &invited.user_id, content).await?;
            Ok(invite_user::v3::Response::new())
        }
        invite_user::v3::InvitationRecipient::ThirdPartyId(invite) => {
            let author = author(&args.requester);
            let invite = third_party::wanted(invite);
            let done = api.third_party.invite(&author, &request.room_id, &invite).await;
            done.map_err(third_party_error)?;
            Ok(invite_user::v3::Response::new())
        }
        _ => Err(ApiError::bad_json("neither a user nor an address is invited")),
    }
}

/// `POST /rooms/{roomId}/leave`.
pub async fn leave(api: Api, args: Args<leave_room::v3::Request>) -> ApiResult<leave_room::v3::Response> {
    let request = args.request;
    api.timeline.leave(&author(&args.requester), &request.room_id, request.reason).await?;
    Ok(leave_room::v3::Response::new())
}

/// `POST /rooms/{roomId}/forget`.
pub async fn forget(api: Api, args: Args<forget_room::v3::Request>) -> ApiResult<forget_room::v3::Response> {
    api.timeline.forget(&args.requester.user_id, &args.request.room_id).await?;
    Ok(forget_room::v3::Response::new())
}

/// `POST /rooms/{roomId}/kick`.
pub async fn kick(api: Api, args: Args<kick_user::v3::Request>) -> ApiResult<kick_user::v3::Response> {
    let request = args.request;
    let author = author(&args.requester);
    api.timeline.remove(&author, &request.room_id, &request.user_id, Removal::Kick, request.reason).await?;
    Ok(kick_user::v3::Response::new())
}

/// `POST /rooms/{roomId}/ban`.
pub async fn ban(api: Api, args: Args<ban_user::v3::Request>) -> ApiResult<ban_user::v3::Response> {
    let request = args.request;
    let author = author(&args.requester);
    api.timeline.remove(&author, &request.room_id, &request.user_id, Removal::Ban, request.reason).await?;
    Ok(ban_user::v3::Response::new())
}

/// `POST /rooms/{roomId}/unban`.
pub async fn unban(api: Api, args: Args<unban_user::v3::Request>) -> ApiResult<unban_user::v3::Response> {
    let request = args.request;
    let author = author(&args.requester);
    api.timeline.remove(&author, &request.room_id, &request.user_id, Removal::Unban, request.reason).await?;
    Ok(unban_user::v3::Response::new())
}
