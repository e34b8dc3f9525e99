//! Rooms: making them, being in them, saying something.

mod create;
mod error;
mod membership;
mod send;

use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
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
        .ruma(send::send_message)
        .ruma_empty_last(send::send_state)
        .ruma(send::redact)
}

/// The requester as the author of an event.
pub(crate) fn author(requester: &Requester) -> Author {
    Author {
        user: requester.user_id.clone(),
        appservice: requester.appservice.as_ref().map(ToString::to_string),
    }
}
