//! Signing in with a QR code: where two devices meet. Two dialects over one service: MSC4108 as today's clients speak it
//! (plain text with entity tags), and MSC4388 (JSON with sequence tokens).

use super::user::plain::{JsonAnswer, plain_request};
use crate::error::{ApiError, ApiResult};
use crate::extract::Received;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::{HeaderName, HeaderValue, StatusCode, header};
use ruma::api::auth_scheme::{AccessTokenOptional, NoAccessToken};
use serde::Deserialize;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use waxwing_services::rendezvous::{Left, RendezvousError, RendezvousRow};

const OLD: &str = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous";

plain_request!(
    /// `POST /rendezvous` of MSC4108.
    OldCreate, POST, NoAccessToken, {
        unstable("org.matrix.msc4108") => "/_matrix/client/unstable/org.matrix.msc4108/rendezvous",
    }
);
plain_request!(
    /// `GET /rendezvous/{id}` of MSC4108.
    OldGet, GET, NoAccessToken, {
        unstable("org.matrix.msc4108") => "/_matrix/client/unstable/org.matrix.msc4108/rendezvous/{id}",
    }
);
plain_request!(
    /// `PUT /rendezvous/{id}` of MSC4108.
    OldPut, PUT, NoAccessToken, {
        unstable("org.matrix.msc4108") => "/_matrix/client/unstable/org.matrix.msc4108/rendezvous/{id}",
    }
);
plain_request!(
    /// `DELETE /rendezvous/{id}` of MSC4108.
    OldDelete, DELETE, NoAccessToken, {
        unstable("org.matrix.msc4108") => "/_matrix/client/unstable/org.matrix.msc4108/rendezvous/{id}",
    }
);
plain_request!(
    /// `GET /rendezvous` of MSC4388: whether there is one.
    Discover, GET, AccessTokenOptional, {
        unstable("io.element.msc4388") => "/_matrix/client/unstable/io.element.msc4388/rendezvous",
    }
);
plain_request!(
    /// `POST /rendezvous` of MSC4388.
    Create, POST, AccessTokenOptional, {
        unstable("io.element.msc4388") => "/_matrix/client/unstable/io.element.msc4388/rendezvous",
    }
);
plain_request!(
    /// `GET /rendezvous/{id}` of MSC4388.
    Get, GET, NoAccessToken, {
        unstable("io.element.msc4388") => "/_matrix/client/unstable/io.element.msc4388/rendezvous/{id}",
    }
);
plain_request!(
    /// `PUT /rendezvous/{id}` of MSC4388.
    Put, PUT, NoAccessToken, {
        unstable("io.element.msc4388") => "/_matrix/client/unstable/io.element.msc4388/rendezvous/{id}",
    }
);
plain_request!(
    /// `DELETE /rendezvous/{id}` of MSC4388.
    Delete, DELETE, NoAccessToken, {
        unstable("io.element.msc4388") => "/_matrix/client/unstable/io.element.msc4388/rendezvous/{id}",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .untyped::<OldCreate, _, _>(old_create)
        .untyped::<OldGet, _, _>(old_get)
        .untyped::<OldPut, _, _>(old_put)
        .untyped::<OldDelete, _, _>(|api, it| delete(api, it, StatusCode::NO_CONTENT))
        .ruma(|_: Api, _: crate::extract::Args<Discover>| async {
            JsonAnswer::new(&json!({ "create_available": true }))
        })
        .untyped::<Create, _, _>(create)
        .untyped::<Get, _, _>(get)
        .untyped::<Put, _, _>(put)
        .untyped::<Delete, _, _>(|api, it| delete(api, it, StatusCode::OK))
}

fn id(received: &Received) -> &str {
    received.path.first().map_or("", String::as_str)
}

fn named<'a>(received: &'a Received, name: &HeaderName) -> Option<&'a str> {
    received.parts.headers.get(name).and_then(|value| value.to_str().ok())
}

fn left(received: &Received) -> Left {
    let kind = named(received, &header::CONTENT_TYPE).unwrap_or("text/plain");
    Left { content_type: kind.to_owned(), body: received.body.to_vec() }
}

fn etag(row: &RendezvousRow) -> String {
    format!("\"{}\"", row.revision)
}

/// The headers that say which revision it is and how long it lives.
fn described(mut response: Response, row: &RendezvousRow) -> Response {
    let at = |millis: u64| httpdate(UNIX_EPOCH + Duration::from_millis(millis));
    let all = [
        (header::ETAG, etag(row)),
        (header::EXPIRES, at(row.expires_at)),
        (header::LAST_MODIFIED, at(row.changed_at)),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::PRAGMA, "no-cache".to_owned()),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "ETag".to_owned()),
    ];
    for (name, value) in all {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn httpdate(time: SystemTime) -> String {
    let at = ruma::http_headers::system_time_to_http_date(&time);
    at.ok().and_then(|value| value.to_str().map(str::to_owned).ok()).unwrap_or_default()
}

async fn old_create(api: Api, received: Received) -> ApiResult<Response> {
    let row = api.rendezvous.create(left(&received)).await?;
    let url = format!("{}{OLD}/{}", api.core.base_url(), row.id);
    let mut response = (StatusCode::CREATED, Json(json!({ "url": url }))).into_response();
    if let Ok(url) = HeaderValue::from_str(&url) {
        response.headers_mut().insert(header::LOCATION, url);
    }
    Ok(described(response, &row))
}

async fn old_get(api: Api, received: Received) -> ApiResult<Response> {
    let row = api.rendezvous.get(id(&received)).await?;
    if named(&received, &header::IF_NONE_MATCH) == Some(&*etag(&row)) {
        return Ok(described(StatusCode::NOT_MODIFIED.into_response(), &row));
    }
    let mut response = Response::new(Body::from(row.body.clone()));
    let kind = HeaderValue::from_str(&row.content_type).map_err(ApiError::internal)?;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    // What strangers wrote must not run in the name of this server.
    response
        .headers_mut()
        .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(described(response, &row))
}

async fn old_put(api: Api, received: Received) -> ApiResult<Response> {
    let Some(seen) = named(&received, &header::IF_MATCH) else {
        return Err(ApiError::missing_param("The header If-Match is missing"));
    };
    let seen = seen.trim_matches('"').parse().unwrap_or(-1);
    let row = match api.rendezvous.put(id(&received), seen, left(&received)).await {
        Err(RendezvousError::Changed) => {
            let now = api.rendezvous.get(id(&received)).await?;
            let error = ApiError::from(RendezvousError::Changed);
            return Ok(described(error.into_response(), &now));
        }
        other => other?,
    };
    Ok(described(StatusCode::ACCEPTED.into_response(), &row))
}

async fn delete(api: Api, received: Received, done: StatusCode) -> ApiResult<Response> {
    api.rendezvous.delete(id(&received)).await?;
    Ok(if done == StatusCode::OK { Json(json!({})).into_response() } else { done.into_response() })
}

#[derive(Deserialize)]
struct Data {
    data: String,
    sequence_token: Option<String>,
}

impl Data {
    fn left(self) -> Left {
        Left { content_type: "text/plain".to_owned(), body: self.data.into_bytes() }
    }
}

fn remaining(api: &Api, row: &RendezvousRow) -> u64 {
    row.expires_at.saturating_sub(api.core.now())
}

async fn create(api: Api, received: Received) -> ApiResult<Response> {
    let data: Data = crate::extract::json(&received.body)?;
    let row = api.rendezvous.create(data.left()).await?;
    let answer = json!({
        "id": row.id,
        "sequence_token": row.revision.to_string(),
        "expires_in_ms": remaining(&api, &row),
    });
    Ok(Json(answer).into_response())
}

async fn get(api: Api, received: Received) -> ApiResult<Response> {
    let row = api.rendezvous.get(id(&received)).await?;
    let answer = json!({
        "data": String::from_utf8_lossy(&row.body),
        "sequence_token": row.revision.to_string(),
        "expires_in_ms": remaining(&api, &row),
    });
    Ok(Json(answer).into_response())
}

async fn put(api: Api, received: Received) -> ApiResult<Response> {
    let data: Data = crate::extract::json(&received.body)?;
    let seen = data.sequence_token.as_deref();
    let seen = seen.ok_or_else(|| ApiError::missing_param("sequence_token is missing"))?;
    let seen = seen.parse().unwrap_or(-1);
    match api.rendezvous.put(id(&received), seen, data.left()).await {
        Ok(row) => Ok(Json(json!({ "sequence_token": row.revision.to_string() })).into_response()),
        Err(RendezvousError::Changed) => Err(ApiError::custom(
            StatusCode::CONFLICT,
            "IO_ELEMENT_MSC4388_CONCURRENT_WRITE",
            RendezvousError::Changed,
        )),
        Err(error) => Err(error.into()),
    }
}

impl From<RendezvousError> for ApiError {
    fn from(error: RendezvousError) -> ApiError {
        match error {
            RendezvousError::NotFound => ApiError::not_found(error),
            RendezvousError::TooLarge => ApiError::too_large(error),
            RendezvousError::Changed => ApiError::custom(StatusCode::PRECONDITION_FAILED, "M_UNKNOWN", error)
                .with("org.matrix.msc4108.errcode", "M_CONCURRENT_WRITE"),
            RendezvousError::Busy => ApiError::limit_exceeded(Duration::from_mins(1)),
            RendezvousError::Store(error) => ApiError::from(error),
        }
    }
}
