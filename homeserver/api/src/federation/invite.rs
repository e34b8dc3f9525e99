//! `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`, and its older form.
//! <https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room>

use super::signed::{Signed, SignedExt, json};
use crate::error::ApiResult;
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use ruma::RoomVersionId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use waxwing_services::federation::{Federation, Invitation};

pub(super) fn routes() -> Router<Api> {
    Router::new().signed(MethodFilter::PUT, "/_matrix/federation/v2/invite/{room}/{event}", invite).signed(
        MethodFilter::PUT,
        "/_matrix/federation/v1/invite/{room}/{event}",
        invite_v1,
    )
}

#[derive(Deserialize)]
struct Body {
    room_version: RoomVersionId,
    event: Box<RawValue>,
    #[serde(default)]
    invite_room_state: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct Answer {
    event: Box<RawValue>,
}

async fn invite(federation: Federation, request: Signed) -> ApiResult<Response> {
    let body: Body = request.json()?;
    let invitation = Invitation {
        room: request.path(0, "the room id")?,
        event_id: request.path(1, "the event id")?,
        version: body.room_version,
        event: body.event,
        state: body.invite_room_state,
    };
    let event = federation.invite(&request.origin, invitation).await?;
    json(&Answer { event })
}

/// The event stands alone, with the state in its `unsigned`; the version is one of the two oldest.
async fn invite_v1(federation: Federation, request: Signed) -> ApiResult<Response> {
    #[derive(Deserialize)]
    struct Event {
        #[serde(default)]
        unsigned: Unsigned,
    }
    #[derive(Deserialize, Default)]
    struct Unsigned {
        #[serde(default)]
        invite_room_state: Vec<Box<RawValue>>,
    }
    let body: Event = request.json()?;
    let invitation = Invitation {
        room: request.path(0, "the room id")?,
        event_id: request.path(1, "the event id")?,
        version: RoomVersionId::V1,
        event: request.raw()?,
        state: body.unsigned.invite_room_state,
    };
    let event = federation.invite(&request.origin, invitation).await?;
    json(&(200, Answer { event }))
}
