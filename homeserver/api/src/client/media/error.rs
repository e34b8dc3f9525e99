//! What the media service answers, as clients and servers read it.

use crate::error::ApiError;
use http::StatusCode;
use ruma::api::error::ErrorCode;
use std::time::Duration;
use waxwing_services::media::MediaError;

/// When one of the announced uploads may have been made.
const RETRY_PENDING: Duration = Duration::from_mins(1);
/// When some of the thumbnails before this one have been made.
const RETRY_BUSY: Duration = Duration::from_secs(2);

impl From<MediaError> for ApiError {
    fn from(error: MediaError) -> ApiError {
        match error {
            MediaError::Store(error) => ApiError::from(error),
            MediaError::Objects(error) => ApiError::internal(error),
            MediaError::NotFound => ApiError::not_found("There is no such media"),
            MediaError::NotYetUploaded => ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorCode::NotYetUploaded,
                "The media has not been uploaded yet",
            ),
            MediaError::CannotOverwrite => ApiError::new(
                StatusCode::CONFLICT,
                ErrorCode::CannotOverwriteMedia,
                "The media was uploaded already",
            ),
            MediaError::Forbidden => ApiError::forbidden("This upload was announced by another user"),
            MediaError::TooManyPending => ApiError::limit_exceeded(RETRY_PENDING),
            MediaError::OverQuota(quota) => {
                ApiError::forbidden(format_args!("The files of one account may have {quota} bytes together"))
            }
            MediaError::Busy => ApiError::limit_exceeded(RETRY_BUSY),
            MediaError::TooLarge(limit) => {
                ApiError::too_large(format_args!("Uploads may have {limit} bytes at most"))
            }
            MediaError::RemoteTooLarge(limit) => ApiError::new(
                StatusCode::BAD_GATEWAY,
                ErrorCode::TooLarge,
                format_args!("The media of the other server is larger than {limit} bytes"),
            ),
            MediaError::Remote(why) => {
                // It names addresses: for our log alone.
                tracing::debug!(why, "media of another server cannot be had");
                ApiError::new(
                    StatusCode::BAD_GATEWAY,
                    ErrorCode::Unknown,
                    "The other server did not give the media",
                )
            }
            MediaError::Broken(why) => ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, why),
            MediaError::NoThumbnail => ApiError::new(
                StatusCode::BAD_REQUEST,
                ErrorCode::Unknown,
                "No thumbnail can be made of this file",
            ),
        }
    }
}
