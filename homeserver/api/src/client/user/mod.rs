//! What belongs to one user: profile, account data, push rules, receipts, typing, presence; finding people and messages; reports.

mod account_data;
mod filters;
mod notifications;
mod people;
pub(crate) mod plain;
mod presence;
mod profile;
mod push;
mod receipts;
mod reports;
mod search;
pub(crate) mod thread_subscriptions;
mod typing;
mod voip;

use crate::state::Api;
use axum::Router;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .merge(account_data::routes())
        .merge(filters::routes())
        .merge(notifications::routes())
        .merge(people::routes())
        .merge(presence::routes())
        .merge(profile::routes())
        .merge(push::routes())
        .merge(receipts::routes())
        .merge(reports::routes())
        .merge(search::routes())
        .merge(thread_subscriptions::routes())
        .merge(typing::routes())
        .merge(voip::routes())
}
