//! The server-server API: one line for each family of endpoints.
//! <https://spec.matrix.org/v1.19/server-server-api/>

mod devices;
mod directory;
mod error;
mod history;
mod invite;
mod keys;
mod media;
mod membership;
mod profile;
mod related;
mod send;
mod signed;
mod third_party;
mod version;

use crate::state::Api;
use axum::Router;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .merge(version::routes())
        .merge(keys::routes())
        .merge(send::routes())
        .merge(membership::routes())
        .merge(invite::routes())
        .merge(history::routes())
        .merge(directory::routes())
        .merge(profile::routes())
        .merge(devices::routes())
        .merge(media::routes())
        .merge(related::routes())
        .merge(third_party::routes())
}
