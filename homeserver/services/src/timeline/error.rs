use waxwing_rooms::sealed::Refusal;
use waxwing_rooms::{AuthError, BuildError};
use waxwing_storage::StoreError;

/// Why nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such room here.
    #[error("unknown room")]
    NoRoom,
    /// The room or event exists, but not for this user.
    #[error("you are not in this room")]
    NotInRoom,
    /// There is no such event, alias or state entry.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The authorisation rules of the room forbid it.
    #[error("{0}")]
    Forbidden(String),
    /// The event is larger than an event may be.
    #[error("the event is too large")]
    TooLarge,
    /// The content is not what its type or the room version demands.
    #[error("{0}")]
    BadContent(String),
    /// A parameter has a value that it cannot have.
    #[error("{0}")]
    InvalidParam(String),
    /// The room version is unknown to this server.
    #[error("this server does not support room version {0}")]
    UnsupportedVersion(String),
    /// A parameter of createRoom leads to a room that its own rules forbid.
    #[error("{0}")]
    InvalidRoomState(String),
    /// The alias is taken.
    #[error("this room alias is already in use")]
    RoomInUse,
    /// The alias is reserved for an application service, or is not the application service's to make.
    #[error("this room alias is reserved for an application service")]
    Exclusive,
    /// An application service that may have the invited user does not answer.
    #[error(transparent)]
    Silent(#[from] crate::appservices::QueryError),
    /// The alias does not point at this room, or is malformed.
    #[error("{0}")]
    BadAlias(String),
    /// The room is still the user's: it cannot be forgotten.
    #[error("leave the room before you forget it")]
    StillIn,
    /// The user is not in the state for this (not banned, already joined).
    #[error("{0}")]
    BadState(String),
    /// The same reaction by the same sender is there already.
    #[error("you have already sent this reaction")]
    DuplicateAnnotation,
    /// A thread that would start at an event which has a relation itself.
    #[error("a thread cannot start at an event that has a relation")]
    NoThreadRoot,
    /// The account is a guest's, and the room lets no guests in.
    #[error("guests may not join this room")]
    GuestsForbidden,
    /// The account is suspended.
    #[error("this account is suspended")]
    Suspended,
    /// The server writes its notices there; an invitation to it cannot be rejected.
    #[error("you cannot reject this invitation")]
    NoticeRoom,
    /// Sealing.
    #[error(transparent)]
    Sealed(#[from] Refusal),
    /// The user, or the room, blocks invitations.
    #[error("invitations are blocked")]
    InviteBlocked,
    /// The other server refused; what it said.
    #[error("{error}")]
    Remote {
        /// The status of its answer.
        status: u16,
        /// Its error code.
        errcode: String,
        /// Its words.
        error: String,
        /// How long it asks to wait.
        retry_after: Option<std::time::Duration>,
    },
    /// No server that could help answered.
    #[error("no server of the room can be reached: {0}")]
    Unreachable(String),
    /// The room has a policy server, and nobody has asked it.
    #[error("the room's policy server must see the event first")]
    Unapproved(Box<super::policy::Unapproved>),
    /// The room's version is not spoken by the other server, or not by us.
    #[error("the room has version {0}, which is not supported")]
    IncompatibleVersion(String),
    /// The room changed all the time while the event was prepared.
    #[error("the room is too busy; try again")]
    Raced,
    /// A rule of the graph was broken by our own code or a corrupt row.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<BuildError> for TimelineError {
    fn from(error: BuildError) -> TimelineError {
        match error {
            BuildError::TooLarge(_) => TimelineError::TooLarge,
            BuildError::Content(error) => TimelineError::BadContent(error.to_string()),
            BuildError::Format(error) => TimelineError::BadContent(error.to_string()),
            BuildError::Auth(error) => error.into(),
            BuildError::Version(error) => TimelineError::UnsupportedVersion(error.0.to_string()),
            error @ (BuildError::Template(_)
            | BuildError::NoRoom
            | BuildError::Sign(_)
            | BuildError::Event(_)) => TimelineError::Internal(error.to_string()),
        }
    }
}

impl From<AuthError> for TimelineError {
    fn from(error: AuthError) -> TimelineError {
        match error {
            AuthError::Forbidden(why) => TimelineError::Forbidden(why),
            AuthError::Version(error) => TimelineError::UnsupportedVersion(error.0.to_string()),
        }
    }
}
