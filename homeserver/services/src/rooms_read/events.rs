//! One event.

use super::{ReadError, RoomReader};
use crate::render::{Shown, Viewer, render_one};
use crate::visibility::visible_to;
use ruma::events::StateEventType;
use ruma::events::room::history_visibility::HistoryVisibility;
use ruma::{EventId, RoomId};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::sync::Arc;
use waxwing_rooms::visibility::visibility_of;
use waxwing_storage::{EventFlags, StoreResult, StoredEvent};

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
        let stored = self.visible(viewer, room, event).await?;
        Ok(render_one(&self.core, viewer, stored, Shown::EVERYWHERE).await?)
    }

    /// One event, of whatever room it is.
    ///
    /// # Errors
    /// As [`RoomReader::event`].
    pub async fn event_of_any_room(
        &self,
        viewer: &Viewer,
        event: &EventId,
    ) -> Result<Box<RawValue>, ReadError> {
        let stored = self.core.store.event(event).await?.ok_or(ReadError::NotFound("event"))?;
        self.event(viewer, &stored.event.room_id, event).await
    }

    /// One event of a room, as it is stored.
    ///
    /// # Errors
    /// As [`RoomReader::event`].
    pub(crate) async fn visible(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        event: &EventId,
    ) -> Result<Arc<StoredEvent>, ReadError> {
        match self.seat(&viewer.user, room).await {
            Ok(seat) => self.visible_event(&seat, viewer, room, event).await,
            Err(ReadError::Forbidden) => Err(ReadError::NotFound("event")),
            Err(error) => Err(error),
        }
    }

    /// Those of `events`, all of one room, that the viewer may see. Events outside the timeline, whose state is not known,
    /// are seen by members of a room whose history is open to them.
    pub(crate) async fn visible_or_outside(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        events: Vec<Arc<StoredEvent>>,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let seat = match self.seat(&viewer.user, room).await {
            Ok(seat) => seat,
            Err(ReadError::Store(error)) => return Err(error),
            Err(_) => return Ok(Vec::new()),
        };
        let key = StateEventType::RoomHistoryVisibility;
        let visibility = self.state_event(&seat.state, key, "").await?;
        let visibility = visibility_of(visibility.as_ref().map(|stored| &*stored.event));
        let open =
            seat.joined && matches!(visibility, HistoryVisibility::Shared | HistoryVisibility::WorldReadable);
        let inside = events.iter().filter(|stored| stored.flags.visible()).cloned().collect();
        let seen = visible_to(&self.core, &viewer.user, seat.last, inside).await?;
        let seen: HashSet<&EventId> = seen.iter().map(|stored| &*stored.event.event_id).collect();
        let outside = |stored: &StoredEvent| open && stored.flags == EventFlags::OUTLIER;
        Ok(events
            .iter()
            .filter(|stored| seen.contains(&*stored.event.event_id) || outside(stored))
            .cloned()
            .collect())
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
