//! Uploads, streamed.

use super::{requester, respond};
use crate::error::{ApiError, ApiResult};
use crate::extract::path;
use crate::state::Api;
use axum::Json;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::header;
use http::request::Parts;
use ruma::ServerName;
use serde::Deserialize;
use serde_json::json;
use waxwing_services::accounts::Requester;
use waxwing_services::media::{MediaError, Upload};

#[derive(Deserialize)]
struct Named {
    filename: Option<String>,
}

fn described(parts: &Parts, requester: &Requester) -> ApiResult<Upload> {
    let Query(Named { filename }) = Query::try_from_uri(&parts.uri).map_err(ApiError::invalid_param)?;
    let content_type =
        parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (user, length) = (requester.user_id.clone(), length(parts));
    Ok(Upload { user, content_type, file_name: filename, length })
}

/// What the request says its body has.
fn length(parts: &Parts) -> Option<u64> {
    parts.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses what says beforehand that it is too large.
fn check_length(api: &Api, parts: &Parts) -> ApiResult<()> {
    let limit = api.media.max_upload_bytes();
    match length(parts) {
        Some(length) if length > limit => Err(MediaError::TooLarge(limit).into()),
        _ => Ok(()),
    }
}

/// `POST /_matrix/media/v3/upload`.
pub(super) async fn upload(State(api): State<Api>, request: Request<Body>) -> Response {
    respond(upload_inner(&api, request).await)
}

async fn upload_inner(api: &Api, request: Request<Body>) -> ApiResult<Response> {
    let (parts, body) = request.into_parts();
    let requester = requester(api, &parts, "/_matrix/media/v3/upload").await?;
    check_length(api, &parts)?;
    let id = api.media.upload(described(&parts, &requester)?, body.into_data_stream()).await?;
    Ok(Json(json!({ "content_uri": format!("mxc://{}/{id}", api.core.server_name) })).into_response())
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`.
pub(super) async fn upload_to(State(api): State<Api>, request: Request<Body>) -> Response {
    respond(upload_to_inner(&api, request).await)
}

async fn upload_to_inner(api: &Api, request: Request<Body>) -> ApiResult<Response> {
    let (mut parts, body) = request.into_parts();
    let requester = requester(api, &parts, "/_matrix/media/v3/upload/{server_name}/{media_id}").await?;
    check_length(api, &parts)?;
    let path = path(&mut parts).await?;
    let [server, id] = path.as_slice() else { return Err(ApiError::unrecognized()) };
    let server = ServerName::parse(server).map_err(|_| ApiError::not_found("There is no such media"))?;
    let upload = described(&parts, &requester)?;
    api.media.upload_to(upload, &server, id, body.into_data_stream()).await?;
    Ok(Json(json!({})).into_response())
}

/// `POST /_matrix/media/v1/create`.
pub(super) async fn create(State(api): State<Api>, request: Request<Body>) -> Response {
    respond(create_inner(&api, request).await)
}

async fn create_inner(api: &Api, request: Request<Body>) -> ApiResult<Response> {
    let (parts, _) = request.into_parts();
    let requester = requester(api, &parts, "/_matrix/media/v1/create").await?;
    let (id, until) = api.media.create(&requester.user_id).await?;
    let uri = format!("mxc://{}/{id}", api.core.server_name);
    Ok(Json(json!({ "content_uri": uri, "unused_expires_at": until })).into_response())
}

/// `GET /_matrix/client/v1/media/config`.
pub(super) async fn config(State(api): State<Api>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let known = requester(&api, &parts, "/_matrix/client/v1/media/config").await;
    respond(known.map(|_| Json(json!({ "m.upload.size": api.media.max_upload_bytes() })).into_response()))
}
