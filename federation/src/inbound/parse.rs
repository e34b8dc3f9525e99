use ruma::{OwnedRoomId, RoomId, RoomVersionId};
use serde::Deserialize;
use serde_json::value::RawValue;
use waxwing_rooms::format::Counts;
use waxwing_rooms::{Pdu, parse_pdu};

/// Check 1: is it an event of this room's version, and of this room?
pub(crate) fn parse(json: &RawValue, room: &RoomId, version: &RoomVersionId) -> Result<Pdu, String> {
    parse_with(json, room, version, Counts::Limited)
}

/// The same for history, where the limits on the number of references do not hold: such events exist from before
/// there were limits. <https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events>
pub(crate) fn parse_old(json: &RawValue, room: &RoomId, version: &RoomVersionId) -> Result<Pdu, String> {
    parse_with(json, room, version, Counts::Unlimited)
}

fn parse_with(
    json: &RawValue,
    room: &RoomId,
    version: &RoomVersionId,
    counts: Counts,
) -> Result<Pdu, String> {
    let pdu = parse_pdu(json, version, counts).map_err(|error| error.to_string())?;
    if pdu.event.room_id == room { Ok(pdu) } else { Err("an event of another room".into()) }
}

/// The room that a PDU says it belongs to. The create event of a version 12 room says none; it never has to be
/// received this way, since nobody takes part in a room without having it.
pub(super) fn room_of(json: &RawValue) -> Option<OwnedRoomId> {
    #[derive(Deserialize)]
    struct InRoom {
        room_id: OwnedRoomId,
    }
    serde_json::from_str::<InRoom>(json.get()).ok().map(|event| event.room_id)
}
