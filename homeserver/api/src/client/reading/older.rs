//! What the specification keeps of the API before `/sync`: deprecated, and still asked by older clients and bots. Made of
//! what `/sync` says, for no device in particular: no message between devices is taken out of its queue here.
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3initialsync>

use super::query_parameter;
use crate::client::user::plain::{JsonAnswer, plain_request};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use http::request::Parts;
use ruma::api::auth_scheme::AccessToken;
use ruma::{EventId, OwnedRoomId, RoomId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use waxwing_services::accounts::Requester;
use waxwing_services::render::Viewer;
use waxwing_services::sync::response::{JoinedRoom, Timeline};
use waxwing_services::sync::{StateWanted, SyncFilter, SyncRequest, SyncResponse, SyncToken};

/// Messages of each room unless the client says otherwise.
const DEFAULT_LIMIT: u64 = 10;

plain_request!(
    /// `GET /initialSync`
    InitialSync, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/initialSync",
        1.1 => "/_matrix/client/v3/initialSync",
    }
);
plain_request!(
    /// `GET /events/{eventId}`
    OneEvent, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/events/{event_id}",
        1.1 => "/_matrix/client/v3/events/{event_id}",
    }
);

/// `GET /initialSync`
pub(super) async fn initial_sync(api: Api, args: Args<InitialSync>) -> ApiResult<JsonAnswer> {
    let limit = match query_parameter(&args.parts, "limit") {
        Some(limit) => limit.parse().map_err(ApiError::invalid_param)?,
        None => DEFAULT_LIMIT,
    };
    let archived = query_parameter(&args.parts, "archived").as_deref() == Some("true");
    let filter = json!({"room": {"timeline": {"limit": limit}, "include_leave": archived}});
    let wanted = wanted(&args.requester, None, &filter, Duration::ZERO)?;
    let SyncResponse { next_batch, rooms, presence, account_data, .. } = api.sync.sync(&wanted).await?;
    let mut shown = Vec::new();
    let mut receipts = Vec::new();
    for (room, joined) in rooms.join {
        let JoinedRoom { state, timeline, account_data, ephemeral, .. } = joined;
        receipts.extend(receipts_of(&room, &ephemeral.events)?);
        let state = state.state_after.map(|state| state.events).unwrap_or_default();
        let mut info = info(&api, &room, "join", &state, timeline, &next_batch).await?;
        info.insert("account_data".to_owned(), json!(account_data.events));
        shown.push(info);
    }
    for (room, invited) in rooms.invite {
        let mut info = Map::new();
        info.insert("room_id".to_owned(), json!(room));
        info.insert("membership".to_owned(), json!("invite"));
        let invite = own_member(&invited.invite_state.events, &args.requester.user_id);
        if let Some(invite) = invite {
            info.insert("inviter".to_owned(), invite["sender"].clone());
            info.insert("invite".to_owned(), invite);
        }
        shown.push(info);
    }
    for (room, left) in rooms.leave {
        let state = left.state.state_after.map(|state| state.events).unwrap_or_default();
        shown.push(info(&api, &room, "leave", &state, left.timeline, &next_batch).await?);
    }
    JsonAnswer::new(&json!({
        "end": next_batch,
        "rooms": shown,
        "presence": presence.events,
        "receipts": receipts,
        "account_data": account_data.events,
    }))
}

/// How far people have read in a room.
fn receipts_of(room: &RoomId, ephemeral: &[Box<RawValue>]) -> ApiResult<Vec<Map<String, Value>>> {
    let events = within(room, ephemeral)?.into_iter();
    Ok(events.filter(|event| event["type"] == "m.receipt").collect())
}

fn wanted(
    requester: &Requester,
    since: Option<SyncToken>,
    filter: &Value,
    timeout: Duration,
) -> ApiResult<SyncRequest> {
    Ok(SyncRequest {
        viewer: Viewer::new(requester.user_id.clone()),
        since,
        filter: Arc::new(SyncFilter::parse(&filter.to_string())?),
        full_state: false,
        timeout,
        state: StateWanted::After,
    })
}

async fn info(
    api: &Api,
    room: &RoomId,
    membership: &str,
    state: &[Box<RawValue>],
    timeline: Timeline,
    end: &str,
) -> ApiResult<Map<String, Value>> {
    let published = api.directory.is_published(room).await?;
    let messages = json!({
        "chunk": within(room, &timeline.events)?,
        "start": timeline.prev_batch.as_deref().unwrap_or(end),
        "end": end,
    });
    let info = json!({
        "room_id": room,
        "membership": membership,
        "visibility": if published { "public" } else { "private" },
        "state": within(room, state)?,
        "messages": messages,
    });
    match info {
        Value::Object(info) => Ok(info),
        _ => Err(ApiError::internal("a room that is no object")),
    }
}

/// The events of a room's part of a sync, which do not say of which room they are.
fn within(room: &RoomId, events: &[Box<RawValue>]) -> ApiResult<Vec<Map<String, Value>>> {
    let shown = |event: &RawValue| {
        let mut event: Map<String, Value> = serde_json::from_str(event.get()).map_err(ApiError::internal)?;
        event.insert("room_id".to_owned(), json!(room));
        Ok(event)
    };
    events.iter().map(|event| shown(event)).collect()
}

fn own_member(events: &[Box<RawValue>], user: &UserId) -> Option<Value> {
    let events = events.iter().filter_map(|event| serde_json::from_str::<Value>(event.get()).ok());
    events.into_iter().find(|event| event["type"] == "m.room.member" && event["state_key"] == user.as_str())
}

/// What a member is told of a room beside its events: who of it is there, how far people have read, the member's own
/// data.
pub(super) async fn of_member(
    api: &Api,
    requester: &Requester,
    room: &RoomId,
    answer: &mut Value,
) -> ApiResult<()> {
    let filter = json!({"room": {"rooms": [room], "timeline": {"limit": 1}}, "account_data": {"types": []}});
    let mut synced = api.sync.sync(&wanted(requester, None, &filter, Duration::ZERO)?).await?;
    let Some(joined) = synced.rooms.join.remove(room) else { return Ok(()) };
    let members: BTreeSet<String> = answer["state"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| event["type"] == "m.room.member" && event["content"]["membership"] == "join")
        .filter_map(|event| event["state_key"].as_str().map(str::to_owned))
        .collect();
    let presence = synced.presence.events.iter().filter_map(|event| serde_json::from_str(event.get()).ok());
    let near = |event: &Value| event["sender"].as_str().is_some_and(|user| members.contains(user));
    answer["presence"] = presence.filter(near).collect();
    answer["receipts"] = json!(receipts_of(room, &joined.ephemeral.events)?);
    answer["account_data"] = json!(joined.account_data.events);
    Ok(())
}

/// `GET /events/{eventId}`
pub(super) async fn one_event(api: Api, args: Args<OneEvent>) -> ApiResult<JsonAnswer> {
    use crate::client::user::plain::PlainRequest;
    let event = EventId::parse(args.request.path(0)).map_err(ApiError::invalid_param)?;
    let viewer = super::viewer(&args.requester);
    JsonAnswer::new(&api.reader.event_of_any_room(&viewer, &event).await?)
}

/// `GET /events` that names no room: news of all rooms since a token, and of the people in them.
pub(super) async fn events(
    api: &Api,
    requester: &Requester,
    parts: &Parts,
    longest: Duration,
) -> ApiResult<JsonAnswer> {
    let timeout = match query_parameter(parts, "timeout") {
        Some(timeout) => Duration::from_millis(timeout.parse().map_err(ApiError::invalid_param)?),
        None => Duration::ZERO,
    };
    let since = match query_parameter(parts, "from").filter(|from| !from.is_empty()) {
        Some(from) => from.parse::<SyncToken>().map_err(ApiError::invalid_param)?,
        None => now(api, requester).await?,
    };
    let wanted = wanted(requester, Some(since), &json!({}), timeout.min(longest))?;
    let answer = api.sync.sync(&wanted).await?;
    let mut chunk: Vec<Map<String, Value>> = Vec::new();
    for (room, joined) in &answer.rooms.join {
        chunk.extend(within(room, &joined.timeline.events)?);
        chunk.extend(within(room, &joined.ephemeral.events)?);
        chunk.extend(within(room, &joined.account_data.events)?);
    }
    for (room, left) in &answer.rooms.leave {
        chunk.extend(within(room, &left.timeline.events)?);
    }
    let own = |(room, invite): (&OwnedRoomId, &Vec<Box<RawValue>>)| {
        let mut event = own_member(invite, &requester.user_id)?;
        event["room_id"] = json!(room);
        event.as_object().cloned()
    };
    let invites = answer.rooms.invite.iter().map(|(room, invited)| (room, &invited.invite_state.events));
    chunk.extend(invites.filter_map(own));
    for event in answer.presence.events.iter().chain(&answer.account_data.events) {
        chunk.push(serde_json::from_str(event.get()).map_err(ApiError::internal)?);
    }
    JsonAnswer::new(&json!({ "chunk": chunk, "start": since.to_string(), "end": answer.next_batch }))
}

/// Where the log ends.
async fn now(api: &Api, requester: &Requester) -> ApiResult<SyncToken> {
    let nothing = json!({"room": {"rooms": []}, "presence": {"types": []}, "account_data": {"types": []}});
    let answer = api.sync.sync(&wanted(requester, None, &nothing, Duration::ZERO)?).await?;
    answer.next_batch.parse().map_err(ApiError::internal)
}
