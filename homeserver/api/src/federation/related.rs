//! Relations of events: <https://github.com/matrix-org/matrix-spec-proposals/pull/2836>

use super::signed::{Signed, SignedExt, json};
use crate::error::ApiResult;
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use waxwing_services::federation::Federation;
use waxwing_services::relationships::RelationshipsQuery;

pub(super) fn routes() -> Router<Api> {
    Router::new().signed(MethodFilter::POST, "/_matrix/federation/unstable/event_relationships", related)
}

async fn related(federation: Federation, request: Signed) -> ApiResult<Response> {
    let query: RelationshipsQuery = request.json()?;
    let found = request.api.relationships.of_server(&federation, &request.origin, &query).await?;
    json(&serde_json::json!({
        "events": found.events,
        "limited": found.limited,
        "auth_chain": found.auth_chain,
    }))
}
