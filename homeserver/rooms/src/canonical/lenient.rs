//! JSON as rooms of versions 1 to 5 allow it: every number that JSON knows.
//!
//! Everything else is as strict as in later rooms: no other server reads two meanings out of it.

use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use serde_json::value::RawValue;

use super::{CanonicalError, Written, canonical_object, number, string};

/// Levels of nesting, as many as the strict reader takes.
const MAX_DEPTH: usize = 127;

/// What is done about a key that stands twice in an object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeated {
    Refused,
    /// The last one counts.
    Collapsed,
}

/// Reads a JSON object with any numbers. Those that other canonical JSON has no place for are kept as text inside:
/// [`super::canonical_text`] writes them as they are hashed. A repeated key is an error.
///
/// For events of rooms of versions 1 to 5, and of events that are stored already.
pub fn lenient_object(json: &str) -> Result<CanonicalJsonObject, CanonicalError> {
    // Hardly any event has such numbers.
    canonical_object(json).or_else(|_| read(json, Repeated::Refused))
}

/// The canonical form of JSON that is no event, as its sender hashed and signed it: with any numbers, and the last of
/// repeated keys.
pub fn collapsed_text(json: &str) -> Result<String, CanonicalError> {
    let value = match canonical_object(json) {
        Ok(object) => CanonicalJsonValue::Object(object),
        Err(_) => read_value(json, Repeated::Collapsed)?,
    };
    serde_json::to_string(&Written(&value)).map_err(CanonicalError::new)
}

fn read(json: &str, repeated: Repeated) -> Result<CanonicalJsonObject, CanonicalError> {
    match read_value(json, repeated)? {
        CanonicalJsonValue::Object(object) => Ok(object),
        _ => Err(CanonicalError::new("not an object")),
    }
}

fn read_value(json: &str, repeated: Repeated) -> Result<CanonicalJsonValue, CanonicalError> {
    // Whatever is no JSON ends here, and what follows need not look twice.
    let whole: &RawValue = serde_json::from_str(json).map_err(CanonicalError::new)?;
    Reader { rest: whole.get(), repeated }.value(0)
}

struct Reader<'a> {
    rest: &'a str,
    repeated: Repeated,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<CanonicalJsonValue, CanonicalError> {
        if depth > MAX_DEPTH {
            return Err(CanonicalError::new("nested too deeply"));
        }
        self.space();
        match self.rest.as_bytes().first() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(string(self.text()?)),
            Some(b't') => self.word("true", true.into()),
            Some(b'f') => self.word("false", false.into()),
            Some(b'n') => self.word("null", CanonicalJsonValue::Null),
            _ => {
                let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let length = self.rest.bytes().take_while(is_part).count();
                let (digits, rest) = self.rest.split_at(length);
                self.rest = rest;
                number::value(digits).ok_or_else(|| CanonicalError::new("a number that nobody can read"))
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<CanonicalJsonValue, CanonicalError> {
        let mut object = CanonicalJsonObject::new();
        self.rest = &self.rest[1..];
        if self.takes(b'}') {
            return Ok(object.into());
        }
        loop {
            self.space();
            let key = self.text()?;
            self.needs(b':')?;
            let value = self.value(depth + 1)?;
            if let Some(key) = object.contains_key(&key).then_some(&key)
                && self.repeated == Repeated::Refused
            {
                return Err(CanonicalError::new(format!("repeated key `{key}`")));
            }
            object.insert(key, value);
            if self.takes(b'}') {
                return Ok(object.into());
            }
            self.needs(b',')?;
        }
    }

    fn list(&mut self, depth: usize) -> Result<CanonicalJsonValue, CanonicalError> {
        let mut list = Vec::new();
        self.rest = &self.rest[1..];
        if self.takes(b']') {
            return Ok(CanonicalJsonValue::Array(list));
        }
        loop {
            list.push(self.value(depth + 1)?);
            if self.takes(b']') {
                return Ok(CanonicalJsonValue::Array(list));
            }
            self.needs(b',')?;
        }
    }

    /// A string, quotes and escapes taken off.
    fn text(&mut self) -> Result<String, CanonicalError> {
        let bytes = self.rest.as_bytes();
        let mut end = 1;
        while bytes.get(end).is_some_and(|byte| *byte != b'"') {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let quoted = self.rest.get(..=end).ok_or_else(|| CanonicalError::new("a string without end"))?;
        self.rest = &self.rest[end + 1..];
        serde_json::from_str(quoted).map_err(CanonicalError::new)
    }

    fn word(&mut self, word: &str, value: CanonicalJsonValue) -> Result<CanonicalJsonValue, CanonicalError> {
        self.rest = self.rest.strip_prefix(word).ok_or_else(|| CanonicalError::new("not JSON"))?;
        Ok(value)
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    /// Takes a sign that may follow.
    fn takes(&mut self, sign: u8) -> bool {
        self.space();
        let follows = self.rest.as_bytes().first() == Some(&sign);
        if follows {
            self.rest = &self.rest[1..];
        }
        follows
    }

    /// Takes a sign that must follow.
    fn needs(&mut self, sign: u8) -> Result<(), CanonicalError> {
        if self.takes(sign) { Ok(()) } else { Err(CanonicalError::new("not JSON")) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{canonical_text, has_marks};
    use super::*;

    fn again(json: &str) -> String {
        canonical_text(&lenient_object(json).unwrap()).unwrap()
    }

    #[test]
    fn numbers_come_out_as_they_are_hashed() {
        let json =
            r#" { "b" : [ 1.0, 1e3, -0 , 18446744073709551616, {"z":1.50,"a":"\u00e9\n\""} ], "a" : -0.0 } "#;
        let text = r#"{"a":-0.0,"b":[1.0,1000.0,0,18446744073709551616,{"a":"é\n\"","z":1.5}]}"#;
        assert_eq!(again(json), text);
        assert_eq!(again(text), text);
        assert!(!has_marks(&lenient_object(r#"{"a":[1,"x"]}"#).unwrap()));
    }

    #[test]
    fn strings_that_look_like_kept_numbers_stay_strings() {
        for inner in ["#1.5", "$", "", "$#1.5", "#1.5,\\\"b\\\":1"] {
            let json = format!("{{\"a\":\"\u{10ffff}{inner}\",\"b\":2.5}}");
            assert_eq!(again(&json), json);
            let plain = format!("{{\"a\":\"\u{10ffff}{inner}\"}}");
            assert_eq!(canonical_text(&canonical_object(&plain).unwrap()).unwrap(), plain);
        }
    }

    #[test]
    fn repeated_keys_are_refused_or_collapsed() {
        for json in [r#"{"a":1.5,"a":1}"#, r#"{"a":{"b":1,"\u0062":2}}"#, r#"{"x":[{"k":1,"k":1}]}"#] {
            assert!(lenient_object(json).is_err(), "{json}");
        }
        assert_eq!(collapsed_text(r#"{"a":1.5,"a":[1e2]}"#).unwrap(), r#"{"a":[100.0]}"#);
    }

    #[test]
    fn rubbish_is_refused() {
        assert!(lenient_object("[1.5]").is_err());
        for json in ["", "{", r#"{"a":1.5}}"#, r#"{"a":1.5,}"#, r#"{"a":nan}"#, r#"{"a":1e999}"#] {
            assert!(lenient_object(json).is_err(), "{json}");
            assert!(collapsed_text(json).is_err(), "{json}");
        }
        let deep = format!("{{\"a\":{}1.5{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(lenient_object(&deep).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = lenient_object(&text);
            let _ = collapsed_text(&format!("{{\"a\":{text}}}"));
        }

        #[test]
        fn agrees_with_the_strict_reader(text in "[a-z\"\\\\{}\\[\\],:0-9 ]*") {
            let json = format!("{{\"a\":[{text}]}}");
            if let Ok(strict) = canonical_object(&json) {
                let lenient = read(&json, Repeated::Refused).unwrap();
                proptest::prop_assert_eq!(lenient, strict);
            }
        }
    }
}
