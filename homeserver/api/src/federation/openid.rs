//! `GET /_matrix/federation/v1/openid/userinfo`: what a third party asks with a token that a user gave it. Nobody signs
//! the request. <https://spec.matrix.org/v1.19/server-server-api/#openid>

use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use ruma::api::error::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/_matrix/federation/v1/openid/userinfo", get(userinfo))
}

#[derive(Deserialize)]
struct Asked {
    access_token: Option<String>,
}

async fn userinfo(State(api): State<Api>, Query(asked): Query<Asked>) -> ApiResult<Json<Value>> {
    let token = asked.access_token.ok_or_else(ApiError::missing_token)?;
    match api.accounts.openid_user(&token).await? {
        Some(user) => Ok(Json(json!({ "sub": user }))),
        None => Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            ErrorCode::UnknownToken,
            "The token is not known or has expired",
        )),
    }
}
