//! Size and shape of a PDU, by room version.
//! <https://spec.matrix.org/v1.19/client-server-api/#size-limits>

use ruma::RoomVersionId;
use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue};
use ruma::room_version_rules::{EventsReferenceFormatVersion, RoomVersionRules};

use crate::canonical::{big_integer, canonical_text};
use crate::version::{UnknownVersion, rules_or_unknown};

/// A whole PDU as canonical JSON, signatures included.
pub const MAX_PDU_BYTES: usize = 65_536;
/// Ids, types and state keys.
pub const MAX_FIELD_BYTES: usize = 255;
/// <https://spec.matrix.org/v1.19/server-server-api/#pdus>
pub const MAX_PREV_EVENTS: usize = 20;
/// <https://spec.matrix.org/v1.19/server-server-api/#pdus>
pub const MAX_AUTH_EVENTS: usize = 10;

/// Whether the limits on the number of `prev_events` and `auth_events` hold. Old rooms have events that break them,
/// so they are not applied to history that is asked for.
/// <https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// An event that another server sends us now.
    Limited,
    /// An event of the past: `/backfill`, `/state`, `/event_auth`.
    Unlimited,
}

/// Why a PDU is out of shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Larger than [`MAX_PDU_BYTES`].
    #[error("event of {0} bytes is larger than 65536")]
    TooLarge(usize),
    /// A required field is missing or has another type.
    #[error("field {0} is missing or has the wrong type")]
    Field(&'static str),
    /// A string longer than [`MAX_FIELD_BYTES`].
    #[error("field {0} is longer than 255 bytes")]
    TooLong(&'static str),
    /// More references than allowed.
    #[error("too many entries in {0}")]
    TooMany(&'static str),
    /// From room version 12 on the create event is implied by the room id and may not be named.
    #[error("auth_events names the create event")]
    NamesCreate,
    /// The room version is unknown.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

/// Checks a PDU's size, the types and lengths of its fields and the form of its references.
pub fn check(
    object: &CanonicalJsonObject,
    version: &RoomVersionId,
    counts: Counts,
) -> Result<(), FormatError> {
    let rules = rules_or_unknown(version)?;
    check_size(object)?;
    // Servers counted characters before version 11; such events are part of old rooms, and what follows them too.
    let characters = counts == Counts::Unlimited && !rules.authorization.use_room_create_sender;
    let kind = text(object, "type", characters)?.ok_or(FormatError::Field("type"))?;
    required_string(object, "sender")?;
    let needs_room_id = kind != "m.room.create" || rules.event_format.require_room_create_room_id;
    let room_id = if needs_room_id { Some(required_string(object, "room_id")?) } else { None };
    if rules.event_format.require_event_id {
        required_string(object, "event_id")?;
    }
    text(object, "state_key", characters)?;
    if !matches!(object.get("content"), Some(CanonicalJsonValue::Object(_))) {
        return Err(FormatError::Field("content"));
    }
    unsigned_integer(object, "depth")?;
    unsigned_integer(object, "origin_server_ts")?;
    let prev = references(object, "prev_events", rules)?;
    let auth = references(object, "auth_events", rules)?;
    if counts == Counts::Limited {
        within(prev.len(), MAX_PREV_EVENTS, "prev_events")?;
        within(auth.len(), MAX_AUTH_EVENTS, "auth_events")?;
    }
    if !rules.event_format.allow_room_create_in_auth_events
        && let Some(room_id) = room_id
    {
        let create = room_id.strip_prefix('!').ok_or(FormatError::Field("room_id"))?;
        if auth.iter().any(|id| id.strip_prefix('$') == Some(create)) {
            return Err(FormatError::NamesCreate);
        }
    }
    Ok(())
}

/// Checks only the size of the whole event.
pub fn check_size(object: &CanonicalJsonObject) -> Result<(), FormatError> {
    let size = canonical_text(object).map_or(usize::MAX, |text| text.len());
    if size > MAX_PDU_BYTES { Err(FormatError::TooLarge(size)) } else { Ok(()) }
}

fn within(count: usize, limit: usize, field: &'static str) -> Result<(), FormatError> {
    if count > limit { Err(FormatError::TooMany(field)) } else { Ok(()) }
}

fn string<'a>(object: &'a CanonicalJsonObject, field: &'static str) -> Result<Option<&'a str>, FormatError> {
    text(object, field, false)
}

/// A field whose length is counted in bytes, or in characters.
fn text<'a>(
    object: &'a CanonicalJsonObject,
    field: &'static str,
    characters: bool,
) -> Result<Option<&'a str>, FormatError> {
    let length = |text: &str| if characters { text.chars().count() } else { text.len() };
    match object.get(field) {
        None => Ok(None),
        Some(CanonicalJsonValue::String(text)) if length(text) <= MAX_FIELD_BYTES => Ok(Some(text)),
        Some(CanonicalJsonValue::String(_)) => Err(FormatError::TooLong(field)),
        Some(_) => Err(FormatError::Field(field)),
    }
}

fn required_string<'a>(object: &'a CanonicalJsonObject, field: &'static str) -> Result<&'a str, FormatError> {
    string(object, field)?.ok_or(FormatError::Field(field))
}

fn unsigned_integer(object: &CanonicalJsonObject, field: &'static str) -> Result<(), FormatError> {
    match object.get(field) {
        Some(CanonicalJsonValue::Integer(value)) if i64::from(*value) >= 0 => Ok(()),
        // Only events of rooms of versions 1 to 5 are read with one.
        Some(value) if big_integer(value).is_some_and(|value| value >= 0) => Ok(()),
        _ => Err(FormatError::Field(field)),
    }
}

/// The event ids of a list of references, in the one form that the room version allows.
fn references<'a>(
    object: &'a CanonicalJsonObject,
    field: &'static str,
    rules: &RoomVersionRules,
) -> Result<Vec<&'a str>, FormatError> {
    let Some(CanonicalJsonValue::Array(list)) = object.get(field) else {
        return Err(FormatError::Field(field));
    };
    let pairs = rules.events_reference_format == EventsReferenceFormatVersion::V1;
    let mut ids = Vec::with_capacity(list.len());
    for item in list {
        let id = match item {
            CanonicalJsonValue::String(id) if !pairs => id,
            CanonicalJsonValue::Array(pair) if pairs => match pair.as_slice() {
                [CanonicalJsonValue::String(id), CanonicalJsonValue::Object(_)] => id,
                _ => return Err(FormatError::Field(field)),
            },
            _ => return Err(FormatError::Field(field)),
        };
        if id.len() > MAX_FIELD_BYTES {
            return Err(FormatError::TooLong(field));
        }
        ids.push(id.as_str());
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_rooms_have_keys_of_255_characters_that_are_more_bytes() {
        let event = |length: usize| -> CanonicalJsonObject {
            serde_json::from_value(json!({
                "type": "m.x", "state_key": "\u{1f4a5}".repeat(length), "sender": "@a:b", "room_id": "!r:b",
                "content": {}, "depth": 1, "origin_server_ts": 1, "prev_events": [], "auth_events": [],
            }))
            .unwrap()
        };
        assert_eq!(check(&event(70), &RoomVersionId::V10, Counts::Unlimited), Ok(()));
        let long = Err(FormatError::TooLong("state_key"));
        assert_eq!(check(&event(256), &RoomVersionId::V10, Counts::Unlimited), long);
        assert_eq!(check(&event(70), &RoomVersionId::V10, Counts::Limited), long);
        assert_eq!(check(&event(70), &RoomVersionId::V11, Counts::Unlimited), long);
    }
}
