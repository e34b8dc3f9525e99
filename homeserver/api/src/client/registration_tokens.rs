//! Registration tokens, for administrators, at the paths where tools know them from Synapse:
//! `/_synapse/admin/v1/registration_tokens`.

use crate::access;
use crate::error::{ApiError, ApiResult};
use crate::extract::authenticate_raw;
use crate::state::Api;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::request::Parts;
use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Value, json};
use waxwing_services::accounts::RegistrationTokenRow;

pub(super) fn routes() -> Router<Api> {
    const BASE: &str = "/_synapse/admin/v1/registration_tokens";
    Router::new()
        .route(BASE, get(list))
        .route(&format!("{BASE}/new"), post(create))
        .route(&format!("{BASE}/{{token}}"), get(one).delete(delete))
}

/// The administrator who sends the request.
pub(super) async fn administrator(api: &Api, parts: &Parts) -> ApiResult<OwnedUserId> {
    let rules = access::rules(&parts.method, parts.uri.path(), true);
    let requester = authenticate_raw(api, &rules, parts).await?;
    if requester.is_admin {
        Ok(requester.user_id.clone())
    } else {
        Err(ApiError::forbidden("Only administrators may do that"))
    }
}

fn shown(row: &RegistrationTokenRow) -> Value {
    json!({
        "token": row.token,
        "uses_allowed": row.uses_allowed,
        "pending": 0,
        "completed": row.completed,
        "expiry_time": row.expires_at,
    })
}

/// `GET /_synapse/admin/v1/registration_tokens`
async fn list(State(api): State<Api>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let rows = api.accounts.registration_tokens().await?;
    Ok(Json(json!({ "registration_tokens": rows.iter().map(shown).collect::<Vec<_>>() })))
}

/// `GET /_synapse/admin/v1/registration_tokens/{token}`
async fn one(State(api): State<Api>, Path(token): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let row = api.accounts.registration_token(&token).await?;
    row.map(|row| Json(shown(&row))).ok_or_else(|| ApiError::not_found("There is no such token"))
}

#[derive(Default, Deserialize)]
struct New {
    token: Option<String>,
    uses_allowed: Option<i64>,
    expiry_time: Option<u64>,
    length: Option<usize>,
}

/// `POST /_synapse/admin/v1/registration_tokens/new`
async fn create(State(api): State<Api>, parts: Parts, body: Bytes) -> ApiResult<Json<Value>> {
    /// What people are ready to type, and what nobody guesses.
    const LENGTH: usize = 16;
    const LONGEST: usize = 64;
    administrator(&api, &parts).await?;
    let new: New = if body.is_empty() { New::default() } else { crate::extract::json(&body)? };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._~-".contains(c);
    let token = match new.token {
        Some(token) if token.is_empty() || token.len() > LONGEST || !token.chars().all(allowed) => {
            return Err(ApiError::invalid_param("A token has up to 64 of the characters A-Za-z0-9._~-"));
        }
        Some(token) => token,
        None => api.accounts.random_token(new.length.unwrap_or(LENGTH).clamp(1, LONGEST)),
    };
    if new.uses_allowed.is_some_and(|uses| uses < 0) {
        return Err(ApiError::invalid_param("uses_allowed is negative"));
    }
    let row = RegistrationTokenRow {
        token,
        uses_allowed: new.uses_allowed,
        completed: 0,
        expires_at: new.expiry_time,
        admin: false,
    };
    if !api.accounts.registration_token_create(row.clone()).await? {
        return Err(ApiError::invalid_param("There is such a token already"));
    }
    Ok(Json(shown(&row)))
}

/// `DELETE /_synapse/admin/v1/registration_tokens/{token}`
async fn delete(State(api): State<Api>, Path(token): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    if !api.accounts.registration_token_delete(&token).await? {
        return Err(ApiError::not_found("There is no such token"));
    }
    Ok(Json(json!({})))
}
