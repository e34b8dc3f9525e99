use crate::error::ApiError;
use http::StatusCode;
use ruma::api::error::ErrorCode;
use waxwing_services::accounts::{AccountError, UiaError};

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> ApiError {
        let (status, code) = match &error {
            AccountError::InvalidUsername(_) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidUsername),
            AccountError::UserInUse => (StatusCode::BAD_REQUEST, ErrorCode::UserInUse),
            AccountError::Exclusive => (StatusCode::BAD_REQUEST, ErrorCode::Exclusive),
            AccountError::NotTheirs => (StatusCode::FORBIDDEN, ErrorCode::Exclusive),
            AccountError::GuestsClosed => (StatusCode::FORBIDDEN, ErrorCode::GuestAccessForbidden),
            AccountError::BadRegistrationToken => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
            AccountError::WeakPassword => (StatusCode::BAD_REQUEST, ErrorCode::WeakPassword),
            AccountError::Deactivated => (StatusCode::FORBIDDEN, ErrorCode::UserDeactivated),
            AccountError::UnknownUser | AccountError::UnknownDevice => {
                (StatusCode::NOT_FOUND, ErrorCode::NotFound)
            }
            AccountError::InvalidDeviceId | AccountError::RemoteUser => {
                (StatusCode::BAD_REQUEST, ErrorCode::InvalidParam)
            }
            AccountError::BadNonce => (StatusCode::BAD_REQUEST, ErrorCode::Unknown),
            AccountError::RegistrationClosed
            | AccountError::WrongPassword
            | AccountError::BadLoginToken
            | AccountError::DeviceIdIsKey
            | AccountError::BadMac
            | AccountError::NotAdmin
            | AccountError::Protected => (StatusCode::FORBIDDEN, ErrorCode::Forbidden),
            AccountError::BadRefreshToken => return ApiError::unknown_token(false),
            AccountError::Locked => return ApiError::locked(),
            AccountError::SharedSecretOff => return ApiError::unrecognized(),
            AccountError::Hash(_) | AccountError::Store(_) => return ApiError::internal(error),
        };
        ApiError::new(status, code, error)
    }
}

impl From<UiaError> for ApiError {
    fn from(error: UiaError) -> ApiError {
        match error {
            UiaError::Needed(body) => ApiError { status: StatusCode::UNAUTHORIZED, body, retry_after: None },
            UiaError::OtherRequest | UiaError::OtherUser => ApiError::forbidden(error),
            UiaError::Json(error) => ApiError::from(error),
            UiaError::Account(error) => ApiError::from(error),
        }
    }
}
