//! Whether a text is canonical as it stands, so that it need not be read and written again.

/// Nesting that is looked into; deeper texts are left to the reader.
const MAX_DEPTH: usize = 32;
/// Digits of the largest number that is looked at: all of 15 digits are within 53 bits.
const MAX_DIGITS: usize = 15;

/// Whether `json` is an object in canonical form: what [`super::canonical_text`] would write for it. `false` may be
/// wrong: for texts with escapes, long numbers or deep nesting.
pub fn is_canonical(json: &str) -> bool {
    let mut rest = Rest(json.as_bytes());
    rest.0.first() == Some(&b'{') && rest.value(0).is_some() && rest.0.is_empty()
}

/// What is left to look at; each step takes something away from the front, or is `None`.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        match self.0.first()? {
            b'{' if depth < MAX_DEPTH => self.object(depth + 1),
            b'[' if depth < MAX_DEPTH => self.array(depth + 1),
            b'"' => self.string().map(drop),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(word)?;
        Some(())
    }

    /// A string without escapes. One that begins like the marks of this module needs the reader.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let end = self.0.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\"")?;
        let mut mark = [0; 4];
        (!text.starts_with(super::MARK.encode_utf8(&mut mark).as_bytes())).then_some(text)
    }

    fn number(&mut self) -> Option<()> {
        let negative = self.take(b'-').is_some();
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let zero_first = self.0.first() == Some(&b'0');
        self.0 = &self.0[digits..];
        let plain = (1..=MAX_DIGITS).contains(&digits) && (!zero_first || digits == 1 && !negative);
        plain.then_some(())
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.take(b'[')?;
        if self.take(b']').is_some() {
            return Some(());
        }
        loop {
            self.value(depth)?;
            if self.take(b']').is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }

    /// Keys rise, so none is there twice.
    fn object(&mut self, depth: usize) -> Option<()> {
        self.take(b'{')?;
        if self.take(b'}').is_some() {
            return Some(());
        }
        let mut last: Option<&[u8]> = None;
        loop {
            let key = self.string()?;
            if last.is_some_and(|last| last >= key) {
                return None;
            }
            last = Some(key);
            self.take(b':')?;
            self.value(depth)?;
            if self.take(b'}').is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{canonical_object, canonical_text};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn knows_canonical_texts() {
        for text in [
            "{}",
            r#"{"a":[],"b":[0,-1,999999999999999,true,false,null],"c":{"é":"ü","𝄞":""}}"#,
            r#"{"key":"abc/+","signatures":{"@a:x":{"ed25519:D":"sig"}}}"#,
        ] {
            assert!(is_canonical(text), "{text}");
            assert_eq!(canonical_text(&canonical_object(text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn leaves_all_others_to_the_reader() {
        let deep = format!("{}1{}", "{\"a\":".repeat(40), "}".repeat(40));
        for text in [
            "",
            "[]",
            "1",
            " {}",
            "{} ",
            "{}{}",
            r#"{"a":1"#,
            r#"{"a":1,}"#,
            r#"{"b":1,"a":1}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"a": 1}"#,
            r#"{"a":01}"#,
            r#"{"a":-0}"#,
            r#"{"a":-}"#,
            r#"{"a":1.0}"#,
            r#"{"a":1e3}"#,
            r#"{"a":9007199254740993}"#,
            r#"{"a":"\u0061"}"#,
            "{\"a\":\"\u{1}\"}",
            "{\"a\":\"\u{10ffff}#1\"}",
            r#"{"a":"b}"#,
            r#"{"a":tru}"#,
            "{a:1}",
            r#"{"a":[1,]}"#,
            &deep,
        ] {
            assert!(!is_canonical(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_it_knows_is_written_the_same(text in r#"\{("[ab]":("x"|[0-9]{1,17}|-?[0-9]|\[[0-9],[0-9]\]|\{"k":[0-9]\}),?){0,3}\}"#) {
            if is_canonical(&text) {
                prop_assert_eq!(canonical_text(&canonical_object(&text).unwrap()).unwrap(), text);
            }
        }
    }
}
