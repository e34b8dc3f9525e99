//! `/presence/{userId}/status`: <https://spec.matrix.org/v1.19/client-server-api/#presence>

use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::client::presence::{get_presence, set_presence};
use ruma::presence::PresenceState;
use std::time::Duration;
use waxwing_services::presence::PresenceError;

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(get).ruma(set)
}

async fn get(api: Api, args: Args<get_presence::v3::Request>) -> ApiResult<get_presence::v3::Response> {
    let presence = api.presence.get(&args.requester.user_id, &args.request.user_id).await?;
    let mut response = get_presence::v3::Response::new(presence.state);
    response.status_msg = presence.status_msg;
    response.currently_active = Some(presence.currently_active);
    response.last_active_ago = presence.last_active_ago.map(Duration::from_millis);
    Ok(response)
}

async fn set(api: Api, args: Args<set_presence::v3::Request>) -> ApiResult<set_presence::v3::Response> {
    let request = args.request;
    let state = match request.presence {
        state @ (PresenceState::Online | PresenceState::Offline | PresenceState::Unavailable) => state,
        _ => return Err(ApiError::invalid_param("There is no such presence")),
    };
    api.presence.set(&args.requester.user_id, &request.user_id, state, request.status_msg).await?;
    Ok(set_presence::v3::Response::new())
}

impl From<PresenceError> for ApiError {
    fn from(error: PresenceError) -> ApiError {
        match error {
            PresenceError::Store(error) => ApiError::from(error),
            PresenceError::NotYours => ApiError::forbidden("You may only set your own presence"),
            PresenceError::NotVisible => ApiError::forbidden("You may not see this user's presence"),
            PresenceError::TooLong => ApiError::invalid_param("The status message is too long"),
        }
    }
}
