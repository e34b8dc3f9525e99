//! Reading rooms.

mod events;
mod members;
mod messages;
mod older;
mod peek;
mod relations;
mod relationships;
mod state;

use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::client::message::get_message_events;
use ruma::api::client::peeking::listen_to_new_events;
use ruma::serde::Raw;
use ruma::{DeviceId, UInt};
use serde_json::value::RawValue;
use waxwing_services::accounts::Requester;
use waxwing_services::render::Viewer;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma(events::event)
        .ruma(events::context)
        .ruma(events::at_timestamp)
        .ruma(state::whole)
        .ruma_empty_last(state::entry)
        .ruma(members::members)
        .ruma_json(members::joined_members)
        .ruma(members::joined_rooms)
        .untyped::<get_message_events::v3::Request, _, _>(messages::messages)
        .ruma(relations::all)
        .ruma(relations::of_type)
        .ruma(relations::of_types)
        .ruma(relations::threads)
        .ruma(relationships::relationships)
        .ruma_json(peek::initial_sync)
        .untyped::<listen_to_new_events::v3::Request, _, _>(peek::events)
        .ruma(older::initial_sync)
        .ruma(older::one_event)
}

/// For whom events are shown.
pub(crate) fn viewer(requester: &Requester) -> Viewer {
    Viewer {
        user: requester.user_id.clone(),
        device: requester.device_id.as_deref().map(DeviceId::as_str).map(str::to_owned),
    }
}

/// Rendered events as ruma's responses take them.
pub(crate) fn raw_all<T>(events: Vec<Box<RawValue>>) -> Vec<Raw<T>> {
    events.into_iter().map(Raw::from_json).collect()
}

/// A number of a request; too large ones are limited by the services.
pub(crate) fn size(number: UInt) -> usize {
    usize::try_from(u64::from(number)).unwrap_or(usize::MAX)
}

/// One parameter of the query, decoded: for what ruma's types do not read whole.
pub(crate) fn query_parameter(parts: &http::request::Parts, name: &str) -> Option<String> {
    let query = parts.uri.query()?;
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}
