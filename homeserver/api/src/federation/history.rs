//! Events, state and history of rooms.
//! <https://spec.matrix.org/v1.19/server-server-api/#retrieving-events>

use super::signed::{Signed, SignedExt, json};
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use ruma::{OwnedEventId, OwnedRoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use waxwing_services::federation::{Federation, MissingEvents};

pub(super) fn routes() -> Router<Api> {
    const GET: MethodFilter = MethodFilter::GET;
    Router::new()
        .signed(GET, "/_matrix/federation/v1/event/{event}", event)
        .signed(GET, "/_matrix/federation/v1/event_auth/{room}/{event}", event_auth)
        .signed(GET, "/_matrix/federation/v1/state/{room}", state)
        .signed(GET, "/_matrix/federation/v1/state_ids/{room}", state_ids)
        .signed(GET, "/_matrix/federation/v1/backfill/{room}", backfill)
        .signed(GET, "/_matrix/federation/v1/timestamp_to_event/{room}", event_at)
        .signed(MethodFilter::POST, "/_matrix/federation/v1/get_missing_events/{room}", missing)
}

/// Events as a small transaction.
#[derive(Serialize)]
struct SmallTransaction<'a> {
    origin: &'a ServerName,
    origin_server_ts: u64,
    pdus: Vec<Box<RawValue>>,
}

fn pdus(federation: &Federation, pdus: Vec<Box<RawValue>>) -> ApiResult<Response> {
    json(&SmallTransaction { origin: federation.server_name(), origin_server_ts: federation.now(), pdus })
}

async fn event(federation: Federation, request: Signed) -> ApiResult<Response> {
    let id: OwnedEventId = request.path(0, "the event id")?;
    let event = federation.event(&request.origin, &id).await?;
    pdus(&federation, vec![event])
}

async fn event_auth(federation: Federation, request: Signed) -> ApiResult<Response> {
    #[derive(Serialize)]
    struct Body {
        auth_chain: Vec<Box<RawValue>>,
    }
    let room: OwnedRoomId = request.path(0, "the room id")?;
    let id: OwnedEventId = request.path(1, "the event id")?;
    let auth_chain = federation.event_auth(&request.origin, &room, &id).await?;
    json(&Body { auth_chain })
}

async fn state(federation: Federation, request: Signed) -> ApiResult<Response> {
    #[derive(Serialize)]
    struct Body {
        auth_chain: Vec<Box<RawValue>>,
        pdus: Vec<Box<RawValue>>,
    }
    let room: OwnedRoomId = request.path(0, "the room id")?;
    let id: OwnedEventId = request.required("event_id")?;
    let state = federation.room_state(&request.origin, &room, &id).await?;
    json(&Body { auth_chain: state.auth_chain_json(), pdus: state.state_json() })
}

async fn state_ids(federation: Federation, request: Signed) -> ApiResult<Response> {
    #[derive(Serialize)]
    struct Body {
        auth_chain_ids: Vec<OwnedEventId>,
        pdu_ids: Vec<OwnedEventId>,
    }
    let room: OwnedRoomId = request.path(0, "the room id")?;
    let id: OwnedEventId = request.required("event_id")?;
    let state = federation.room_state(&request.origin, &room, &id).await?;
    json(&Body { auth_chain_ids: state.auth_chain_ids(), pdu_ids: state.state_ids() })
}

async fn backfill(federation: Federation, request: Signed) -> ApiResult<Response> {
    let room: OwnedRoomId = request.path(0, "the room id")?;
    let from: Vec<OwnedEventId> = request
        .query
        .iter()
        .filter(|(name, _)| name == "v")
        .map(|(_, id)| OwnedEventId::try_from(id.as_str()).map_err(ApiError::invalid_param))
        .collect::<ApiResult<_>>()?;
    let limit = request.number("limit")?.ok_or_else(|| ApiError::missing_param("limit is missing"))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let events = federation.backfill(&request.origin, &room, &from, limit).await?;
    pdus(&federation, events)
}

async fn event_at(federation: Federation, request: Signed) -> ApiResult<Response> {
    let room: OwnedRoomId = request.path(0, "the room id")?;
    let at = request.number("ts")?.ok_or_else(|| ApiError::missing_param("ts is missing"))?;
    let forward = match request.text("dir") {
        Some("f") => true,
        Some("b") => false,
        Some(_) => return Err(ApiError::invalid_param("dir is neither f nor b")),
        None => return Err(ApiError::missing_param("dir is missing")),
    };
    let (event_id, origin_server_ts) = federation.event_at(&request.origin, &room, at, forward).await?;
    json(&serde_json::json!({ "event_id": event_id, "origin_server_ts": origin_server_ts }))
}

async fn missing(federation: Federation, request: Signed) -> ApiResult<Response> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        limit: Option<usize>,
        #[serde(default)]
        min_depth: u64,
        earliest_events: Vec<OwnedEventId>,
        latest_events: Vec<OwnedEventId>,
    }
    #[derive(Serialize)]
    struct Answer {
        events: Vec<Box<RawValue>>,
    }
    /// The specification's default.
    const LIMIT: usize = 10;
    let room: OwnedRoomId = request.path(0, "the room id")?;
    let body: Body = request.json()?;
    let query = MissingEvents {
        earliest: body.earliest_events,
        latest: body.latest_events,
        limit: body.limit.unwrap_or(LIMIT),
        min_depth: body.min_depth,
    };
    let events = federation.missing_events(&request.origin, &room, query).await?;
    json(&Answer { events })
}
