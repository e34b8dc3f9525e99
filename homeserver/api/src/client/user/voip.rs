//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3voipturnserver>

use super::plain::{JsonAnswer, plain_request};
use crate::error::ApiResult;
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::auth_scheme::AccessToken;
use serde_json::json;

plain_request!(
    /// `GET /voip/turnServer`
    TurnServer, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/voip/turnServer",
        1.1 => "/_matrix/client/v3/voip/turnServer",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(turn_server)
}

/// An empty object says that there is none.
async fn turn_server(api: Api, args: Args<TurnServer>) -> ApiResult<JsonAnswer> {
    let requester = &args.requester;
    match waxwing_services::turn::credentials(&api.core, &requester.user_id, requester.is_guest) {
        Some(turn) => JsonAnswer::new(&json!({
            "username": turn.username,
            "password": turn.password,
            "uris": turn.uris,
            "ttl": turn.lifetime.as_secs(),
        })),
        None => Ok(JsonAnswer::empty()),
    }
}
