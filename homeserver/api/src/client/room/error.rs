//! What the timeline service answers, as clients read it.

use crate::error::ApiError;
use http::StatusCode;
use ruma::api::error::ErrorCode;
use std::time::Duration;
use waxwing_services::timeline::TimelineError;

/// What a client is told to wait when another server has enough and does not say for how long.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// And at most, whatever that server says: it would else silence people for as long as it likes.
const LONGEST_RETRY: Duration = Duration::from_mins(10);

impl From<TimelineError> for ApiError {
    fn from(error: TimelineError) -> ApiError {
        let bad = StatusCode::BAD_REQUEST;
        match error {
            TimelineError::Store(error) => ApiError::from(error),
            TimelineError::Internal(why) => ApiError::internal(why),
            TimelineError::NoRoom => ApiError::not_found("This room is not known here"),
            TimelineError::NotFound(what) => ApiError::not_found(format_args!("The {what} was not found")),
            TimelineError::NotInRoom => ApiError::forbidden("You are not in this room"),
            TimelineError::Forbidden(why) => ApiError::forbidden(why),
            TimelineError::TooLarge => ApiError::too_large("The event is too large"),
            TimelineError::BadContent(why) => ApiError::bad_json(why),
            TimelineError::InvalidParam(why) => ApiError::invalid_param(why),
            TimelineError::UnsupportedVersion(version) => ApiError::new(
                bad,
                ErrorCode::UnsupportedRoomVersion,
                format_args!("Room version {version} is not supported"),
            ),
            TimelineError::InvalidRoomState(why) => ApiError::new(bad, ErrorCode::InvalidRoomState, why),
            TimelineError::RoomInUse => {
                ApiError::new(bad, ErrorCode::RoomInUse, "This room alias is already in use")
            }
            TimelineError::Exclusive => ApiError::new(bad, ErrorCode::Exclusive, error),
            TimelineError::Silent(error) => {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unknown, error)
            }
            TimelineError::BadAlias(why) => ApiError::new(bad, ErrorCode::BadAlias, why),
            TimelineError::BadState(why) => ApiError::new(bad, ErrorCode::BadState, why),
            TimelineError::StillIn => {
                ApiError::new(bad, ErrorCode::Unknown, "Leave the room before you forget it")
            }
            TimelineError::DuplicateAnnotation => {
                ApiError::new(bad, ErrorCode::DuplicateAnnotation, "You have already sent this reaction")
            }
            // <https://spec.matrix.org/v1.19/client-server-api/#threading>
            error @ TimelineError::NoThreadRoot => ApiError::new(bad, ErrorCode::Unknown, error),
            error @ TimelineError::GuestsForbidden => {
                ApiError::new(StatusCode::FORBIDDEN, ErrorCode::GuestAccessForbidden, error)
            }
            TimelineError::Suspended => ApiError::suspended(),
            TimelineError::NoticeRoom => ApiError::custom(
                StatusCode::FORBIDDEN,
                "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM",
                "You cannot reject this invitation",
            ),
            TimelineError::Sealed(refusal) => ApiError::forbidden(refusal),
            TimelineError::InviteBlocked => {
                ApiError::custom(StatusCode::FORBIDDEN, "M_INVITE_BLOCKED", "Invitations are blocked")
            }
            TimelineError::Remote { status, errcode, error, retry_after } => {
                remote(status, &errcode, &error, retry_after)
            }
            TimelineError::Unreachable(why) => ApiError::new(
                StatusCode::BAD_GATEWAY,
                ErrorCode::Unknown,
                format_args!("No server of the room could help: {why}"),
            ),
            TimelineError::IncompatibleVersion(version) => ApiError::new(
                bad,
                ErrorCode::IncompatibleRoomVersion,
                format_args!("The room has version {version}, which is not supported"),
            )
            .with("room_version", version),
            error @ TimelineError::Unapproved(_) => {
                ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, error)
            }
            TimelineError::Raced => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unknown,
                "The room is too busy; try again",
            ),
        }
    }
}

/// Another server's refusal. Its complaints about the request itself are ours to bear, not the client's.
fn remote(status: u16, errcode: &str, error: &str, retry_after: Option<Duration>) -> ApiError {
    if status == StatusCode::TOO_MANY_REQUESTS.as_u16() {
        let wait = retry_after.unwrap_or(RETRY_AFTER).min(LONGEST_RETRY);
        let answer = ApiError::limit_exceeded(wait);
        return if error.is_empty() { answer } else { answer.with("error", error) };
    }
    let ours = matches!(errcode, "M_MISSING_PARAM" | "M_INVALID_PARAM" | "M_BAD_JSON" | "M_NOT_JSON");
    match StatusCode::from_u16(status) {
        Ok(status) if status.is_client_error() && !ours && status != StatusCode::UNAUTHORIZED => {
            ApiError::custom(status, errcode, error)
        }
        _ => ApiError::custom(StatusCode::BAD_GATEWAY, errcode, error),
    }
}
