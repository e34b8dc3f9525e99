//! What a page on the web says of itself: OpenGraph, and what else there is where it says nothing. Pure work on text
//! that may be anything: each byte is looked at once, nothing is nested, and what is kept is bounded.
//! <https://ogp.me/>

use super::entities::decode;
use super::oembed::Embed;
use std::collections::BTreeMap;

/// Properties that are kept.
const MAX_PROPERTIES: usize = 60;
/// Letters of one value that are kept.
const MAX_VALUE: usize = 1000;
/// Letters of an address in which another is written.
const MAX_ADDRESS: usize = 3000;
/// Letters of the text that stands in for a description.
const MAX_SUMMARY: usize = 300;
/// Attributes of one element that are looked at.
const MAX_ATTRIBUTES: usize = 50;
/// Pictures in the text narrower or lower than this are decoration.
const LEAST_SIDE: u32 = 50;
/// Elements whose content is no text of the page, and may hold what looks like elements.
const OPAQUE: &[&str] = &["script", "style", "svg", "template", "textarea", "noframes", "iframe", "math"];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// OpenGraph properties with their prefix, the first value of each.
    pub properties: BTreeMap<String, String>,
    /// Addresses of pictures, the best first; as they are written, so relative to the page.
    pub pictures: Vec<String>,
    /// Where the site says more, for who embeds the page; as it is written.
    pub oembed: Option<String>,
    title: Option<String>,
    heading: Option<String>,
    summary: String,
    fallbacks: BTreeMap<String, String>,
}

/// What follows a start tag until its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Collecting {
    Nothing,
    Heading,
    Paragraph,
}

impl Page {
    /// Reads a page, or the beginning of one. What it says beside OpenGraph counts once it is settled.
    pub fn read(html: &str) -> Page {
        let mut page = Page::default();
        let mut rest = html;
        let mut collecting = Collecting::Nothing;
        let mut text = String::new();
        while let Some(at) = rest.find('<') {
            if collecting != Collecting::Nothing {
                text.push_str(&rest[..at]);
            }
            rest = &rest[at..];
            let Some(tag) = Tag::read(&mut rest) else { continue };
            match (tag.name.as_str(), tag.ends) {
                ("title", false) if page.title.is_none() => {
                    page.title = Some(clean(until_end(&mut rest, "title"), MAX_VALUE));
                }
                (name, false) if OPAQUE.contains(&name) && !tag.closes_itself => {
                    until_end(&mut rest, name);
                }
                ("meta", false) => page.meta(&tag),
                ("link", false) => page.link(&tag),
                ("img", false) => page.img(&tag),
                ("h1" | "p", false) => {
                    page.collected(collecting, &text);
                    text.clear();
                    collecting = if tag.name == "p" { Collecting::Paragraph } else { Collecting::Heading };
                }
                ("h1" | "p" | "div" | "article" | "section" | "body", true) => {
                    page.collected(collecting, &text);
                    text.clear();
                    collecting = Collecting::Nothing;
                }
                // Words on both sides of an element are two.
                _ if collecting != Collecting::Nothing => text.push(' '),
                _ => {}
            }
        }
        text.push_str(rest);
        page.collected(collecting, &text);
        page
    }

    /// Whether OpenGraph leaves open what is shown of a page.
    pub fn lacks_something(&self) -> bool {
        let said = |key: &str| self.properties.contains_key(key);
        !said("og:title") || !said("og:description") || self.pictures.is_empty()
    }

    fn meta(&mut self, tag: &Tag) {
        let Some(content) = tag.get("content").map(|content| clean(content, MAX_VALUE)) else { return };
        if content.is_empty() {
            return;
        }
        // Some write `name` where `property` is meant.
        for key in ["property", "name", "itemprop"].iter().filter_map(|name| tag.get(name)) {
            let key = key.trim().to_ascii_lowercase();
            if matches!(key.as_str(), "og:image" | "og:image:url" | "og:image:secure_url") {
                self.picture(&content);
            }
            if key.starts_with("og:") && self.properties.len() < MAX_PROPERTIES && key.len() <= MAX_VALUE {
                self.properties.entry(key).or_insert(content.clone());
            } else if matches!(
                key.as_str(),
                "description" | "twitter:title" | "twitter:description" | "twitter:image" | "image"
            ) {
                self.fallbacks.entry(key).or_insert(content.clone());
            }
        }
    }

    fn link(&mut self, tag: &Tag) {
        let rel = tag.get("rel").unwrap_or_default().to_ascii_lowercase();
        if let Some(href) = tag.get("href")
            && rel.split_ascii_whitespace().any(|rel| rel == "image_src")
        {
            self.fallbacks.entry("image_src".to_owned()).or_insert(clean(href, MAX_VALUE));
        }
        let kind = tag.get("type").unwrap_or_default();
        if let Some(href) = tag.get("href")
            && self.oembed.is_none()
            && kind.trim().eq_ignore_ascii_case("application/json+oembed")
        {
            self.oembed = Some(clean(href, MAX_ADDRESS));
        }
    }

    /// The first picture in the text that is no decoration.
    fn img(&mut self, tag: &Tag) {
        let small = |name| {
            let side = tag.get(name).map(|text| text.trim_end_matches("px").parse::<u32>());
            matches!(side, Some(Ok(side)) if side < LEAST_SIDE)
        };
        if let Some(src) = tag.get("src")
            && !small("width")
            && !small("height")
        {
            self.fallbacks.entry("img".to_owned()).or_insert(clean(src, MAX_VALUE));
        }
    }

    fn picture(&mut self, address: &str) {
        if !self.pictures.iter().any(|known| known == address) && self.pictures.len() < MAX_PROPERTIES {
            self.pictures.push(address.to_owned());
        }
    }

    fn collected(&mut self, what: Collecting, text: &str) {
        match what {
            Collecting::Nothing => {}
            Collecting::Heading => {
                let heading = clean(text, MAX_VALUE);
                if self.heading.is_none() && !heading.is_empty() {
                    self.heading = Some(heading);
                }
            }
            Collecting::Paragraph => {
                if self.summary.chars().count() < MAX_SUMMARY {
                    let paragraph = clean(text, MAX_SUMMARY);
                    if !self.summary.is_empty() && !paragraph.is_empty() {
                        self.summary.push(' ');
                    }
                    self.summary.push_str(&paragraph);
                }
            }
        }
    }

    /// Fills in what the page does not say in so many words: with what the site says of it elsewhere, and then with
    /// what is on it.
    pub fn settle(&mut self, embed: Embed) {
        let mut fallbacks = std::mem::take(&mut self.fallbacks);
        let mut take = |name: &str| fallbacks.remove(name).filter(|text| !text.is_empty());
        let summary = Some(clean(&self.summary, MAX_SUMMARY)).filter(|text| !text.is_empty());
        let title = embed.title.or(take("twitter:title")).or(self.title.take()).or(self.heading.take());
        let description =
            take("twitter:description").or(take("description")).or(embed.description).or(summary);
        let pictures = ["twitter:image", "image", "image_src", "img"].map(&mut take);
        let kind = embed.kind.map(str::to_owned);
        let found = [
            ("og:title", title),
            ("og:description", description),
            ("og:site_name", embed.site),
            ("og:type", kind),
        ];
        for (key, value) in found {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                self.properties.entry(key.to_owned()).or_insert(value);
            }
        }
        if self.pictures.is_empty() {
            self.pictures.extend(embed.picture.into_iter().chain(pictures.into_iter().flatten()).next());
        }
        self.summary.clear();
    }
}

/// A tag with its attributes, in small letters.
struct Tag<'a> {
    name: String,
    ends: bool,
    closes_itself: bool,
    attributes: Vec<(String, &'a str)>,
}

impl<'a> Tag<'a> {
    /// Reads the tag at the beginning of `rest`, which is a `<`, and moves on behind it. None: it is none, a comment
    /// or a declaration.
    fn read(rest: &mut &'a str) -> Option<Tag<'a>> {
        let text = *rest;
        if text.starts_with("<!--") {
            *rest = text.find("-->").map_or("", |at| &text[at + 3..]);
            return None;
        }
        let ends = text.starts_with("</");
        let inner = &text[if ends { 2 } else { 1 }..];
        if !inner.starts_with(|c: char| c.is_ascii_alphabetic()) {
            // A declaration ends with its bracket; a bracket that begins nothing is text.
            let declares = inner.starts_with(['!', '?']);
            *rest = if declares { inner.find('>').map_or("", |at| &inner[at + 1..]) } else { inner };
            return None;
        }
        let end =
            inner.find(|c: char| c.is_ascii_whitespace() || c == '/' || c == '>').unwrap_or(inner.len());
        let name = inner[..end].to_ascii_lowercase();
        let mut tag = Tag { name, ends, closes_itself: false, attributes: Vec::new() };
        *rest = &inner[end..];
        tag.read_attributes(rest);
        Some(tag)
    }

    fn read_attributes(&mut self, rest: &mut &'a str) {
        loop {
            let text = rest.trim_start_matches(|c: char| c.is_ascii_whitespace());
            if let Some(behind) = text.strip_prefix('>') {
                *rest = behind;
                return;
            }
            if text.is_empty() {
                *rest = text;
                return;
            }
            if let Some(behind) = text.strip_prefix('/') {
                self.closes_itself = behind.starts_with('>');
                *rest = behind;
                continue;
            }
            // At least one character, so that this comes to an end.
            let first = text.chars().next().map_or(0, char::len_utf8);
            let end = text[first..]
                .find(|c: char| c.is_ascii_whitespace() || matches!(c, '=' | '>' | '/'))
                .map_or(text.len(), |at| at + first);
            let name = text[..end].to_ascii_lowercase();
            let after = text[end..].trim_start_matches(|c: char| c.is_ascii_whitespace());
            let (value, behind) = match after.strip_prefix('=') {
                Some(value) => attribute_value(value.trim_start_matches(|c: char| c.is_ascii_whitespace())),
                None => ("", &text[end..]),
            };
            if self.attributes.len() < MAX_ATTRIBUTES {
                self.attributes.push((name, value));
            }
            *rest = behind;
        }
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }
}

/// The value at the beginning of the text, and what comes after it.
fn attribute_value(text: &str) -> (&str, &str) {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote) {
            return inner.split_once(quote).unwrap_or((inner, ""));
        }
    }
    let end = text.find(|c: char| c.is_ascii_whitespace() || c == '>').unwrap_or(text.len());
    text.split_at(end)
}

/// The raw text up to the end tag of `name`, which it moves behind.
fn until_end<'a>(rest: &mut &'a str, name: &str) -> &'a str {
    let text = *rest;
    for (at, _) in text.match_indices("</") {
        let inner = &text.as_bytes()[at + 2..];
        if inner.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes())) {
            let behind = &text[at + 2 + name.len()..];
            *rest = behind.find('>').map_or("", |end| &behind[end + 1..]);
            return &text[..at];
        }
    }
    *rest = "";
    text
}

/// Text as people read it: entities decoded, white space joined, no control characters, at most `most` letters.
pub(super) fn clean(text: &str, most: usize) -> String {
    let decoded = decode(text);
    let mut words = String::new();
    let mut count = 0;
    for word in decoded.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if count > 0 {
            words.push(' ');
            count += 1;
        }
        for letter in word.chars() {
            if count >= most {
                return words.trim_end().to_owned();
            }
            words.push(letter);
            count += 1;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(html: &str) -> Page {
        let mut page = Page::read(html);
        page.settle(Embed::default());
        page
    }

    #[test]
    fn open_graph_comes_first() {
        let page = settled(
            r#"<!doctype html><html prefix="og: http://ogp.me/ns#"><head><title>The Rock (1996)</title>
            <META Property='og:title' content="The &quot;Rock&quot; &#x26; more">
            <meta property=og:type content=video.movie /><meta property="og:url" content="http://a/b"/>
            <meta content="test.png" property="og:image" /><meta name="description" content="words">
            <meta property="og:title" content="second"></head><body><p>Text</p></body>"#,
        );
        assert_eq!(page.properties["og:title"], "The \"Rock\" & more");
        assert_eq!(page.properties["og:type"], "video.movie");
        assert_eq!(page.properties["og:description"], "words");
        assert_eq!(page.pictures, ["test.png"]);
    }

    #[test]
    fn pages_that_say_nothing_are_read_all_the_same() {
        let page = settled(
            "<script>if (a<b) document.write('<title>no</title>')</script><svg><title>no</title></svg>\
             <title>\n  A  page &ndash; caf\u{e9} &amp; bar</title><!-- <meta property=og:title content=no> -->\
             <style>p { }</style><h1>Heading</h1><img src=dot.gif width=1 height=1><img src='/big.png' width=640>\
             <p>First <b>bold</b>\nwords.<p>Second.</p><div>not this</div>",
        );
        assert_eq!(page.properties["og:title"], "A page \u{2013} caf\u{e9} & bar");
        assert_eq!(page.properties["og:description"], "First bold words. Second.");
        assert_eq!(page.pictures, ["/big.png"]);
        let heading = settled("<h1>Only <i>this</i></h1>");
        assert_eq!(heading.properties["og:title"], "Only this");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut many = String::new();
        for number in 0..1000 {
            many.push_str("<meta content='v' property='og:x");
            many.push_str(&number.to_string());
            many.push_str("'>");
        }
        assert_eq!(settled(&many).properties.len(), MAX_PROPERTIES);
        let long = format!("<title>{}</title><p>{}", "t".repeat(5000), "word ".repeat(5000));
        let page = settled(&long);
        assert_eq!(page.properties["og:title"].len(), MAX_VALUE);
        assert!(page.properties["og:description"].chars().count() <= MAX_SUMMARY);
    }

    #[test]
    fn broken_pages_end_nothing() {
        for text in [
            "<",
            "</",
            "<!",
            "<!--",
            "<a",
            "<a b",
            "<a b=",
            "<a b='",
            "<a =>",
            "<title>",
            "<title></",
            "<p",
            "<a/",
            "<meta property='og:title' content",
            "<script",
            "<\u{e9}>",
            "<a \u{e9}='\u{e9}'>",
            "<a/ / / >",
            "<<<<",
        ] {
            for end in 0..=text.len() {
                if text.is_char_boundary(end) {
                    Page::read(&text[..end]);
                }
            }
        }
        // Each byte is looked at once: a megabyte of nonsense takes no time.
        let began = std::time::Instant::now();
        Page::read(&"<a ".repeat(300_000));
        Page::read(&"</".repeat(500_000));
        Page::read(&"<p>".repeat(300_000));
        Page::read(&"<!--".repeat(250_000));
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
