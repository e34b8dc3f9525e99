//! The content repository: <https://spec.matrix.org/v1.19/client-server-api/#content-repository>
//!
//! These handlers read and write streams, so they are not typed by ruma.

mod download;
mod error;
mod preview;
mod upload;

pub(crate) use download::{Disposition, body, disposition};

use crate::access::rules;
use crate::error::{ApiError, ApiResult};
use crate::extract::authenticate_raw;
use crate::state::Api;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use http::Method;
use http::request::Parts;
use std::sync::Arc;
use waxwing_services::accounts::Requester;

pub(crate) fn routes() -> Router<Api> {
    let mut router = Router::new()
        .route("/_matrix/media/v1/create", post(upload::create))
        .route("/_matrix/client/v1/media/config", get(upload::config))
        .route("/_matrix/client/v1/media/preview_url", get(preview::preview))
        .route("/_matrix/client/v1/media/download/{a}/{b}", get(download::download))
        .route("/_matrix/client/v1/media/download/{a}/{b}/{c}", get(download::download))
        .route("/_matrix/client/v1/media/thumbnail/{a}/{b}", get(download::thumbnail));
    // As clients ask that learnt of these endpoints before they were specified (MSC3916).
    let unstable = |tail: &str| format!("/_matrix/client/unstable/org.matrix.msc3916/media/{tail}");
    router = router
        .route(&unstable("config"), get(upload::config))
        .route(&unstable("preview_url"), get(preview::preview))
        .route(&unstable("download/{a}/{b}"), get(download::download))
        .route(&unstable("download/{a}/{b}/{c}"), get(download::download))
        .route(&unstable("thumbnail/{a}/{b}"), get(download::thumbnail));
    for version in ["v3", "r0", "v1"] {
        let at = |tail: &str| format!("/_matrix/media/{version}/{tail}");
        router = router
            .route(&at("upload"), post(upload::upload))
            .route(&at("upload/{a}/{b}"), put(upload::upload_to))
            .route(&at("config"), get(upload::config))
            .route(&at("preview_url"), get(preview::preview))
            .route(&at("download/{a}/{b}"), get(download::legacy_download))
            .route(&at("download/{a}/{b}/{c}"), get(download::legacy_download))
            .route(&at("thumbnail/{a}/{b}"), get(download::legacy_thumbnail));
    }
    router
}

/// Who asks, by the rules of the endpoint with this path in ruma's spelling.
async fn requester(api: &Api, parts: &Parts, path: &str) -> ApiResult<Arc<Requester>> {
    let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
    authenticate_raw(api, &rules(&method, path, true), parts).await
}

fn respond(result: ApiResult<Response>) -> Response {
    result.unwrap_or_else(ApiError::into_response)
}
