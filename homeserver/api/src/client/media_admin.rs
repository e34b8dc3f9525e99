//! Files, for administrators, at the paths where moderation tools know them from Synapse: `/_synapse/admin/v1/media`
//! and its siblings.

use crate::access;
use crate::error::{ApiError, ApiResult};
use crate::extract::authenticate_raw;
use crate::state::Api;
use axum::extract::{Path, Query, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::request::Parts;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::Deserialize;
use serde_json::{Value, json};
use waxwing_services::media::MediaOfUser;

pub(super) fn routes() -> Router<Api> {
    const BASE: &str = "/_synapse/admin/v1";
    Router::new()
        .route(&format!("{BASE}/media/quarantine/{{server}}/{{id}}"), post(quarantine))
        .route(&format!("{BASE}/media/unquarantine/{{server}}/{{id}}"), post(release))
        .route(&format!("{BASE}/media/protect/{{id}}"), post(protect))
        .route(&format!("{BASE}/media/unprotect/{{id}}"), post(unprotect))
        .route(&format!("{BASE}/purge_media_cache"), post(purge_cache))
        .route(&format!("{BASE}/media/{{server}}/{{id}}"), delete(remove))
        .route(&format!("{BASE}/user/{{user}}/media/quarantine"), post(quarantine_user))
        .route(&format!("{BASE}/users/{{user}}/media"), get(list).delete(erase))
}

async fn administrator(api: &Api, parts: &Parts) -> ApiResult<()> {
    let rules = access::rules(&parts.method, parts.uri.path(), true);
    if authenticate_raw(api, &rules, parts).await?.is_admin {
        Ok(())
    } else {
        Err(ApiError::forbidden("Only administrators may do that"))
    }
}

fn server(name: &str) -> ApiResult<OwnedServerName> {
    ServerName::parse(name).map_err(|_| ApiError::invalid_param("That is no server name"))
}

fn local_user(api: &Api, id: &str) -> ApiResult<OwnedUserId> {
    let user = UserId::parse(id).map_err(|_| ApiError::invalid_param("That is no user id"))?;
    if api.core.is_local(&user) {
        Ok(user)
    } else {
        Err(ApiError::invalid_param("The user is of another server"))
    }
}

/// `POST /_synapse/admin/v1/media/quarantine/{serverName}/{mediaId}`
async fn quarantine(
    State(api): State<Api>,
    Path((name, id)): Path<(String, String)>,
    parts: Parts,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    api.media.quarantine(&server(&name)?, &id, true).await?;
    Ok(Json(json!({})))
}

/// `POST /_synapse/admin/v1/media/unquarantine/{serverName}/{mediaId}`
async fn release(
    State(api): State<Api>,
    Path((name, id)): Path<(String, String)>,
    parts: Parts,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    api.media.quarantine(&server(&name)?, &id, false).await?;
    Ok(Json(json!({})))
}

/// `POST /_synapse/admin/v1/media/protect/{mediaId}`: a file of this server.
async fn protect(State(api): State<Api>, Path(id): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    api.media.protect(&api.core.server_name, &id, true).await?;
    Ok(Json(json!({})))
}

/// `POST /_synapse/admin/v1/media/unprotect/{mediaId}`
async fn unprotect(State(api): State<Api>, Path(id): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    api.media.protect(&api.core.server_name, &id, false).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
struct Before {
    before_ts: u64,
}

/// `POST /_synapse/admin/v1/purge_media_cache`: other servers' files that were last looked at before a time.
async fn purge_cache(
    State(api): State<Api>,
    Query(Before { before_ts }): Query<Before>,
    parts: Parts,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let deleted = api.media.forget_cached(i64::try_from(before_ts).unwrap_or(i64::MAX)).await?;
    Ok(Json(json!({ "deleted": deleted })))
}

/// `POST /_synapse/admin/v1/user/{userId}/media/quarantine`
async fn quarantine_user(
    State(api): State<Api>,
    Path(user): Path<String>,
    parts: Parts,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let count = api.media.quarantine_user(&local_user(&api, &user)?, true).await?;
    Ok(Json(json!({ "num_quarantined": count })))
}

/// `DELETE /_synapse/admin/v1/media/{serverName}/{mediaId}`
async fn remove(
    State(api): State<Api>,
    Path((name, id)): Path<(String, String)>,
    parts: Parts,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    api.media.remove(&server(&name)?, &id).await?;
    Ok(Json(json!({ "deleted_media": [id], "total": 1 })))
}

/// `DELETE /_synapse/admin/v1/users/{userId}/media`: all of it, in the background.
async fn erase(State(api): State<Api>, Path(user): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    api.media.erase(&local_user(&api, &user)?).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
struct Page {
    from: Option<String>,
}

/// `GET /_synapse/admin/v1/users/{userId}/media`: a thousand at a time, by their ids.
async fn list(
    State(api): State<Api>,
    Path(user): Path<String>,
    Query(page): Query<Page>,
    parts: Parts,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let user = local_user(&api, &user)?;
    let (files, used) = api.media.of_user(&user, page.from.as_deref().unwrap_or_default()).await?;
    let next = files.last().map(|file| file.media_id.clone());
    let files: Vec<Value> = files.iter().map(shown).collect();
    Ok(Json(json!({ "media": files, "next_token": next, "bytes": used })))
}

fn shown(file: &MediaOfUser) -> Value {
    json!({
        "media_id": file.media_id,
        "media_type": file.content_type,
        "media_length": file.size,
        "created_ts": file.created_at,
        "quarantined": file.quarantined,
    })
}
