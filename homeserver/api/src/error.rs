//! What services answer, as `errcode` and status: <https://spec.matrix.org/v1.19/client-server-api/#standard-error-response>.
//! Every match here is exhaustive. Internals are logged, never sent.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use ruma::api::error::{
    DeserializationError, ErrorCode, ErrorKind, HeaderDeserializationError, IntoHttpError, StandardErrorBody,
};
use serde_json::{Map, Value};
use std::fmt::Display;
use std::time::Duration;
use waxwing_services::accounts::AuthError;
use waxwing_services::rooms_read::ReadError;
use waxwing_services::sync::SyncError;
use waxwing_services::sync::sliding::SlidingError;

/// What comes back within seconds is asked for again after this time.
const AWAY: Duration = Duration::from_secs(1);

/// An error as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// The whole body.
    pub body: Map<String, Value>,
    /// For how long the client should wait.
    pub retry_after: Option<Duration>,
}

/// What handlers answer.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with an `errcode` and a message for people.
    pub fn new(status: StatusCode, errcode: ErrorCode, message: impl Display) -> ApiError {
        ApiError::custom(status, errcode.as_str(), message)
    }

    /// The same with an `errcode` that ruma does not know.
    pub fn custom(status: StatusCode, errcode: &str, message: impl Display) -> ApiError {
        let mut body = Map::new();
        body.insert("errcode".to_owned(), Value::String(errcode.to_owned()));
        body.insert("error".to_owned(), Value::String(message.to_string()));
        ApiError { status, body, retry_after: None }
    }

    /// An error with a ruma kind and its data.
    pub fn kind(status: StatusCode, kind: ErrorKind, message: impl Display) -> ApiError {
        match serde_json::to_value(StandardErrorBody::new(kind, message.to_string())) {
            Ok(Value::Object(body)) => ApiError { status, body, retry_after: None },
            _ => ApiError::new(status, ErrorCode::Unknown, message),
        }
    }

    /// Adds a field to the body.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> ApiError {
        self.body.insert(field.to_owned(), value.into());
        self
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message)
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, message)
    }

    /// 400 `M_BAD_JSON`.
    pub fn bad_json(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::BadJson, message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidParam, message)
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::MissingParam, message)
    }

    /// 413 `M_TOO_LARGE`.
    pub fn too_large(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, message)
    }

    /// 404 `M_UNRECOGNIZED`: there is no such endpoint.
    pub fn unrecognized() -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, ErrorCode::Unrecognized, "No such endpoint")
    }

    /// 401 `M_MISSING_TOKEN`.
    pub fn missing_token() -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, ErrorCode::MissingToken, "An access token is needed")
    }

    /// 401 `M_UNKNOWN_TOKEN`.
    pub fn unknown_token(soft_logout: bool) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, ErrorCode::UnknownToken, "The access token is not valid")
            .with("soft_logout", soft_logout)
    }

    /// 401 `M_USER_LOCKED`.
    pub fn locked() -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, ErrorCode::UserLocked, "This account is locked")
            .with("soft_logout", true)
    }

    /// 403 `M_USER_SUSPENDED`.
    pub fn suspended() -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, ErrorCode::UserSuspended, "This account is suspended")
    }

    /// 429 `M_LIMIT_EXCEEDED`: both the header and the older field say for how long to wait.
    pub fn limit_exceeded(wait: Duration) -> ApiError {
        let wait = wait.max(Duration::from_millis(1));
        let mut error =
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::LimitExceeded, "Too many requests")
                .with("retry_after_ms", wait.as_millis() as u64);
        error.retry_after = Some(wait);
        error
    }

    /// 503 `M_UNKNOWN`: the database is away, or too much waits for it. The same request is worth sending again.
    pub fn away(error: impl Display) -> ApiError {
        tracing::warn!(%error, "a request could not be served now");
        let text = "The server cannot do this just now; try again";
        let mut error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unknown, text);
        error.retry_after = Some(AWAY);
        error
    }

    /// 500 `M_UNKNOWN`. What happened goes to the log, not to the client.
    pub fn internal(error: impl Display) -> ApiError {
        tracing::error!(%error, "a request failed");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "Internal server error")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let bytes = serde_json::to_vec(&self.body).unwrap_or_else(|_| b"{}".to_vec());
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_millis().div_ceil(1000) as u64));
        }
        response
    }
}

impl From<waxwing_services::StoreError> for ApiError {
    fn from(error: waxwing_services::StoreError) -> ApiError {
        ApiError::from(&error)
    }
}

impl From<&waxwing_services::StoreError> for ApiError {
    fn from(error: &waxwing_services::StoreError) -> ApiError {
        match error {
            waxwing_services::StoreError::Full => ApiError::limit_exceeded(AWAY),
            error if error.is_passing() => ApiError::away(error),
            error => ApiError::internal(error),
        }
    }
}

impl From<IntoHttpError> for ApiError {
    fn from(error: IntoHttpError) -> ApiError {
        ApiError::internal(error)
    }
}

impl From<serde_json::Error> for ApiError {
    /// A body that could not be read.
    fn from(error: serde_json::Error) -> ApiError {
        match error.classify() {
            serde_json::error::Category::Data if error.to_string().starts_with("missing field") => {
                ApiError::missing_param(error)
            }
            serde_json::error::Category::Data => ApiError::bad_json(error),
            serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof
            | serde_json::error::Category::Io => {
                ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::NotJson, error)
            }
        }
    }
}

impl From<DeserializationError> for ApiError {
    /// A request that could not be read.
    fn from(error: DeserializationError) -> ApiError {
        match error {
            DeserializationError::Json(error) => ApiError::from(error),
            DeserializationError::Query(error) if error.to_string().starts_with("missing field") => {
                ApiError::missing_param(error)
            }
            DeserializationError::Header(HeaderDeserializationError::MissingHeader(name)) => {
                ApiError::missing_param(format_args!("missing header {name}"))
            }
            // ruma leaves room for more kinds; all of them are parts of the request that cannot be read.
            other => ApiError::invalid_param(other),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> ApiError {
        match error {
            ReadError::Store(error) => ApiError::from(error),
            error @ ReadError::Forbidden => ApiError::forbidden(error),
            error @ ReadError::NotFound(_) => ApiError::not_found(error),
            error @ ReadError::InvalidParam(_) => ApiError::invalid_param(error),
            error @ ReadError::Incomplete => {
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unknown, error)
            }
        }
    }
}

impl From<SyncError> for ApiError {
    fn from(error: SyncError) -> ApiError {
        match error {
            error @ SyncError::BadFilter(_) => ApiError::invalid_param(error),
            SyncError::Store(error) => ApiError::from(error),
        }
    }
}

impl From<SlidingError> for ApiError {
    fn from(error: SlidingError) -> ApiError {
        match error {
            error @ SlidingError::UnknownPos => {
                ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::UnknownPos, error)
            }
            SlidingError::Store(error) => ApiError::from(error),
        }
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> ApiError {
        match error {
            AuthError::Unknown => ApiError::unknown_token(false),
            AuthError::Expired => ApiError::unknown_token(true),
            AuthError::Store(error) => ApiError::from(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_rounded_up_in_the_header() {
        let response = ApiError::limit_exceeded(Duration::from_millis(1200)).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn bad_json_and_no_json_differ() {
        let errcode = |text: &str| {
            let error = serde_json::from_str::<std::collections::BTreeMap<String, u8>>(text).unwrap_err();
            ApiError::from(error).body["errcode"].clone()
        };
        assert_eq!(errcode("{"), "M_NOT_JSON");
        assert_eq!(errcode("[]"), "M_BAD_JSON");
        assert_eq!(errcode(r#"{"a":"b"}"#), "M_BAD_JSON");
    }
}
