//! `PUT /_matrix/federation/v1/send/{txnId}`.
//! <https://spec.matrix.org/v1.19/server-server-api/#transactions>

use super::signed::{Signed, SignedExt, TRANSACTION, json};
use crate::error::{ApiError, ApiResult};
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use serde_json::value::RawValue;
use waxwing_services::federation::Federation;

pub(super) fn routes() -> Router<Api> {
    let path = "/_matrix/federation/v1/send/{txn_id}";
    Router::new().signed_upto(TRANSACTION, MethodFilter::PUT, path, send)
}

async fn send(federation: Federation, request: Signed) -> ApiResult<Response> {
    let txn_id = request.path.first().map(String::as_str).unwrap_or_default();
    let result = federation.inbound().transaction(&request.origin, txn_id, &request.body).await?;
    let answer = RawValue::from_string(result.to_json()).map_err(ApiError::internal)?;
    json(&answer)
}
