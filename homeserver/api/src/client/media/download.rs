//! Downloads and thumbnails, streamed, with headers that keep a browser from running what a stranger uploaded.

use super::{requester, respond};
use crate::error::{ApiError, ApiResult};
use crate::extract::path;
use crate::state::Api;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ruma::ServerName;
use ruma::api::client::media::is_safe_inline_content_type;
use ruma::http_headers::{ContentDisposition, ContentDispositionType};
use serde::Deserialize;
use std::ops::Range;
use std::time::Duration;
use waxwing_services::media::{MediaFile, ThumbnailWish};

/// What a download waits for an upload when the client does not say.
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid>
const DEFAULT_WAIT_MS: u64 = 20_000;
/// The longest that a client may make a download wait.
const MAX_WAIT_MS: u64 = 60_000;
/// Nothing in a downloaded file may run or load anything.
const CSP: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                   style-src 'unsafe-inline'; object-src 'self';";
/// A file never changes.
const CACHE: &str = "private, max-age=31536000, immutable";

#[derive(Deserialize)]
struct Wish {
    timeout_ms: Option<u64>,
    allow_remote: Option<bool>,
    width: Option<u32>,
    height: Option<u32>,
    method: Option<String>,
}

impl Wish {
    fn of(parts: &Parts) -> ApiResult<Wish> {
        let Query(wish) = Query::try_from_uri(&parts.uri).map_err(ApiError::invalid_param)?;
        Ok(wish)
    }

    fn wait(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.unwrap_or(DEFAULT_WAIT_MS).min(MAX_WAIT_MS))
    }

    fn thumbnail(&self) -> ApiResult<ThumbnailWish> {
        let size = |name: &str, value: Option<u32>| match value {
            None => Err(ApiError::missing_param(format_args!("{name} is missing"))),
            Some(0) => Err(ApiError::invalid_param(format_args!("{name} must be above zero"))),
            Some(value) => Ok(value),
        };
        let crop = match self.method.as_deref() {
            None | Some("scale") => false,
            Some("crop") => true,
            Some(_) => return Err(ApiError::invalid_param("method must be crop or scale")),
        };
        Ok(ThumbnailWish { width: size("width", self.width)?, height: size("height", self.height)?, crop })
    }
}

/// How a file's name and type are told.
pub(crate) struct Disposition {
    /// Safe to serve under this type.
    pub content_type: String,
    /// The header's text.
    pub disposition: String,
}

/// `inline` only for types that cannot run; the name that the uploader, or the path, gave.
pub(crate) fn disposition(file: &MediaFile, name: Option<&str>) -> Disposition {
    let content_type = file.content_type.clone().unwrap_or_else(|| "application/octet-stream".to_owned());
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let kind = if is_safe_inline_content_type(&essence) {
        ContentDispositionType::Inline
    } else {
        ContentDispositionType::Attachment
    };
    let name = name.map(str::to_owned).or_else(|| file.file_name.clone());
    let disposition = ContentDisposition::new(kind).with_filename(name).to_string();
    Disposition { content_type, disposition }
}

/// A file's bytes as a body.
pub(crate) async fn body(api: &Api, file: &MediaFile, range: Option<Range<u64>>) -> ApiResult<Body> {
    Ok(Body::from_stream(api.media.open(file, range).await?))
}

async fn serve(api: &Api, parts: &Parts, file: MediaFile, name: Option<&str>) -> ApiResult<Response> {
    let Disposition { content_type, disposition } = disposition(&file, name);
    let range = range(&parts.headers, file.size);
    let mut headers = HeaderMap::new();
    let mut set = |name: header::HeaderName, value: &str| {
        // What the uploader said may not be a header value; then it is not said.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, &content_type);
    set(header::CONTENT_DISPOSITION, &disposition);
    set(header::CONTENT_SECURITY_POLICY, CSP);
    set(header::HeaderName::from_static("cross-origin-resource-policy"), "cross-origin");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::CACHE_CONTROL, CACHE);
    set(header::ACCEPT_RANGES, "bytes");
    let (status, length) = match &range {
        Wanted::Whole => (StatusCode::OK, file.size),
        Wanted::Part(part) => {
            set(
                header::CONTENT_RANGE,
                &format!("bytes {}-{}/{}", part.start, part.end.saturating_sub(1), file.size),
            );
            (StatusCode::PARTIAL_CONTENT, part.end - part.start)
        }
        Wanted::Nothing => {
            set(header::CONTENT_RANGE, &format!("bytes */{}", file.size));
            (StatusCode::RANGE_NOT_SATISFIABLE, 0)
        }
    };
    set(header::CONTENT_LENGTH, &length.to_string());
    let body = match range {
        Wanted::Whole => body(api, &file, None).await?,
        Wanted::Part(part) => body(api, &file, Some(part)).await?,
        Wanted::Nothing => Body::empty(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    Nothing,
}

/// One range of bytes. Several at once, and what cannot be read, get the whole file.
fn range(headers: &HeaderMap, size: u64) -> Wanted {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
        return Wanted::Whole;
    };
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Wanted::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), _) if first >= size => Wanted::Nothing,
        (Ok(first), Ok(last)) if last >= first => Wanted::Part(first..last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.trim().is_empty() => Wanted::Part(first..size),
        (Err(_), Ok(0)) if first.trim().is_empty() => Wanted::Nothing,
        (Err(_), Ok(tail)) if first.trim().is_empty() && size > 0 => {
            Wanted::Part(size.saturating_sub(tail)..size)
        }
        _ => Wanted::Whole,
    }
}

/// The server and id that a path names, and the file name if it has one.
async fn named(parts: &mut Parts) -> ApiResult<(ruma::OwnedServerName, String, Option<String>)> {
    let mut path = path(parts).await?.into_iter();
    let (Some(server), Some(id)) = (path.next(), path.next()) else { return Err(ApiError::unrecognized()) };
    let server = ServerName::parse(server).map_err(|_| ApiError::not_found("There is no such media"))?;
    Ok((server, id, path.next()))
}

async fn download_inner(api: &Api, mut parts: Parts, legacy: bool) -> ApiResult<Response> {
    if !legacy {
        requester(api, &parts, "/_matrix/client/v1/media/download/{server_name}/{media_id}").await?;
    }
    let wish = Wish::of(&parts)?;
    let (server, id, name) = named(&mut parts).await?;
    let remote = !legacy || wish.allow_remote.unwrap_or(true);
    let file = api.media.find(&server, &id, wish.wait(), remote).await?;
    serve(api, &parts, file, name.as_deref()).await
}

async fn thumbnail_inner(api: &Api, mut parts: Parts, legacy: bool) -> ApiResult<Response> {
    if !legacy {
        requester(api, &parts, "/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}").await?;
    }
    let wish = Wish::of(&parts)?;
    let thumbnail = wish.thumbnail()?;
    let (server, id, _) = named(&mut parts).await?;
    let remote = !legacy || wish.allow_remote.unwrap_or(true);
    let file = api.media.thumbnail(&server, &id, thumbnail, wish.wait(), remote).await?;
    serve(api, &parts, file, None).await
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}[/{fileName}]`.
pub(super) async fn download(State(api): State<Api>, request: Request<Body>) -> Response {
    respond(download_inner(&api, request.into_parts().0, false).await)
}

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`.
pub(super) async fn thumbnail(State(api): State<Api>, request: Request<Body>) -> Response {
    respond(thumbnail_inner(&api, request.into_parts().0, false).await)
}

/// `GET /_matrix/media/v3/download/{serverName}/{mediaId}[/{fileName}]`, without a token.
pub(super) async fn legacy_download(State(api): State<Api>, request: Request<Body>) -> Response {
    respond(download_inner(&api, request.into_parts().0, true).await)
}

/// `GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}`, without a token.
pub(super) async fn legacy_thumbnail(State(api): State<Api>, request: Request<Body>) -> Response {
    respond(thumbnail_inner(&api, request.into_parts().0, true).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let of = |text: &str, size| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().unwrap());
            range(&headers, size)
        };
        assert_eq!(of("bytes=0-4", 10), Wanted::Part(0..5));
        assert_eq!(of("bytes=5-", 10), Wanted::Part(5..10));
        assert_eq!(of("bytes=-3", 10), Wanted::Part(7..10));
        assert_eq!(of("bytes=5-100", 10), Wanted::Part(5..10));
        assert_eq!(of("bytes=10-", 10), Wanted::Nothing);
        assert_eq!(of("bytes=4-2", 10), Wanted::Whole);
        assert_eq!(of("lines=1-2", 10), Wanted::Whole);
    }
}
