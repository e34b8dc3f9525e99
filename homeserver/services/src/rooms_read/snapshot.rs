//! A room at one glance: `/rooms/{roomId}/initialSync`, for peeking and old clients.
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidinitialsync>

use super::messages::Route;
use super::{EventFilter, PageToken, ReadError, RoomReader};
use crate::render::{Shown, Viewer, render};
use ruma::RoomId;
use ruma::events::StateEventType;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use waxwing_rooms::visibility::membership_of;
use waxwing_storage::StoredEvent;

/// Events of one answer at most.
const MAX_EVENTS: usize = 100;

/// New events of one room.
#[derive(Clone, Debug)]
pub struct NewEvents {
    /// The events, oldest first.
    pub chunk: Vec<Box<RawValue>>,
    /// From where.
    pub start: String,
    /// Where to go on.
    pub end: String,
}

/// What `initialSync` of a room shows.
#[derive(Clone, Debug)]
pub struct RoomSnapshot {
    /// The reader's membership; none for one who peeks.
    pub membership: Option<String>,
    /// `public` or `private`: whether it is listed in the directory.
    pub published: bool,
    /// The state.
    pub state: Vec<Box<RawValue>>,
    /// The newest events, oldest first.
    pub messages: Vec<Box<RawValue>>,
    /// Before them.
    pub start: String,
    /// After them.
    pub end: String,
}

impl RoomReader {
    /// The room's state and its newest `limit` events.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room.
    pub async fn snapshot(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        limit: usize,
    ) -> Result<RoomSnapshot, ReadError> {
        let seat = self.whole_seat(&viewer.user, room).await?;
        let head = self.core.store.tail().head().0;
        let filter = EventFilter::default();
        let route = Route {
            forward: false,
            from: head,
            to: None,
            limit: limit.clamp(1, MAX_EVENTS),
            filter: &filter,
        };
        let mut walk = self.walk(&viewer.user, room, &seat, &route).await?;
        walk.events.reverse();
        let member = self.state_event(&seat.state, StateEventType::RoomMember, viewer.user.as_str()).await?;
        let membership = member.map(|member| membership_of(Some(&member.event)).to_string());
        let state = self.whole_state(&seat.state).await?;
        let published = {
            let row = self.core.store.read().await?.room_load(room).await?;
            row.is_some_and(|row| row.published)
        };
        Ok(RoomSnapshot {
            membership,
            published,
            state: render(&self.core, viewer, &state, Shown::STATE).await?,
            messages: render(&self.core, viewer, &walk.events, Shown::EVERYWHERE).await?,
            start: PageToken(walk.cursor).to_string(),
            end: PageToken(head).to_string(),
        })
    }

    /// Events of a room after a place, for `/events?room_id=`: what a peeking client polls. Waits at most `wait` for
    /// the first.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room.
    pub async fn events_wait(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        from: Option<&str>,
        wait: Duration,
    ) -> Result<NewEvents, ReadError> {
        let mut heads = self.core.store.tail().subscribe();
        let mut from = match from {
            Some(from) => PageToken::parse(from)?.0,
            None => self.core.store.tail().head().0,
        };
        let start = PageToken(from).to_string();
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let head = heads.borrow_and_update().0;
            let (events, end) = self.events_between(viewer, room, from, head).await?;
            let waited = if events.is_empty() {
                tokio::time::timeout_at(deadline, heads.changed()).await.is_ok_and(|changed| changed.is_ok())
            } else {
                false
            };
            if !waited {
                let chunk = render(&self.core, viewer, &events, Shown::EVERYWHERE).await?;
                return Ok(NewEvents { chunk, start, end: PageToken(end).to_string() });
            }
            from = end;
        }
    }

    async fn events_between(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        from: i64,
        head: i64,
    ) -> Result<(Vec<Arc<StoredEvent>>, i64), ReadError> {
        let seat = self.seat(&viewer.user, room).await?;
        let filter = EventFilter::default();
        let route = Route { forward: true, from, to: Some(head), limit: MAX_EVENTS, filter: &filter };
        let walk = self.walk(&viewer.user, room, &seat, &route).await?;
        let end = if walk.done { head.max(from) } else { walk.cursor };
        Ok((walk.events, end))
    }
}
