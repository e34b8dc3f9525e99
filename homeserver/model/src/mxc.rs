//! Which files a text names.

use std::collections::BTreeSet;

/// A file: the server that has it, and its id there.
/// <https://spec.matrix.org/v1.19/client-server-api/#matrix-content-mxc-uris>
pub type MediaKey = (String, String);

const SCHEME: &str = "mxc:";
/// The longest name of a server.
const MAX_SERVER: usize = 255;
/// The longest id of a file that this server takes.
const MAX_ID: usize = 255;
/// Files that one text names at most; more are not noted. A pack of five hundred pictures is large, and a text of 64 KB
/// could name five thousand.
const MOST: usize = 1000;

/// The files that a JSON text names, wherever in it: as a value of its own, or in the middle of one.
pub fn media_named(json: &str) -> BTreeSet<MediaKey> {
    let mut named = BTreeSet::new();
    if !json.contains(SCHEME) {
        return named;
    }
    // JSON may write a slash as `\/`.
    let plain = json.replace("\\/", "/");
    for (at, _) in plain.match_indices(SCHEME) {
        if named.len() == MOST {
            break;
        }
        if let Some(key) = plain[at + SCHEME.len()..].strip_prefix("//").and_then(key) {
            named.insert(key);
        }
    }
    named
}

/// `server/id` at the beginning of a text.
fn key(text: &str) -> Option<MediaKey> {
    let of_server = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    let of_id = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let (server, rest) = text.split_at(text.find(|c| !of_server(c))?);
    let rest = rest.strip_prefix('/')?;
    let id = &rest[..rest.find(|c| !of_id(c)).unwrap_or(rest.len())];
    let fits = (1..=MAX_SERVER).contains(&server.len()) && (1..=MAX_ID).contains(&id.len());
    fits.then(|| (server.to_owned(), id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(json: &str) -> Vec<String> {
        media_named(json).into_iter().map(|(server, id)| format!("{server} {id}")).collect()
    }

    #[test]
    fn finds_files_wherever_they_are_named() {
        assert_eq!(named(r#"{"url":"mxc://a.example:8448/aB_-9"}"#), ["a.example:8448 aB_-9"]);
        assert_eq!(named(r#"{"info":{"thumbnail_url":"mxc:\/\/[::1]:1\/x"}}"#), ["[::1]:1 x"]);
        let html = r#"{"formatted_body":"<img src=\"mxc://a/one\"> and <img src='mxc://a/two'>"}"#;
        assert_eq!(named(html), ["a one", "a two"]);
        assert_eq!(named(r#"["mxc://a/x","mxc://a/x","mxc://b/x#auto"]"#), ["a x", "b x"]);
    }

    #[test]
    fn what_names_no_file_is_none() {
        for text in
            ["{}", "mxc:", "mxc://", "mxc://a", "mxc://a/", "mxc:///x", "mxc://ä/x", "mxc:/a/x", "mxc://a//x"]
        {
            assert_eq!(named(text), Vec::<String>::new(), "{text}");
        }
        assert!(named(&format!("mxc://a/{}", "x".repeat(256))).is_empty());
        assert!(named(&format!("mxc://{}/x", "a".repeat(256))).is_empty());
    }

    #[test]
    fn a_text_names_a_bounded_number_of_files() {
        let many: Vec<String> = (0..5000).map(|number| format!("\"mxc://a/{number}\"")).collect();
        let many = many.join(",");
        assert_eq!(media_named(&many).len(), MOST);
    }
}
