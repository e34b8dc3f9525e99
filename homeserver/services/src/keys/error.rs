//! Why a request about keys is refused.

use waxwing_storage::StoreError;

/// What can be wrong with a request about keys. The texts are for clients.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The requester has no device.
    #[error("this needs a device")]
    NoDevice,
    /// Not of the shape that the protocol asks for.
    #[error("{0}")]
    BadJson(String),
    /// Of the right shape, but not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// Something that is needed is missing.
    #[error("{0}")]
    Missing(String),
    /// A signature that is needed is missing or wrong.
    #[error("{0}")]
    Signature(String),
    /// The requester may not.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such key, device or user.
    #[error("{0}")]
    NotFound(String),
    /// More than this server takes.
    #[error("{0}")]
    TooLarge(String),
}
