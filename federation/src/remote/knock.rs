use ruma::canonical_json::CanonicalJsonObject;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use serde_json::value::RawValue;
use waxwing_model::Event;
use waxwing_rooms::version;

use super::{Membership, RemoteError, RemoteMemberships, stripped};

/// A knock of one of our users.
#[derive(Clone, Debug)]
pub struct KnockRequest {
    /// The room.
    pub room: OwnedRoomId,
    /// The user.
    pub user: OwnedUserId,
    /// Servers that are in the room.
    pub servers: Vec<OwnedServerName>,
    /// More content of the membership event: display name, avatar, reason.
    pub content: CanonicalJsonObject,
}

/// A knock that was delivered.
#[derive(Debug)]
pub struct KnockedRoom {
    /// The room's version.
    pub version: RoomVersionId,
    /// The knock.
    pub knock: Event,
    /// The state to recognise the room by, in stripped form. Not verified: it is for display only.
    pub stripped_state: Vec<Box<RawValue>>,
    /// The server that took it.
    pub resident: OwnedServerName,
}

impl RemoteMemberships {
    /// Knocks on a room: <https://spec.matrix.org/v1.19/server-server-api/#knocking-upon-a-room>.
    pub async fn knock(&self, request: &KnockRequest) -> Result<KnockedRoom, RemoteError> {
        self.try_each(&request.servers, |server| self.knock_through(server, request)).await
    }

    async fn knock_through(
        &self,
        server: &OwnedServerName,
        request: &KnockRequest,
    ) -> Result<KnockedRoom, RemoteError> {
        let (room, user) = (&request.room, &request.user);
        let template = self.client.make_knock(server, room, user, &version::joinable()).await?;
        let wanted = Membership {
            room: room.clone(),
            user: user.clone(),
            kind: "knock",
            content: request.content.clone(),
        };
        let (version, knock) = self.finish(&template, wanted)?;
        let state = self.client.send_knock(server, room, &knock.event_id, &knock.json).await?;
        Ok(KnockedRoom { version, knock, stripped_state: stripped(&state), resident: server.clone() })
    }
}
