//! The server-server API: one line for each family of endpoints.

use crate::state::Api;
use axum::Router;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
}
