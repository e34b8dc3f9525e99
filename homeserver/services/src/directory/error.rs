use crate::timeline::TimelineError;
use waxwing_storage::StoreError;

/// Why a room is not found, or its directory entry not changed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Sending an event failed.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// There is none, or not for this user.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The user may not do it.
    #[error("{0}")]
    Forbidden(&'static str),
    /// A parameter has a value that it cannot have.
    #[error("{0}")]
    InvalidParam(&'static str),
    /// The alias is reserved for an application service, or is not the application service's to make.
    #[error("the alias is reserved for an application service")]
    Exclusive,
    /// An application service that may have the alias does not answer.
    #[error(transparent)]
    Silent(#[from] crate::appservices::QueryError),
    /// The alias points at a room already.
    #[error("the alias is taken")]
    AliasTaken,
    /// Another server did not answer as it should.
    #[error("the other server could not be asked")]
    Unreachable,
}
