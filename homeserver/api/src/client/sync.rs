//! `GET /sync`. The answer is written by hand: it shares texts of events that ruma's type would parse again.
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>

use super::reading::{query_parameter, viewer};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::sync::sync_events::v3::Request;
use std::sync::Arc;
use waxwing_services::sync::{StateWanted, SyncFilter, SyncRequest, SyncResponse, SyncToken};

pub(super) async fn sync(api: Api, args: Args<Request>) -> ApiResult<SyncResponse> {
    let wanted = Box::pin(wanted(&api, args)).await?;
    Ok(api.sync.sync(&wanted).await?)
}

/// What is asked for. Of the request nothing is held on to: thousands wait at a time.
async fn wanted(api: &Api, args: Args<Request>) -> ApiResult<SyncRequest> {
    let Args { request, requester, parts, .. } = args;
    let since = match request.since.as_deref() {
        // Some clients send an empty token at first.
        None | Some("") => None,
        Some(token) => Some(token.parse::<SyncToken>().map_err(ApiError::invalid_param)?),
    };
    let filter = match query_parameter(&parts, "filter") {
        None => Arc::new(SyncFilter::default()),
        Some(named) if named.is_empty() => Arc::new(SyncFilter::default()),
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
