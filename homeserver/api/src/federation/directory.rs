//! Rooms by name, the room list, spaces.

use super::signed::{Signed, SignedExt, json};
use crate::client::directory::PublicList;
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use ruma::directory::{Filter, RoomNetwork};
use ruma::{OwnedRoomAliasId, OwnedRoomId, UInt};
use serde::Deserialize;
use waxwing_services::directory::PublicRoomsQuery;
use waxwing_services::federation::Federation;

pub(super) fn routes() -> Router<Api> {
    let list = "/_matrix/federation/v1/publicRooms";
    Router::new()
        .signed(MethodFilter::GET, "/_matrix/federation/v1/query/directory", alias)
        .signed(MethodFilter::GET, list, public_rooms)
        .signed(MethodFilter::POST, list, public_rooms_filtered)
        .signed(MethodFilter::GET, "/_matrix/federation/v1/hierarchy/{room}", hierarchy)
}

async fn alias(federation: Federation, request: Signed) -> ApiResult<Response> {
    let alias: OwnedRoomAliasId = request.required("room_alias")?;
    let (room_id, servers) = federation.query_directory(&alias).await?;
    json(&serde_json::json!({ "room_id": room_id, "servers": servers }))
}

async fn public_rooms(_federation: Federation, request: Signed) -> ApiResult<Response> {
    let network = match request.text("third_party_instance_id") {
        Some(id) if !id.is_empty() => RoomNetwork::ThirdParty(id.to_owned()),
        _ => RoomNetwork::default(),
    };
    let query = PublicRoomsQuery {
        limit: request.number("limit")?.and_then(UInt::new),
        since: request.text("since").map(str::to_owned),
        network,
        ..PublicRoomsQuery::default()
    };
    list(&request.api, query).await
}

#[derive(Deserialize)]
struct Filtered {
    #[serde(default)]
    limit: Option<UInt>,
    #[serde(default)]
    since: Option<String>,
    #[serde(default)]
    filter: Filter,
    #[serde(flatten)]
    network: RoomNetwork,
}

async fn public_rooms_filtered(_federation: Federation, request: Signed) -> ApiResult<Response> {
    let Filtered { limit, since, filter, network } = request.json()?;
    let query = PublicRoomsQuery { server: None, limit, since, filter, network };
    list(&request.api, query).await
}

async fn list(api: &Api, query: PublicRoomsQuery) -> ApiResult<Response> {
    let page = api.directory.list_here(&query).await?;
    json(&PublicList::of(page)?)
}

async fn hierarchy(_federation: Federation, request: Signed) -> ApiResult<Response> {
    let room: OwnedRoomId = request.path(0, "roomId")?;
    let suggested_only = match request.text("suggested_only") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::invalid_param("suggested_only is not valid")),
    };
    let (room, children, inaccessible) =
        request.api.directory.hierarchy_for(&request.origin, &room, suggested_only).await?;
    json(&serde_json::json!({
        "room": room,
        "children": children,
        "inaccessible_children": inaccessible,
    }))
}
