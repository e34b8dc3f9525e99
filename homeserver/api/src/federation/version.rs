//! `GET /_matrix/federation/v1/version`, and what is not there: policy servers.

use crate::state::Api;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

pub(super) fn routes() -> Router<Api> {
    Router::new().route(
        "/_matrix/federation/v1/version",
        get(|| async {
            Json(json!({ "server": { "name": "Waxwing", "version": env!("CARGO_PKG_VERSION") } }))
        }),
    )
}
