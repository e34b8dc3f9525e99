//! `PUT /_matrix/federation/v1/send/{txnId}`.
//! <https://spec.matrix.org/v1.19/server-server-api/#transactions>

use super::signed::{Signed, SignedExt, TRANSACTION, json};
use crate::error::ApiResult;
use crate::state::Api;
use axum::Router;
use axum::response::Response;
use axum::routing::MethodFilter;
use serde_json::{Map, Value};
use waxwing_services::federation::Federation;

pub(super) fn routes() -> Router<Api> {
    let path = "/_matrix/federation/v1/send/{txn_id}";
    Router::new().signed_upto(TRANSACTION, MethodFilter::PUT, path, send)
}

async fn send(federation: Federation, request: Signed) -> ApiResult<Response> {
    let txn_id = request.path.first().map(String::as_str).unwrap_or_default();
    let result = federation.inbound().transaction(&request.origin, txn_id, &request.body).await?;
    let mut pdus = Map::new();
    for (id, outcome) in &result.pdus {
        let mut entry = Map::new();
        if let Err(reason) = outcome {
            entry.insert("error".to_owned(), Value::String(reason.clone()));
        }
        pdus.insert(id.to_string(), Value::Object(entry));
    }
    json(&serde_json::json!({ "pdus": pdus }))
}
