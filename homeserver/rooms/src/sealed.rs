//! Sealed by default: which events may carry words in the clear.
//!
//! The promise is "no plaintext message payloads", not "no plaintext": state, receipts, reactions and call signalling
//! are metadata that the protocol routes by, and stay readable. What a client meant to encrypt and did not is
//! refused before it is written anywhere.

use ruma::RoomVersionId;
use ruma::events::TimelineEventType;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use waxwing_model::Event;

use crate::redact::{RedactError, redact_event};

/// What a server, or one room or bridge by way of exception, does with plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Plaintext {
    /// Refuse it from our clients, redact it when it comes from other servers.
    #[default]
    Refuse,
    /// Keep it as any other server does.
    Accept,
}

/// The policy that applies to one event.
#[derive(Debug, Clone, Default)]
pub struct SealPolicy {
    /// What happens to plaintext payloads.
    pub plaintext: Plaintext,
    /// Message-like types that the operator allows in the clear beyond the built-in list.
    pub also_clear: BTreeSet<String>,
}

/// Why an event or to-device message is refused. The text is for the person who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A message that is not encrypted.
    #[error("this server only accepts encrypted messages; `{0}` events must be sent encrypted")]
    Plaintext(String),
    /// An `m.room.encrypted` without algorithm or ciphertext, or with text beside them.
    #[error("`m.room.encrypted` must carry an algorithm and ciphertext, and no readable text")]
    NotEncrypted,
    /// An event that may be sent in the clear, but with a message body in it.
    #[error("`{0}` events may not carry message text on this server")]
    TextInside(String),
    /// Keys sent without encryption.
    #[error("`{0}` carries keys and must be sent encrypted")]
    RawKeys(String),
    /// A room without encryption that is not a space.
    #[error("this server only joins encrypted rooms and spaces")]
    UnencryptedRoom,
}

/// Message-like types that are signalling or metadata and that clients send in the clear even in encrypted rooms.
const CLEAR_TYPES: [&str; 12] = [
    "m.room.redaction",
    "m.reaction",
    "m.room.encrypted",
    // Who is rung, and that they declined: no content of the call.
    "m.rtc.notification",
    "m.rtc.decline",
    "org.matrix.msc4075.rtc.notification",
    "org.matrix.msc4075.call.notify",
    "org.matrix.msc4310.rtc.decline",
    "org.matrix.msc3401.call",
    "org.matrix.msc3401.call.member",
    "org.matrix.msc4143.rtc.member",
    "m.rtc.member",
];
/// The same, by prefix.
const CLEAR_PREFIXES: [&str; 3] = ["m.call.", "org.matrix.call.", "m.key.verification."];
/// Types under [`CLEAR_PREFIXES`] that carry keys or text all the same.
const NEVER_CLEAR: [&str; 2] = ["m.call.encryption_keys", "org.matrix.call.encryption_keys"];

/// Message types. Sent with a state key they are still messages, not state.
const MESSAGE_TYPES: [&str; 10] = [
    "m.room.message",
    "m.sticker",
    "m.message",
    "m.poll.start",
    "m.poll.response",
    "m.poll.end",
    "org.matrix.msc3381.poll.start",
    "org.matrix.msc3381.poll.response",
    "org.matrix.msc3381.poll.end",
    "m.room.message.feedback",
];

/// Where message-like content keeps its words.
const TEXT_FIELDS: [&str; 8] = [
    "body",
    "formatted_body",
    "m.new_content",
    "m.text",
    "m.caption",
    "m.file",
    "org.matrix.msc1767.text",
    "org.matrix.msc1767.message",
];

/// What a request to verify somebody in a room is made of:
/// <https://spec.matrix.org/v1.19/client-server-api/#mroommessagemkeyverificationrequest>.
const REQUEST_FIELDS: [&str; 7] =
    ["msgtype", "body", "from_device", "methods", "to", "m.mentions", "m.relates_to"];
/// The most bytes of such a request's fallback text. Clients write one fixed sentence, of about 200 bytes.
const MAX_REQUEST_BODY: usize = 512;

/// To-device types that carry keys or secrets and are only ever meant to travel inside `m.room.encrypted`.
const KEY_TYPES: [&str; 7] = [
    "m.room_key",
    "m.forwarded_room_key",
    "m.secret.send",
    "m.room_key_bundle",
    "m.room_key.bundle",
    "io.element.msc4268.room_key_bundle",
    "io.element.call.encryption_keys",
];

/// Whether a local client may send this event.
///
/// State events are metadata and allowed, unless their type is a message's. Errors: 403, with the refusal's text.
pub fn check_local_send(
    kind: &TimelineEventType,
    content: &RawValue,
    state_key: Option<&str>,
    policy: &SealPolicy,
) -> Result<(), Refusal> {
    if policy.plaintext == Plaintext::Accept {
        return Ok(());
    }
    let kind = kind.to_string();
    if is_metadata_state(&kind, state_key.is_some()) || policy.also_clear.contains(&kind) {
        return Ok(());
    }
    check_message(&kind, content)
}

fn is_metadata_state(kind: &str, is_state: bool) -> bool {
    is_state && !MESSAGE_TYPES.contains(&kind) && kind != "m.room.encrypted"
}

fn check_message(kind: &str, content: &RawValue) -> Result<(), Refusal> {
    let Ok(content) = serde_json::from_str::<Map<String, Value>>(content.get()) else {
        return Err(Refusal::Plaintext(kind.to_owned()));
    };
    let has_text = TEXT_FIELDS.iter().any(|field| content.contains_key(*field));
    if kind == "m.room.encrypted" {
        return if is_ciphertext(&content) && !has_text { Ok(()) } else { Err(Refusal::NotEncrypted) };
    }
    if kind == "m.room.message" && is_verification_request(&content) {
        return Ok(());
    }
    if !may_be_clear(kind) {
        return Err(Refusal::Plaintext(kind.to_owned()));
    }
    if has_text { Err(Refusal::TextInside(kind.to_owned())) } else { Ok(()) }
}

fn may_be_clear(kind: &str) -> bool {
    let listed = CLEAR_TYPES.contains(&kind) || CLEAR_PREFIXES.iter().any(|prefix| kind.starts_with(prefix));
    listed && !NEVER_CLEAR.contains(&kind)
}

/// Whether a message is the first step of a verification, whose other steps are event types of their own. Clients on
/// matrix-js-sdk send it in the clear in encrypted rooms too; it carries no words but a fixed sentence for clients that
/// know no verification.
fn is_verification_request(content: &Map<String, Value>) -> bool {
    let text = |field: &str| content.get(field).and_then(Value::as_str);
    text("msgtype") == Some("m.key.verification.request")
        && text("from_device").is_some_and(|device| !device.is_empty())
        && text("to").is_some_and(|user| user.starts_with('@'))
        && text("body").is_some_and(|body| body.len() <= MAX_REQUEST_BODY)
        && content.keys().all(|field| REQUEST_FIELDS.contains(&field.as_str()))
}

/// Whether content has what every encryption algorithm of the protocol has: its name, and a ciphertext that is text
/// (Megolm) or one text per device (Olm).
fn is_ciphertext(content: &Map<String, Value>) -> bool {
    let algorithm = content.get("algorithm").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    let ciphertext = match content.get("ciphertext") {
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Object(devices)) => !devices.is_empty(),
        _ => false,
    };
    algorithm && ciphertext
}

/// Whether an event carries a message that anyone who holds it can read: for the audit, and for events of other
/// servers, which are then kept in their redacted form. A redacted event carries nothing.
pub fn is_plaintext_payload(kind: &TimelineEventType, content: &RawValue, is_state: bool) -> bool {
    let kind = kind.to_string();
    if is_metadata_state(&kind, is_state) || is_empty_object(content) {
        return false;
    }
    check_message(&kind, content).is_err()
}

fn is_empty_object(content: &RawValue) -> bool {
    serde_json::from_str::<Map<String, Value>>(content.get()).is_ok_and(|content| content.is_empty())
}

/// The form in which another server's event is kept: redacted when it is a plaintext payload and the policy refuses
/// those, `None` when it stays as it is. Id, hashes and signatures hold for both forms.
pub fn seal_remote(
    event: &Event,
    version: &RoomVersionId,
    policy: &SealPolicy,
) -> Result<Option<Event>, RedactError> {
    let allowed =
        policy.plaintext == Plaintext::Accept || policy.also_clear.contains(&event.kind.to_string());
    if allowed || !is_plaintext_payload(&event.kind, &event.content, event.is_state()) {
        return Ok(None);
    }
    redact_event(event, version, None).map(Some)
}

/// Whether a local client may send this to-device message: keys and secrets only inside `m.room.encrypted`.
/// <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>
pub fn check_to_device(kind: &str, content: &RawValue, policy: &SealPolicy) -> Result<(), Refusal> {
    if policy.plaintext == Plaintext::Accept {
        return Ok(());
    }
    if KEY_TYPES.contains(&kind) {
        return Err(Refusal::RawKeys(kind.to_owned()));
    }
    if kind == "m.room.encrypted" {
        let content = serde_json::from_str::<Map<String, Value>>(content.get()).unwrap_or_default();
        return if is_ciphertext(&content) { Ok(()) } else { Err(Refusal::NotEncrypted) };
    }
    Ok(())
}

/// Whether our users may join a room: it is encrypted, or a space. Takes the room's create event and its
/// `m.room.encryption` event.
pub fn check_local_join(
    create: &Event,
    encryption: Option<&Event>,
    policy: &SealPolicy,
) -> Result<(), Refusal> {
    let is_space = create.content_str("type").as_deref() == Some("m.space");
    let encrypted =
        encryption.is_some_and(|event| event.content_str("algorithm").is_some_and(|name| !name.is_empty()));
    if policy.plaintext == Plaintext::Accept || is_space || encrypted {
        Ok(())
    } else {
        Err(Refusal::UnencryptedRoom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(kind: &str, content: &str, state_key: Option<&str>) -> Result<(), Refusal> {
        let content = RawValue::from_string(content.to_owned()).unwrap();
        let kind = TimelineEventType::from(kind);
        let result = check_local_send(&kind, &content, state_key, &SealPolicy::default());
        let accept = SealPolicy { plaintext: Plaintext::Accept, ..SealPolicy::default() };
        assert!(check_local_send(&kind, &content, state_key, &accept).is_ok());
        result
    }

    #[test]
    fn messages_must_be_encrypted() {
        let text = r#"{"msgtype":"m.text","body":"hello"}"#;
        assert_eq!(send("m.room.message", text, None), Err(Refusal::Plaintext("m.room.message".into())));
        assert!(send("m.room.message", text, Some("")).is_err());
        assert!(send("m.sticker", r#"{"body":"x","url":"mxc://a/b"}"#, None).is_err());
        assert!(send("org.example.custom", "{}", None).is_err());
        assert!(send("m.poll.start", "{}", None).is_err());
        assert!(send("io.element.call.encryption_keys", r#"{"keys":[]}"#, None).is_err());
    }

    #[test]
    fn ciphertext_must_be_ciphertext() {
        let megolm =
            r#"{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"AwgB","session_id":"x","m.relates_to":{}}"#;
        assert!(send("m.room.encrypted", megolm, None).is_ok());
        assert!(send("m.room.encrypted", r#"{"algorithm":"m.megolm.v1.aes-sha2"}"#, None).is_err());
        assert!(send("m.room.encrypted", r#"{"ciphertext":"A"}"#, None).is_err());
        assert!(send("m.room.encrypted", r#"{"algorithm":"a","ciphertext":"A","body":"hi"}"#, None).is_err());
        assert!(send("m.room.encrypted", r#"{"body":"hi"}"#, Some("")).is_err());
    }

    #[test]
    fn metadata_and_signalling_pass() {
        assert!(send("m.room.topic", r#"{"topic":"plans"}"#, Some("")).is_ok());
        assert!(
            send("m.reaction", r#"{"m.relates_to":{"rel_type":"m.annotation","key":"+"}}"#, None).is_ok()
        );
        assert!(send("m.room.redaction", r#"{"reason":"spam"}"#, None).is_ok());
        assert!(send("m.call.invite", r#"{"offer":{"sdp":"v=0"}}"#, None).is_ok());
        assert!(send("m.key.verification.start", "{}", None).is_ok());
        assert!(send("m.reaction", r#"{"body":"hello"}"#, None).is_err());
        let raw = RawValue::from_string("{}".to_owned()).unwrap();
        let policy = SealPolicy { also_clear: ["org.example.ping".to_owned()].into(), ..Default::default() };
        assert!(check_local_send(&"org.example.ping".into(), &raw, None, &policy).is_ok());
    }

    #[test]
    fn a_verification_may_be_asked_for_in_the_clear() {
        let request = |more: &str| {
            let device = r#""msgtype":"m.key.verification.request","from_device":"A","methods":["m.sas.v1"]"#;
            let content = format!(r#"{{{device},"to":"@bob:example.org"{more}}}"#);
            send("m.room.message", &content, None)
        };
        assert!(request(r#","body":"Alice asks to verify your keys""#).is_ok());
        assert!(request(&format!(r#","body":"{}""#, "long ".repeat(200))).is_err());
        assert!(request(r#","body":"","formatted_body":"<b>secret plans</b>""#).is_err());
        assert!(request(r#","body":"","m.new_content":{"body":"x"}"#).is_err());
        let bare = r#"{"msgtype":"m.key.verification.request","body":"secret plans"}"#;
        assert!(send("m.room.message", bare, None).is_err());
    }

    #[test]
    fn a_redacted_message_is_no_payload() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        assert!(!is_plaintext_payload(&"m.room.message".into(), &raw("{}"), false));
        assert!(is_plaintext_payload(&"m.room.message".into(), &raw(r#"{"body":""}"#), false));
        assert!(!is_plaintext_payload(&"m.room.name".into(), &raw(r#"{"name":"n"}"#), true));
    }

    #[test]
    fn keys_travel_encrypted() {
        let policy = SealPolicy::default();
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        for kind in KEY_TYPES {
            assert!(matches!(check_to_device(kind, &raw("{}"), &policy), Err(Refusal::RawKeys(_))));
        }
        let olm = r#"{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":{"k":{"type":0,"body":"A"}}}"#;
        assert!(check_to_device("m.room.encrypted", &raw(olm), &policy).is_ok());
        assert!(check_to_device("m.room.encrypted", &raw("{}"), &policy).is_err());
        assert!(check_to_device("m.room_key_request", &raw("{}"), &policy).is_ok());
    }
}
