//! Sending events: <https://spec.matrix.org/v1.19/client-server-api/#sending-events-to-a-room>

use super::author;
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::message::send_message_event;
use ruma::api::client::redact::redact_event;
use ruma::api::client::state::send_state_event;
use ruma::events::TimelineEventType;
use serde_json::value::to_raw_value;
use waxwing_services::timeline::{Draft, Repeatable};

/// `PUT /rooms/{roomId}/send/{eventType}/{txnId}`.
pub async fn send_message(
    api: Api,
    args: Args<send_message_event::v3::Request>,
) -> ApiResult<send_message_event::v3::Response> {
    let request = args.request;
    let author = author(&args.requester);
    let kind = TimelineEventType::from(request.event_type.to_string());
    let mut draft = Draft::message(author.user.clone(), kind, request.body.into_json());
    if author.appservice.is_some() {
        draft.timestamp = request.timestamp;
    }
    let repeat = Repeatable {
        device: args.requester.device_or_empty().to_owned(),
        endpoint: format!("send {} {}", request.room_id, request.event_type),
        txn_id: request.txn_id.to_string(),
    };
    let event_id = api.timeline.send(&author, &request.room_id, draft, Some(repeat)).await?;
    Ok(send_message_event::v3::Response::new(event_id))
}

/// `PUT /rooms/{roomId}/state/{eventType}/{stateKey}`.
pub async fn send_state(
    api: Api,
    args: Args<send_state_event::v3::Request>,
) -> ApiResult<send_state_event::v3::Response> {
    let request = args.request;
    let author = author(&args.requester);
    let kind = TimelineEventType::from(request.event_type.to_string());
    let mut draft = Draft::state(author.user.clone(), kind, request.state_key, request.body.into_json());
    if author.appservice.is_some() {
        draft.timestamp = request.timestamp;
    }
    let event_id = api.timeline.set_state(&author, &request.room_id, draft).await?;
    Ok(send_state_event::v3::Response::new(event_id))
}

/// `PUT /rooms/{roomId}/redact/{eventId}/{txnId}`.
pub async fn redact(
    api: Api,
    args: Args<redact_event::v3::Request>,
) -> ApiResult<redact_event::v3::Response> {
    let request = args.request;
    let author = author(&args.requester);
    let mut content = serde_json::Map::new();
    if let Some(reason) = request.reason {
        content.insert("reason".to_owned(), reason.into());
    }
    let content = to_raw_value(&content).map_err(|error| ApiError::bad_json(error.to_string()))?;
    let mut draft = Draft::message(author.user.clone(), TimelineEventType::RoomRedaction, content);
    draft.redacts = Some(request.event_id.clone());
    let repeat = Repeatable {
        device: args.requester.device_or_empty().to_owned(),
        endpoint: format!("redact {} {}", request.room_id, request.event_id),
        txn_id: request.txn_id.to_string(),
    };
    let event_id = api.timeline.send(&author, &request.room_id, draft, Some(repeat)).await?;
    Ok(redact_event::v3::Response::new(event_id))
}
