use crate::error::ApiError;
use http::StatusCode;
use ruma::api::error::ErrorCode;
use std::time::Duration;
use waxwing_services::accounts::{AccountError, UiaError};

/// Letters that wait are sent within seconds, unless the mail server is away.
const MAIL_BUSY: Duration = Duration::from_mins(1);

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> ApiError {
        let bad = StatusCode::BAD_REQUEST;
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
            AccountError::InvalidParam(_) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidParam),
            AccountError::MediumNotSupported => {
                (StatusCode::BAD_REQUEST, ErrorCode::ThreepidMediumNotSupported)
            }
            AccountError::AddressDenied => (StatusCode::FORBIDDEN, ErrorCode::ThreepidDenied),
            AccountError::AddressInUse => (StatusCode::BAD_REQUEST, ErrorCode::ThreepidInUse),
            AccountError::AddressNotFound => (StatusCode::BAD_REQUEST, ErrorCode::ThreepidNotFound),
            AccountError::NotValidated => (StatusCode::BAD_REQUEST, ErrorCode::ThreepidAuthFailed),
            AccountError::NoSession => return ApiError::custom(bad, "M_NO_VALID_SESSION", error),
            AccountError::SessionExpired => return ApiError::custom(bad, "M_SESSION_EXPIRED", error),
            AccountError::WrongToken => return ApiError::custom(bad, "M_TOKEN_INCORRECT", error),
            AccountError::MailBusy => return ApiError::limit_exceeded(MAIL_BUSY),
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
            AccountError::Hash(_) => return ApiError::internal(error),
            AccountError::Store(error) => return ApiError::from(error),
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
