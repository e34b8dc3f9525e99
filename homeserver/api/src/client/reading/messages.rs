use super::{query_parameter, raw_all, size, viewer};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, Received, typed};
use crate::routes::answer;
use crate::state::Api;
use axum::response::Response;
use http::request::Parts;
use ruma::api::Direction;
use ruma::api::client::message::get_message_events;
use waxwing_services::rooms_read::{EventFilter, MessagesQuery};

/// The `filter` parameter, with the fields that ruma does not read.
pub(super) fn filter(parts: &Parts) -> ApiResult<EventFilter> {
    match query_parameter(parts, "filter") {
        None => Ok(EventFilter::default()),
        Some(json) => EventFilter::parse(&json).ok_or_else(|| ApiError::invalid_param("not a filter")),
    }
}

/// `GET /rooms/{roomId}/messages`. Without `dir`, which the specification demands, forwards, as other servers have it.
pub(super) async fn messages(api: Api, mut received: Received) -> ApiResult<Response> {
    if query_parameter(&received.parts, "dir").is_none() {
        let uri = &received.parts.uri;
        let query = uri.query().map_or_else(|| "dir=f".to_owned(), |query| format!("{query}&dir=f"));
        let uri = http::Uri::try_from(format!("{}?{query}", uri.path()));
        received.parts.uri = uri.map_err(ApiError::invalid_param)?;
    }
    answer(page(api, typed(received)?).await?)
}

async fn page(
    api: Api,
    args: Args<get_message_events::v3::Request>,
) -> ApiResult<get_message_events::v3::Response> {
    let filter = filter(&args.parts)?;
    let request = args.request;
    let limit = filter.base.limit.map_or(request.limit, |limit| limit.min(request.limit));
    let query = MessagesQuery {
        from: request.from,
        to: request.to,
        forward: request.dir == Direction::Forward,
        limit: size(limit),
        filter,
    };
    let page = api.reader.messages(&viewer(&args.requester), &request.room_id, &query).await?;
    let mut response = get_message_events::v3::Response::new();
    response.start = page.start;
    response.end = page.end;
    response.chunk = raw_all(page.chunk);
    response.state = raw_all(page.state);
    Ok(response)
}
