//! Key backups: <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>.

mod error;
mod keys;
mod versions;

use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma(versions::create)
        .ruma(versions::latest)
        .ruma(versions::info)
        .ruma(versions::update)
        .ruma(versions::delete)
        .ruma(keys::put_all)
        .ruma(keys::put_room)
        .ruma(keys::put_session)
        .ruma(keys::get_all)
        .ruma(keys::get_room)
        .ruma(keys::get_session)
        .ruma(keys::delete_all)
        .ruma(keys::delete_room)
        .ruma(keys::delete_session)
}
