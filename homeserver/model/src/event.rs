use ruma::events::{StateEventType, TimelineEventType};
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, UInt};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;

use crate::StateKey;

/// A persistent data unit: one event of a room, exactly as its origin signed it.
///
/// Immutable, so it is shared as `Arc<Event>` and cached for ever. What a server comes to think of an event later
/// (rejected, soft-failed, redacted) is kept beside it, never in it.
/// <https://spec.matrix.org/v1.19/server-server-api/#pdus>
#[derive(Debug, Clone)]
pub struct Event {
    /// The event id: a field of the PDU in room versions 1 and 2, its reference hash later.
    pub event_id: OwnedEventId,
    /// The room; for the create event of a version 12 room derived from the event id.
    pub room_id: OwnedRoomId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// The event type.
    pub kind: TimelineEventType,
    /// Present on state events.
    pub state_key: Option<String>,
    /// The origin's clock, milliseconds; a claim, never an order.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// The origin's claim of its depth.
    pub depth: UInt,
    /// The events that it follows.
    pub prev_events: Vec<OwnedEventId>,
    /// The events that allow it, as written in the PDU (a version 12 event does not name the create event).
    pub auth_events: Vec<OwnedEventId>,
    /// The event that a redaction redacts, wherever its room version writes it.
    pub redacts: Option<OwnedEventId>,
    /// The content.
    pub content: Box<RawValue>,
    /// The whole PDU in federation format, byte for byte as stored (without `event_id` from room version 3 on).
    pub json: Arc<RawValue>,
}

/// A PDU that lacks a field every room version requires, or gives it another type.
#[derive(Debug, thiserror::Error)]
#[error("not a PDU: {0}")]
pub struct EventParseError(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Fields {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    kind: TimelineEventType,
    #[serde(default)]
    state_key: Option<String>,
    #[serde(deserialize_with = "saturating")]
    origin_server_ts: UInt,
    #[serde(deserialize_with = "saturating")]
    depth: UInt,
    prev_events: Vec<Reference>,
    auth_events: Vec<Reference>,
    #[serde(default)]
    redacts: Option<Redacts>,
    content: Box<RawValue>,
}

/// Rooms of versions 1 to 5 have integers of more than 53 bits here. They are only claims.
fn saturating<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<UInt, D::Error> {
    u64::deserialize(deserializer).map(UInt::new_saturating)
}

/// No room version checks this field, so another value makes no other event of it, only none that redacts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Redacts {
    Id(OwnedEventId),
    Other(serde::de::IgnoredAny),
}

impl From<Redacts> for Option<OwnedEventId> {
    fn from(redacts: Redacts) -> Option<OwnedEventId> {
        match redacts {
            Redacts::Id(id) => Some(id),
            Redacts::Other(_) => None,
        }
    }
}

/// Room versions 1 and 2 write a reference as `[event_id, hashes]`, later ones as the id alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Reference {
    Id(OwnedEventId),
    WithHash(OwnedEventId, serde::de::IgnoredAny),
}

impl From<Reference> for OwnedEventId {
    fn from(reference: Reference) -> OwnedEventId {
        match reference {
            Reference::Id(id) | Reference::WithHash(id, _) => id,
        }
    }
}

#[derive(Deserialize)]
struct RedactsContent {
    #[serde(default)]
    redacts: Option<OwnedEventId>,
}

impl Event {
    /// Reads the fields of a PDU in federation format. `event_id` and `room_id` come from whoever knows the room
    /// version. Checks types only; signatures, hashes and limits are `waxwing-rooms`' business.
    pub fn parse(
        event_id: OwnedEventId,
        room_id: OwnedRoomId,
        json: Box<RawValue>,
    ) -> Result<Event, EventParseError> {
        let fields: Fields = serde_json::from_str(json.get())?;
        let redacts = match fields.redacts.and_then(Into::into) {
            Some(id) => Some(id),
            None if fields.kind == TimelineEventType::RoomRedaction => {
                serde_json::from_str::<RedactsContent>(fields.content.get()).ok().and_then(|c| c.redacts)
            }
            None => None,
        };
        Ok(Event {
            event_id,
            room_id,
            sender: fields.sender,
            kind: fields.kind,
            state_key: fields.state_key,
            origin_server_ts: MilliSecondsSinceUnixEpoch(fields.origin_server_ts),
            depth: fields.depth,
            prev_events: fields.prev_events.into_iter().map(Into::into).collect(),
            auth_events: fields.auth_events.into_iter().map(Into::into).collect(),
            redacts,
            content: fields.content,
            json: Arc::from(json),
        })
    }

    /// When it was sent by its sender's clock: milliseconds since the epoch, as a database has them.
    pub fn sent_at(&self) -> i64 {
        i64::try_from(u64::from(self.origin_server_ts.get())).unwrap_or(i64::MAX)
    }

    /// Whether it is a state event.
    pub fn is_state(&self) -> bool {
        self.state_key.is_some()
    }

    /// The state entry that it sets, if it is a state event.
    pub fn state_entry(&self) -> Option<StateKey> {
        let key = self.state_key.clone()?;
        Some((StateEventType::from(self.kind.to_string()), key))
    }

    /// Whether it sets the state entry `(kind, key)`.
    pub fn is_state_of(&self, kind: &StateEventType, key: &str) -> bool {
        self.state_key.as_deref() == Some(key) && self.kind.to_string() == kind.to_string()
    }

    /// Reads the content as `T`.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.content.get())
    }

    /// One string field of the content, if it is there and a string.
    pub fn content_str(&self, field: &str) -> Option<String> {
        let object: serde_json::Map<String, serde_json::Value> = self.content_as().ok()?;
        Some(object.get(field)?.as_str()?.to_owned())
    }
}

/// Two events are the same event when their ids are: an id names its bytes.
impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        AsRef::<EventId>::as_ref(&self.event_id) == AsRef::<EventId>::as_ref(&other.event_id)
    }
}
impl Eq for Event {}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn reads_both_forms_of_references_and_redacts() {
        let old = raw(r#"{"type":"m.room.redaction","sender":"@a:x","origin_server_ts":1,"depth":2,
            "prev_events":[["$p:x",{"sha256":"h"}]],"auth_events":[],"redacts":"$t:x","content":{}}"#);
        let event = Event::parse("$e:x".try_into().unwrap(), "!r:x".try_into().unwrap(), old).unwrap();
        assert_eq!(event.prev_events[0], "$p:x");
        assert_eq!(event.redacts.as_deref().unwrap(), "$t:x");

        let new = raw(r#"{"type":"m.room.redaction","sender":"@a:x","origin_server_ts":1,"depth":2,
            "prev_events":["$p"],"auth_events":["$q"],"content":{"redacts":"$t"}}"#);
        let event = Event::parse("$e".try_into().unwrap(), "!r".try_into().unwrap(), new).unwrap();
        assert_eq!((event.prev_events[0].as_str(), event.auth_events[0].as_str()), ("$p", "$q"));
        assert_eq!(event.redacts.unwrap(), "$t");
    }

    #[test]
    fn refuses_a_pdu_without_sender() {
        let json = raw(
            r#"{"type":"m","origin_server_ts":1,"depth":2,"prev_events":[],"auth_events":[],"content":{}}"#,
        );
        assert!(Event::parse("$e".try_into().unwrap(), "!r".try_into().unwrap(), json).is_err());
    }
}
