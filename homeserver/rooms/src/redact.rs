//! Redaction: what is left of an event, and who may take the rest away.

use ruma::RoomVersionId;
use ruma::canonical_json::{CanonicalJsonObject, RedactedBecause};
use waxwing_model::Event;

use crate::canonical::lenient_object;
use crate::parse::{DropReason, raw_canonical, redaction_target};
use crate::power::PowerLevels;
use crate::version::{UnknownVersion, rules_or_unknown};

/// Why an event can't be redacted.
#[derive(Debug, thiserror::Error)]
pub enum RedactError {
    /// The event is not one.
    #[error(transparent)]
    Event(#[from] DropReason),
    /// The event has no type.
    #[error("event has no type")]
    NoType,
    /// The room version is unknown.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

/// The redacted form of a PDU. Its id and its signatures hold for both forms.
/// <https://spec.matrix.org/v1.19/client-server-api/#redactions>
pub fn redact_object(
    object: CanonicalJsonObject,
    version: &RoomVersionId,
) -> Result<CanonicalJsonObject, RedactError> {
    let rules = rules_or_unknown(version)?;
    ruma::canonical_json::redact(object, &rules.redaction, None).map_err(|_| RedactError::NoType)
}

/// The redacted form of an event. With `because`, the redaction stands in `unsigned.redacted_because`; for clients
/// use [`crate::client_json::Unsigned::redacted_because`] instead.
pub fn redact_event(
    event: &Event,
    version: &RoomVersionId,
    because: Option<&Event>,
) -> Result<Event, RedactError> {
    let rules = rules_or_unknown(version)?;
    let object = lenient_object(event.json.get()).map_err(DropReason::from)?;
    let because = match because {
        Some(because) => {
            let because = lenient_object(because.json.get()).map_err(DropReason::from)?;
            Some(RedactedBecause::from_json(because))
        }
        None => None,
    };
    let redacted =
        ruma::canonical_json::redact(object, &rules.redaction, because).map_err(|_| RedactError::NoType)?;
    let json = raw_canonical(&redacted).map_err(DropReason::from)?;
    Ok(Event::parse(event.event_id.clone(), event.room_id.clone(), json).map_err(DropReason::from)?)
}

/// Whether an accepted redaction takes effect on its target. In room versions 1 and 2 the authorisation rules have
/// decided that already; later the sender needs the redact level, or the domain of the target's sender.
/// `power` is the room's at the redaction. <https://spec.matrix.org/v1.19/rooms/v3/#handling-redactions>
pub fn may_apply(redaction: &Event, target: &Event, power: &PowerLevels, version: &RoomVersionId) -> bool {
    if redaction.room_id != target.room_id
        || redaction_target(redaction, version).as_ref() != Some(&target.event_id)
    {
        return false;
    }
    match version {
        RoomVersionId::V1 | RoomVersionId::V2 => true,
        _ => {
            power.can_redact(&redaction.sender)
                || redaction.sender.server_name() == target.sender.server_name()
        }
    }
}
