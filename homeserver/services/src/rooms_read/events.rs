//! One event.

use super::{ReadError, RoomReader};
use crate::render::{Shown, Viewer, render_one};
use crate::visibility::visible_to;
use ruma::{EventId, RoomId};
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_storage::StoredEvent;

use super::access::Seat;

impl RoomReader {
    /// One event of a room.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] when there is none that the viewer may see.
    pub async fn event(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        event: &EventId,
    ) -> Result<Box<RawValue>, ReadError> {
        let stored = match self.seat(&viewer.user, room).await {
            Ok(seat) => self.visible_event(&seat, viewer, room, event).await?,
            Err(ReadError::Forbidden) => return Err(ReadError::NotFound("event")),
            Err(error) => return Err(error),
        };
        Ok(render_one(&self.core, viewer, stored, Shown::EVERYWHERE).await?)
    }

    /// An event of the room that the viewer may see: part of the timeline, or of the state that the viewer sees.
    pub(super) async fn visible_event(
        &self,
        seat: &Seat,
        viewer: &Viewer,
        room: &RoomId,
        event: &EventId,
    ) -> Result<Arc<StoredEvent>, ReadError> {
        let missing = ReadError::NotFound("event");
        let Some(stored) = self.core.store.event(event).await? else { return Err(missing) };
        if stored.event.room_id != *room {
            return Err(missing);
        }
        if stored.flags.visible() {
            let seen = visible_to(&self.core, &viewer.user, seat.last, vec![stored]).await?;
            return seen.into_iter().next().ok_or(missing);
        }
        let Some((kind, key)) = stored.event.state_entry() else { return Err(missing) };
        match self.state_event(&seat.state, kind, &key).await? {
            Some(current) if current.event.event_id == *event => Ok(current),
            _ => Err(missing),
        }
    }
}
