//! Canonical JSON, read strictly: <https://spec.matrix.org/v1.19/appendices/#canonical-json>.
//!
//! Two servers that read the same bytes must see the same object, so a repeated key is an error here and not "the last
//! one wins"; so are floats, exponents, `-0` and integers beyond 53 bits. Rooms of versions 1 to 5 may hold events
//! with such numbers; those events are refused too, as no two servers agree on the bytes to hash.

use ruma::{CanonicalJsonObject, CanonicalJsonValue, Int};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::btree_map::Entry;
use std::fmt;

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
    serde_json::to_string(object).map_err(CanonicalError::new)
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
        Ok(CanonicalJsonValue::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::String(value))
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
