//! What is left of the API of old for one room: a look at it, and waiting for its events.

use super::{older, query_parameter, viewer};
use crate::client::user::plain::JsonAnswer;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, Received, typed};
use crate::routes::answer;
use crate::state::Api;
use axum::response::Response;
use http::StatusCode;
use ruma::api::client::peeking::{get_current_state, listen_to_new_events};
use ruma::api::error::ErrorCode;
use serde_json::{Value, json};
use std::time::Duration;

/// Events of one answer unless the client says otherwise.
const DEFAULT_LIMIT: usize = 20;
/// The longest that a request waits for events.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// `GET /rooms/{roomId}/initialSync`
pub(super) async fn initial_sync(api: Api, args: Args<get_current_state::v3::Request>) -> ApiResult<Value> {
    let room = args.request.room_id;
    let limit = match query_parameter(&args.parts, "limit") {
        Some(limit) => limit.parse().map_err(ApiError::invalid_param)?,
        None => DEFAULT_LIMIT,
    };
    let snapshot = api.reader.snapshot(&viewer(&args.requester), &room, limit).await?;
    let mut answer = json!({
        "room_id": room,
        "membership": snapshot.membership,
        "visibility": if snapshot.published { "public" } else { "private" },
        "state": snapshot.state,
        "messages": { "chunk": snapshot.messages, "start": snapshot.start, "end": snapshot.end },
        "presence": [],
        "receipts": [],
        "account_data": [],
    });
    match snapshot.membership.as_deref() {
        Some("join") => older::of_member(&api, &args.requester, &room, &mut answer).await?,
        Some(_) => {}
        // Who looks in from outside has none.
        None => drop(answer.as_object_mut().and_then(|answer| answer.remove("membership"))),
    }
    Ok(answer)
}

/// `GET /events`: of one room, for who peeks; or of all, as older clients ask.
pub(super) async fn events(api: Api, received: Received) -> ApiResult<Response> {
    // Of no effect: an answer is bounded anyway. What is no number is a mistake all the same.
    if let Some(limit) = query_parameter(&received.parts, "limit") {
        limit.parse::<u64>().map_err(ApiError::invalid_param)?;
    }
    if query_parameter(&received.parts, "room_id").is_some() {
        return answer(events_of_room(api, typed(received)?).await?);
    }
    let requester = received.requester.ok_or_else(ApiError::missing_token)?;
    if requester.is_guest {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            ErrorCode::GuestAccessForbidden,
            "Guests may look at one room at a time",
        ));
    }
    answer(older::events(&api, &requester, &received.parts, MAX_WAIT).await?)
}

async fn events_of_room(api: Api, args: Args<listen_to_new_events::v3::Request>) -> ApiResult<JsonAnswer> {
    let request = args.request;
    let wait = request.timeout.unwrap_or_default().min(MAX_WAIT);
    let viewer = viewer(&args.requester);
    let page = api.reader.events_wait(&viewer, &request.room_id, request.from.as_deref(), wait).await?;
    // ruma leaves an empty list out; those who poll look for it.
    JsonAnswer::new(&json!({
        "chunk": page.chunk,
        "start": request.from.unwrap_or(page.start),
        "end": page.end,
    }))
}
