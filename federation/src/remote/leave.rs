use ruma::canonical_json::CanonicalJsonObject;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use waxwing_model::Event;

use super::{Membership, RemoteError, RemoteMemberships};

/// One of our users rejects an invite, takes back a knock, or leaves a room that this server is not in otherwise.
#[derive(Clone, Debug)]
pub struct LeaveRequest {
    /// The room.
    pub room: OwnedRoomId,
    /// The user.
    pub user: OwnedUserId,
    /// Servers that are in the room; for an invite the inviter's first.
    pub servers: Vec<OwnedServerName>,
    /// More content of the membership event: a reason.
    pub content: CanonicalJsonObject,
}

impl RemoteMemberships {
    /// Leaves through a server that is in the room; gives the room's version and the leave event.
    /// <https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites>
    pub async fn leave(&self, request: &LeaveRequest) -> Result<(RoomVersionId, Event), RemoteError> {
        self.try_each(&request.servers, |server| self.leave_through(server, request)).await
    }

    async fn leave_through(
        &self,
        server: &OwnedServerName,
        request: &LeaveRequest,
    ) -> Result<(RoomVersionId, Event), RemoteError> {
        let template = self.client.make_leave(server, &request.room, &request.user).await?;
        let wanted = Membership {
            room: request.room.clone(),
            user: request.user.clone(),
            kind: "leave",
            content: request.content.clone(),
        };
        let (version, leave) = self.finish(&template, wanted)?;
        self.client.send_leave(server, &request.room, &leave.event_id, &leave.json).await?;
        Ok((version, leave))
    }
}
