//! `GET /sync`. The answer is written by hand: it shares texts of events that ruma's type would parse again.
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>

use super::reading::{query_parameter, viewer};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, Received, typed};
use crate::state::Api;
use axum::response::{IntoResponse, Response};
use ruma::api::client::sync::sync_events::v3::Request;
use waxwing_services::sync::{StateWanted, SyncRequest, SyncToken};

pub(super) async fn sync(api: Api, received: Received) -> ApiResult<Response> {
    let wanted = Box::pin(wanted(&api, received)).await?;
    let answer = api.sync.sync(&wanted).await?;
    Ok(axum::Json(answer).into_response())
}

/// What is asked for. Of the request nothing is held on to: thousands wait at a time.
async fn wanted(api: &Api, received: Received) -> ApiResult<SyncRequest> {
    let Args { request, requester, parts, .. } = typed::<Request>(received)?;
    let since = match request.since.as_deref() {
        // Some clients send an empty token at first.
        None | Some("") => None,
        Some(token) => Some(token.parse::<SyncToken>().map_err(ApiError::invalid_param)?),
    };
    let filter = match query_parameter(&parts, "filter") {
        None => api.sync.no_filter(),
        Some(named) if named.is_empty() => api.sync.no_filter(),
        Some(named) => api.sync.filter(&requester.user_id, &named).await?,
    };
    let asked = |name: &str| query_parameter(&parts, name).as_deref() == Some("true");
    let state = match (asked("use_state_after"), asked("org.matrix.msc4222.use_state_after")) {
        (true, _) => StateWanted::After,
        (false, true) => StateWanted::AfterUnstable,
        (false, false) => StateWanted::Before,
    };
    api.presence.syncing(&requester.user_id, &request.set_presence);
    Ok(SyncRequest {
        viewer: viewer(&requester),
        since,
        filter,
        full_state: request.full_state,
        timeout: request.timeout.unwrap_or_default(),
        state,
    })
}
