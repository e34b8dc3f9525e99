//! Canonical JSON, read strictly: <https://spec.matrix.org/v1.19/appendices/#canonical-json>.
//!
//! Two servers that read the same bytes must see the same object, so a repeated key is an error here and not "the last
//! one wins"; so are floats, exponents, `-0` and integers beyond 53 bits. Rooms of versions 1 to 5 may hold events
//! with such numbers: [`lenient_object`] reads those, and keeps each number as the text that is hashed and signed
//! ([`number`]).

mod already;
mod lenient;
mod number;

pub use already::is_canonical;
pub use lenient::{collapsed_text, lenient_object};
pub(crate) use number::big_integer;

use ruma::{CanonicalJsonObject, CanonicalJsonValue, Int};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use std::collections::btree_map::Entry;
use std::fmt;

/// Begins strings of a [`CanonicalJsonValue`] that are not what they seem: [`NUMBER`] and a number's text, or [`TEXT`] and
/// a string that really begins like this. No character by the Unicode standard, so real strings hardly ever do.
const MARK: char = '\u{10ffff}';
/// A number that [`CanonicalJsonValue`] has no place for follows.
const NUMBER: char = '#';
/// A string follows.
const TEXT: char = '$';

/// The text is not a JSON object in the canonical subset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not canonical JSON: {0}")]
pub struct CanonicalError(String);

impl CanonicalError {
    pub(crate) fn new(error: impl ToString) -> CanonicalError {
        CanonicalError(error.to_string())
    }
}

/// Reads a JSON object strictly (see the module). White space and the order of keys are free.
pub fn canonical_object(json: &str) -> Result<CanonicalJsonObject, CanonicalError> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let value = Strict.deserialize(&mut reader).map_err(CanonicalError::new)?;
    reader.end().map_err(CanonicalError::new)?;
    match value {
        CanonicalJsonValue::Object(object) => Ok(object),
        _ => Err(CanonicalError::new("not an object")),
    }
}

/// Writes an object in canonical form.
pub fn canonical_text(object: &CanonicalJsonObject) -> Result<String, CanonicalError> {
    let text = if has_marks(object) {
        serde_json::to_string(&WrittenObject(object))
    } else {
        serde_json::to_string(object)
    };
    text.map_err(CanonicalError::new)
}

/// Whether some string of an object is not what it seems: only [`canonical_text`] writes such an object as it is.
pub(crate) fn has_marks(object: &CanonicalJsonObject) -> bool {
    object.values().any(is_marked)
}

fn is_marked(value: &CanonicalJsonValue) -> bool {
    match value {
        CanonicalJsonValue::String(text) => text.starts_with(MARK),
        CanonicalJsonValue::Array(list) => list.iter().any(is_marked),
        CanonicalJsonValue::Object(object) => has_marks(object),
        _ => false,
    }
}

/// A string as a value.
fn string(text: String) -> CanonicalJsonValue {
    if text.starts_with(MARK) { format!("{MARK}{TEXT}{text}").into() } else { text.into() }
}

/// Writes a value, what is marked as what it stands for.
struct Written<'a>(&'a CanonicalJsonValue);

struct WrittenObject<'a>(&'a CanonicalJsonObject);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            CanonicalJsonValue::String(text) => match text.strip_prefix(MARK) {
                Some(rest) => match (rest.strip_prefix(TEXT), rest.strip_prefix(NUMBER)) {
                    (Some(text), _) => serializer.serialize_str(text),
                    (_, Some(digits)) if number::written(digits).as_deref() == Some(digits) => {
                        let raw = serde_json::value::RawValue::from_string(digits.to_owned());
                        raw.map_err(serde::ser::Error::custom)?.serialize(serializer)
                    }
                    _ => serializer.serialize_str(text),
                },
                None => serializer.serialize_str(text),
            },
            CanonicalJsonValue::Array(list) => {
                let mut seq = serializer.serialize_seq(Some(list.len()))?;
                for value in list {
                    seq.serialize_element(&Written(value))?;
                }
                seq.end()
            }
            CanonicalJsonValue::Object(object) => WrittenObject(object).serialize(serializer),
            other => other.serialize(serializer),
        }
    }
}

impl Serialize for WrittenObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            map.serialize_entry(key, &Written(value))?;
        }
        map.end()
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = CanonicalJsonValue;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = CanonicalJsonValue;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value of canonical JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Int::try_from(value).map(Into::into).map_err(|_| E::custom("integer out of range"))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Int::try_from(value).map(Into::into).map_err(|_| E::custom("integer out of range"))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Err(E::custom("a number that is not a plain integer"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(string(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Self::Value, E> {
        Ok(string(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element_seed(Strict)? {
            list.push(value);
        }
        Ok(CanonicalJsonValue::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut object = CanonicalJsonObject::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(Strict)?;
            match object.entry(key) {
                Entry::Vacant(slot) => _ = slot.insert(value),
                Entry::Occupied(slot) => {
                    return Err(A::Error::custom(format!("repeated key `{}`", slot.key())));
                }
            }
        }
        Ok(CanonicalJsonValue::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_sorts() {
        let object = canonical_object(" {\"b\":[1,{\"z\":null,\"a\":true}], \"a\":\"\\u00e9\"} ").unwrap();
        assert_eq!(canonical_text(&object).unwrap(), r#"{"a":"é","b":[1,{"a":true,"z":null}]}"#);
    }

    #[test]
    fn refuses_what_servers_read_differently() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":1.5}"#,
            r#"{"a":1e3}"#,
            r#"{"a":-0}"#,
            r#"{"a":9007199254740992}"#,
            r#"{"a":18446744073709551616}"#,
            "[]",
            "{",
            "{} {}",
            "",
        ] {
            assert!(canonical_object(text).is_err(), "{text}");
        }
        assert!(canonical_object(r#"{"a":-9007199254740991}"#).is_ok());
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(canonical_object(&deep).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = canonical_object(&text);
        }
    }
}
