//! HTTP: the only package that names axum. Each endpoint is an extractor ([`Args`]), one call of a service, and a
//! typed response; [`error`] alone turns what services answer into `errcode` and status.
//!
//! What it does not do: rules. Handlers hold no SQL and no decisions.

mod access;
mod bodies;
mod client;
mod drain;
mod error;
mod extract;
mod federation;
mod limits;
mod load;
mod observe;
mod pages;
mod polls;
mod routes;
mod state;

pub use client::discovery::WellKnown;
pub use error::ApiError;
pub use extract::Args;
pub use limits::{Limits, Rate, Rates};
pub use polls::{Answering, answer};
pub use state::{Api, Parts};

use axum::Router;

/// The routes of the client listener. Serve it by [`answer`] and with connect info, so that addresses are known. Other servers may use
/// it too: behind a reverse proxy both APIs often share one port, and federation is authenticated by signatures.
pub fn client_router(api: Api) -> Router {
    routes::finish(client::routes().merge(pages::routes()).merge(federation::routes()), api)
}

/// The routes of the federation listener.
pub fn federation_router(api: Api) -> Router {
    routes::finish(federation::routes(), api)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two handlers at one path and method, or two paths that differ in the names of their variables alone, panic here.
    #[test]
    fn no_route_is_in_the_way_of_another() {
        let _: Router<Api> = client::routes().merge(pages::routes()).merge(federation::routes());
    }
}
