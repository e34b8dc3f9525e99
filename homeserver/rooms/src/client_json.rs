//! Events as clients see them.
//!
//! The part that never changes is made once per event and shared; what differs per viewer goes into `unsigned`,
//! which is appended as text. Nothing is parsed again.
//! <https://spec.matrix.org/v1.19/client-server-api/#room-event-format>

use ruma::MilliSecondsSinceUnixEpoch;
use ruma::events::TimelineEventType;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt::Write;
use waxwing_model::Event;

/// The invariant part of an event in the client-server format.
#[derive(Debug, Clone)]
pub struct ClientEvent {
    /// An object without `room_id` and `unsigned`, and without its closing brace.
    open: String,
    /// `,"room_id":"…"`, for where clients can't tell the room from the place.
    room_id: String,
    /// For how many milliseconds the event is sticky.
    sticky: Option<u64>,
}

/// What `unsigned` says, all of it optional.
/// <https://spec.matrix.org/v1.19/client-server-api/#definition-clientevent>
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Unsigned<'a> {
    /// Milliseconds since the event was sent; see [`age`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<i64>,
    /// The transaction id, only for the device that sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<&'a str>,
    /// The viewer's membership at the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<&'a str>,
    /// The content of the state event that this one replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_content: Option<&'a RawValue>,
    /// Who sent the event that this one replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_sender: Option<&'a str>,
    /// The id of the event that this one replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces_state: Option<&'a str>,
    /// The redaction that redacted this event, in client format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redacted_because: Option<&'a RawValue>,
    /// Bundled aggregations.
    #[serde(rename = "m.relations", skip_serializing_if = "Option::is_none")]
    pub relations: Option<&'a RawValue>,
    /// Stripped state of an invite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invite_room_state: Option<&'a [Box<RawValue>]>,
    /// Stripped state of a knock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knock_room_state: Option<&'a [Box<RawValue>]>,
    /// For how many more milliseconds the event is sticky (MSC4354); set by [`ClientEvent`].
    #[serde(rename = "msc4354_sticky_duration_ttl_ms", skip_serializing_if = "Option::is_none")]
    pub sticky_ttl: Option<u64>,
}

/// The longest time for which an event is sticky, milliseconds: so says MSC4354.
const MAX_STICKY: u64 = 3_600_000;

/// For how many milliseconds an event is sticky, if it is one (MSC4354).
pub fn sticky_duration(event: &Event) -> Option<u64> {
    #[derive(Deserialize)]
    struct Sticky {
        msc4354_sticky: Duration,
    }
    #[derive(Deserialize)]
    struct Duration {
        duration_ms: u64,
    }
    // Hardly any event is: looking for the name is cheaper than parsing.
    if !event.json.get().contains("\"msc4354_sticky\"") {
        return None;
    }
    let sticky: Sticky = serde_json::from_str(event.json.get()).ok()?;
    Some(sticky.msc4354_sticky.duration_ms.min(MAX_STICKY))
}

/// The age of an event at `now`, never negative.
pub fn age(event: &Event, now: MilliSecondsSinceUnixEpoch) -> i64 {
    let sent = u64::from(event.origin_server_ts.get());
    u64::from(now.get()).saturating_sub(sent).min(i64::MAX as u64) as i64
}

impl ClientEvent {
    /// The client format of an event: for a redacted event, of its redacted form.
    pub fn new(event: &Event) -> ClientEvent {
        let content = event.content.get();
        let mut open = String::with_capacity(content.len() + 256);
        open.push_str(r#"{"content":"#);
        match &event.redacts {
            Some(redacts) if event.kind == TimelineEventType::RoomRedaction => {
                open.push_str(&with_redacts(content, redacts.as_str()));
            }
            _ => open.push_str(content),
        }
        push_text(&mut open, "event_id", event.event_id.as_str());
        // Writing to a String never fails.
        let _ = write!(open, r#","origin_server_ts":{}"#, event.origin_server_ts.get());
        push_text(&mut open, "sender", event.sender.as_str());
        if let Some(key) = &event.state_key {
            push_text(&mut open, "state_key", key);
        }
        push_text(&mut open, "type", &event.kind.to_string());
        if let Some(redacts) = &event.redacts
            && event.kind == TimelineEventType::RoomRedaction
        {
            push_text(&mut open, "redacts", redacts.as_str());
        }
        let sticky = sticky_duration(event);
        if let Some(duration) = sticky {
            let _ = write!(open, r#","msc4354_sticky":{{"duration_ms":{duration}}}"#);
        }
        let mut room_id = String::new();
        push_text(&mut room_id, "room_id", event.room_id.as_str());
        ClientEvent { open, room_id, sticky }
    }

    /// The event without its room, as `/sync` has it.
    pub fn for_sync(&self, unsigned: &Unsigned<'_>) -> Box<RawValue> {
        self.close("", unsigned)
    }

    /// The event with its room, as everywhere else.
    pub fn with_room(&self, unsigned: &Unsigned<'_>) -> Box<RawValue> {
        self.close(&self.room_id, unsigned)
    }

    /// The bytes that it keeps in memory.
    pub fn size(&self) -> usize {
        self.open.len() + self.room_id.len()
    }

    fn close(&self, room_id: &str, unsigned: &Unsigned<'_>) -> Box<RawValue> {
        let mut text = String::with_capacity(self.open.len() + room_id.len() + 128);
        text.push_str(&self.open);
        text.push_str(room_id);
        let age = unsigned.age.and_then(|age| u64::try_from(age).ok());
        let sticky_ttl = self.sticky.and_then(|duration| Some(duration.saturating_sub(age?)));
        let unsigned = Unsigned { sticky_ttl, ..*unsigned };
        let unsigned = serde_json::to_string(&unsigned).unwrap_or_default();
        if unsigned.len() > "{}".len() {
            text.push_str(r#","unsigned":"#);
            text.push_str(&unsigned);
        }
        text.push('}');
        // Every piece is JSON, so the whole is; should it not be, the viewer gets null rather than the server a panic.
        RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned())
    }
}

fn push_text(json: &mut String, field: &str, value: &str) {
    let value = serde_json::to_string(value).unwrap_or_default();
    let _ = write!(json, r#","{field}":{value}"#);
}

/// The content of a redaction with `redacts` in it: old rooms keep it beside the content, new clients look inside.
/// What an old room's content says of its own there counts for nothing and is replaced.
/// <https://spec.matrix.org/v1.19/client-server-api/#mroomredaction>
fn with_redacts(content: &str, redacts: &str) -> String {
    type Object<'a> = std::collections::BTreeMap<String, &'a RawValue>;
    let Ok(mut object) = serde_json::from_str::<Object<'_>>(content) else { return content.to_owned() };
    let Ok(redacts) = serde_json::value::to_raw_value(redacts) else { return content.to_owned() };
    object.insert("redacts".to_owned(), &redacts);
    serde_json::to_string(&object).unwrap_or_else(|_| content.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Event {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        Event::parse("$id".try_into().unwrap(), "!r:x".try_into().unwrap(), raw).unwrap()
    }

    #[test]
    fn shows_a_state_event() {
        let event = event(
            r#"{"type":"m.room.name","state_key":"a\"b","sender":"@a:x","origin_server_ts":5,"depth":1,
            "prev_events":["$p"],"auth_events":[],"content":{"name":"\u00e9 "},"hashes":{},"signatures":{},
            "unsigned":{"age":3},"origin":"x"}"#,
        );
        let client = ClientEvent::new(&event);
        assert_eq!(
            client.for_sync(&Unsigned::default()).get(),
            r#"{"content":{"name":"\u00e9 "},"event_id":"$id","origin_server_ts":5,"sender":"@a:x","state_key":"a\"b","type":"m.room.name"}"#
        );
        let now = MilliSecondsSinceUnixEpoch(ruma::uint!(9));
        let unsigned =
            Unsigned { age: Some(age(&event, now)), transaction_id: Some("t"), ..Default::default() };
        assert!(
            client
                .with_room(&unsigned)
                .get()
                .ends_with(r#","room_id":"!r:x","unsigned":{"age":4,"transaction_id":"t"}}"#)
        );
    }

    #[test]
    fn shows_for_how_long_an_event_is_sticky() {
        let event = event(
            r#"{"type":"m.x","sender":"@a:x","origin_server_ts":5,"depth":1,"prev_events":[],"auth_events":[],
            "content":{},"msc4354_sticky":{"duration_ms":99999999}}"#,
        );
        assert_eq!(sticky_duration(&event), Some(MAX_STICKY));
        let shown = ClientEvent::new(&event).for_sync(&Unsigned { age: Some(10), ..Default::default() });
        let shown: serde_json::Value = serde_json::from_str(shown.get()).unwrap();
        assert_eq!(shown["msc4354_sticky"]["duration_ms"], MAX_STICKY);
        assert_eq!(shown["unsigned"]["msc4354_sticky_duration_ttl_ms"], MAX_STICKY - 10);
    }

    #[test]
    fn shows_what_a_redaction_redacts_in_both_places() {
        for (content, beside) in [
            ("{}", true),
            (r#" { "reason":"x"}"#, true),
            (r#"{"redacts":"$t"}"#, false),
            (r#"{"redacts":"$lie"}"#, true),
        ] {
            let beside = if beside { r#""redacts":"$t","# } else { "" };
            let event = event(&format!(
                r#"{{"type":"m.room.redaction","sender":"@a:x","origin_server_ts":5,"depth":1,{beside}
                "prev_events":[],"auth_events":[],"content":{content}}}"#
            ));
            let shown = ClientEvent::new(&event).for_sync(&Unsigned::default());
            let shown: serde_json::Value = serde_json::from_str(shown.get()).unwrap();
            assert_eq!(shown["redacts"], "$t");
            assert_eq!(shown["content"]["redacts"], "$t");
        }
    }
}
