//! Previews of pages on the web: <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediapreview_url>
//!
//! This server reads the page for its people, so that the page does not learn of them; it thereby learns of links in
//! encrypted messages, which is why it is off where plaintext is refused unless it was switched on.

mod entities;
mod oembed;
mod page;
mod web;

pub use web::{Web, WebSettings};

use crate::Core;
use crate::flights::Flights;
use crate::media::{Media, dimensions};
use moka::sync::Cache;
use oembed::Embed;
use page::Page;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use url::Url;
use waxwing_storage::StoreError;
use web::{Answer, WebError};

/// Bytes of a page that are read: what it says of itself stands at its beginning.
const MAX_PAGE: usize = 1 << 20;
/// Bytes of a picture: held in memory, and shown small.
const MAX_PICTURE: usize = 8 << 20;
/// Bytes of what a site says for those who embed a page.
const MAX_EMBED: usize = 256 * 1024;
/// Pictures of a page that are tried until one can be had.
const MAX_TRIED: usize = 3;
/// Pages that are read at once.
const PARALLEL: usize = 8;
/// The longest that a request waits for its turn.
const MAX_TURN: Duration = Duration::from_secs(20);
/// How long an answer serves before the page is read again.
const FRESH: Duration = Duration::from_hours(1);
/// A page that could not be read is not tried again for so long.
const FAILURE_KEPT: Duration = Duration::from_mins(1);
/// Failures that are remembered.
const FAILURES: u64 = 10_000;
/// Where a page says in which characters it is written, if it says so itself.
const CHARSET_WITHIN: usize = 2048;
/// What is asked for.
const PAGES: &str = "text/html,application/xhtml+xml;q=0.9,image/*;q=0.8,*/*;q=0.1";
const EMBEDS: &str = "application/json+oembed,application/json;q=0.9";
const PICTURES: &str = "image/png,image/jpeg,image/webp,image/gif;q=0.9,image/*;q=0.1";

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Previews are off.
    #[error("this server makes no previews")]
    Off,
    /// It is no address of a page.
    #[error("this is no address of a page")]
    Address,
    /// Pages there are not read.
    #[error("this page is not read")]
    Refused,
    /// The page cannot be had; the reason is for our log.
    #[error("the page cannot be read: {0}")]
    Unreachable(String),
    /// Too many pages are being read.
    #[error("too many pages are being read")]
    Busy,
}

/// What became of a page.
#[derive(Clone, Debug)]
enum Seen {
    /// The answer, JSON.
    Answer(Arc<str>),
    Address,
    Refused,
    Unreachable(String),
    Busy,
    /// This server's own fault.
    Failed(String),
}

impl From<WebError> for Seen {
    fn from(error: WebError) -> Seen {
        match error {
            WebError::Address => Seen::Address,
            WebError::Refused => Seen::Refused,
            other => Seen::Unreachable(other.to_string()),
        }
    }
}

impl From<StoreError> for Seen {
    fn from(error: StoreError) -> Seen {
        Seen::Failed(error.to_string())
    }
}

/// Previews.
#[derive(Clone)]
pub struct Previews {
    shared: Arc<Shared>,
}

struct Shared {
    core: Core,
    media: Media,
    web: Option<Web>,
    flights: Arc<Flights<String, Seen>>,
    failed: Cache<String, Seen>,
    turns: Semaphore,
}

impl Previews {
    /// Previews of pages that `web` reads; none: they are off. Pictures go into `media`.
    pub fn new(core: Core, media: Media, web: Option<Web>) -> Previews {
        let failed = Cache::builder().max_capacity(FAILURES).time_to_live(FAILURE_KEPT).build();
        let (flights, turns) = (Arc::default(), Semaphore::new(PARALLEL));
        Previews { shared: Arc::new(Shared { core, media, web, flights, failed, turns }) }
    }

    /// What a page says of itself: the body of the answer, JSON. Of several who ask one reads it.
    pub async fn preview(&self, address: &str) -> Result<Arc<str>, PreviewError> {
        let Some(web) = &self.shared.web else { return Err(PreviewError::Off) };
        let mut url = Url::parse(address.trim()).map_err(|_| PreviewError::Address)?;
        url.set_fragment(None);
        match web.permits(&url) {
            Err(WebError::Address) => return Err(PreviewError::Address),
            Err(_) => return Err(PreviewError::Refused),
            Ok(()) => {}
        }
        let key = crate::media::hex(&Sha256::digest(url.as_str().as_bytes()));
        let now = self.shared.core.now() as i64;
        if let Some(kept) = self.shared.core.store.read().await?.url_preview_load(&key, now).await? {
            return Ok(kept.into());
        }
        if let Some(failed) = self.shared.failed.get(&key) {
            return outcome(failed);
        }
        let begin = || {
            let (shared, web, key) = (Arc::clone(&self.shared), web.clone(), key.clone());
            async move {
                let seen = match shared.look(&web, url, &key).await {
                    Ok(answer) => Seen::Answer(answer),
                    Err(failed) => failed,
                };
                if matches!(seen, Seen::Unreachable(_) | Seen::Refused | Seen::Address) {
                    shared.failed.insert(key, seen.clone());
                }
                seen
            }
        };
        let seen = self.shared.flights.join(key.clone(), begin).await;
        outcome(seen.unwrap_or_else(|| Seen::Failed("reading it ended early".to_owned())))
    }
}

fn outcome(seen: Seen) -> Result<Arc<str>, PreviewError> {
    Err(match seen {
        Seen::Answer(answer) => return Ok(answer),
        Seen::Address => PreviewError::Address,
        Seen::Refused => PreviewError::Refused,
        Seen::Unreachable(why) => PreviewError::Unreachable(why),
        Seen::Busy => PreviewError::Busy,
        Seen::Failed(why) => {
            tracing::warn!(why, "a preview could not be made");
            PreviewError::Unreachable(why)
        }
    })
}

impl Shared {
    /// Reads a page and keeps the answer.
    async fn look(&self, web: &Web, url: Url, key: &str) -> Result<Arc<str>, Seen> {
        let turn = tokio::time::timeout(MAX_TURN, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Seen::Busy) };
        let answer = web.get(url, PAGES).await?;
        let (mut properties, image) = match essence(&answer.content_type).as_str() {
            "text/html" | "application/xhtml+xml" => self.page(web, answer).await?,
            kind if kind.starts_with("image/") => {
                let mut properties = Map::new();
                let image = self.picture(answer, &mut properties).await?;
                (properties, image)
            }
            // Nothing is said of other files.
            _ => (Map::new(), None),
        };
        properties.retain(|_, value| !value.is_null());
        let text: Arc<str> = Value::Object(properties).to_string().into();
        let now = self.core.now() as i64;
        let row = Arc::new((key.to_owned(), Arc::clone(&text), image));
        let keep = self.core.store.write("preview", Vec::new(), move |tx| {
            let row = Arc::clone(&row);
            Box::pin(async move {
                let until = now + FRESH.as_millis() as i64;
                tx.url_preview_insert(&row.0, now, until, &row.1, row.2.as_deref()).await
            })
        });
        keep.await?;
        Ok(text)
    }

    async fn page(&self, web: &Web, answer: Answer) -> Result<(Map<String, Value>, Option<String>), Seen> {
        let (base, content_type) = (answer.url.clone(), answer.content_type.clone());
        let (body, _) = answer.read(MAX_PAGE).await?;
        // A megabyte is decoded and looked through in some milliseconds.
        let page = tokio::task::spawn_blocking(move || Page::read(&text(&body, &content_type)));
        let mut page = page.await.map_err(|error| Seen::Failed(error.to_string()))?;
        let more = page.oembed.take().filter(|_| page.lacks_something());
        let embed = match more.and_then(|address| base.join(&address).ok()) {
            Some(url) => embed(web, url).await,
            None => Embed::default(),
        };
        page.settle(embed);
        let mut properties: Map<String, Value> = page
            .properties
            .into_iter()
            // Said of the picture that we keep, not of the one that the page has.
            .filter(|(key, _)| key != "og:image" && !key.starts_with("og:image:"))
            .filter(|(_, value)| !value.contains('\0'))
            .map(|(key, value)| (key, Value::String(value)))
            .collect();
        let mut image = None;
        for address in page.pictures.iter().take(MAX_TRIED) {
            // Without a picture the words still say something.
            let Ok(url) = base.join(address) else { continue };
            let Ok(answer) = web.get(url, PICTURES).await else { continue };
            match self.picture(answer, &mut properties).await {
                Ok(Some(id)) => {
                    image = Some(id);
                    break;
                }
                Ok(None) | Err(Seen::Unreachable(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok((properties, image))
    }

    /// Keeps a picture and says what it is. None: it is none that is shown here.
    async fn picture(
        &self,
        answer: Answer,
        properties: &mut Map<String, Value>,
    ) -> Result<Option<String>, Seen> {
        let kind = essence(&answer.content_type);
        let (body, whole) = answer.read(MAX_PICTURE).await?;
        if !whole || !kind.starts_with("image/") {
            return Ok(None);
        }
        let Some((width, height)) = dimensions(&body) else { return Ok(None) };
        let size = body.len();
        let kept = self.media.keep_preview(body.into(), kind.clone()).await;
        let id = kept.map_err(|error| Seen::Failed(error.to_string()))?;
        let uri = format!("mxc://{}/{id}", self.core.server_name);
        properties.insert("og:image".to_owned(), json!(uri));
        properties.insert("og:image:type".to_owned(), json!(kind));
        properties.insert("og:image:width".to_owned(), json!(width));
        properties.insert("og:image:height".to_owned(), json!(height));
        properties.insert("matrix:image:size".to_owned(), json!(size));
        Ok(Some(id))
    }
}

/// What a site says of a page where the page points to. It is a help: where it cannot be had, nothing is said.
async fn embed(web: &Web, url: Url) -> Embed {
    let Ok(answer) = web.get(url, EMBEDS).await else { return Embed::default() };
    let base = answer.url.clone();
    match answer.read(MAX_EMBED).await {
        Ok((body, true)) => Embed::read(&body, &base),
        Ok((_, false)) | Err(_) => Embed::default(),
    }
}

fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The page's text: by its byte order mark, what the web server says, what it says itself, or UTF-8.
/// <https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding>
fn text(body: &[u8], content_type: &str) -> String {
    let of_header = parameter(content_type, "charset");
    let head = String::from_utf8_lossy(&body[..body.len().min(CHARSET_WITHIN)]).to_ascii_lowercase();
    let of_page = || {
        let behind = head.split_once("charset=")?.1.trim_start_matches(['"', '\'']);
        behind.split(['"', '\'', ' ', ';', '/', '>']).next().map(str::to_owned)
    };
    let label = of_header.or_else(of_page).unwrap_or_default();
    let encoding = encoding_rs::Encoding::for_label(label.as_bytes()).unwrap_or(encoding_rs::UTF_8);
    encoding.decode(body).0.into_owned()
}

fn parameter(content_type: &str, name: &str) -> Option<String> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_other_characters() {
        let latin = b"<title>caf\xe9</title>";
        assert!(text(latin, "text/html; charset=\"ISO-8859-1\"").contains("café"));
        let said =
            b"<meta http-equiv=content-type content='text/html; charset=windows-1251'><title>\xcf</title>";
        assert!(text(said, "text/html").contains('П'));
        assert!(text("<title>ж</title>".as_bytes(), "text/html; charset=nonsense").contains('ж'));
        assert!(text(b"\xef\xbb\xbfcaf\xc3\xa9", "text/html; charset=latin1").contains("café"));
    }
}
