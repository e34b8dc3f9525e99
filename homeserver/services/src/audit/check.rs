//! What anyone could read who holds it.

use ruma::events::TimelineEventType;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use waxwing_rooms::sealed::{SealPolicy, check_to_device, is_plaintext_payload};

/// Types of account data that hold secrets, which clients encrypt with the recovery key:
/// <https://spec.matrix.org/v1.19/client-server-api/#secrets>.
const SECRETS: [&str; 5] = [
    "m.cross_signing.master",
    "m.cross_signing.self_signing",
    "m.cross_signing.user_signing",
    "m.megolm_backup.v1",
    "org.matrix.msc3814",
];
/// What keys in account data or a backup would stand under in the clear.
const KEY_FIELDS: [&str; 4] = ["session_key", "room_keys", "private_key", "passphrase_key"];

#[derive(Deserialize)]
struct Typed {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    content: Option<Box<RawValue>>,
    #[serde(default)]
    state_key: Option<String>,
}

/// The type of a to-device message, and whether it carries keys in the clear. What cannot be read is a finding.
pub(super) fn readable_to_device(json: &str) -> (String, bool) {
    let Ok(Typed { kind, content: Some(content), .. }) = serde_json::from_str(json) else {
        return ("unreadable".to_owned(), true);
    };
    let readable = check_to_device(&kind, &content, &SealPolicy::default()).is_err();
    (kind, readable)
}

/// The type of an event, and whether it is a message in the clear.
pub(super) fn readable_event(json: &RawValue) -> (String, bool) {
    let Ok(Typed { kind, content: Some(content), state_key }) = serde_json::from_str(json.get()) else {
        return ("unreadable".to_owned(), true);
    };
    let readable =
        is_plaintext_payload(&TimelineEventType::from(kind.as_str()), &content, state_key.is_some());
    (kind, readable)
}

/// What people wrote in an application service's transaction.
#[derive(Deserialize)]
struct Transaction {
    #[serde(default)]
    events: Vec<Box<RawValue>>,
    #[serde(default)]
    to_device: Vec<Box<RawValue>>,
}

/// The type of each event and message to a device in an application service's transaction, and whether it is in the
/// clear. None: it cannot be read.
pub(super) fn transaction(json: &str) -> Option<Vec<(String, bool)>> {
    let Transaction { events, to_device } = serde_json::from_str(json).ok()?;
    let events = events.iter().map(|event| readable_event(event));
    Some(events.chain(to_device.iter().map(|message| readable_to_device(message.get()))).collect())
}

#[derive(Deserialize)]
struct Edu {
    #[serde(alias = "type")]
    edu_type: String,
    content: Box<RawValue>,
}

#[derive(Deserialize)]
struct DirectToDevice {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    messages: BTreeMap<String, BTreeMap<String, Box<RawValue>>>,
}

/// The type of a waiting EDU, and whether it carries keys in the clear.
pub(super) fn readable_edu(json: &str) -> (String, bool) {
    let Ok(Edu { edu_type, content }) = serde_json::from_str(json) else {
        return ("unreadable".to_owned(), true);
    };
    if edu_type != "m.direct_to_device" {
        return (edu_type, false);
    }
    let Ok(message) = serde_json::from_str::<DirectToDevice>(content.get()) else {
        return (edu_type, true);
    };
    let policy = SealPolicy::default();
    let mut contents = message.messages.values().flat_map(BTreeMap::values);
    let readable = contents.any(|content| check_to_device(&message.kind, content, &policy).is_err());
    (edu_type, readable)
}

/// Whether account data carries a secret in the clear: a type of secrets without its ciphertext, or keys in any.
pub(super) fn is_readable_secret(kind: &str, json: &str) -> bool {
    let Ok(content) = serde_json::from_str::<Map<String, Value>>(json) else {
        return SECRETS.contains(&kind);
    };
    // Removed account data is an empty object.
    let secret = SECRETS.contains(&kind)
        && !content.is_empty()
        && content.get("encrypted").and_then(Value::as_object).is_none();
    secret || KEY_FIELDS.iter().any(|field| content.contains_key(*field))
}

/// Whether a backed-up key is not encrypted.
pub(super) fn is_readable_key(json: &str) -> bool {
    let Ok(content) = serde_json::from_str::<Map<String, Value>>(json) else { return true };
    let sealed = content.get("ciphertext").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    !sealed || KEY_FIELDS.iter().any(|field| content.contains_key(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_the_clear_are_found() {
        assert!(readable_to_device(r#"{"type":"m.room_key","sender":"@a:b","content":{"x":1}}"#).1);
        assert!(!readable_to_device(r#"{"type":"m.dummy","sender":"@a:b","content":{}}"#).1);
        let edu = |kind: &str| {
            let message = format!(r#"{{"type":"{kind}","messages":{{"@a:b":{{"D":{{}}}}}}}}"#);
            readable_edu(&format!(r#"{{"edu_type":"m.direct_to_device","content":{message}}}"#)).1
        };
        assert!(edu("m.forwarded_room_key"));
        assert!(!edu("m.key.verification.start"));
        assert!(!readable_edu(r#"{"edu_type":"m.typing","content":{}}"#).1);
    }

    #[test]
    fn secrets_in_the_clear_are_found() {
        assert!(is_readable_secret("m.cross_signing.master", r#"{"key":"abc"}"#));
        assert!(!is_readable_secret("m.cross_signing.master", r#"{"encrypted":{"id":{"ciphertext":"A"}}}"#));
        assert!(!is_readable_secret("m.cross_signing.master", "{}"));
        assert!(!is_readable_secret("m.direct", r#"{"@a:b":["!r:b"]}"#));
        assert!(is_readable_secret("org.example.keys", r#"{"session_key":"abc"}"#));
        assert!(!is_readable_key(r#"{"ciphertext":"A","ephemeral":"B","mac":"C"}"#));
        assert!(is_readable_key(r#"{"session_key":"A"}"#));
    }
}
