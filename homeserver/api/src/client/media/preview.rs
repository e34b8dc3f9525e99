//! What a page on the web says of itself.

use super::{requester, respond};
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use ruma::api::error::ErrorCode;
use serde::Deserialize;
use std::time::Duration;
use waxwing_services::previews::PreviewError;

/// When some of the pages before this one have been read.
const RETRY_BUSY: Duration = Duration::from_secs(5);
/// A client need not ask again for so long.
const CACHE: &str = "private, max-age=3600";

#[derive(Deserialize)]
struct Wish {
    url: Option<String>,
    /// The newest reading serves every time.
    #[serde(rename = "ts")]
    _ts: Option<i64>,
}

/// `GET /_matrix/client/v1/media/preview_url` and its older paths.
pub(super) async fn preview(State(api): State<Api>, request: Request<Body>) -> Response {
    respond(preview_inner(&api, request).await)
}

async fn preview_inner(api: &Api, request: Request<Body>) -> ApiResult<Response> {
    let (parts, _) = request.into_parts();
    requester(api, &parts, "/_matrix/client/v1/media/preview_url").await?;
    let Query(wish): Query<Wish> = Query::try_from_uri(&parts.uri).map_err(ApiError::invalid_param)?;
    let url = wish.url.ok_or_else(|| ApiError::missing_param("url is missing"))?;
    let answer = api.previews.preview(&url).await?;
    let mut response = Response::new(Body::from(answer.to_string()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE));
    Ok(response)
}

impl From<PreviewError> for ApiError {
    fn from(error: PreviewError) -> ApiError {
        match error {
            PreviewError::Store(error) => ApiError::from(error),
            PreviewError::Off => ApiError::forbidden("This server makes no previews of pages"),
            PreviewError::Address => ApiError::invalid_param("url is no address of a page on the web"),
            PreviewError::Refused => ApiError::forbidden("Pages at this address are not read"),
            PreviewError::Busy => ApiError::limit_exceeded(RETRY_BUSY),
            PreviewError::Unreachable(why) => {
                // It may name addresses: for our log alone.
                tracing::debug!(why, "a page cannot be read");
                ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, "The page cannot be read")
            }
        }
    }
}
