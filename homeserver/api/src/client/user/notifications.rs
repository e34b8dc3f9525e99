//! `GET /notifications`: <https://spec.matrix.org/v1.19/client-server-api/#listing-notifications>

use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::client::push::get_notifications::v3;
use ruma::serde::Raw;
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use waxwing_services::render::Viewer;

/// Without a limit in the request.
const DEFAULT_LIMIT: usize = 20;

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(notifications)
}

async fn notifications(api: Api, args: Args<v3::Request>) -> ApiResult<v3::Response> {
    let request = args.request;
    let before = match request.from.as_deref().map(str::parse::<i64>) {
        Some(Ok(before)) => Some(before),
        Some(Err(_)) => return Err(ApiError::invalid_param("The token is not valid")),
        None => None,
    };
    let limit = request.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(DEFAULT_LIMIT);
    let highlights = request.only.as_deref() == Some("highlight");
    let viewer = Viewer::new(args.requester.user_id.clone());
    let page = api.notifications.list(&viewer, before, limit, highlights).await?;
    let list = page.list.into_iter().map(|notified| {
        let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(notified.ts));
        let event = Raw::from_json(notified.event);
        v3::Notification::new(notified.actions, event, notified.read, notified.room, ts)
    });
    let mut response = v3::Response::new(list.collect());
    response.next_token = page.next.map(|next| next.to_string());
    Ok(response)
}
