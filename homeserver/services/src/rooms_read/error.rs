use waxwing_storage::StoreError;

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user is not in the room, and it is not open to all: or there is no such room, which looks the same.
    #[error("you are not in this room")]
    Forbidden,
    /// There is none, or not for this user.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The room's members are still being fetched from other servers.
    #[error("the members of the room are not here yet")]
    Incomplete,
    /// A parameter has a value that it cannot have.
    #[error("{0}")]
    InvalidParam(&'static str),
}
