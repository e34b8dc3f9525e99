//! Around every request: CORS, a span, a metric, and an answer where the handler panicked.

use crate::error::ApiError;
use crate::polls::Answering;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tracing::Instrument;

/// Numbers requests, so that lines of one request can be found together.
static REQUESTS: AtomicU64 = AtomicU64::new(1);

/// What browsers ask for: <https://spec.matrix.org/v1.19/client-server-api/#web-browser-clients>.
const CORS: [(HeaderName, HeaderValue); 4] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS")),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "X-Requested-With, Content-Type, Authorization, Date, If-Match, If-None-Match",
        ),
    ),
    (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400")),
];

/// The middleware.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    if request.method() == Method::OPTIONS {
        let mut response = StatusCode::NO_CONTENT.into_response();
        allow_browsers(&mut response);
        return response;
    }
    let began = Instant::now();
    let method = request.method().clone();
    // The path as it is registered: no ids and no query, which may carry a token.
    let path = request.extensions().get::<MatchedPath>().cloned();
    let shown = path.as_ref().map_or("unknown", MatchedPath::as_str);
    let id = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let span = tracing::debug_span!("request", id, %method, path = shown);
    let answering = Answering::of(&request);
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await {
        Ok(response) => response,
        Err(_) => span.in_scope(|| ApiError::internal("the handler panicked")).into_response(),
    };
    answering.within(&span);
    answering.finish(response, move |response| {
        allow_browsers(response);
        let (status, passed) = (response.status(), began.elapsed());
        tracing::debug!(parent: &span, status = status.as_u16(), micros = passed.as_micros() as u64, "answered");
        metrics::histogram!(
            "waxwing_http_request_seconds",
            "method" => method_label(&method),
            "path" => path.as_ref().map_or("unknown", MatchedPath::as_str).to_owned(),
            "status" => status.as_u16().to_string(),
        )
        .record(passed.as_secs_f64());
    })
}

/// Methods are whatever a client sends; labels are few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn allow_browsers(response: &mut Response) {
    let headers = response.headers_mut();
    for (name, value) in CORS {
        headers.entry(name).or_insert(value);
    }
}
