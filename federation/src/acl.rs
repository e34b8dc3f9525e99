//! Server access control lists: <https://spec.matrix.org/v1.19/client-server-api/#server-access-control-lists-acls-for-rooms>.

use ruma::ServerName;
use serde::Deserialize;
use serde_json::value::RawValue;
use waxwing_model::Event;

/// Globs read of one list. An event is at most 64 KiB, so this only bounds the work of a match.
const MAX_GLOBS: usize = 8192;

/// The content of an `m.room.server_acl` event, read the way the specification says: whatever has the wrong type
/// counts as missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAcl {
    allow: Vec<String>,
    deny: Vec<String>,
    allow_ip_literals: bool,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    allow: serde_json::Value,
    #[serde(default)]
    deny: serde_json::Value,
    #[serde(default)]
    allow_ip_literals: serde_json::Value,
}

impl ServerAcl {
    /// Reads the content. A redacted event, with its content gone, denies everybody.
    pub fn from_content(content: &RawValue) -> ServerAcl {
        match serde_json::from_str::<Content>(content.get()) {
            Ok(content) => ServerAcl {
                allow: globs(&content.allow),
                deny: globs(&content.deny),
                allow_ip_literals: content.allow_ip_literals.as_bool().unwrap_or(true),
            },
            Err(_) => ServerAcl { allow: Vec::new(), deny: Vec::new(), allow_ip_literals: true },
        }
    }

    /// Reads the list of a state event.
    pub fn from_event(event: &Event) -> ServerAcl {
        ServerAcl::from_content(&event.content)
    }

    /// Whether `server` may take part in the room. Ports do not count, nor does case.
    pub fn permits(&self, server: &ServerName) -> bool {
        if !self.allow_ip_literals && server.is_ip_literal() {
            return false;
        }
        let host = server.host().to_ascii_lowercase();
        !self.deny.iter().any(|glob| matches(glob, &host))
            && self.allow.iter().any(|glob| matches(glob, &host))
    }
}

fn globs(list: &serde_json::Value) -> Vec<String> {
    let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter_map(|glob| glob.as_str()).take(MAX_GLOBS).map(str::to_ascii_lowercase).collect()
}

/// Matches `*` (any number of characters) and `?` (exactly one). Remembers only the last star, which suffices, so that
/// the time is bounded by the product of the lengths.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some('*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    g = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acl(json: &str) -> ServerAcl {
        ServerAcl::from_content(&RawValue::from_string(json.to_owned()).unwrap())
    }

    fn permits(acl: &ServerAcl, server: &str) -> bool {
        acl.permits(<&ServerName>::try_from(server).unwrap())
    }

    #[test]
    fn the_specifications_example() {
        let acl = acl(r#"{"allow":["*"],"allow_ip_literals":false,"deny":["*.evil.com","evil.com"]}"#);
        assert!(permits(&acl, "good.com"));
        assert!(!permits(&acl, "evil.com") && !permits(&acl, "sub.EVIL.com:8448"));
        assert!(permits(&acl, "notevil.com"));
        assert!(!permits(&acl, "1.2.3.4") && !permits(&acl, "[::1]:8448"));
    }

    #[test]
    fn what_is_missing_or_malformed() {
        assert!(!permits(&acl("{}"), "a.example"));
        assert!(!permits(&acl(r#"{"allow":"*"}"#), "a.example"));
        assert!(permits(&acl(r#"{"allow":[1,"*"],"deny":{},"allow_ip_literals":"no"}"#), "1.2.3.4"));
        assert!(!permits(&acl("[]"), "a.example"));
    }

    #[test]
    fn case_counts_on_neither_side() {
        let acl = acl(r#"{"allow":["*.Example.ORG"],"deny":["BAD.example.org"]}"#);
        assert!(permits(&acl, "matrix.EXAMPLE.org"));
        assert!(!permits(&acl, "bad.example.org"));
        assert!(!permits(&acl, "example.org"));
    }

    #[test]
    fn globs_by_hand() {
        assert!(matches("a?c*e", "abcde") && matches("**", "") && matches("*a*b", "xxayyb"));
        assert!(!matches("a?c", "ac") && !matches("", "a") && !matches("*a", "ab"));
        assert!(!matches("*a*a*a*a*a*b", &"a".repeat(3000)));
    }

    proptest! {
        #[test]
        fn a_glob_made_of_a_text_matches_it(text in "[a-c.]{0,12}", cut in 0usize..12) {
            let at = cut.min(text.len());
            let starred = format!("{}*{}", &text[..at], &text[at..]);
            prop_assert!(matches(&text, &text));
            prop_assert!(matches(&starred, &text));
            prop_assert!(matches(&"?".repeat(text.len()), &text));
            let longer = format!("{text}x");
            prop_assert!(!matches(&text, &longer));
        }
    }
}
