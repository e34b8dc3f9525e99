//! Finding rooms.

mod aliases;
mod error;
mod listing;
mod spaces;
mod upgrade;

pub(crate) use listing::PublicList;

use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma(aliases::resolve)
        .ruma(aliases::create)
        .ruma(aliases::delete)
        .ruma(aliases::of_room)
        .ruma_json(listing::list)
        .ruma_json(listing::search)
        .ruma(listing::visibility)
        .ruma(listing::set_visibility)
        .ruma_json(spaces::summary)
        .ruma_json(spaces::summary_by_older_name)
        .ruma_json(spaces::hierarchy)
        .ruma(upgrade::upgrade)
}
