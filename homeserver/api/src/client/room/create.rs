//! `POST /createRoom`: <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom>

use super::{author, third_party};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::room::{Visibility, create_room::v3};
use ruma::serde::Raw;
use ruma::{OwnedRoomAliasId, RoomAliasId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use waxwing_services::accounts::Requester;
use waxwing_services::timeline::{CreateRoom, Preset};

/// Invitations by an address of one new room: each is some requests to an identity server.
const MAX_BY_ADDRESS: usize = 20;

#[derive(Deserialize)]
struct InitialState {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    state_key: String,
    content: Box<RawValue>,
}

/// Makes a room and invites those who shall be in it.
pub async fn create_room(api: Api, args: Args<v3::Request>) -> ApiResult<v3::Response> {
    let request = args.request;
    let preset = match request.preset {
        Some(v3::RoomPreset::PublicChat) => Preset::PublicChat,
        Some(v3::RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        Some(v3::RoomPreset::PrivateChat) => Preset::PrivateChat,
        Some(_) => return Err(ApiError::bad_json("unknown preset")),
        None if request.visibility == Visibility::Public => Preset::PublicChat,
        None => Preset::PrivateChat,
    };
    let published = request.visibility == Visibility::Public;
    if published {
        may_publish(&api, &args.requester)?;
    }
    let author = author(&args.requester);
    let mut initial_state = Vec::new();
    for raw in &request.initial_state {
        let state: InitialState = read(raw)?;
        initial_state.push((state.kind, state.state_key, state.content));
    }
    let creation_content = request.creation_content.as_ref().map(object).transpose()?.unwrap_or_default();
    let power_levels =
        request.power_level_content_override.as_ref().map(object).transpose()?.unwrap_or_default();
    let alias = request.room_alias_name.as_deref().map(|name| alias(&api, name)).transpose()?;
    let wanted = CreateRoom {
        author: author.clone(),
        version: request.room_version,
        creation_content,
        preset,
        initial_state,
        name: request.name,
        topic: request.topic,
        alias,
        power_levels,
        invite: request.invite.clone(),
        is_direct: request.is_direct,
        published,
    };
    let room_id = api.timeline.create_room(wanted).await?;
    for user in request.invite.iter().filter(|user| !api.core.is_local(user)) {
        let mut content = Map::new();
        if request.is_direct {
            content.insert("is_direct".to_owned(), true.into());
        }
        // The room is there: a server that refuses or sleeps does not undo it.
        if let Err(error) = api.timeline.invite(&author, &room_id, user, content).await {
            tracing::info!(room = %room_id, %error, "an invitation of a new room was not taken");
        }
    }
    for invite in request.invite_3pid.into_iter().take(MAX_BY_ADDRESS) {
        let invite = third_party::wanted(invite);
        if let Err(error) = api.third_party.invite(&author, &room_id, &invite).await {
            tracing::info!(room = %room_id, %error, "an invitation by an address to a new room failed");
        }
    }
    Ok(v3::Response::new(room_id))
}

/// Whether this user may put a room into the public list.
fn may_publish(api: &Api, requester: &Requester) -> ApiResult<()> {
    if api.core.settings.everyone_publishes_rooms || requester.is_admin {
        Ok(())
    } else {
        Err(ApiError::forbidden("Only administrators may publish rooms on this server"))
    }
}

fn read<T: DeserializeOwned, R>(raw: &Raw<R>) -> ApiResult<T> {
    serde_json::from_str(raw.json().get()).map_err(|error| ApiError::bad_json(error.to_string()))
}

fn object<R>(raw: &Raw<R>) -> ApiResult<Map<String, Value>> {
    read(raw)
}

fn alias(api: &Api, name: &str) -> ApiResult<OwnedRoomAliasId> {
    if name.is_empty() || name.contains([':', '#', '\0']) || name.chars().any(char::is_whitespace) {
        return Err(ApiError::invalid_param("this is not the local part of a room alias"));
    }
    RoomAliasId::parse(format!("#{name}:{}", api.core.server_name))
        .map_err(|_| ApiError::invalid_param("this is not the local part of a room alias"))
}
