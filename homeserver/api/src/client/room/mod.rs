//! Rooms: making them, being in them, saying something.

mod create;
mod delayed;
mod error;
mod membership;
mod send;
mod third_party;

pub(crate) use third_party::third_party_error;

use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::OwnedEventId;
use ruma::api::client::state::send_state_event;
use serde::Serialize;
use waxwing_services::accounts::Requester;
use waxwing_services::timeline::Author;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .ruma(create::create_room)
        .ruma(membership::join_by_id)
        .ruma(membership::join)
        .ruma(membership::knock)
        .ruma(membership::invite)
        .ruma(membership::leave)
        .ruma(membership::forget)
        .ruma(membership::kick)
        .ruma(membership::ban)
        .ruma(membership::unban)
        .ruma_json(send::send_message)
        .untyped_empty_last::<send_state_event::v3::Request, _, _>(send::send_state)
        .ruma_json(send::redact)
        .merge(delayed::routes())
}

/// The answer to a request to send.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Sent {
    /// The event is in the room.
    Event {
        /// Its id.
        event_id: OwnedEventId,
    },
    /// It will be, later.
    Delayed {
        /// The id by which it can be changed until then.
        delay_id: String,
    },
}

/// The requester as the author of an event.
pub(crate) fn author(requester: &Requester) -> Author {
    Author {
        user: requester.user_id.clone(),
        appservice: requester.appservice.as_ref().map(ToString::to_string),
        suspended: requester.is_suspended,
    }
}
