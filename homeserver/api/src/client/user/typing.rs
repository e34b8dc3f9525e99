//! `PUT /rooms/{roomId}/typing/{userId}`: <https://spec.matrix.org/v1.19/client-server-api/#typing-notifications>

use super::plain::{JsonAnswer, body, id, plain_request};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::auth_scheme::AccessToken;
use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use std::time::Duration;
use waxwing_services::typing::TypingError;

/// How long somebody types who does not say for how long.
const DEFAULT_TIMEOUT_MS: u64 = 30_000;

plain_request!(
    /// `PUT /rooms/{roomId}/typing/{userId}`
    SetTyping, PUT, AccessToken, {
        1.0 => "/_matrix/client/r0/rooms/{room_id}/typing/{user_id}",
        1.1 => "/_matrix/client/v3/rooms/{room_id}/typing/{user_id}",
    }
);

#[derive(Deserialize)]
struct Body {
    typing: bool,
    timeout: Option<u64>,
}

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(set_typing)
}

async fn set_typing(api: Api, args: Args<SetTyping>) -> ApiResult<JsonAnswer> {
    let (room, user): (OwnedRoomId, OwnedUserId) = (id(&args.request, 0)?, id(&args.request, 1)?);
    let body: Body = body(&args.json)?;
    let timeout = body.typing.then(|| Duration::from_millis(body.timeout.unwrap_or(DEFAULT_TIMEOUT_MS)));
    api.typing.set(&args.requester.user_id, &user, &room, timeout).await?;
    Ok(JsonAnswer::empty())
}

impl From<TypingError> for ApiError {
    fn from(error: TypingError) -> ApiError {
        match error {
            TypingError::Store(error) => ApiError::from(error),
            TypingError::NotYours => ApiError::forbidden("You may only say of yourself that you type"),
            TypingError::NotInRoom => ApiError::forbidden("You are not in this room"),
        }
    }
}
