//! Canonical JSON of whole bodies: <https://spec.matrix.org/v1.19/appendices/#canonical-json>.

use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The canonical form of a JSON document. Floats are an error in canonical JSON, but a transaction may carry an old
/// room's event with one, and its sender signed it nonetheless: those bodies are sorted and written as they are.
pub(crate) fn canonical_bytes(body: &[u8]) -> Result<String, serde_json::Error> {
    match serde_json::from_slice::<CanonicalJsonValue>(body) {
        Ok(value) => serde_json::to_string(&value),
        Err(_) => serde_json::to_string(&Sorted::from(serde_json::from_slice::<Value>(body)?)),
    }
}

/// A JSON object ready to be signed.
pub(crate) fn canonical_object(json: &RawValue) -> Result<CanonicalJsonObject, serde_json::Error> {
    serde_json::from_str(json.get())
}

/// Writes an object in canonical form.
pub(crate) fn to_raw(object: &CanonicalJsonObject) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(object)
}

/// JSON with its keys in order, whatever order the map of the JSON library keeps.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Sorted {
    Object(BTreeMap<String, Sorted>),
    Array(Vec<Sorted>),
    Leaf(Value),
}

impl From<Value> for Sorted {
    fn from(value: Value) -> Sorted {
        match value {
            Value::Object(map) => Sorted::Object(map.into_iter().map(|(k, v)| (k, v.into())).collect()),
            Value::Array(list) => Sorted::Array(list.into_iter().map(Into::into).collect()),
            leaf => Sorted::Leaf(leaf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_with_and_without_floats() {
        assert_eq!(
            canonical_bytes(br#"{"b":[1, {"d":1,"c":2}],"a":"x"}"#).unwrap(),
            r#"{"a":"x","b":[1,{"c":2,"d":1}]}"#
        );
        assert_eq!(
            canonical_bytes(br#"{"b":1.5,"a":{"d":1,"c":2}}"#).unwrap(),
            r#"{"a":{"c":2,"d":1},"b":1.5}"#
        );
        assert!(canonical_bytes(b"{").is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(canonical_bytes(deep.as_bytes()).is_err());
    }
}
