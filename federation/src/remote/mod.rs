//! Memberships of our users in rooms that live elsewhere: joining, knocking, leaving, inviting, through a server that is
//! in the room. Nothing is stored here: the caller gets what was checked and persists it.

mod invite;
mod join;
mod knock;
mod leave;

pub use invite::RemoteInvite;
pub use join::{JoinRequest, JoinedRoom};
pub use knock::{KnockRequest, KnockedRoom};
pub use leave::LeaveRequest;

use http::StatusCode;
use ruma::canonical_json::CanonicalJsonObject;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_model::{Clock, Event};
use waxwing_rooms::build::{TemplateRequest, finish_template};
use waxwing_rooms::version;

use crate::client::{Client, ClientError, Refusal, Template};
use crate::keys::KeyRing;
use crate::ports::PortError;

/// Servers tried before we give up.
const MAX_SERVERS: usize = 10;

/// Why a membership elsewhere did not come about. The last server's reason, when several were tried.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// There is no server to ask.
    #[error("no server is known to be in the room")]
    NoServers,
    /// A server refused for a reason that another server would give too (403, 404, ...).
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The room is of a version that we do not know.
    #[error("room version {0} is not supported")]
    IncompatibleVersion(String),
    /// No server could be reached, or all answered with trouble of their own.
    #[error("no server could help: {0}")]
    Unreachable(String),
    /// What came back does not hold.
    #[error("the answer does not hold: {0}")]
    Invalid(String),
    /// Our own trouble.
    #[error("internal: {0}")]
    Internal(#[from] PortError),
}

impl RemoteError {
    fn invalid(reason: impl std::fmt::Display) -> RemoteError {
        RemoteError::Invalid(reason.to_string())
    }

    /// Whether the next server may do better.
    fn is_worth_another(&self) -> bool {
        match self {
            RemoteError::Unreachable(_) | RemoteError::Invalid(_) => true,
            RemoteError::Refused(refusal) => may_differ_elsewhere(refusal),
            RemoteError::NoServers | RemoteError::IncompatibleVersion(_) | RemoteError::Internal(_) => false,
        }
    }
}

/// A server that is not in the room (any more) answers 404; one that cannot see the state that allows a restricted
/// join, or nobody of which may grant it, says so. Other servers may.
fn may_differ_elsewhere(refusal: &Refusal) -> bool {
    refusal.status.is_server_error()
        || matches!(
            refusal.status,
            StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED
        )
        || matches!(refusal.errcode.as_str(), "M_UNABLE_TO_AUTHORISE_JOIN" | "M_UNABLE_TO_GRANT_JOIN")
}

impl From<ClientError> for RemoteError {
    fn from(error: ClientError) -> RemoteError {
        match error {
            ClientError::Refused(refusal) if refusal.errcode == "M_INCOMPATIBLE_ROOM_VERSION" => {
                RemoteError::IncompatibleVersion(refusal.room_version.unwrap_or_default())
            }
            ClientError::Refused(refusal) => RemoteError::Refused(refusal),
            ClientError::Nonsense(error) => RemoteError::Invalid(error),
            error => RemoteError::Unreachable(error.to_string()),
        }
    }
}

/// Makes memberships elsewhere. A handle: clones share everything.
#[derive(Clone)]
pub struct RemoteMemberships {
    client: Client,
    ring: Arc<KeyRing>,
    clock: Clock,
}

/// Whose membership, where.
#[derive(Clone, Debug)]
struct Membership {
    room: OwnedRoomId,
    user: OwnedUserId,
    kind: &'static str,
    content: CanonicalJsonObject,
}

impl RemoteMemberships {
    /// Asks through `client`, verifies with `ring`.
    pub fn new(client: Client, ring: Arc<KeyRing>, clock: Clock) -> RemoteMemberships {
        RemoteMemberships { client, ring, clock }
    }

    /// What asks other servers.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Tries `attempt` with one server after the other.
    async fn try_each<'a, T, F>(
        &self,
        servers: &'a [OwnedServerName],
        attempt: impl Fn(&'a OwnedServerName) -> F,
    ) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        let mut last = RemoteError::NoServers;
        let ours = &self.client.identity().server;
        for server in servers.iter().filter(|server| *server != ours).take(MAX_SERVERS) {
            match attempt(server).await {
                Ok(done) => return Ok(done),
                Err(error) if error.is_worth_another() => {
                    tracing::info!(%server, %error, "a server could not help with a membership");
                    last = better(last, error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Completes a template: checks that it is what was asked for, and signs it.
    fn finish(&self, template: &Template, wanted: Membership) -> Result<(RoomVersionId, Event), RemoteError> {
        let room_version = template.room_version.clone().unwrap_or(RoomVersionId::V1);
        if version::rules(&room_version).is_none() {
            return Err(RemoteError::IncompatibleVersion(room_version.to_string()));
        }
        let request = TemplateRequest {
            version: room_version.clone(),
            room_id: wanted.room,
            user_id: wanted.user,
            membership: wanted.kind,
            content: wanted.content,
            origin_server_ts: self.clock.now(),
        };
        let identity = self.client.identity();
        let event = finish_template(&template.event, request, &identity.server, &identity.key);
        Ok((room_version, event.map_err(RemoteError::invalid)?))
    }
}

/// Of two failures the one that tells a user more: what a server said beats that another did not answer.
fn better(before: RemoteError, after: RemoteError) -> RemoteError {
    match (&before, &after) {
        (RemoteError::Refused(_), RemoteError::Unreachable(_)) => before,
        _ => after,
    }
}

/// The stripped form of the state that comes with a knock: what is no event is left out.
fn stripped(state: &[Box<RawValue>]) -> Vec<Box<RawValue>> {
    state.iter().take(MAX_STRIPPED).filter_map(|event| waxwing_rooms::stripped::strip_raw(event)).collect()
}

/// Events in the state that comes with a knock or invite; the specification names eight kinds.
const MAX_STRIPPED: usize = 200;
