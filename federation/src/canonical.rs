//! Canonical JSON of whole bodies: <https://spec.matrix.org/v1.19/appendices/#canonical-json>.

use ruma::CanonicalJsonObject;
use serde::de::Error as _;
use serde_json::Error;
use serde_json::value::RawValue;
use waxwing_rooms::{canonical_text, collapsed_text, lenient_object};

/// The canonical form of a JSON document. Floats are an error in canonical JSON, but a transaction may carry an old
/// room's event with one, and its sender signed it nonetheless: those are written as that room's events are hashed. A
/// repeated key makes one event bad, and not the body around it: whoever takes a part of the body refuses it.
pub(crate) fn canonical_bytes(body: &[u8]) -> Result<String, Error> {
    collapsed_text(std::str::from_utf8(body).map_err(Error::custom)?).map_err(Error::custom)
}

/// A JSON object ready to be signed, and free of repeated keys.
pub(crate) fn canonical_object(json: &RawValue) -> Result<CanonicalJsonObject, Error> {
    lenient_object(json.get()).map_err(Error::custom)
}

/// Writes an object in canonical form.
pub(crate) fn to_raw(object: &CanonicalJsonObject) -> Result<Box<RawValue>, Error> {
    RawValue::from_string(canonical_text(object).map_err(Error::custom)?)
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
        assert_eq!(
            canonical_bytes(br#"{"b":1e20,"a":18446744073709551616,"a":0.1e1}"#).unwrap(),
            r#"{"a":1.0,"b":1e+20}"#
        );
        assert!(canonical_bytes(b"{").is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(canonical_bytes(deep.as_bytes()).is_err());
    }
}
