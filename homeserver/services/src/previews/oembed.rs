//! What a site says of a page to those who embed it, as JSON at an address that the page names: pages of pictures and
//! videos often say more there than on themselves. Whatever it says is a stranger's text. <https://oembed.com/>

use super::page::{Page, clean};
use serde_json::{Map, Value};
use url::Url;

/// Letters of one value that are kept.
const MAX_VALUE: usize = 1000;
/// Bytes of HTML that words are looked for in: an embedded player is shorter.
const MAX_HTML: usize = 64 * 1024;

/// What fills in for what the page itself does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Embed {
    /// What it is called.
    pub title: Option<String>,
    /// Words of it, where it is text.
    pub description: Option<String>,
    /// The site that it is on.
    pub site: Option<String>,
    /// As OpenGraph names kinds of things.
    pub kind: Option<&'static str>,
    /// The whole address of a picture.
    pub picture: Option<String>,
}

impl Embed {
    /// Reads an answer from `base`; what is no answer says nothing.
    pub fn read(json: &[u8], base: &Url) -> Embed {
        let said: Map<String, Value> = serde_json::from_slice(json).unwrap_or_default();
        let text = |name: &str| {
            let text = said.get(name)?.as_str().map(|text| clean(text, MAX_VALUE))?;
            Some(text).filter(|text| !text.is_empty())
        };
        let kind = said.get("type").and_then(Value::as_str).unwrap_or_default();
        let picture = match kind {
            "photo" => text("url").or(text("thumbnail_url")),
            _ => text("thumbnail_url"),
        };
        Embed {
            title: text("title"),
            description: said.get("html").and_then(Value::as_str).and_then(words),
            site: text("provider_name"),
            kind: match kind {
                "video" => Some("video.other"),
                "photo" | "link" | "rich" => Some("website"),
                _ => None,
            },
            picture: picture.and_then(|address| Some(base.join(&address).ok()?.to_string())),
        }
    }
}

/// What somebody would read in a piece of HTML.
fn words(html: &str) -> Option<String> {
    let mut end = html.len().min(MAX_HTML);
    while !html.is_char_boundary(end) {
        end -= 1;
    }
    let mut page = Page::read(&html[..end]);
    page.settle(Embed::default());
    page.properties.remove("og:description")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Embed {
        Embed::read(json.as_bytes(), &Url::parse("https://site.example/oembed?a").unwrap())
    }

    #[test]
    fn kinds_of_things() {
        let video = read(
            r#"{"version":"1.0","type":"video","title":"An owl &amp; more","provider_name":"Site",
                "thumbnail_url":"/owl.jpg","html":"<iframe src=x></iframe>"}"#,
        );
        assert_eq!(video.title.as_deref(), Some("An owl & more"));
        assert_eq!(video.kind, Some("video.other"));
        assert_eq!(video.picture.as_deref(), Some("https://site.example/owl.jpg"));
        assert_eq!((video.site.as_deref(), video.description), (Some("Site"), None));
        let photo = read(r#"{"type":"photo","url":"https://cdn.example/a.png","thumbnail_url":"b.png"}"#);
        assert_eq!(photo.picture.as_deref(), Some("https://cdn.example/a.png"));
        let rich =
            read(r#"{"type":"rich","html":"<blockquote><p>Some <a>words</a>.</p>By her</blockquote>"}"#);
        assert_eq!(rich.description.as_deref(), Some("Some words ."));
    }

    #[test]
    fn nonsense_says_nothing() {
        for json in ["", "{", "[]", "null", "7", r#"{"title":7,"html":[],"type":{},"thumbnail_url":""}"#] {
            assert_eq!(read(json), Embed::default(), "{json}");
        }
        let long = format!(r#"{{"title":"{}","html":"<p>{}"}}"#, "t".repeat(5000), "\u{e9}".repeat(100_000));
        assert_eq!(read(&long).title.unwrap().len(), MAX_VALUE);
    }
}
