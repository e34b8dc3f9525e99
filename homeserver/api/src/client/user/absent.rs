//! What this server does not have, as the specification lets it say so: no TURN server.

use super::plain::{JsonAnswer, plain_request};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::auth_scheme::AccessToken;

plain_request!(
    /// `GET /voip/turnServer`: an empty object says that there is none.
    TurnServer, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/voip/turnServer",
        1.1 => "/_matrix/client/v3/voip/turnServer",
    }
);
pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(|_: Api, _: Args<TurnServer>| async { Ok(JsonAnswer::empty()) })
}
