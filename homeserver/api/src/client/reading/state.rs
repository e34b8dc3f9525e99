use super::{raw_all, viewer};
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::state::get_state_event_for_key::v3::StateEventFormat;
use ruma::api::client::state::{get_state_event_for_key, get_state_events};

/// `GET /rooms/{roomId}/state`
pub(super) async fn whole(
    api: Api,
    args: Args<get_state_events::v3::Request>,
) -> ApiResult<get_state_events::v3::Response> {
    let state = api.reader.state(&viewer(&args.requester), &args.request.room_id).await?;
    Ok(get_state_events::v3::Response::new(raw_all(state)))
}

/// `GET /rooms/{roomId}/state/{eventType}/{stateKey}`
pub(super) async fn entry(
    api: Api,
    args: Args<get_state_event_for_key::v3::Request>,
) -> ApiResult<get_state_event_for_key::v3::Response> {
    let request = args.request;
    let viewer = viewer(&args.requester);
    let entry =
        api.reader.state_entry(&viewer, &request.room_id, request.event_type, &request.state_key).await?;
    let shown = if request.format == StateEventFormat::Event { entry.event } else { entry.content };
    Ok(get_state_event_for_key::v3::Response::new(shown))
}
