//! Content hash, reference hash and signed text of events, whatever numbers are in them.
//!
//! ruma's own are faster and know only the numbers of later rooms; an event without others is left to them.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue, RedactingSerializer, redact};
use ruma::room_version_rules::{EventIdFormatVersion, RoomVersionRules};
use ruma::signatures::JsonError;
use ruma::{OwnedServerSigningKeyId, ServerName};
use sha2::{Digest, Sha256};

use crate::KeyPair;
use crate::canonical::{CanonicalError, canonical_text, has_marks};

/// An event cannot be hashed or signed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no hash: {0}")]
pub struct HashError(String);

impl From<JsonError> for HashError {
    fn from(error: JsonError) -> HashError {
        HashError(error.to_string())
    }
}

impl From<CanonicalError> for HashError {
    fn from(error: CanonicalError) -> HashError {
        HashError(error.to_string())
    }
}

/// The SHA-256 of all that an event says.
/// <https://spec.matrix.org/v1.19/server-server-api/#calculating-the-content-hash-for-an-event>
pub(crate) fn content_hash(object: &CanonicalJsonObject) -> Result<Vec<u8>, HashError> {
    if !has_marks(object) {
        return Ok(ruma::signatures::content_hash(object)?.as_bytes().to_vec());
    }
    let text = canonical_text(&without(object.clone(), &["unsigned", "signatures", "hashes"]))?;
    Ok(Sha256::digest(text.as_bytes()).to_vec())
}

/// The reference hash in base64, in the alphabet of the room version.
/// <https://spec.matrix.org/v1.19/server-server-api/#calculating-the-reference-hash-for-an-event>
pub(crate) fn reference_hash(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<String, HashError> {
    if !has_marks(object) {
        return Ok(ruma::signatures::reference_hash(object, rules)?);
    }
    let hash = Sha256::digest(signed_text(object, rules)?.as_bytes());
    Ok(match rules.event_id_format {
        EventIdFormatVersion::V1 | EventIdFormatVersion::V2 => STANDARD_NO_PAD.encode(hash),
        _ => URL_SAFE_NO_PAD.encode(hash),
    })
}

/// The text that an event's signatures are over: its redacted form without `signatures` and `unsigned`.
pub(crate) fn signed_text(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<String, HashError> {
    const REMOVED: [&str; 2] = ["signatures", "unsigned"];
    if !has_marks(object) {
        let serializer = RedactingSerializer::new().rules(&rules.redaction);
        let text = serializer.custom_redacted_root_fields(&REMOVED).serialize(object);
        return text.map_err(|error| HashError(error.to_string()));
    }
    let redacted = redact(object.clone(), &rules.redaction, None);
    let redacted = redacted.map_err(|error| HashError(error.to_string()))?;
    Ok(canonical_text(&without(redacted, &REMOVED))?)
}

/// Adds the content hash.
pub(crate) fn add_content_hash(object: &mut CanonicalJsonObject) -> Result<(), HashError> {
    let hash = STANDARD_NO_PAD.encode(content_hash(object)?);
    let hashes = CanonicalJsonObject::from([("sha256".to_owned(), hash.into())]);
    object.insert("hashes".to_owned(), hashes.into());
    Ok(())
}

/// Adds a signature to those that are there.
pub(crate) fn add_signature(
    object: &mut CanonicalJsonObject,
    rules: &RoomVersionRules,
    server: &ServerName,
    key: &KeyPair,
) -> Result<(), HashError> {
    let text = signed_text(object, rules)?;
    let key = key.fixed();
    let (id, signature): (OwnedServerSigningKeyId, String) =
        (key.id(), STANDARD_NO_PAD.encode(key.sign_bytes(text.as_bytes())));
    let empty = || CanonicalJsonValue::Object(CanonicalJsonObject::new());
    let signatures = object.entry("signatures".to_owned()).or_insert_with(empty);
    let CanonicalJsonValue::Object(signatures) = signatures else {
        return Err(HashError("signatures are no object".to_owned()));
    };
    let ours = signatures.entry(server.to_string()).or_insert_with(empty);
    let CanonicalJsonValue::Object(ours) = ours else {
        return Err(HashError("signatures are no object".to_owned()));
    };
    ours.insert(id.to_string(), signature.into());
    Ok(())
}

fn without(mut object: CanonicalJsonObject, fields: &[&str]) -> CanonicalJsonObject {
    object.retain(|field, _| !fields.contains(&field.as_str()));
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Counts;
    use crate::parse::{DropReason, parse_pdu, raw_canonical};
    use crate::redact::redact_event;
    use crate::sign::{Verified, sign_event, verify_event};
    use crate::{Pdu, PowerLevels};
    use ruma::serde::Base64;
    use ruma::{Int, RoomVersionId};
    use serde_json::value::RawValue;
    use std::collections::BTreeMap;

    /// An event of a server in Python: hash, ids and signature were made with Python's `json`, `hashlib` and an ed25519
    /// library, by the words of the specification.
    const EVENT: &str = r#"{"type":"m.room.power_levels","state_key":"","sender":"@a:us.test","room_id":"!r:us.test",
        "depth":9223372036854775807,"origin_server_ts":1,"origin":"us.test","prev_events":[],"auth_events":[],
        "content":{"users":{"@a:us.test":100.0,"@b:us.test":50.75,"@c:us.test":9223372036854775808},"ban":5e1,
        "kick":" +50 ","x":[0.1,1e-7,-0,1E22,12345678901234567890]},
        "hashes":{"sha256":"8LBKqC8uvy2hwxaujlTTlrRdd/gs0ALW/EzEhLgRw8Y"},
        "signatures":{"us.test":{"ed25519:1":"fgOB1PxOISj9QPa66deO/QS6Vl/EmDFBYk2259KUInxZM9CdJX4i/dFQlqnhCzyNQvmFzstPbDJydpSYZLnICA"}}}"#;
    const PUBLIC_KEY: &str = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w";

    fn read(json: &str, version: &RoomVersionId) -> Result<Pdu, DropReason> {
        parse_pdu(&RawValue::from_string(json.to_owned()).unwrap(), version, Counts::Limited)
    }

    fn verified(pdu: &Pdu, version: &RoomVersionId) -> Verified {
        let keys = BTreeMap::from([("ed25519:1".to_owned(), Base64::parse(PUBLIC_KEY).unwrap())]);
        let keys = BTreeMap::from([("us.test".to_owned(), keys)]);
        verify_event(&pdu.object, version, &keys).unwrap()
    }

    #[test]
    fn old_rooms_have_numbers_of_every_kind() {
        for (version, id) in [
            (RoomVersionId::V3, "$Bc+WKwi48B3p6C7fZGet0Y+86JcVt8eIjxAY8WhiDbk"),
            (RoomVersionId::V4, "$Bc-WKwi48B3p6C7fZGet0Y-86JcVt8eIjxAY8WhiDbk"),
            (RoomVersionId::V5, "$Bc-WKwi48B3p6C7fZGet0Y-86JcVt8eIjxAY8WhiDbk"),
        ] {
            let pdu = read(EVENT, &version).unwrap();
            assert_eq!(pdu.event.event_id, id);
            assert_eq!(verified(&pdu, &version), Verified::All);
            // What is stored is the same event, and so is its redacted form.
            let again = read(pdu.event.json.get(), &version).unwrap();
            assert_eq!(again.event.event_id, id);
            assert_eq!(verified(&again, &version), Verified::All);
            let redacted = redact_event(&pdu.event, &version, None).unwrap();
            assert!(redacted.content.get().contains("50.75") && !redacted.content.get().contains("1e+22"));
            let redacted = read(redacted.json.get(), &version).unwrap();
            assert_eq!(redacted.event.event_id, id);
            assert!(matches!(verified(&redacted, &version), Verified::ContentHashMismatch(_)));
        }
        for version in [RoomVersionId::V6, RoomVersionId::V10, RoomVersionId::V12] {
            assert!(matches!(read(EVENT, &version), Err(DropReason::Canonical(_))), "{version}");
        }
    }

    #[test]
    fn another_number_is_another_event() {
        let other = read(&EVENT.replace("1E22", "1E23"), &RoomVersionId::V5).unwrap();
        assert!(matches!(verified(&other, &RoomVersionId::V5), Verified::ContentHashMismatch(_)));
        let other = EVENT.replace("50.75", "50.5");
        assert_ne!(
            read(&other, &RoomVersionId::V5).unwrap().event.event_id,
            read(EVENT, &RoomVersionId::V5).unwrap().event.event_id
        );
        // A key that stands twice is refused in every version.
        for version in [RoomVersionId::V1, RoomVersionId::V5] {
            let json = EVENT.replace(r#""ban":5e1"#, r#""ban":5e1,"ban":5e1"#);
            assert!(matches!(read(&json, &version), Err(DropReason::Canonical(_))));
        }
    }

    #[test]
    fn levels_count_without_their_fraction() {
        let create = EVENT
            .replace("m.room.power_levels", "m.room.create")
            .replace(r#""users""#, r#""creator":"@a:us.test","u""#);
        let (create, levels) =
            (read(&create, &RoomVersionId::V5).unwrap(), read(EVENT, &RoomVersionId::V5).unwrap());
        let levels = PowerLevels::new(&create.event, Some(&levels.event), &RoomVersionId::V5).unwrap();
        let users: Vec<i64> = levels.users().values().map(|level| (*level).into()).collect();
        assert_eq!(users, [100, 50, Int::MAX.into()]);
        assert_eq!(levels.action_levels()[1..3], [Int::from(50), Int::from(50)]);
    }

    #[test]
    fn our_signature_holds_beside_theirs() {
        let version = RoomVersionId::V5;
        let mut object = read(EVENT, &version).unwrap().object;
        let key = KeyPair::from_seed([2; 32], "2").unwrap();
        sign_event(&mut object, &version, "us.test".try_into().unwrap(), &key).unwrap();
        let signed = read(raw_canonical(&object).unwrap().get(), &version).unwrap();
        let keys = BTreeMap::from([("ed25519:2".to_owned(), key.public_key())]);
        let keys = BTreeMap::from([("us.test".to_owned(), keys)]);
        assert_eq!(verify_event(&signed.object, &version, &keys).unwrap(), Verified::All);
        assert_eq!(verified(&signed, &version), Verified::All);
    }
}
