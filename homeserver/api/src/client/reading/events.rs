use super::messages::filter;
use super::{raw_all, size, viewer};
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::context::get_context;
use ruma::api::client::room::{get_event_by_timestamp, get_room_event};
use ruma::serde::Raw;

/// `GET /rooms/{roomId}/event/{eventId}`
pub(super) async fn event(
    api: Api,
    args: Args<get_room_event::v3::Request>,
) -> ApiResult<get_room_event::v3::Response> {
    let request = &args.request;
    let event = api.reader.event(&viewer(&args.requester), &request.room_id, &request.event_id).await?;
    Ok(get_room_event::v3::Response::new(Raw::from_json(event)))
}

/// `GET /rooms/{roomId}/context/{eventId}`
pub(super) async fn context(
    api: Api,
    args: Args<get_context::v3::Request>,
) -> ApiResult<get_context::v3::Response> {
    let filter = filter(&args.parts)?;
    let request = &args.request;
    let viewer = viewer(&args.requester);
    let limit = size(request.limit);
    let context = api.reader.context(&viewer, &request.room_id, &request.event_id, limit, &filter).await?;
    let mut response = get_context::v3::Response::new();
    response.start = Some(context.start);
    response.end = Some(context.end);
    response.event = Some(Raw::from_json(context.event));
    response.events_before = raw_all(context.before);
    response.events_after = raw_all(context.after);
    response.state = raw_all(context.state);
    Ok(response)
}

/// `GET /rooms/{roomId}/timestamp_to_event`
pub(super) async fn at_timestamp(
    api: Api,
    args: Args<get_event_by_timestamp::v1::Request>,
) -> ApiResult<get_event_by_timestamp::v1::Response> {
    let request = &args.request;
    let hit =
        api.reader.event_at(&viewer(&args.requester), &request.room_id, request.ts, request.dir).await?;
    Ok(get_event_by_timestamp::v1::Response::new(hit.event_id, hit.origin_server_ts))
}
