use super::{raw_all, size, viewer};
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::UInt;
use ruma::api::Direction;
use ruma::api::client::relations::{
    get_relating_events, get_relating_events_with_rel_type as with_rel_type,
    get_relating_events_with_rel_type_and_event_type as with_types,
};
use ruma::api::client::threads::get_threads;
use ruma::api::client::threads::get_threads::v1::IncludeThreads;
use waxwing_services::rooms_read::{RelationsQuery, ThreadsQuery};

/// The parameters that the three forms share.
macro_rules! query {
    ($request:expr) => {
        RelationsQuery {
            rel_type: None,
            kind: None,
            from: $request.from.clone(),
            to: $request.to.clone(),
            forward: $request.dir == Direction::Forward,
            limit: $request.limit.map(size),
            recurse: $request.recurse,
        }
    };
}

/// Their answer.
macro_rules! response {
    ($module:ident, $page:expr) => {{
        let page = $page;
        let mut response = $module::v1::Response::new(raw_all(page.chunk));
        response.next_batch = page.next;
        response.prev_batch = page.prev;
        response.recursion_depth = page.depth.and_then(|depth| UInt::try_from(depth).ok());
        response
    }};
}

/// `GET /rooms/{roomId}/relations/{eventId}`
pub(super) async fn all(
    api: Api,
    args: Args<get_relating_events::v1::Request>,
) -> ApiResult<get_relating_events::v1::Response> {
    let request = &args.request;
    let query = query!(request);
    let page =
        api.reader.relations(&viewer(&args.requester), &request.room_id, &request.event_id, &query).await?;
    Ok(response!(get_relating_events, page))
}

/// `GET /rooms/{roomId}/relations/{eventId}/{relType}`
pub(super) async fn of_type(
    api: Api,
    args: Args<with_rel_type::v1::Request>,
) -> ApiResult<with_rel_type::v1::Response> {
    let request = &args.request;
    let query = RelationsQuery { rel_type: Some(request.rel_type.to_string()), ..query!(request) };
    let page =
        api.reader.relations(&viewer(&args.requester), &request.room_id, &request.event_id, &query).await?;
    Ok(response!(with_rel_type, page))
}

/// `GET /rooms/{roomId}/relations/{eventId}/{relType}/{eventType}`
pub(super) async fn of_types(
    api: Api,
    args: Args<with_types::v1::Request>,
) -> ApiResult<with_types::v1::Response> {
    let request = &args.request;
    let query = RelationsQuery {
        rel_type: Some(request.rel_type.to_string()),
        kind: Some(request.event_type.to_string()),
        ..query!(request)
    };
    let page =
        api.reader.relations(&viewer(&args.requester), &request.room_id, &request.event_id, &query).await?;
    Ok(response!(with_types, page))
}

/// `GET /rooms/{roomId}/threads`
pub(super) async fn threads(
    api: Api,
    args: Args<get_threads::v1::Request>,
) -> ApiResult<get_threads::v1::Response> {
    let request = &args.request;
    let query = ThreadsQuery {
        from: request.from.clone(),
        limit: request.limit.map(size),
        participated: request.include == IncludeThreads::Participated,
    };
    let page = api.reader.threads(&viewer(&args.requester), &request.room_id, &query).await?;
    let mut response = get_threads::v1::Response::new(raw_all(page.chunk));
    response.next_batch = page.next;
    Ok(response)
}
