//! From bytes to an event: the first check performed on receipt of a PDU.
//! <https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu>

use crate::canonical::{CanonicalError, canonical_object, canonical_text, lenient_object};
use crate::format::{self, Counts, FormatError, MAX_PDU_BYTES};
use crate::hash::reference_hash;
use crate::version::{UnknownVersion, rules_or_unknown};
use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue};
use ruma::room_version_rules::RoomVersionRules;
use ruma::{OwnedEventId, OwnedRoomId, RoomVersionId};
use serde_json::value::RawValue;
use waxwing_model::{Event, EventParseError};

/// Canonical form can be shorter than what was sent, but not by this factor in honest traffic. Nothing longer is read.
const MAX_RAW_BYTES: usize = 8 * MAX_PDU_BYTES;

/// A PDU that passed the check of its form.
#[derive(Debug, Clone)]
pub struct Pdu {
    /// All of it but `unsigned`, for signatures and hashes.
    pub object: CanonicalJsonObject,
    /// Its fields.
    pub event: Event,
}

/// Why a PDU is dropped: as if it had never come.
#[derive(Debug, thiserror::Error)]
pub enum DropReason {
    /// The room version is unknown.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    /// No canonical JSON object.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// Too large, or not in the form of its room version.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A field that every event has is missing or has another type.
    #[error(transparent)]
    Event(#[from] EventParseError),
    /// A hash can't be computed.
    #[error("no hash: {0}")]
    Hash(String),
    /// The event id or the room id is none.
    #[error("bad {0}")]
    Id(&'static str),
}

/// Reads a PDU and checks its form for the version of its room.
pub fn parse_pdu(raw: &RawValue, version: &RoomVersionId, counts: Counts) -> Result<Pdu, DropReason> {
    if raw.get().len() > MAX_RAW_BYTES {
        return Err(FormatError::TooLarge(raw.get().len()).into());
    }
    let object = object_of(raw, rules_or_unknown(version)?)?;
    format::check(&object, version, counts)?;
    pdu_from_object(object, version)
}

/// The JSON of a PDU. Numbers of every kind are part of rooms of versions 1 to 5; later ones know only integers of 53 bits.
/// <https://spec.matrix.org/v1.19/rooms/v6/#canonical-json>
pub(crate) fn object_of(
    raw: &RawValue,
    rules: &RoomVersionRules,
) -> Result<CanonicalJsonObject, CanonicalError> {
    if rules.authorization.strict_canonical_json {
        canonical_object(raw.get())
    } else {
        lenient_object(raw.get())
    }
}

/// An event from an object in federation format that has been checked, or that this server made.
pub fn pdu_from_object(mut object: CanonicalJsonObject, version: &RoomVersionId) -> Result<Pdu, DropReason> {
    let rules = rules_or_unknown(version)?;
    // Nobody signed it, and what it says is this server's to say.
    object.remove("unsigned");
    let event_id = event_id(&object, rules)?;
    let room_id = room_id(&object, &event_id, rules)?;
    let mut event = Event::parse(event_id, room_id, raw_canonical(&object)?)?;
    event.redacts = redacts(&object, rules);
    Ok(Pdu { object, event })
}

/// Writes an object in canonical form.
pub fn raw_canonical(object: &CanonicalJsonObject) -> Result<Box<RawValue>, CanonicalError> {
    RawValue::from_string(canonical_text(object)?).map_err(CanonicalError::new)
}

/// The event id: a field up to version 2, the reference hash since.
/// <https://spec.matrix.org/v1.19/rooms/v4/#event-ids>
fn event_id(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<OwnedEventId, DropReason> {
    let id = if rules.event_format.require_event_id {
        text(object, "event_id").unwrap_or_default().to_owned()
    } else {
        format!("${}", reference_hash(object, rules).map_err(|error| DropReason::Hash(error.to_string()))?)
    };
    OwnedEventId::try_from(id).map_err(|_| DropReason::Id("event_id"))
}

/// The room id: a field, except that the create event of a version 12 room makes it.
/// <https://spec.matrix.org/v1.19/rooms/v12/#room-ids>
fn room_id(
    object: &CanonicalJsonObject,
    event_id: &OwnedEventId,
    rules: &RoomVersionRules,
) -> Result<OwnedRoomId, DropReason> {
    let creates = text(object, "type") == Some("m.room.create");
    let id = if creates && rules.authorization.room_create_event_id_as_room_id {
        if object.contains_key("room_id") {
            return Err(DropReason::Id("room_id in a create event"));
        }
        event_id.as_str().replacen('$', "!", 1)
    } else {
        text(object, "room_id").unwrap_or_default().to_owned()
    };
    OwnedRoomId::try_from(id).map_err(|_| DropReason::Id("room_id"))
}

/// The event that a redaction redacts; in the content since version 11. The other place says nothing.
/// <https://spec.matrix.org/v1.19/rooms/v11/#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property>
pub(crate) fn redacts(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Option<OwnedEventId> {
    if text(object, "type") != Some("m.room.redaction") {
        return None;
    }
    let place = if rules.redaction.content_field_redacts {
        object.get("content").and_then(CanonicalJsonValue::as_object)?
    } else {
        object
    };
    OwnedEventId::try_from(text(place, "redacts")?).ok()
}

/// The event that an event redacts, by the rules of its room version; [`Event::redacts`] alone may be what an event
/// read from its stored JSON says in the wrong place.
pub fn redaction_target(event: &Event, version: &RoomVersionId) -> Option<OwnedEventId> {
    redacts(&lenient_object(event.json.get()).ok()?, rules_or_unknown(version).ok()?)
}

pub(crate) fn text<'a>(object: &'a CanonicalJsonObject, field: &str) -> Option<&'a str> {
    object.get(field).and_then(CanonicalJsonValue::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::SUPPORTED;

    #[test]
    fn redacts_is_read_where_the_version_writes_it() {
        let text = r#"{"type":"m.room.redaction","redacts":"$top","content":{"redacts":"$in"}}"#;
        let object = canonical_object(text).unwrap();
        assert_eq!(redacts(&object, &RoomVersionRules::V10).unwrap(), "$top");
        assert_eq!(redacts(&object, &RoomVersionRules::V11).unwrap(), "$in");
    }

    #[test]
    fn rubbish_is_dropped() {
        for version in SUPPORTED {
            for text in ["{}", "[]", "null", r#"{"type":1}"#, r#"{"type":"m.room.create","state_key":""}"#] {
                let raw = RawValue::from_string(text.to_owned()).unwrap();
                assert!(parse_pdu(&raw, &version, Counts::Unlimited).is_err());
            }
        }
    }
}
