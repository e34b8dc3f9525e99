//! Finds what the driver needs in answers by searching their bytes: parsing whole answers would cost the driver more
//! than some servers need to make them.

use memchr::memmem;

fn after<'a>(answer: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = memmem::find(answer, key)? + key.len();
    let rest = &answer[at..];
    Some(&rest[rest.iter().position(|byte| !byte.is_ascii_whitespace())?..])
}

/// The text after the first occurrence of the key, which is spelt with quotes and colon: `"next_batch":`. Texts with
/// escapes are not understood: tokens and ids have none.
pub fn text_after<'a>(answer: &'a [u8], key: &[u8]) -> Option<&'a str> {
    let rest = after(answer, key)?.strip_prefix(b"\"")?;
    let text = std::str::from_utf8(&rest[..memchr::memchr(b'"', rest)?]).ok()?;
    (!text.contains('\\')).then_some(text)
}

/// The number after the first occurrence of the key.
pub fn number_after(answer: &[u8], key: &[u8]) -> Option<u64> {
    digits(after(answer, key)?)
}

fn digits(text: &[u8]) -> Option<u64> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    std::str::from_utf8(&text[..end]).ok()?.parse().ok()
}

/// How many digits follow a mark.
const MARK_DIGITS: usize = 10;

/// A word that stands in the ciphertext of everything that one run sends, with a number after it. It is found again
/// in whatever the server makes of the event.
#[derive(Debug, Clone)]
pub struct Mark {
    finder: memmem::Finder<'static>,
    word: String,
}

impl Mark {
    /// `word` is of letters and digits, and not to be found in anything else.
    pub fn new(word: &str) -> Self {
        Self { finder: memmem::Finder::new(word.as_bytes()).into_owned(), word: word.to_owned() }
    }

    /// The mark of the number, which has at most ten digits.
    pub fn of(&self, number: u64) -> String {
        format!("{}{number:0width$}", self.word, width = MARK_DIGITS)
    }

    /// The numbers of all marks in the answer, in the order in which they stand there.
    pub fn numbers<'a>(&'a self, answer: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        self.finder.find_iter(answer).filter_map(|at| {
            let from = at + self.word.len();
            digits(answer.get(from..from + MARK_DIGITS)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_numbers_stand_after_their_key() {
        let answer = br#"{"a":{"prev_batch":"p1"},"next_batch": "s12_3", "n":7,"m": 42}"#;
        assert_eq!(text_after(answer, b"\"next_batch\":"), Some("s12_3"));
        assert_eq!(text_after(answer, b"\"prev_batch\":"), Some("p1"));
        assert_eq!(number_after(answer, b"\"n\":"), Some(7));
        assert_eq!(number_after(answer, b"\"m\":"), Some(42));
        for absent in [&b"\"pos\":"[..], b"\"a\":", b"\"n\":"] {
            assert_eq!(text_after(answer, absent), None);
        }
        assert_eq!(text_after(br#"{"pos":"cut off"#, b"\"pos\":"), None);
        assert_eq!(text_after(br#"{"pos":"a\"b"}"#, b"\"pos\":"), None);
        assert_eq!(number_after(br#"{"n":"7"}"#, b"\"n\":"), None);
        assert_eq!(number_after(b"\"n\":", b"\"n\":"), None);
    }

    #[test]
    fn every_mark_is_found_in_order_and_no_other() {
        let (mark, other) = (Mark::new("WXa1"), Mark::new("WXa2"));
        let answer = format!(
            "[{{\"ciphertext\":\"{}AbC\"}},{{\"ciphertext\":\"{}9\"}},\"{}\",\"{}\"]",
            mark.of(7),
            mark.of(1_234_567_890),
            other.of(3),
            mark.of(0)
        );
        assert_eq!(mark.numbers(answer.as_bytes()).collect::<Vec<_>>(), [7, 1_234_567_890, 0]);
        assert_eq!(other.numbers(answer.as_bytes()).collect::<Vec<_>>(), [3]);
        assert_eq!(mark.numbers(b"WXa1").count(), 0);
        assert_eq!(mark.numbers(b"WXa1xyzxyzxyzx").count(), 0);
    }
}
