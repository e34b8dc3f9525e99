//! Rooms by name.

use super::signed::{Signed, SignedExt, json};
use crate::error::ApiResult;
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use ruma::OwnedRoomAliasId;
use waxwing_services::federation::Federation;

pub(super) fn routes() -> Router<Api> {
    Router::new().signed(MethodFilter::GET, "/_matrix/federation/v1/query/directory", alias)
}

async fn alias(federation: Federation, request: Signed) -> ApiResult<Response> {
    let alias: OwnedRoomAliasId = request.required("room_alias")?;
    let (room_id, servers) = federation.query_directory(&alias).await?;
    json(&serde_json::json!({ "room_id": room_id, "servers": servers }))
}
