//! Leaving, and refusing an invitation, through us.
//! <https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites>

use super::join::{Template, membership_pdu};
use super::{Federation, FederationError};
use ruma::{EventId, RoomId, ServerName, UserId};
use serde_json::value::RawValue;

impl Federation {
    /// `make_leave`.
    ///
    /// # Errors
    /// [`FederationError::Forbidden`] when the user is not in the room.
    pub async fn make_leave(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Template, FederationError> {
        self.template(origin, room, user, "leave", None).await
    }

    /// `send_leave`.
    ///
    /// # Errors
    /// [`FederationError::InvalidParam`], [`FederationError::Forbidden`].
    pub async fn send_leave(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event_id: &EventId,
        json: &RawValue,
    ) -> Result<(), FederationError> {
        let row = self.room_for(origin, room).await?;
        let pdu = membership_pdu(&row, origin, event_id, json, "leave")?;
        self.accept(origin, room, &pdu.event.json).await.map(|_| ())
    }
}
