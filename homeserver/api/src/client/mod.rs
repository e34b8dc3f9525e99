//! The client-server API: one line for each family of endpoints.

mod account;
mod account_error;
mod admin;
pub(crate) mod appservice;
mod backups;
mod dehydrated;
mod devices;
pub(crate) mod directory;
pub(crate) mod discovery;
mod elsewhere;
mod keys;
mod login;
pub(crate) mod media;
mod media_admin;
mod purges;
mod reading;
mod register;
mod registration_tokens;
mod rendezvous;
pub(crate) mod room;
mod sliding;
mod synapse_admin;
mod sync;
mod thirdparty;
mod threepids;
mod to_device;
pub(crate) mod uia;
mod user;

use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use axum::routing::get;
use http::Method;
use ruma::api::client::device::update_device;
use ruma::api::client::session::login as ruma_login;
use ruma::api::client::sync::sync_events;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .merge(accounts())
        .merge(discovery())
        .merge(elsewhere::routes())
        .untyped::<sync_events::v3::Request, _, _>(sync::sync)
        .ruma_json(sliding::deployed)
        .authenticated(Method::POST, "/_matrix/client/v4/sync", sliding::accepted)
        .merge(room::routes())
        .merge(media::routes())
        .merge(media_admin::routes())
        .merge(reading::routes())
        .merge(user::routes())
        .merge(keys::routes())
        .merge(dehydrated::routes())
        .merge(to_device::routes())
        .merge(backups::routes())
        .merge(directory::routes())
        .merge(appservice::routes())
        .merge(thirdparty::routes())
}

/// Accounts, logins, devices.
fn accounts() -> Router<Api> {
    Router::new()
        .ruma(register::register)
        .ruma(register::available)
        .ruma(register::token_validity)
        .route("/_synapse/admin/v1/register", get(register::secret_nonce).post(register::secret))
        .merge(registration_tokens::routes())
        .merge(synapse_admin::routes())
        .merge(rendezvous::routes())
        .merge(purges::routes())
        .merge(threepids::routes())
        .ruma(login::flows)
        .untyped::<ruma_login::v3::Request, _, _>(login::login)
        .ruma(login::token)
        .ruma(login::refresh)
        .ruma(login::logout)
        .ruma(login::logout_all)
        .ruma(account::whoami)
        .ruma(account::password)
        .ruma(account::deactivate)
        .ruma(account::openid)
        .ruma(devices::list)
        .ruma(devices::get)
        .untyped::<update_device::v3::Request, _, _>(devices::put)
        .ruma(devices::delete)
        .ruma(devices::delete_many)
        .ruma(admin::whois)
        .ruma(admin::locked)
        .ruma(admin::lock)
        .ruma(admin::suspended)
        .ruma(admin::suspend)
}

/// What clients and servers ask first.
fn discovery() -> Router<Api> {
    Router::new()
        .ruma(discovery::versions)
        .ruma_json(discovery::capabilities)
        .ruma_json(discovery::well_known_client)
        .ruma(discovery::rtc_transports)
        .route("/.well-known/matrix/server", get(discovery::well_known_server))
        .route("/.well-known/matrix/support", get(discovery::well_known_support))
}
