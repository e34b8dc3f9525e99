//! Device lists and keys of our users.
//! <https://spec.matrix.org/v1.19/server-server-api/#end-to-end-encryption>

use super::signed::{Signed, SignedExt, json};
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use ruma::OwnedUserId;
use ruma::api::OutgoingResponse;
use serde::{Deserialize, Serialize};
use waxwing_services::federation::Federation;
use waxwing_services::keys::{ClaimedKeys, Claims, KeysError, Wanted};

pub(super) fn routes() -> Router<Api> {
    const POST: MethodFilter = MethodFilter::POST;
    Router::new()
        .signed(MethodFilter::GET, "/_matrix/federation/v1/user/devices/{user}", devices)
        .signed(POST, "/_matrix/federation/v1/user/keys/query", query)
        .signed(POST, "/_matrix/federation/v1/user/keys/claim", claim)
}

/// A ruma response as axum sends it.
fn answer(response: impl OutgoingResponse) -> ApiResult<Response> {
    crate::routes::answer(response)
}

async fn devices(federation: Federation, request: Signed) -> ApiResult<Response> {
    let user: OwnedUserId = request.path(0, "the user id")?;
    answer(federation.keys().user_devices(&user).await.map_err(refused)?)
}

async fn query(federation: Federation, request: Signed) -> ApiResult<Response> {
    #[derive(Deserialize)]
    struct Body {
        device_keys: Wanted,
    }
    let body: Body = request.json()?;
    must_be_ours(&federation, body.device_keys.keys())?;
    answer(federation.keys().query_local(body.device_keys).await.map_err(refused)?)
}

async fn claim(federation: Federation, request: Signed) -> ApiResult<Response> {
    #[derive(Deserialize)]
    struct Body {
        one_time_keys: Claims,
    }
    #[derive(Serialize)]
    struct Answer {
        one_time_keys: ClaimedKeys,
    }
    let body: Body = request.json()?;
    must_be_ours(&federation, body.one_time_keys.keys())?;
    json(&Answer { one_time_keys: federation.keys().claim_local(body.one_time_keys).await.map_err(refused)? })
}

fn must_be_ours<'a>(
    federation: &Federation,
    mut users: impl Iterator<Item = &'a OwnedUserId>,
) -> ApiResult<()> {
    if users.all(|user| user.server_name() == federation.server_name()) {
        Ok(())
    } else {
        Err(ApiError::invalid_param("a user is of another server"))
    }
}

/// Why another server gets no keys.
fn refused(error: KeysError) -> ApiError {
    match error {
        KeysError::Store(error) => error.into(),
        KeysError::NotFound(why) => ApiError::not_found(why),
        KeysError::Forbidden(why) => ApiError::forbidden(why),
        KeysError::NoDevice
        | KeysError::BadJson(_)
        | KeysError::Invalid(_)
        | KeysError::Missing(_)
        | KeysError::Signature(_)
        | KeysError::TooLarge(_) => ApiError::invalid_param(error),
    }
}
