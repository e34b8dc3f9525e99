//! Sending events: <https://spec.matrix.org/v1.19/client-server-api/#sending-events-to-a-room>

use super::{Sent, author, delayed};
use crate::client::reading::query_parameter;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, Received, typed};
use crate::state::Api;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use ruma::OwnedEventId;
use ruma::api::client::message::send_message_event;
use ruma::api::client::redact::redact_event;
use ruma::api::client::state::send_state_event;
use ruma::events::TimelineEventType;
use serde::Deserialize;
use serde_json::value::to_raw_value;
use waxwing_services::timeline::{Draft, Repeatable, WithRelations};

/// The longest time for which an event may be sticky, milliseconds: so says MSC4354.
const MAX_STICKY_MS: u32 = 3_600_000;

/// For how long the event shall be sticky (MSC4354): longer times are shortened.
fn sticky(parts: &Parts) -> ApiResult<Option<u32>> {
    let names = ["org.matrix.msc4354.sticky_duration_ms", "msc4354_stick_duration_ms"];
    let Some(duration) = names.into_iter().find_map(|name| query_parameter(parts, name)) else {
        return Ok(None);
    };
    let duration: u64 =
        duration.parse().map_err(|_| ApiError::invalid_param("the sticky duration must be milliseconds"))?;
    Ok(Some(u32::try_from(duration).map_or(MAX_STICKY_MS, |duration| duration.min(MAX_STICKY_MS))))
}

/// `PUT /rooms/{roomId}/send/{eventType}/{txnId}`.
pub(super) async fn send_message(api: Api, args: Args<send_message_event::v3::Request>) -> ApiResult<Sent> {
    let request = args.request;
    let author = author(&args.requester);
    let kind = TimelineEventType::from(request.event_type.to_string());
    let mut draft = Draft::message(author.user.clone(), kind, request.body.into_json());
    if author.appservice.is_some() {
        draft.timestamp = request.timestamp;
    }
    draft.sticky_ms = sticky(&args.parts)?;
    let repeat = Some(Repeatable {
        device: args.requester.device_or_empty().to_owned(),
        endpoint: waxwing_services::send_endpoint(&request.room_id, &request.event_type.to_string()),
        txn_id: request.txn_id.to_string(),
    });
    let (parts, room) = (&args.parts, &request.room_id);
    let aside =
        delayed::instead_of_sending(&api, parts, &args.requester, room, &draft, repeat.clone()).await?;
    if let Some(aside) = aside {
        return Ok(aside);
    }
    let event_id = api.timeline.send(&author, room, draft, repeat).await?;
    Ok(Sent::Event { event_id })
}

/// `PUT /rooms/{roomId}/state/{eventType}/{stateKey}`.
pub(super) async fn send_state(api: Api, received: Received) -> ApiResult<Response> {
    let args: Args<send_state_event::v3::Request> = typed(received)?;
    let request = args.request;
    let author = author(&args.requester);
    let kind = TimelineEventType::from(request.event_type.to_string());
    let mut draft = Draft::state(author.user.clone(), kind, request.state_key, request.body.into_json());
    if author.appservice.is_some() {
        draft.timestamp = request.timestamp;
    }
    draft.sticky_ms = sticky(&args.parts)?;
    let (parts, room) = (&args.parts, &request.room_id);
    let sent = match delayed::instead_of_sending(&api, parts, &args.requester, room, &draft, None).await? {
        Some(aside) => aside,
        None => Sent::Event { event_id: api.timeline.set_state(&author, room, draft).await? },
    };
    Ok(Json(sent).into_response())
}

/// What a redaction says beside its reason: the ways of relating that are redacted with it (MSC3912).
#[derive(Deserialize, Default)]
struct RedactBody {
    #[serde(default, alias = "org.matrix.msc3912.with_relations")]
    with_rel_types: Option<Vec<String>>,
}

/// `PUT /rooms/{roomId}/redact/{eventId}/{txnId}`.
pub(super) async fn redact(api: Api, args: Args<redact_event::v3::Request>) -> ApiResult<Sent> {
    let request = args.request;
    let author = author(&args.requester);
    let body: RedactBody =
        if args.json.is_empty() { RedactBody::default() } else { crate::extract::json(&args.json)? };
    let mut content = serde_json::Map::new();
    if let Some(reason) = &request.reason {
        content.insert("reason".to_owned(), reason.as_str().into());
    }
    let content = to_raw_value(&content).map_err(|error| ApiError::bad_json(error.to_string()))?;
    let mut draft = Draft::message(author.user.clone(), TimelineEventType::RoomRedaction, content);
    draft.redacts = Some(request.event_id.clone());
    let repeat = Repeatable {
        device: args.requester.device_or_empty().to_owned(),
        endpoint: format!("redact {} {}", request.room_id, request.event_id),
        txn_id: request.txn_id.to_string(),
    };
    let event_id: OwnedEventId =
        api.timeline.send(&author, &request.room_id, draft.clone(), Some(repeat)).await?;
    if let Some(rel_types) = body.with_rel_types {
        let with = WithRelations { parent: request.event_id, rel_types };
        api.timeline.redact_relations(&author, &request.room_id, draft, &with).await?;
    }
    Ok(Sent::Event { event_id })
}
