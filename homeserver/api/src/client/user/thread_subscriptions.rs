//! Following threads: <https://github.com/matrix-org/matrix-spec-proposals/pull/4306> and
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/4308>

use super::plain::{JsonAnswer, body, id, plain_request};
use crate::client::reading::{query_parameter, viewer};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use http::StatusCode;
use ruma::api::auth_scheme::AccessToken;
use ruma::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use waxwing_services::thread_subscriptions::{SubscriptionError, SubscriptionPage};

plain_request!(
    /// `GET /rooms/{roomId}/thread/{rootId}/subscription`
    Get, GET, AccessToken, {
        unstable("io.element.msc4306") => "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{root_id}/subscription",
    }
);
plain_request!(
    /// `PUT /rooms/{roomId}/thread/{rootId}/subscription`
    Put, PUT, AccessToken, {
        unstable("io.element.msc4306") => "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{root_id}/subscription",
    }
);
plain_request!(
    /// `DELETE /rooms/{roomId}/thread/{rootId}/subscription`
    Delete, DELETE, AccessToken, {
        unstable("io.element.msc4306") => "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{root_id}/subscription",
    }
);
plain_request!(
    /// `GET /thread_subscriptions`
    Page, GET, AccessToken, {
        unstable("io.element.msc4308") => "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(get).ruma(put).ruma(delete).ruma(page)
}

async fn get(api: Api, args: Args<Get>) -> ApiResult<JsonAnswer> {
    let (room, root): (OwnedRoomId, OwnedEventId) = (id(&args.request, 0)?, id(&args.request, 1)?);
    let automatic = api.thread_subscriptions.get(&viewer(&args.requester), &room, &root).await?;
    JsonAnswer::new(&json!({ "automatic": automatic }))
}

async fn put(api: Api, args: Args<Put>) -> ApiResult<JsonAnswer> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        automatic: Option<OwnedEventId>,
    }
    let (room, root): (OwnedRoomId, OwnedEventId) = (id(&args.request, 0)?, id(&args.request, 1)?);
    let body: Body = body(&args.json)?;
    let (viewer, cause) = (viewer(&args.requester), body.automatic.as_deref());
    api.thread_subscriptions.subscribe(&viewer, &room, &root, cause).await?;
    Ok(JsonAnswer::empty())
}

async fn delete(api: Api, args: Args<Delete>) -> ApiResult<JsonAnswer> {
    let (room, root): (OwnedRoomId, OwnedEventId) = (id(&args.request, 0)?, id(&args.request, 1)?);
    api.thread_subscriptions.unsubscribe(&viewer(&args.requester), &room, &root).await?;
    Ok(JsonAnswer::empty())
}

async fn page(api: Api, args: Args<Page>) -> ApiResult<JsonAnswer> {
    let parameter = |name: &str| query_parameter(&args.parts, name);
    if parameter("dir").is_some_and(|dir| dir != "b") {
        return Err(ApiError::invalid_param("subscriptions are read backwards"));
    }
    let limit = parameter("limit")
        .map(|limit| limit.parse().map_err(|_| ApiError::invalid_param("the limit must be a number")))
        .transpose()?;
    let (from, to) = (parameter("from"), parameter("to"));
    let user = &args.requester.user_id;
    let page = api.thread_subscriptions.page(user, from.as_deref(), to.as_deref(), limit).await?;
    let end = page.end.clone();
    let mut answer = shown(page);
    if let Some(end) = end {
        answer.insert("end".to_owned(), end.into());
    }
    JsonAnswer::new(&answer)
}

/// Subscriptions and their ends by room and thread, as this endpoint and syncs have them; what is empty is left out.
pub(crate) fn shown(page: SubscriptionPage) -> Map<String, Value> {
    let mut answer = Map::new();
    for row in page.rows {
        let (list, shown) = if row.subscribed {
            ("subscribed", json!({ "automatic": row.automatic, "bump_stamp": row.position }))
        } else {
            ("unsubscribed", json!({ "bump_stamp": row.position }))
        };
        answer.entry(list).or_insert_with(|| json!({}))[row.room.as_str()][row.root.as_str()] = shown;
    }
    answer
}

impl From<SubscriptionError> for ApiError {
    fn from(error: SubscriptionError) -> ApiError {
        match error {
            SubscriptionError::Store(error) => ApiError::from(error),
            // Who may not read the room learns nothing of its threads.
            SubscriptionError::Read(waxwing_services::rooms_read::ReadError::Forbidden) => {
                ApiError::not_found("There is no such thread")
            }
            SubscriptionError::Read(error) => error.into(),
            SubscriptionError::NotSubscribed => ApiError::not_found("You do not follow this thread"),
            SubscriptionError::NotInThread => ApiError::custom(
                StatusCode::BAD_REQUEST,
                "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD",
                "The event is not in the thread",
            ),
            SubscriptionError::Unsubscribed => ApiError::custom(
                StatusCode::CONFLICT,
                "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION",
                "You ceased to follow the thread after that event",
            ),
        }
    }
}
