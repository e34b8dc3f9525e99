use ruma::{RoomVersionId, ServerName};
use serde_json::value::RawValue;
use waxwing_model::Event;
use waxwing_rooms::sign::merge_signatures;

use super::{RemoteError, RemoteMemberships};
use crate::client::InviteRequest;
use crate::inbound::{parse, verify};

/// An invite of a user of another server, made and signed by us, not yet part of the room.
#[derive(Debug)]
pub struct RemoteInvite<'a> {
    /// The room's version.
    pub version: &'a RoomVersionId,
    /// The invite.
    pub event: &'a Event,
    /// State for the invited user to recognise the room by: full PDUs, the create event among them.
    pub state: &'a [Box<RawValue>],
}

impl RemoteMemberships {
    /// Sends an invite to the invited user's server, which adds its signature or refuses. Gives the invite with both
    /// signatures, to become part of the room: <https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room>.
    pub async fn invite(
        &self,
        destination: &ServerName,
        invite: &RemoteInvite<'_>,
    ) -> Result<Event, RemoteError> {
        let ours = invite.event;
        let request = InviteRequest {
            room: &ours.room_id,
            room_version: invite.version,
            event_id: &ours.event_id,
            event: &ours.json,
            state: invite.state,
        };
        let json = self.client.invite(destination, &request).await?;
        let pdu = parse::parse(&json, &ours.room_id, invite.version).map_err(RemoteError::Invalid)?;
        if pdu.event.event_id != ours.event_id {
            return Err(RemoteError::invalid("another event came back for the invite"));
        }
        // Only signatures are taken over; the event stays as we made it.
        let signatures = pdu.object.get("signatures").and_then(|value| value.as_object());
        let more = signatures.ok_or_else(|| RemoteError::invalid("no signatures came back"))?;
        if !more.contains_key(destination.as_str()) {
            return Err(RemoteError::invalid("the invited server did not sign"));
        }
        let both = merge_signatures(ours, more).map_err(RemoteError::invalid)?;
        let merged = parse::parse(&both.json, &ours.room_id, invite.version).map_err(RemoteError::Invalid)?;
        let mut verified = verify::verify_all(&self.ring, invite.version, vec![merged]).await?;
        match verified.pop() {
            Some((_, Ok(_))) => Ok(both),
            Some((_, Err(error))) => Err(RemoteError::Invalid(error)),
            None => Err(RemoteError::invalid("the invite was not verified")),
        }
    }
}
