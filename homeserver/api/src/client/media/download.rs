//! Downloads and thumbnails, streamed, with headers that keep a browser from running what a stranger uploaded.

use super::{requester, respond};
use crate::error::{ApiError, ApiResult};
use crate::extract::path;
use crate::state::Api;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ruma::ServerName;
use ruma::api::client::media::is_safe_inline_content_type;
use ruma::api::error::ErrorCode;
use ruma::http_headers::{ContentDisposition, ContentDispositionType};
use serde::Deserialize;
use std::ops::Range;
use std::time::Duration;
use waxwing_services::media::{Ask, MediaFile, ThumbnailWish};

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
    /// Understood, and of no effect: files come from here alone.
    #[serde(rename = "allow_redirect")]
    _allow_redirect: Option<bool>,
    width: Option<u32>,
    height: Option<u32>,
    method: Option<String>,
    animated: Option<bool>,
}

impl Wish {
    fn of(parts: &Parts) -> ApiResult<Wish> {
        let Query(wish) = Query::try_from_uri(&parts.uri).map_err(ApiError::invalid_param)?;
        Ok(wish)
    }

    fn ask(&self, legacy: bool) -> Ask {
        Ask {
            wait: Duration::from_millis(self.timeout_ms.unwrap_or(DEFAULT_WAIT_MS).min(MAX_WAIT_MS)),
            // Of the older endpoints alone.
            remote: !legacy || self.allow_remote.unwrap_or(true),
            without_token: legacy,
        }
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
        let (width, height) = (size("width", self.width)?, size("height", self.height)?);
        Ok(ThumbnailWish { width, height, crop, animated: self.animated.unwrap_or(false) })
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
    let tag = format!("\"{}\"", file.tag);
    let mut headers = HeaderMap::new();
    let mut set = |name: header::HeaderName, value: &str| {
        // What the uploader said may not be a header value; then it is not said.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_SECURITY_POLICY, CSP);
    set(header::HeaderName::from_static("cross-origin-resource-policy"), "cross-origin");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::CACHE_CONTROL, CACHE);
    set(header::ETAG, &tag);
    if has_already(&parts.headers, &tag) {
        return Ok(response(StatusCode::NOT_MODIFIED, headers, Body::empty()));
    }
    let Disposition { content_type, disposition } = disposition(&file, name);
    set(header::CONTENT_TYPE, &content_type);
    set(header::CONTENT_DISPOSITION, &disposition);
    set(header::ACCEPT_RANGES, "bytes");
    let (status, part) = match range(&parts.headers, file.size, &tag) {
        Wanted::Whole => (StatusCode::OK, None),
        Wanted::Part(part) => {
            let last = part.end.saturating_sub(1);
            set(header::CONTENT_RANGE, &format!("bytes {}-{last}/{}", part.start, file.size));
            (StatusCode::PARTIAL_CONTENT, Some(part))
        }
        Wanted::Nothing => return Ok(unsatisfiable(file.size)),
    };
    let length = part.as_ref().map_or(file.size, |part| part.end - part.start);
    set(header::CONTENT_LENGTH, &length.to_string());
    let body = body(api, &file, part).await?;
    Ok(response(status, headers, body))
}

fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// <https://www.rfc-editor.org/rfc/rfc9110#section-15.5.17>
fn unsatisfiable(size: u64) -> Response {
    let error = ApiError::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        ErrorCode::InvalidParam,
        "The file does not have these bytes",
    );
    let mut response = error.into_response();
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// Whether the client has what the tag stands for. <https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2>
fn has_already(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter();
    let mut tags = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    tags.any(|one| matches!(one.trim(), "*") || one.trim().trim_start_matches("W/") == tag)
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    Nothing,
}

/// One range of bytes. Several at once, and what cannot be read, get the whole file.
fn range(headers: &HeaderMap, size: u64, tag: &str) -> Wanted {
    // What the client has a part of is another file.
    if headers.get(header::IF_RANGE).is_some_and(|value| value.as_bytes() != tag.as_bytes()) {
        return Wanted::Whole;
    }
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
    let file = api.media.find(&server, &id, wish.ask(legacy)).await?;
    serve(api, &parts, file, name.as_deref()).await
}

async fn thumbnail_inner(api: &Api, mut parts: Parts, legacy: bool) -> ApiResult<Response> {
    if !legacy {
        requester(api, &parts, "/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}").await?;
    }
    let wish = Wish::of(&parts)?;
    let thumbnail = wish.thumbnail()?;
    let (server, id, _) = named(&mut parts).await?;
    let file = api.media.thumbnail(&server, &id, thumbnail, wish.ask(legacy)).await?;
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
            range(&headers, size, "\"tag\"")
        };
        assert_eq!(of("bytes=0-4", 10), Wanted::Part(0..5));
        assert_eq!(of("bytes=5-", 10), Wanted::Part(5..10));
        assert_eq!(of("bytes=-3", 10), Wanted::Part(7..10));
        assert_eq!(of("bytes=5-100", 10), Wanted::Part(5..10));
        assert_eq!(of("bytes=10-", 10), Wanted::Nothing);
        assert_eq!(of("bytes=4-2", 10), Wanted::Whole);
        assert_eq!(of("lines=1-2", 10), Wanted::Whole);
        assert_eq!(of("bytes=0-1,3-4", 10), Wanted::Whole);
        assert_eq!(of("bytes=0-", 0), Wanted::Nothing);
        assert_eq!(of("bytes=-0", 10), Wanted::Nothing);
        assert_eq!(of("bytes=-99", 10), Wanted::Part(0..10));
        assert_eq!(of("bytes=0-18446744073709551615", 10), Wanted::Part(0..10));
        assert_eq!(of("bytes=99999999999999999999-", 10), Wanted::Whole);
    }

    #[test]
    fn conditions_are_about_the_tag() {
        let headers = |name: header::HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, "bytes=0-4".parse().unwrap());
            headers.insert(name, value.parse().unwrap());
            headers
        };
        let tag = "\"abc\"";
        for value in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*"] {
            assert!(has_already(&headers(header::IF_NONE_MATCH, value), tag), "{value}");
        }
        assert!(!has_already(&headers(header::IF_NONE_MATCH, "\"abcd\""), tag));
        assert_eq!(range(&headers(header::IF_RANGE, tag), 10, tag), Wanted::Part(0..5));
        for other in ["\"old\"", "W/\"abc\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(range(&headers(header::IF_RANGE, other), 10, tag), Wanted::Whole);
        }
    }
}
