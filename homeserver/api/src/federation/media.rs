//! Media for other servers: <https://spec.matrix.org/v1.19/server-server-api/#content-repository>

use super::signed::{SMALL, Signed, federation, receive};
use crate::client::media::{Disposition, body, disposition};
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, header};
use std::time::Duration;
use waxwing_services::media::{Ask, MediaFile, ThumbnailWish};

/// What a download waits for an upload when the other server does not say, milliseconds.
const DEFAULT_WAIT_MS: u64 = 20_000;
/// The longest it waits.
const MAX_WAIT_MS: u64 = 60_000;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/_matrix/federation/v1/media/download/{a}", get(download))
        .route("/_matrix/federation/v1/media/thumbnail/{a}", get(thumbnail))
}

async fn signed(api: &Api, request: Request<Body>) -> ApiResult<Signed> {
    let federation = federation(api)?;
    receive(api, &federation, SMALL, request).await
}

/// Only of what is ours.
fn ask(signed: &Signed) -> ApiResult<Ask> {
    let millis = signed.number("timeout_ms")?.unwrap_or(DEFAULT_WAIT_MS);
    let wait = Duration::from_millis(millis.min(MAX_WAIT_MS));
    Ok(Ask { wait, remote: false, without_token: false })
}

async fn download(State(api): State<Api>, request: Request<Body>) -> Response {
    let served = async {
        let signed = signed(&api, request).await?;
        let id: String = signed.path(0, "media id")?;
        let file = api.media.find(&api.core.server_name, &id, ask(&signed)?).await?;
        multipart(&api, &file).await
    };
    served.await.unwrap_or_else(|error: ApiError| error.into_response())
}

async fn thumbnail(State(api): State<Api>, request: Request<Body>) -> Response {
    let served = async {
        let signed = signed(&api, request).await?;
        let id: String = signed.path(0, "media id")?;
        let size = |name: &str| -> ApiResult<u32> {
            let value = signed.number(name)?.ok_or_else(|| ApiError::missing_param(name))?;
            u32::try_from(value).map_err(|_| ApiError::invalid_param(name))
        };
        let wish = ThumbnailWish {
            width: size("width")?.max(1),
            height: size("height")?.max(1),
            crop: match signed.text("method") {
                None | Some("scale") => false,
                Some("crop") => true,
                Some(_) => return Err(ApiError::invalid_param("method must be crop or scale")),
            },
            animated: match signed.text("animated") {
                None | Some("false") => false,
                Some("true") => true,
                Some(_) => return Err(ApiError::invalid_param("animated must be true or false")),
            },
        };
        let file = api.media.thumbnail(&api.core.server_name, &id, wish, ask(&signed)?).await?;
        multipart(&api, &file).await
    };
    served.await.unwrap_or_else(|error: ApiError| error.into_response())
}

/// Two parts: an object for what may come, then the file.
async fn multipart(api: &Api, file: &MediaFile) -> ApiResult<Response> {
    let boundary = waxwing_model::opaque_id(32);
    let Disposition { content_type, disposition } = disposition(file, None);
    // What the uploader said must not end the header that it stands in.
    let clean = |text: String| text.replace(['\r', '\n'], " ");
    let head = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n\
         Content-Type: {}\r\nContent-Disposition: {}\r\n\r\n",
        clean(content_type),
        clean(disposition),
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let file = body(api, file, None).await?.into_data_stream();
    let whole =
        stream::iter([Ok(Bytes::from(head))]).chain(file).chain(stream::iter([Ok(Bytes::from(tail))]));
    let mut response = Response::new(Body::from_stream(whole));
    let kind = format!("multipart/mixed; boundary={boundary}");
    let kind = HeaderValue::from_str(&kind).map_err(ApiError::internal)?;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
