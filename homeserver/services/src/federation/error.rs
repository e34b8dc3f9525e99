use crate::timeline::TimelineError;
use ruma::RoomVersionId;
use waxwing_federation::ports::PortError;
use waxwing_rooms::BuildError;
use waxwing_storage::StoreError;

/// Why another server does not get what it asks for. The texts go to that server.
#[derive(Debug, thiserror::Error)]
pub enum FederationError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The room graph.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// Our own trouble below.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The rules of the room, its ACL or ours.
    #[error("{0}")]
    Forbidden(String),
    /// This server is not in the room.
    #[error("this server is not in the room")]
    NoRoom,
    /// There is no such event, user, alias.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// A parameter, or an event, is not what the endpoint takes.
    #[error("{0}")]
    InvalidParam(String),
    /// Something that must be there is not.
    #[error("{0}")]
    MissingParam(String),
    /// The room has a version that the asking server does not know, or an invitation one that we do not.
    #[error("the room has version {0}, which is not supported")]
    IncompatibleVersion(RoomVersionId),
    /// We cannot see whether the user may join: another server may.
    #[error("this server cannot tell whether the user may join")]
    UnableToAuthorise,
    /// The user may join, but nobody of ours may let it in.
    #[error("nobody of this server may let the user in")]
    UnableToGrant,
    /// The invited user takes no invitations.
    #[error("the user takes no invitations")]
    InviteBlocked,
}

impl From<BuildError> for FederationError {
    fn from(error: BuildError) -> FederationError {
        FederationError::Timeline(error.into())
    }
}
