//! What the backup service answers, as clients read it.

use crate::error::ApiError;
use http::StatusCode;
use waxwing_services::backups::BackupError;

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> ApiError {
        match error {
            BackupError::Store(error) => ApiError::from(error),
            BackupError::NotFound(why) => ApiError::not_found(why),
            BackupError::WrongVersion(current) => ApiError::custom(
                StatusCode::FORBIDDEN,
                "M_WRONG_ROOM_KEYS_VERSION",
                "This is not the current version of the backup",
            )
            .with("current_version", current),
            BackupError::BadJson(why) => ApiError::bad_json(why),
            BackupError::Invalid(why) => ApiError::invalid_param(why),
            BackupError::TooLarge(why) => ApiError::too_large(why),
        }
    }
}
