//! What the keys service answers, as clients read it.

use crate::error::ApiError;
use http::StatusCode;
use waxwing_services::keys::KeysError;

impl From<KeysError> for ApiError {
    fn from(error: KeysError) -> ApiError {
        match error {
            KeysError::Store(error) => ApiError::from(error),
            KeysError::NoDevice => ApiError::missing_param("This needs an access token of a device"),
            KeysError::BadJson(why) => ApiError::bad_json(why),
            KeysError::Invalid(why) => ApiError::invalid_param(why),
            KeysError::Missing(why) => ApiError::missing_param(why),
            KeysError::Signature(why) => {
                ApiError::custom(StatusCode::BAD_REQUEST, "M_INVALID_SIGNATURE", why)
            }
            KeysError::Forbidden(why) => ApiError::forbidden(why),
            KeysError::NotFound(why) => ApiError::not_found(why),
            KeysError::TooLarge(why) => ApiError::too_large(why),
        }
    }
}
