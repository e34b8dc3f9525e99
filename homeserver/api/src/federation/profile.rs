//! Profiles of our users.

use super::signed::{Signed, SignedExt, json};
use crate::error::ApiResult;
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use ruma::OwnedUserId;
use waxwing_services::federation::Federation;

pub(super) fn routes() -> Router<Api> {
    Router::new().signed(MethodFilter::GET, "/_matrix/federation/v1/query/profile", profile)
}

async fn profile(federation: Federation, request: Signed) -> ApiResult<Response> {
    let user: OwnedUserId = request.required("user_id")?;
    let profile = federation.query_profile(&user, request.text("field")).await?;
    json(&profile)
}
