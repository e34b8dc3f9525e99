//! Profiles of our users, and whom their OpenID tokens name.

use super::signed::{Signed, SignedExt, json, query, text};
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{MethodFilter, get};
use ruma::OwnedUserId;
use waxwing_services::federation::Federation;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .signed(MethodFilter::GET, "/_matrix/federation/v1/query/profile", profile)
        .route("/_matrix/federation/v1/openid/userinfo", get(userinfo))
}

async fn profile(federation: Federation, request: Signed) -> ApiResult<Response> {
    let user: OwnedUserId = request.required("user_id")?;
    let profile = federation.query_profile(&user, request.text("field")).await?;
    json(&profile)
}

/// Anyone may ask: the token is the proof.
/// <https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1openiduserinfo>
async fn userinfo(State(api): State<Api>, request: Request) -> ApiResult<Response> {
    let query = query(request.uri())?;
    let token = text(&query, "access_token").ok_or_else(ApiError::missing_token)?;
    let user = api.accounts.openid_user(token).await.map_err(ApiError::internal)?;
    let user = user.ok_or_else(|| ApiError::unknown_token(false))?;
    json(&serde_json::json!({ "sub": user }))
}
