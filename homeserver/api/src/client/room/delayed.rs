//! Events that are sent later: <https://github.com/matrix-org/matrix-spec-proposals/pull/4140>

use super::Sent;
use crate::client::reading::query_parameter;
use crate::client::user::plain::{JsonAnswer, PlainRequest, plain_request};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use http::StatusCode;
use http::request::Parts;
use ruma::RoomId;
use ruma::api::auth_scheme::{AccessToken, NoAccessToken};
use ruma::api::error::ErrorCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use waxwing_services::accounts::Requester;
use waxwing_services::delayed::{DelayAction, DelayedError, DelayedRow, MAX_DELAY};
use waxwing_services::timeline::{Draft, Repeatable};

plain_request!(
    /// `GET /delayed_events`
    List, GET, AccessToken, {
        unstable("org.matrix.msc4140") => "/_matrix/client/unstable/org.matrix.msc4140/delayed_events",
    }
);
plain_request!(
    /// `GET /delayed_events/{delayId}`
    One, GET, AccessToken, {
        unstable("org.matrix.msc4140") => "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delay_id}",
    }
);
plain_request!(
    /// `POST /delayed_events/{delayId}`: the older form, with the action in the body.
    Act, POST, NoAccessToken, {
        unstable("org.matrix.msc4140") => "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delay_id}",
    }
);
plain_request!(
    /// `POST /delayed_events/{delayId}/{action}`
    ActNamed, POST, NoAccessToken, {
        unstable("org.matrix.msc4140") => "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delay_id}/{action}",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(list).ruma(one).ruma(act).ruma(act_named)
}

/// The delay in milliseconds that a request to send asks for.
///
/// # Errors
/// 400 `M_INVALID_PARAM` for what is no number of milliseconds.
fn delay(parts: &Parts) -> ApiResult<Option<u64>> {
    query_parameter(parts, "org.matrix.msc4140.delay")
        .map(|delay| {
            delay.parse::<u64>().map_err(|_| ApiError::invalid_param("the delay must be milliseconds"))
        })
        .transpose()
}

/// Puts the event aside, if the request asks for it. `None`: it is to be sent now.
pub(super) async fn instead_of_sending(
    api: &Api,
    parts: &Parts,
    requester: &Requester,
    room: &RoomId,
    draft: &Draft,
    repeat: Option<Repeatable>,
) -> ApiResult<Option<Sent>> {
    let Some(delay) = delay(parts)? else { return Ok(None) };
    let author = super::author(requester);
    let device = requester.device_or_empty();
    let repeat =
        repeat.map(|repeat| Repeatable { endpoint: format!("delayed {}", repeat.endpoint), ..repeat });
    let delay_id = api.delayed.schedule(&author, device, room, draft, delay, repeat).await?;
    Ok(Some(Sent::Delayed { delay_id }))
}

/// An event that waits, as its owner sees it.
fn shown(row: DelayedRow) -> ApiResult<Value> {
    let content: Box<RawValue> = RawValue::from_string(row.content).map_err(ApiError::internal)?;
    let mut event = Map::new();
    event.insert("delay_id".to_owned(), row.delay_id.into());
    event.insert("room_id".to_owned(), row.room.as_str().into());
    event.insert("type".to_owned(), row.kind.into());
    if let Some(key) = row.state_key {
        event.insert("state_key".to_owned(), key.into());
    }
    event.insert("delay".to_owned(), row.delay.into());
    event.insert("running_since".to_owned(), row.running_since.into());
    event.insert("content".to_owned(), serde_json::to_value(content).map_err(ApiError::internal)?);
    Ok(Value::Object(event))
}

async fn list(api: Api, args: Args<List>) -> ApiResult<JsonAnswer> {
    let rows = api.delayed.list(&args.requester.user_id).await?;
    let shown = rows.into_iter().map(shown).collect::<ApiResult<Vec<Value>>>()?;
    JsonAnswer::new(&json!({ "delayed_events": shown }))
}

/// Another's event is as good as none.
async fn one(api: Api, args: Args<One>) -> ApiResult<JsonAnswer> {
    let rows = api.delayed.list(&args.requester.user_id).await?;
    let row = rows.into_iter().find(|row| row.delay_id == args.request.path(0));
    JsonAnswer::new(&shown(row.ok_or(DelayedError::NotFound)?)?)
}

async fn act(api: Api, args: Args<Act>) -> ApiResult<JsonAnswer> {
    #[derive(Deserialize)]
    struct Body {
        action: String,
    }
    let body: Body = crate::extract::json(if args.json.is_empty() { b"{}" } else { &args.json })?;
    let action = DelayAction::parse(&body.action).ok_or_else(|| ApiError::invalid_param("unknown action"))?;
    api.delayed.act(args.request.path(0), action).await?;
    Ok(JsonAnswer::empty())
}

async fn act_named(api: Api, args: Args<ActNamed>) -> ApiResult<JsonAnswer> {
    let action = DelayAction::parse(args.request.path(1)).ok_or_else(ApiError::unrecognized)?;
    api.delayed.act(args.request.path(0), action).await?;
    Ok(JsonAnswer::empty())
}

impl From<DelayedError> for ApiError {
    fn from(error: DelayedError) -> ApiError {
        let bad = |message: &str| ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, message);
        match error {
            DelayedError::Store(error) => ApiError::from(error),
            DelayedError::Timeline(error) => error.into(),
            DelayedError::TooLong => bad("The delay is too long")
                .with("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED")
                .with("org.matrix.msc4140.max_delay", MAX_DELAY.as_millis() as u64),
            DelayedError::TooMany => bad("Too many events wait already")
                .with("org.matrix.msc4140.errcode", "M_MAX_DELAYED_EVENTS_EXCEEDED"),
            DelayedError::Membership => ApiError::invalid_param("A membership cannot be delayed"),
            DelayedError::NotFound => ApiError::not_found("No such event waits"),
        }
    }
}
