use super::{query_parameter, raw_all, size, viewer};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
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

/// `GET /rooms/{roomId}/messages`
pub(super) async fn messages(
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
