use crate::error::ApiError;
use http::StatusCode;
use ruma::api::error::ErrorCode;
use std::time::Duration;
use waxwing_federation::inbound::TransactionError;
use waxwing_services::federation::FederationError;

impl From<FederationError> for ApiError {
    fn from(error: FederationError) -> ApiError {
        let bad =
            |code: &str, error: &FederationError| ApiError::custom(StatusCode::BAD_REQUEST, code, error);
        match error {
            FederationError::Store(error) => error.into(),
            FederationError::Timeline(error) => error.into(),
            FederationError::Port(error) => ApiError::internal(error),
            FederationError::Forbidden(why) => ApiError::forbidden(why),
            FederationError::NoRoom | FederationError::NotFound(_) => ApiError::not_found(error),
            FederationError::InvalidParam(why) => ApiError::invalid_param(why),
            FederationError::MissingParam(why) => ApiError::missing_param(why),
            FederationError::IncompatibleVersion(ref version) => {
                bad("M_INCOMPATIBLE_ROOM_VERSION", &error).with("room_version", version.as_str())
            }
            FederationError::UnableToAuthorise => bad("M_UNABLE_TO_AUTHORISE_JOIN", &error),
            FederationError::UnableToGrant => bad("M_UNABLE_TO_GRANT_JOIN", &error),
            FederationError::InviteBlocked => {
                ApiError::custom(StatusCode::FORBIDDEN, "M_INVITE_BLOCKED", error)
            }
        }
    }
}

/// How long a server should wait that sends faster than a room takes in.
const BUSY: Duration = Duration::from_secs(5);

impl From<TransactionError> for ApiError {
    fn from(error: TransactionError) -> ApiError {
        match error {
            TransactionError::Malformed(_) => {
                ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::BadJson, error)
            }
            TransactionError::TooMany | TransactionError::BadId => ApiError::invalid_param(error),
            TransactionError::Busy => ApiError::limit_exceeded(BUSY),
            TransactionError::Internal => ApiError::internal(error),
        }
    }
}
