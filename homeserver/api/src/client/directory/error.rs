use crate::error::ApiError;
use http::StatusCode;
use ruma::api::error::ErrorCode;
use waxwing_services::directory::DirectoryError;

impl From<DirectoryError> for ApiError {
    fn from(error: DirectoryError) -> ApiError {
        match error {
            DirectoryError::Store(error) => ApiError::from(error),
            DirectoryError::Timeline(error) => error.into(),
            DirectoryError::NotFound(what) => ApiError::not_found(format_args!("The {what} was not found")),
            DirectoryError::Forbidden(why) => ApiError::forbidden(why),
            DirectoryError::InvalidParam(why) => ApiError::invalid_param(why),
            DirectoryError::Exclusive => ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Exclusive, error),
            DirectoryError::Silent(error) => {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unknown, error)
            }
            DirectoryError::AliasTaken => ApiError::new(StatusCode::CONFLICT, ErrorCode::Unknown, error),
            DirectoryError::Unreachable => ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, error),
        }
    }
}
