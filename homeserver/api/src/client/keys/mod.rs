//! End-to-end keys: <https://spec.matrix.org/v1.19/client-server-api/#key-management-api>.

mod changes;
mod claim;
mod error;
mod query;
mod sign;
mod signing;
mod upload;

use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::serde::Raw;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma(upload::upload)
        .ruma(query::query)
        .ruma(claim::claim)
        .ruma(changes::changes)
        .ruma(sign::upload)
        .ruma(signing::upload)
}

/// The JSON as it came.
fn json<T>(raw: Raw<T>) -> String {
    Box::<str>::from(raw.into_json()).into()
}
