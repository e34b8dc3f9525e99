//! Endpoints that take or give JSON which ruma's types would narrow: a null where it wants text, an empty list that it
//! leaves out.

use crate::error::{ApiError, ApiResult};
use bytes::BufMut;
use http::HeaderValue;
use ruma::api::error::IntoHttpError;
use ruma::api::{OutgoingBody, OutgoingResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;

/// JSON as it is sent.
pub struct JsonBody(Vec<u8>);

impl OutgoingBody for JsonBody {
    type Error = IntoHttpError;

    fn content_type(&self) -> Option<HeaderValue> {
        Some(HeaderValue::from_static("application/json"))
    }

    fn try_into_buf<T: Default + BufMut + AsRef<[u8]>>(self) -> Result<T, IntoHttpError> {
        let mut buffer = T::default();
        buffer.put_slice(&self.0);
        Ok(buffer)
    }
}

/// An answer of 200 with JSON.
pub struct JsonAnswer(Vec<u8>);

impl JsonAnswer {
    /// Writes `value`.
    pub fn new(value: &impl Serialize) -> ApiResult<JsonAnswer> {
        serde_json::to_vec(value).map(JsonAnswer).map_err(ApiError::internal)
    }

    /// `{}`
    pub fn empty() -> JsonAnswer {
        JsonAnswer(b"{}".to_vec())
    }
}

impl OutgoingResponse for JsonAnswer {
    type Body = JsonBody;

    fn try_into_http_response_inner(self) -> Result<http::Response<JsonBody>, IntoHttpError> {
        Ok(http::Response::new(JsonBody(self.0)))
    }
}

/// Declares a request of which only method, authentication and paths are known: the handler reads the rest.
macro_rules! plain_request {
    ($(#[$meta:meta])* $name:ident, $method:ident, $auth:ident, $history:tt) => {
        $(#[$meta])*
        pub struct $name {
            path: Vec<String>,
        }
        ruma::metadata! { @for $name,
            method: $method,
            rate_limited: false,
            authentication: $auth,
            history: $history
        }
        impl $crate::client::user::plain::PlainRequest for $name {
            fn path(&self, at: usize) -> &str {
                self.path.get(at).map_or("", String::as_str)
            }
        }
        impl ruma::api::IncomingRequest for $name {
            type EndpointError = ruma::api::error::Error;
            type OutgoingResponse = $crate::client::user::plain::JsonAnswer;
            fn try_from_http_request_inner(
                _: http::Request<&[u8]>,
                path: &[&str],
            ) -> Result<$name, ruma::api::error::DeserializationError> {
                Ok($name { path: path.iter().map(|part| (*part).to_owned()).collect() })
            }
        }
    };
}
pub(crate) use plain_request;

/// A request of which only the path is read.
pub trait PlainRequest {
    /// A variable of the path, by its place; empty when there is none.
    fn path(&self, at: usize) -> &str;
}

/// An id of the path.
///
/// # Errors
/// 400 `M_INVALID_PARAM`.
pub(super) fn id<T>(request: &impl PlainRequest, at: usize) -> ApiResult<T>
where
    T: for<'a> TryFrom<&'a str>,
    for<'a> <T as TryFrom<&'a str>>::Error: Display,
{
    T::try_from(request.path(at)).map_err(ApiError::invalid_param)
}

/// Text of the path.
pub(super) fn text(request: &impl PlainRequest, at: usize) -> &str {
    request.path(at)
}

/// The body.
///
/// # Errors
/// 400 `M_NOT_JSON` or `M_BAD_JSON`.
pub(super) fn body<T: DeserializeOwned>(json: &[u8]) -> ApiResult<T> {
    crate::extract::json(if json.is_empty() { b"{}" } else { json })
}
