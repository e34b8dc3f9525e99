//! What administrators' tools know from Synapse beyond registration tokens: accounts and server notices, at the paths
//! where they look for them, `/_synapse/admin`.

use super::account::close;
use crate::access;
use crate::error::{ApiError, ApiResult};
use crate::extract::{authenticate_raw, json, read_body};
use crate::state::Api;
use axum::extract::{Path, Query, Request, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;
use waxwing_services::accounts::{Change, Requester, UserRow};
use waxwing_services::notices::{Notice, NoticeError};

/// The largest body: a notice is an event.
const MAX_BODY: usize = 128 * 1024;
/// Accounts on a page when nothing else is asked for.
const PAGE: usize = 100;

pub(super) fn routes() -> Router<Api> {
    let admin = "/_synapse/admin";
    Router::new()
        .route(&format!("{admin}/v1/server_version"), get(version))
        .route(&format!("{admin}/v1/send_server_notice"), post(notice))
        .route(&format!("{admin}/v1/send_server_notice/{{txn_id}}"), put(repeated_notice))
        .route(&format!("{admin}/v1/reset_password/{{user}}"), post(reset_password))
        .route(&format!("{admin}/v1/deactivate/{{user}}"), post(deactivate))
        .route(&format!("{admin}/v1/suspend/{{user}}"), put(suspend))
        .route(&format!("{admin}/v1/users/{{user}}/admin"), get(is_admin).put(set_admin))
        .route(&format!("{admin}/v1/username_available"), get(available))
        .route(&format!("{admin}/v2/users"), get(users))
        .route(&format!("{admin}/v2/users/{{user}}"), get(user))
}

/// Who asks, if an administrator, and the body.
async fn administrator(api: &Api, request: Request) -> ApiResult<(Arc<Requester>, Bytes)> {
    let (parts, body) = request.into_parts();
    let requester = check(api, &parts).await?;
    Ok((requester, read_body(body, MAX_BODY).await?))
}

async fn check(api: &Api, parts: &Parts) -> ApiResult<Arc<Requester>> {
    let rules = access::rules(&parts.method, parts.uri.path(), true);
    let requester = authenticate_raw(api, &rules, parts).await?;
    if !requester.is_admin {
        return Err(ApiError::forbidden("Only administrators may do that"));
    }
    Ok(requester)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    json(if body.is_empty() { b"{}" } else { body })
}

fn id(text: &str) -> ApiResult<OwnedUserId> {
    UserId::parse(text).map_err(ApiError::invalid_param)
}

async fn version(State(api): State<Api>, parts: Parts) -> ApiResult<Json<Value>> {
    check(&api, &parts).await?;
    Ok(Json(json!({ "server_version": format!("Waxwing/{}", env!("CARGO_PKG_VERSION")) })))
}

#[derive(Deserialize)]
struct NoticeBody {
    user_id: OwnedUserId,
    content: Box<RawValue>,
    #[serde(rename = "type")]
    kind: Option<String>,
    state_key: Option<String>,
}

/// `POST /_synapse/admin/v1/send_server_notice`
async fn notice(State(api): State<Api>, request: Request) -> ApiResult<Json<Value>> {
    let (_, body) = administrator(&api, request).await?;
    write_notice(&api, &body, None).await
}

/// `PUT /_synapse/admin/v1/send_server_notice/{txnId}`
async fn repeated_notice(
    State(api): State<Api>,
    Path(txn_id): Path<String>,
    request: Request,
) -> ApiResult<Json<Value>> {
    let (requester, body) = administrator(&api, request).await?;
    write_notice(&api, &body, Some((requester.user_id.clone(), txn_id))).await
}

async fn write_notice(
    api: &Api,
    body: &[u8],
    repeat: Option<(OwnedUserId, String)>,
) -> ApiResult<Json<Value>> {
    let body: NoticeBody = read(body)?;
    if !body.content.get().starts_with('{') {
        return Err(ApiError::bad_json("The content is no object"));
    }
    let notice = Notice {
        to: body.user_id,
        kind: body.kind.as_deref().unwrap_or("m.room.message").into(),
        state_key: body.state_key,
        content: body.content,
        repeat,
    };
    let event_id = api.notices.send(notice).await?;
    Ok(Json(json!({ "event_id": event_id })))
}

#[derive(Deserialize)]
struct NewPassword {
    new_password: String,
    logout_devices: Option<bool>,
}

/// `POST /_synapse/admin/v1/reset_password/{userId}`
async fn reset_password(
    State(api): State<Api>,
    Path(user): Path<String>,
    request: Request,
) -> ApiResult<Json<Value>> {
    let (requester, body) = administrator(&api, request).await?;
    let (user, new): (_, NewPassword) = (id(&user)?, read(&body)?);
    let logout = new.logout_devices.unwrap_or(true);
    api.accounts.set_password_of(&requester, &user, &new.new_password, logout).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
struct Erase {
    #[serde(default)]
    erase: bool,
}

/// `POST /_synapse/admin/v1/deactivate/{userId}`
async fn deactivate(
    State(api): State<Api>,
    Path(user): Path<String>,
    request: Request,
) -> ApiResult<Json<Value>> {
    let (requester, body) = administrator(&api, request).await?;
    let (user, how): (_, Erase) = (id(&user)?, read(&body)?);
    api.accounts.governed(&requester, &user).await?;
    close(&api, &user, how.erase).await?;
    Ok(Json(json!({ "id_server_unbind_result": "success" })))
}

#[derive(Deserialize)]
struct Suspend {
    suspend: bool,
}

/// `PUT /_synapse/admin/v1/suspend/{userId}`
async fn suspend(
    State(api): State<Api>,
    Path(user): Path<String>,
    request: Request,
) -> ApiResult<Json<Value>> {
    let (requester, body) = administrator(&api, request).await?;
    let (user, how): (_, Suspend) = (id(&user)?, read(&body)?);
    let standing = waxwing_services::accounts::Standing::Suspended;
    api.accounts.set_standing(&requester, &user, standing, how.suspend).await?;
    Ok(Json(json!({ format!("user_{user}_suspended"): how.suspend })))
}

/// `GET /_synapse/admin/v1/users/{userId}/admin`
async fn is_admin(State(api): State<Api>, Path(user): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    let requester = check(&api, &parts).await?;
    let row = api.accounts.governed(&requester, &id(&user)?).await?;
    Ok(Json(json!({ "admin": row.admin })))
}

#[derive(Deserialize)]
struct AdminBody {
    admin: bool,
}

/// `PUT /_synapse/admin/v1/users/{userId}/admin`
async fn set_admin(
    State(api): State<Api>,
    Path(user): Path<String>,
    request: Request,
) -> ApiResult<Json<Value>> {
    let (requester, body) = administrator(&api, request).await?;
    let (user, new): (_, AdminBody) = (id(&user)?, read(&body)?);
    api.accounts.governed(&requester, &user).await?;
    if requester.user_id == user && !new.admin {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            ruma::api::error::ErrorCode::Unknown,
            "You may not demote yourself",
        ));
    }
    api.accounts.change(&user, Change::Admin(new.admin)).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
struct Name {
    username: String,
}

/// `GET /_synapse/admin/v1/username_available`
async fn available(State(api): State<Api>, Query(name): Query<Name>, parts: Parts) -> ApiResult<Json<Value>> {
    check(&api, &parts).await?;
    api.accounts.check_available(&name.username).await?;
    Ok(Json(json!({ "available": true })))
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    from: String,
    limit: Option<usize>,
}

/// `GET /_synapse/admin/v2/users`: accounts in the order of their ids. `from` is what the page before gave.
async fn users(State(api): State<Api>, Query(asked): Query<Listing>, parts: Parts) -> ApiResult<Json<Value>> {
    check(&api, &parts).await?;
    // Tools begin with 0.
    let from = if asked.from == "0" { "" } else { &asked.from };
    let page = api.accounts.list(from, asked.limit.unwrap_or(PAGE)).await?;
    let shown: Vec<Value> = page.users.iter().map(shown).collect();
    let mut answer = json!({ "users": shown, "total": page.total });
    if let Some(next) = page.next {
        answer["next_token"] = next.into();
    }
    Ok(Json(answer))
}

/// `GET /_synapse/admin/v2/users/{userId}`
async fn user(State(api): State<Api>, Path(user): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    check(&api, &parts).await?;
    let user = id(&user)?;
    let row = api.accounts.user(&user).await?.ok_or_else(|| ApiError::not_found("There is no such user"))?;
    let addresses = api.accounts.addresses(&user).await?;
    let profile = if row.deactivated { Default::default() } else { api.profiles.whole(&user).await? };
    let mut answer = shown(&row);
    answer["displayname"] = profile.get("displayname").cloned().unwrap_or_default();
    answer["avatar_url"] = profile.get("avatar_url").cloned().unwrap_or_default();
    answer["threepids"] = addresses
        .into_iter()
        .map(|it| json!({ "medium": it.medium, "address": it.address, "validated_at": it.validated_at, "added_at": it.added_at }))
        .collect();
    Ok(Json(answer))
}

fn shown(row: &UserRow) -> Value {
    json!({
        "name": row.user_id,
        "admin": row.admin,
        "is_guest": row.guest,
        "deactivated": row.deactivated,
        "locked": row.locked,
        "suspended": row.suspended,
        "erased": row.erased,
        "appservice_id": row.appservice,
        "creation_ts": row.created_at,
    })
}

impl From<NoticeError> for ApiError {
    fn from(error: NoticeError) -> ApiError {
        match error {
            NoticeError::Off => {
                ApiError::new(StatusCode::BAD_REQUEST, ruma::api::error::ErrorCode::Unknown, error)
            }
            NoticeError::NotOurs => ApiError::not_found(error),
            NoticeError::Timeline(error) => error.into(),
            NoticeError::Account(error) => error.into(),
            NoticeError::Tag(error) => error.into(),
            NoticeError::Store(error) => ApiError::from(error),
        }
    }
}
