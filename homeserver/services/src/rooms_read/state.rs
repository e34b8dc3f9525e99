//! A room's state.

use super::{ReadError, RoomReader};
use crate::render::{Shown, Viewer, render, render_one};
use ruma::RoomId;
use ruma::events::StateEventType;
use serde_json::value::RawValue;

/// One state entry in both forms that clients ask for.
#[derive(Clone, Debug)]
pub struct StateEvent {
    /// The whole event.
    pub event: Box<RawValue>,
    /// Its content.
    pub content: Box<RawValue>,
}

impl RoomReader {
    /// The whole state: the current one, or for someone who left, that at leaving.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room.
    pub async fn state(&self, viewer: &Viewer, room: &RoomId) -> Result<Vec<Box<RawValue>>, ReadError> {
        let seat = self.whole_seat(&viewer.user, room).await?;
        let events = self.whole_state(&seat.state).await?;
        Ok(render(&self.core, viewer, &events, Shown::STATE).await?)
    }

    /// One entry of the state.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] when it is not set.
    pub async fn state_entry(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        kind: StateEventType,
        key: &str,
    ) -> Result<StateEvent, ReadError> {
        let seat = self.seat(&viewer.user, room).await?;
        let mut stored = self.state_event(&seat.state, kind.clone(), key).await?;
        if stored.is_none() && kind == StateEventType::RoomMember {
            let seat = self.whole_seat(&viewer.user, room).await?;
            stored = self.state_event(&seat.state, kind, key).await?;
        }
        let stored = stored.ok_or(ReadError::NotFound("state event"))?;
        let content = stored.event.content.clone();
        let event = render_one(&self.core, viewer, stored, Shown::STATE).await?;
        Ok(StateEvent { event, content })
    }
}
