//! Forgetting rooms and history, for administrators, at the paths where tools know it from Synapse.
//! <https://element-hq.github.io/synapse/latest/admin_api/rooms.html>
//! <https://element-hq.github.io/synapse/latest/admin_api/purge_history_api.html>

use super::registration_tokens::administrator;
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::extract::{Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::request::Parts;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use waxwing_services::purge::{Before, HistoryPurge, Purge, PurgeError, PurgeKind, PurgePhase, RoomPurge};

pub(super) fn routes() -> Router<Api> {
    const V1: &str = "/_synapse/admin/v1";
    const V2: &str = "/_synapse/admin/v2/rooms";
    Router::new()
        .route(&format!("{V2}/{{room}}"), delete(purge_room))
        .route(&format!("{V2}/{{room}}/delete_status"), get(of_room))
        .route(&format!("{V2}/delete_status/{{id}}"), get(room_status))
        .route(&format!("{V1}/rooms/{{room}}/block"), get(blocked).put(block))
        .route(&format!("{V1}/purge_history/{{room}}"), post(purge_history))
        .route(&format!("{V1}/purge_history/{{room}}/{{event}}"), post(purge_history_before))
        .route(&format!("{V1}/purge_history_status/{{id}}"), get(history_status))
}

impl From<PurgeError> for ApiError {
    fn from(error: PurgeError) -> ApiError {
        match error {
            PurgeError::Store(error) => ApiError::from(error),
            PurgeError::Timeline(error) => error.into(),
            PurgeError::Corrupt(why) => ApiError::internal(why),
            PurgeError::NoRoom | PurgeError::NoEvent => ApiError::not_found(error),
            PurgeError::UnderWay | PurgeError::TooMany | PurgeError::Invalid(_) => {
                ApiError::invalid_param(error)
            }
        }
    }
}

fn room_id(text: &str) -> ApiResult<OwnedRoomId> {
    OwnedRoomId::try_from(text).map_err(|_| ApiError::invalid_param(format_args!("{text} is no room id")))
}

/// The body; none is an empty one.
fn body<T: DeserializeOwned + Default>(bytes: &Bytes) -> ApiResult<T> {
    if bytes.is_empty() { Ok(T::default()) } else { crate::extract::json(bytes) }
}

#[derive(Deserialize)]
#[serde(default)]
struct DeleteRoom {
    new_room_user_id: Option<OwnedUserId>,
    room_name: Option<String>,
    message: Option<String>,
    block: bool,
    purge: bool,
    force_purge: bool,
}

impl Default for DeleteRoom {
    fn default() -> DeleteRoom {
        let (new_room_user_id, room_name, message) = (None, None, None);
        DeleteRoom { new_room_user_id, room_name, message, block: false, purge: true, force_purge: false }
    }
}

/// `DELETE /_synapse/admin/v2/rooms/{room}`
async fn purge_room(
    State(api): State<Api>,
    Path(room): Path<String>,
    parts: Parts,
    bytes: Bytes,
) -> ApiResult<Json<Value>> {
    let by = administrator(&api, &parts).await?;
    let room = room_id(&room)?;
    let wanted: DeleteRoom = body(&bytes)?;
    let wanted = RoomPurge {
        block: wanted.block,
        purge: wanted.purge,
        force: wanted.force_purge,
        new_room_user: wanted.new_room_user_id,
        room_name: wanted.room_name,
        message: wanted.message,
        by: by.to_string(),
    };
    let id = api.purges.purge_room(&room, wanted).await?;
    Ok(Json(json!({ "delete_id": id })))
}

/// The word for where it stands.
fn status(phase: PurgePhase) -> &'static str {
    match phase {
        PurgePhase::Leaving | PurgePhase::Telling => "shutting_down",
        PurgePhase::Events
        | PurgePhase::Rest
        | PurgePhase::Nodes
        | PurgePhase::Shrinking
        | PurgePhase::Media => "purging",
        PurgePhase::Complete => "complete",
        PurgePhase::Failed => "failed",
    }
}

fn shown(purge: &Purge) -> Value {
    let progress = &purge.progress;
    let mut shown = json!({
        "delete_id": purge.id,
        "room_id": purge.room,
        "status": status(purge.phase),
        "shutdown_room": {
            "kicked_users": progress.kicked,
            "failed_to_kick_users": progress.failed,
            "local_aliases": progress.aliases,
            "new_room_id": progress.new_room,
        },
        "purged": {
            "events": progress.events, "rows": progress.rows, "state_nodes": progress.nodes,
        },
    });
    if let Some(error) = &purge.error {
        shown["error"] = error.as_str().into();
    }
    shown
}

/// `GET /_synapse/admin/v2/rooms/{room}/delete_status`
async fn of_room(State(api): State<Api>, Path(room): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let purges = api.purges.of_room(&room_id(&room)?).await?;
    let results: Vec<Value> =
        purges.iter().filter(|purge| purge.kind == PurgeKind::Room).map(shown).collect();
    if results.is_empty() {
        return Err(ApiError::not_found("No delete task for this room"));
    }
    Ok(Json(json!({ "results": results })))
}

/// `GET /_synapse/admin/v2/rooms/delete_status/{id}`
async fn room_status(State(api): State<Api>, Path(id): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let purge = api.purges.status(&id).await?.filter(|purge| purge.kind == PurgeKind::Room);
    purge.map(|purge| Json(shown(&purge))).ok_or_else(|| ApiError::not_found("No such delete task"))
}

/// `GET /_synapse/admin/v1/rooms/{room}/block`
async fn blocked(State(api): State<Api>, Path(room): Path<String>, parts: Parts) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    Ok(Json(match api.purges.blocked_by(&room_id(&room)?).await?.filter(|by| !by.is_empty()) {
        Some(by) => json!({ "block": true, "user_id": by }),
        None => json!({ "block": false }),
    }))
}

/// `PUT /_synapse/admin/v1/rooms/{room}/block`
async fn block(
    State(api): State<Api>,
    Path(room): Path<String>,
    parts: Parts,
    bytes: Bytes,
) -> ApiResult<Json<Value>> {
    #[derive(Deserialize)]
    struct Block {
        block: bool,
    }
    let by = administrator(&api, &parts).await?;
    let Block { block } = crate::extract::json(&bytes)?;
    api.purges.block(&room_id(&room)?, by.as_str(), block).await?;
    Ok(Json(json!({ "block": block })))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PurgeHistory {
    delete_local_events: bool,
    purge_up_to_ts: Option<u64>,
    purge_up_to_event_id: Option<OwnedEventId>,
}

async fn begin_history(
    api: &Api,
    room: &str,
    wanted: PurgeHistory,
    event: Option<OwnedEventId>,
) -> ApiResult<Json<Value>> {
    let before = match (event.or(wanted.purge_up_to_event_id), wanted.purge_up_to_ts) {
        (Some(event), _) => Before::Event(event),
        (None, Some(at)) => Before::Time(at),
        (None, None) => {
            return Err(ApiError::missing_param("Either purge_up_to_ts or purge_up_to_event_id is needed"));
        }
    };
    let wanted = HistoryPurge { before, local: wanted.delete_local_events };
    let id = api.purges.purge_history(&room_id(room)?, wanted).await?;
    Ok(Json(json!({ "purge_id": id })))
}

/// `POST /_synapse/admin/v1/purge_history/{room}`
async fn purge_history(
    State(api): State<Api>,
    Path(room): Path<String>,
    parts: Parts,
    bytes: Bytes,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    begin_history(&api, &room, body(&bytes)?, None).await
}

/// `POST /_synapse/admin/v1/purge_history/{room}/{event}`
async fn purge_history_before(
    State(api): State<Api>,
    Path((room, event)): Path<(String, String)>,
    parts: Parts,
    bytes: Bytes,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let event = OwnedEventId::try_from(event).map_err(ApiError::invalid_param)?;
    begin_history(&api, &room, body(&bytes)?, Some(event)).await
}

/// `GET /_synapse/admin/v1/purge_history_status/{id}`
async fn history_status(
    State(api): State<Api>,
    Path(id): Path<String>,
    parts: Parts,
) -> ApiResult<Json<Value>> {
    administrator(&api, &parts).await?;
    let purge = api.purges.status(&id).await?.filter(|purge| purge.kind == PurgeKind::History);
    let purge = purge.ok_or_else(|| ApiError::not_found("No such purge"))?;
    let status = match purge.phase {
        PurgePhase::Complete => "complete",
        PurgePhase::Failed => "failed",
        _ => "active",
    };
    let mut shown = json!({ "status": status, "events": purge.progress.events });
    if let Some(error) = &purge.error {
        shown["error"] = error.as_str().into();
    }
    Ok(Json(shown))
}
