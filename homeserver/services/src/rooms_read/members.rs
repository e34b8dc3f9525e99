//! Who is in a room.

use super::access::{Seat, StateView};
use super::token::TimelineToken;
use super::{PageToken, ReadError, RoomReader};
use crate::appservices::Appservice;
use crate::render::{Shown, Viewer, render};
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_rooms::visibility::membership_of;
use waxwing_storage::JoinedRow;

/// Which members are asked for.
#[derive(Clone, Debug, Default)]
pub struct MemberQuery {
    /// At this place in the timeline; none: now.
    pub at: Option<String>,
    /// Only this membership.
    pub membership: Option<String>,
    /// Every membership but this. With both, a member that satisfies one of them is shown.
    pub not_membership: Option<String>,
}

impl MemberQuery {
    fn wants(&self, membership: &str) -> bool {
        match (&self.membership, &self.not_membership) {
            (None, None) => true,
            (is, is_not) => {
                is.as_ref().is_some_and(|is| is == membership)
                    || is_not.as_ref().is_some_and(|is_not| is_not != membership)
            }
        }
    }
}

impl RoomReader {
    /// The member events of a room.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room.
    pub async fn members(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        query: &MemberQuery,
    ) -> Result<Vec<Box<RawValue>>, ReadError> {
        let seat = self.whole_seat(&viewer.user, room).await?;
        let view = match &query.at {
            Some(at) => self.view_at(room, &seat, at).await?,
            None => seat.state,
        };
        let mut events = self.state_of_type(&view, &StateEventType::RoomMember).await?;
        events.retain(|stored| query.wants(membership_of(Some(&stored.event)).as_str()));
        Ok(render(&self.core, viewer, &events, Shown::STATE).await?)
    }

    /// The state at a place in the timeline; before the room's first event, that of the sync which named the place.
    async fn view_at(&self, room: &RoomId, seat: &Seat, at: &str) -> Result<StateView, ReadError> {
        let places = [Some(PageToken::parse(at)?.0), TimelineToken::seen(at)];
        for place in places.into_iter().flatten() {
            if let Some(view) = self.state_at(room, place.min(seat.newest)).await? {
                return Ok(view);
            }
        }
        Ok(seat.state.clone())
    }

    /// The state after the newest event up to this number; `None` when there is no such event.
    pub(super) async fn state_at(&self, room: &RoomId, sn: i64) -> Result<Option<StateView>, ReadError> {
        let mut conn = self.core.store.read().await?;
        let newest = conn.events_backward(room, sn.saturating_add(1), 1).await?.pop();
        Ok(newest.and_then(|stored| {
            let root = stored.state_before?;
            let after = stored.event.state_entry().map(|entry| (entry, stored.event.event_id.clone()));
            Some(StateView { root, after })
        }))
    }

    /// The joined members of a room that the user is joined to.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] when the user is not.
    pub async fn joined_members(&self, user: &UserId, room: &RoomId) -> Result<Arc<[JoinedRow]>, ReadError> {
        if !self.whole_seat(user, room).await?.joined {
            return Err(ReadError::Forbidden);
        }
        Ok(self.core.store.now().await?.joined(room).await?)
    }

    /// Somebody of this server who is joined to the room and for whom an application service may speak: who is not in a
    /// room itself may list its members all the same.
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidjoined_members>
    pub async fn joined_of(
        &self,
        appservice: &Appservice,
        room: &RoomId,
    ) -> Result<Option<OwnedUserId>, ReadError> {
        let joined = self.core.store.read().await?.local_members_of(room, "join").await?;
        Ok(joined.into_iter().find(|user| appservice.has_user(user)))
    }

    /// The rooms that the user is joined to.
    pub async fn joined_rooms(&self, user: &UserId) -> Result<Vec<OwnedRoomId>, ReadError> {
        let rows = self.core.store.read().await?.memberships_of(user).await?;
        Ok(rows.into_iter().filter(|row| row.membership == "join").map(|row| row.room_id).collect())
    }
}
