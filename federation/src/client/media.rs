use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http::HeaderMap;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LOCATION};
use ruma::ServerName;
use std::time::Duration;
use url::Url;

use super::multipart::{Multipart, MultipartError, boundary};
use super::{Call, Client, ClientError, path, with_query};
use crate::transport::{Response, TransportError};

/// The JSON part is `{}` today.
const META_LIMIT: usize = 64 << 10;
/// Above what a client asks us to wait, so that the other server answers first.
const GRACE: Duration = Duration::from_secs(10);

/// Media of another server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer is not `multipart/mixed` as it should be.
    #[error("malformed media: {0}")]
    Malformed(#[from] MultipartError),
    /// It is larger than this many bytes.
    #[error("the media is larger than {0} bytes")]
    TooLarge(u64),
}

impl From<TransportError> for MediaError {
    fn from(error: TransportError) -> MediaError {
        MediaError::Client(error.into())
    }
}

/// A file of another server as it arrives.
pub struct RemoteMedia {
    /// As the other server says: do not trust it.
    pub content_type: Option<String>,
    /// As the other server says: do not trust it.
    pub content_disposition: Option<String>,
    /// The bytes. Ends with an error when the peer stalls, breaks off, or sends more than was allowed.
    pub content: BoxStream<'static, Result<Bytes, MediaError>>,
}

/// The size and shape of a thumbnail.
#[derive(Clone, Copy, Debug)]
pub struct ThumbnailQuery<'a> {
    /// Wanted width.
    pub width: u32,
    /// Wanted height.
    pub height: u32,
    /// `crop` or `scale`.
    pub method: Option<&'a str>,
    /// Whether a moving thumbnail is wanted.
    pub animated: Option<bool>,
}

impl Client {
    /// Downloads media of `destination`, at most `limit` bytes, waiting up to `wait` for it to be there.
    pub async fn media_download(
        &self,
        destination: &ServerName,
        media_id: &str,
        wait: Duration,
        limit: u64,
    ) -> Result<RemoteMedia, MediaError> {
        self.media(destination, "download", media_id, &[], wait, limit).await
    }

    /// Downloads a thumbnail of media of `destination`.
    pub async fn media_thumbnail(
        &self,
        destination: &ServerName,
        media_id: &str,
        thumbnail: ThumbnailQuery<'_>,
        wait: Duration,
        limit: u64,
    ) -> Result<RemoteMedia, MediaError> {
        let (width, height) = (thumbnail.width.to_string(), thumbnail.height.to_string());
        let mut query = vec![("width", width.as_str()), ("height", height.as_str())];
        if let Some(method) = thumbnail.method {
            query.push(("method", method));
        }
        if let Some(animated) = thumbnail.animated {
            query.push(("animated", if animated { "true" } else { "false" }));
        }
        self.media(destination, "thumbnail", media_id, &query, wait, limit).await
    }

    async fn media(
        &self,
        destination: &ServerName,
        kind: &str,
        media_id: &str,
        query: &[(&str, &str)],
        wait: Duration,
        limit: u64,
    ) -> Result<RemoteMedia, MediaError> {
        let wait_text = wait.as_millis().to_string();
        let mut query = query.to_vec();
        query.push(("timeout_ms", &wait_text));
        let signed = with_query(path(&["_matrix", "federation", "v1", "media", kind, media_id]), &query);
        match self.open(Call::get(destination, signed).timeout(wait + GRACE)).await {
            Ok(response) => self.read_parts(response, wait, limit).await,
            Err(error) if is_from_before(&error) => {
                // A server from before authenticated media. `allow_remote` keeps it from asking yet another one.
                query.push(("allow_remote", "false"));
                let old = path(&["_matrix", "media", "v3", kind, destination.as_str(), media_id]);
                let call = Call::get(destination, with_query(old, &query)).unsigned().timeout(wait + GRACE);
                let response = self.open(call).await?;
                whole(response, limit)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads `multipart/mixed`: first JSON, then the file or where it is.
    async fn read_parts(
        &self,
        response: Response,
        wait: Duration,
        limit: u64,
    ) -> Result<RemoteMedia, MediaError> {
        let boundary = boundary(&text(&response.headers, CONTENT_TYPE).unwrap_or_default())?;
        let mut parts = Multipart::new(response.body, &boundary);
        parts.skip_preamble().await?;
        parts.headers().await?;
        parts.collect(META_LIMIT).await?;
        let headers = parts.headers().await?;
        if let Some(location) = text(&headers, LOCATION) {
            let url = Url::parse(&location).map_err(|_| ClientError::Nonsense("a bad location".into()))?;
            // Somewhere else: no signature of ours goes there.
            let response = self.transport.fetch(&url, wait + GRACE).await?;
            if !response.status.is_success() {
                return Err(super::refusal(response).await.into());
            }
            return whole(response, limit);
        }
        let content = limited(parts.into_content().map_err(MediaError::from).boxed(), limit);
        Ok(RemoteMedia {
            content_type: text(&headers, CONTENT_TYPE),
            content_disposition: text(&headers, CONTENT_DISPOSITION),
            content,
        })
    }
}

/// Whether a server does not know authenticated media: by the code for that, or because what answers has no codes at
/// all, like a web server in front of an old one.
fn is_from_before(error: &ClientError) -> bool {
    error.is_unrecognized()
        || error.refusal().is_some_and(|refusal| {
            refusal.errcode.is_empty() && matches!(refusal.status.as_u16(), 400 | 404 | 405 | 501)
        })
}

/// A body that is the file.
fn whole(response: Response, limit: u64) -> Result<RemoteMedia, MediaError> {
    let announced = text(&response.headers, CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(MediaError::TooLarge(limit));
    }
    Ok(RemoteMedia {
        content_type: text(&response.headers, CONTENT_TYPE),
        content_disposition: text(&response.headers, CONTENT_DISPOSITION),
        content: limited(response.body.map_err(MediaError::from).boxed(), limit),
    })
}

fn limited(
    content: BoxStream<'static, Result<Bytes, MediaError>>,
    limit: u64,
) -> BoxStream<'static, Result<Bytes, MediaError>> {
    let mut seen = 0u64;
    content
        .map(move |piece| {
            let piece = piece?;
            seen += piece.len() as u64;
            if seen > limit { Err(MediaError::TooLarge(limit)) } else { Ok(piece) }
        })
        .boxed()
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
