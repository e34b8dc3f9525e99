//! The client-server API: one line for each family of endpoints.

pub(crate) mod appservice;
mod backups;
mod discovery;
mod keys;
mod reading;
mod room;
mod sync;
mod to_device;
mod user;
mod whoami;

use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .ruma(discovery::versions)
        .ruma(whoami::whoami)
        .ruma_json(sync::sync)
        .merge(room::routes())
        .merge(reading::routes())
        .merge(user::routes())
        .merge(keys::routes())
        .merge(to_device::routes())
        .merge(backups::routes())
}
