use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::transport::TransportError;

/// The headers of a part; ours are three short lines.
const MAX_HEADERS: usize = 16 << 10;
/// Lines of headers in a part.
const MAX_HEADER_LINES: usize = 32;
/// RFC 2046 limits a boundary to 70 characters.
const MAX_BOUNDARY: usize = 70;

/// A `multipart/mixed` body is not one.
#[derive(Debug, thiserror::Error)]
pub enum MultipartError {
    #[error("the content type names no boundary")]
    NoBoundary,
    #[error("the body ends inside a part")]
    Truncated,
    #[error("the headers of a part are too large or malformed")]
    Headers,
    #[error("a part is larger than {0} bytes")]
    TooLarge(usize),
    #[error(transparent)]
    Transport(#[from] TransportError),
}

type Pieces = BoxStream<'static, Result<Bytes, TransportError>>;

/// Reads the parts of a `multipart/mixed` body one after the other, as it arrives. Tolerant where servers are known to
/// err: a part ends at the next delimiter, whether or not the last one carries its closing dashes.
pub(super) struct Multipart {
    pieces: Pieces,
    buffer: BytesMut,
    delimiter: Vec<u8>,
    ended: bool,
}

/// What `content-type` says the boundary is.
pub(super) fn boundary(content_type: &str) -> Result<String, MultipartError> {
    let mut parameters = content_type.split(';');
    let kind = parameters.next().unwrap_or_default().trim();
    if !kind.get(..10).is_some_and(|start| start.eq_ignore_ascii_case("multipart/")) {
        return Err(MultipartError::NoBoundary);
    }
    for parameter in parameters {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("boundary")
        {
            let value = value.trim().trim_matches('"');
            if (1..=MAX_BOUNDARY).contains(&value.len()) {
                return Ok(value.to_owned());
            }
        }
    }
    Err(MultipartError::NoBoundary)
}

impl Multipart {
    pub(super) fn new(pieces: Pieces, boundary: &str) -> Multipart {
        // The first delimiter need not follow a line break: pretend one.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        Multipart { pieces, buffer, delimiter: format!("\r\n--{boundary}").into_bytes(), ended: false }
    }

    /// Reads more; false at the end of the body.
    async fn fill(&mut self) -> Result<bool, MultipartError> {
        if self.ended {
            return Ok(false);
        }
        match self.pieces.try_next().await? {
            Some(piece) => self.buffer.extend_from_slice(&piece),
            None => self.ended = true,
        }
        Ok(!self.ended)
    }

    /// Skips to the first part (what comes before it is not meant to be read).
    pub(super) async fn skip_preamble(&mut self) -> Result<(), MultipartError> {
        while self.next_piece().await?.is_some() {}
        Ok(())
    }

    /// The headers of the part that begins here.
    pub(super) async fn headers(&mut self) -> Result<HeaderMap, MultipartError> {
        loop {
            // The rest of the delimiter's line, then header lines, then an empty one.
            if let Some(line) = find(&self.buffer, b"\r\n") {
                let after = line + 2;
                if self.buffer.len() >= after + 2 || self.ended {
                    if self.buffer[after..].starts_with(b"\r\n") {
                        let _ = self.buffer.split_to(after + 2);
                        return Ok(HeaderMap::new());
                    }
                    if let Some(end) = find(&self.buffer[after..], b"\r\n\r\n") {
                        let head = self.buffer.split_to(after + end + 4);
                        return parse_headers(&head[after..after + end]);
                    }
                }
            }
            if self.buffer.len() > MAX_HEADERS {
                return Err(MultipartError::Headers);
            }
            if !self.fill().await? && find(&self.buffer, b"\r\n").is_none() {
                return Err(MultipartError::Truncated);
            }
            if self.ended && find(&self.buffer, b"\r\n\r\n").is_none() {
                return Err(MultipartError::Truncated);
            }
        }
    }

    /// The next piece of the part's content; `None` at its end, with the delimiter consumed.
    pub(super) async fn next_piece(&mut self) -> Result<Option<Bytes>, MultipartError> {
        loop {
            if let Some(at) = find(&self.buffer, &self.delimiter) {
                if at > 0 {
                    return Ok(Some(self.buffer.split_to(at).freeze()));
                }
                let _ = self.buffer.split_to(self.delimiter.len());
                return Ok(None);
            }
            // Everything but a possible beginning of a delimiter is content.
            let safe = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
            if safe > 0 {
                return Ok(Some(self.buffer.split_to(safe).freeze()));
            }
            if !self.fill().await? {
                return Err(MultipartError::Truncated);
            }
        }
    }

    /// The part's whole content.
    pub(super) async fn collect(&mut self, limit: usize) -> Result<Bytes, MultipartError> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next_piece().await? {
            if whole.len() + piece.len() > limit {
                return Err(MultipartError::TooLarge(limit));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// The part's content as a stream; what follows the part is not read.
    pub(super) fn into_content(self) -> BoxStream<'static, Result<Bytes, MultipartError>> {
        futures_util::stream::try_unfold(self, |mut parts| async move {
            Ok(parts.next_piece().await?.map(|piece| (piece, parts)))
        })
        .boxed()
    }
}

fn parse_headers(text: &[u8]) -> Result<HeaderMap, MultipartError> {
    let text = String::from_utf8_lossy(text);
    let mut headers = HeaderMap::new();
    for line in text.split("\r\n").take(MAX_HEADER_LINES) {
        let (name, value) = line.split_once(':').ok_or(MultipartError::Headers)?;
        // What cannot be a header (a name in another script, say) is left out rather than spoiling the file.
        if let (Ok(name), Ok(value)) =
            (name.trim().parse::<HeaderName>(), HeaderValue::from_bytes(value.trim().as_bytes()))
        {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(body: &[u8], chunk: usize) -> Multipart {
        let pieces: Vec<Result<Bytes, TransportError>> =
            body.chunks(chunk).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Multipart::new(futures_util::stream::iter(pieces).boxed(), "gc0p4Jq0M2Yt08jU534c0p")
    }

    async fn read(body: &[u8], chunk: usize) -> Result<(Bytes, HeaderMap, Bytes), MultipartError> {
        let mut parts = parts(body, chunk);
        parts.skip_preamble().await?;
        parts.headers().await?;
        let meta = parts.collect(1000).await?;
        let headers = parts.headers().await?;
        Ok((meta, headers, parts.collect(10_000).await?))
    }

    // The specification's example, shortened.
    const EXAMPLE: &str = "--gc0p4Jq0M2Yt08jU534c0p\r\nContent-Type: application/json\r\n\r\n{}\r\n\
        --gc0p4Jq0M2Yt08jU534c0p\r\nContent-Type: text/plain\r\nContent-Disposition: inline; filename=\"a.txt\"\r\n\r\n\
        This media\r\n is plain text.\r\n--gc0p4Jq0M2Yt08jU534c0p";

    #[tokio::test]
    async fn the_specifications_example_in_pieces_of_any_size_with_or_without_closing_dashes() {
        for tail in ["--\r\n", "--", ""] {
            let body = format!("{EXAMPLE}{tail}");
            for chunk in 1..body.len() {
                let (meta, headers, content) = read(body.as_bytes(), chunk).await.unwrap();
                assert_eq!((&meta[..], &content[..]), (&b"{}"[..], &b"This media\r\n is plain text."[..]));
                assert_eq!(headers["content-type"], "text/plain");
            }
        }
    }

    #[tokio::test]
    async fn parts_without_headers_and_a_preamble() {
        let b = "--gc0p4Jq0M2Yt08jU534c0p";
        let body = format!("hello\r\n{b}\r\n\r\n{{}}\r\n{b}\r\n\r\n\r\n{b}--");
        for chunk in [1, 7, 1000] {
            let (meta, headers, content) = read(body.as_bytes(), chunk).await.unwrap();
            assert_eq!((&meta[..], headers.len(), content.len()), (&b"{}"[..], 0, 0));
        }
    }

    #[tokio::test]
    async fn truncated_and_oversized_bodies_are_errors() {
        let cut = &EXAMPLE.as_bytes()[..EXAMPLE.len() - 10];
        assert!(matches!(read(cut, 9).await, Err(MultipartError::Truncated)));
        assert!(matches!(read(b"", 9).await, Err(MultipartError::Truncated)));
        assert!(matches!(read(b"--gc0p4Jq0M2Yt08jU534c0p", 9).await, Err(MultipartError::Truncated)));
        let endless = format!("--gc0p4Jq0M2Yt08jU534c0p\r\nA: {}", "x".repeat(2 * MAX_HEADERS));
        assert!(matches!(read(endless.as_bytes(), 100).await, Err(MultipartError::Headers)));
        let big = format!("--gc0p4Jq0M2Yt08jU534c0p\r\n\r\n{}", "x".repeat(5000));
        assert!(matches!(read(big.as_bytes(), 100).await, Err(MultipartError::TooLarge(1000))));
    }

    #[test]
    fn boundaries() {
        assert_eq!(boundary("multipart/mixed; boundary=\"a b\"").unwrap(), "a b");
        assert_eq!(boundary("Multipart/Mixed;charset=x; Boundary=ab").unwrap(), "ab");
        assert!(boundary("text/plain; boundary=a").is_err() && boundary("multipart/mixed").is_err());
        assert!(boundary(&format!("multipart/mixed; boundary={}", "x".repeat(71))).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..400), chunk in 1usize..50) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read(&body, chunk));
            let mut real = EXAMPLE.as_bytes()[..120.min(EXAMPLE.len())].to_vec();
            real.extend(&body);
            let _ = runtime.block_on(read(&real, chunk));
        }
    }
}
