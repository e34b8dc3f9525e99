//! Joining, leaving and knocking through us: a template, then the event.
//! <https://spec.matrix.org/v1.19/server-server-api/#joining-rooms>

use super::signed::{Signed, SignedExt, empty, json};
use crate::error::ApiResult;
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use serde::Serialize;
use serde_json::value::RawValue;
use waxwing_services::federation::{Federation, Joined, Template};

pub(super) fn routes() -> Router<Api> {
    const GET: MethodFilter = MethodFilter::GET;
    const PUT: MethodFilter = MethodFilter::PUT;
    Router::new()
        .signed(GET, "/_matrix/federation/v1/make_join/{room}/{user}", make_join)
        .signed(PUT, "/_matrix/federation/v2/send_join/{room}/{event}", send_join)
        // Gone from the specification since 1.18; other servers' conformance tests still know them.
        .signed(PUT, "/_matrix/federation/v1/send_join/{room}/{event}", send_join_v1)
        .signed(PUT, "/_matrix/federation/v1/send_leave/{room}/{event}", send_leave_v1)
        .signed(GET, "/_matrix/federation/v1/make_leave/{room}/{user}", make_leave)
        .signed(PUT, "/_matrix/federation/v2/send_leave/{room}/{event}", send_leave)
        .signed(GET, "/_matrix/federation/v1/make_knock/{room}/{user}", make_knock)
        .signed(PUT, "/_matrix/federation/v1/send_knock/{room}/{event}", send_knock)
}

/// The room and the user of a `make_` endpoint.
fn whose(request: &Signed) -> ApiResult<(OwnedRoomId, OwnedUserId)> {
    Ok((request.path(0, "the room id")?, request.path(1, "the user id")?))
}

/// The room, the id and the event of a `send_` endpoint.
fn event(request: &Signed) -> ApiResult<(OwnedRoomId, OwnedEventId, Box<RawValue>)> {
    Ok((request.path(0, "the room id")?, request.path(1, "the event id")?, request.raw()?))
}

/// The room versions that the other server knows; 1 when it says none.
fn versions(request: &Signed) -> Vec<RoomVersionId> {
    let named: Vec<RoomVersionId> = request
        .query
        .iter()
        .filter(|(name, _)| name == "ver")
        .filter_map(|(_, version)| version.as_str().try_into().ok())
        .collect();
    if named.is_empty() { vec![RoomVersionId::V1] } else { named }
}

fn template(template: &Template) -> ApiResult<Response> {
    #[derive(Serialize)]
    struct Body<'a> {
        room_version: &'a RoomVersionId,
        event: &'a RawValue,
    }
    json(&Body { room_version: &template.version, event: &template.event })
}

async fn make_join(federation: Federation, request: Signed) -> ApiResult<Response> {
    let (room, user) = whose(&request)?;
    template(&federation.make_join(&request.origin, &room, &user, &versions(&request)).await?)
}

async fn make_knock(federation: Federation, request: Signed) -> ApiResult<Response> {
    let (room, user) = whose(&request)?;
    template(&federation.make_knock(&request.origin, &room, &user, &versions(&request)).await?)
}

async fn make_leave(federation: Federation, request: Signed) -> ApiResult<Response> {
    let (room, user) = whose(&request)?;
    template(&federation.make_leave(&request.origin, &room, &user).await?)
}

#[derive(Serialize)]
struct JoinedBody<'a> {
    origin: &'a ruma::ServerName,
    event: &'a RawValue,
    state: &'a [Box<RawValue>],
    auth_chain: &'a [Box<RawValue>],
    members_omitted: bool,
    servers_in_room: &'a [OwnedServerName],
}

fn joined<'a>(federation: &'a Federation, joined: &'a Joined) -> JoinedBody<'a> {
    JoinedBody {
        origin: federation.server_name(),
        event: &joined.event,
        state: &joined.state,
        auth_chain: &joined.auth_chain,
        members_omitted: joined.members_omitted,
        servers_in_room: &joined.servers,
    }
}

async fn send_join(federation: Federation, request: Signed) -> ApiResult<Response> {
    let (room, id, json_event) = event(&request)?;
    let omit = request.text("omit_members") == Some("true");
    let done = federation.send_join(&request.origin, &room, &id, &json_event, omit).await?;
    json(&joined(&federation, &done))
}

async fn send_join_v1(federation: Federation, request: Signed) -> ApiResult<Response> {
    let (room, id, json_event) = event(&request)?;
    let done = federation.send_join(&request.origin, &room, &id, &json_event, false).await?;
    json(&(200, joined(&federation, &done)))
}

async fn send_leave(federation: Federation, request: Signed) -> ApiResult<Response> {
    let (room, id, json_event) = event(&request)?;
    federation.send_leave(&request.origin, &room, &id, &json_event).await?;
    empty()
}

async fn send_leave_v1(federation: Federation, request: Signed) -> ApiResult<Response> {
    let (room, id, json_event) = event(&request)?;
    federation.send_leave(&request.origin, &room, &id, &json_event).await?;
    json(&(200, serde_json::Map::new()))
}

async fn send_knock(federation: Federation, request: Signed) -> ApiResult<Response> {
    #[derive(Serialize)]
    struct Body {
        knock_room_state: Vec<Box<RawValue>>,
    }
    let (room, id, json_event) = event(&request)?;
    let state = federation.send_knock(&request.origin, &room, &id, &json_event).await?;
    json(&Body { knock_room_state: state })
}
