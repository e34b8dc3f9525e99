//! What belongs to one user: profile, account data, push rules, receipts, typing, presence.

mod account_data;
pub(crate) mod plain;
mod presence;
mod profile;
mod push;
mod receipts;
mod typing;

use crate::state::Api;
use axum::Router;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .merge(account_data::routes())
        .merge(presence::routes())
        .merge(profile::routes())
        .merge(push::routes())
        .merge(receipts::routes())
        .merge(typing::routes())
}
