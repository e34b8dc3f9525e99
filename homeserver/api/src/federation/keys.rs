//! Our keys, and those of others as a notary.
//! <https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys>

use super::signed::{SMALL, federation, json, number, query};
use crate::error::{ApiError, ApiResult};
use crate::extract::{path, read_body};
use crate::state::Api;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use ruma::{OwnedServerName, OwnedServerSigningKeyId};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use waxwing_federation::keys::{NotaryQuery, answer_notary_query};
use waxwing_services::federation::Federation;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/_matrix/key/v2/server", get(own))
        // An older form, which still names a key; the answer holds all of them.
        .route("/_matrix/key/v2/server/{key_id}", get(own))
        .route("/_matrix/key/v2/query", axum::routing::post(query_many))
        .route("/_matrix/key/v2/query/{server_name}", get(query_one))
        .route("/_matrix/key/v2/query/{server_name}/{key_id}", get(query_one))
}

async fn own(State(api): State<Api>) -> ApiResult<Response> {
    let federation = federation(&api)?;
    let document = federation.outgoing().ring.own().document(federation.now());
    json(&document.map_err(ApiError::internal)?)
}

async fn query_one(State(api): State<Api>, request: Request) -> ApiResult<Response> {
    let federation = federation(&api)?;
    let (mut parts, _) = request.into_parts();
    let until = number(&query(&parts.uri)?, "minimum_valid_until_ts")?;
    let path = path(&mut parts).await?;
    let server = path.first().and_then(|name| OwnedServerName::try_from(name.as_str()).ok());
    let server = server.ok_or_else(|| ApiError::invalid_param("not a server name"))?;
    let mut keys = BTreeMap::new();
    if let Some(id) = path.get(1) {
        let id = OwnedServerSigningKeyId::try_from(id.as_str()).map_err(ApiError::invalid_param)?;
        keys.insert(id, until.unwrap_or_else(|| federation.now()));
    }
    answer(&federation, BTreeMap::from([(server, keys)])).await
}

#[derive(Deserialize)]
struct Body {
    server_keys: BTreeMap<OwnedServerName, BTreeMap<OwnedServerSigningKeyId, Criteria>>,
}

#[derive(Deserialize)]
struct Criteria {
    minimum_valid_until_ts: Option<u64>,
}

async fn query_many(State(api): State<Api>, request: Request) -> ApiResult<Response> {
    let federation = federation(&api)?;
    let body = read_body(request.into_body(), SMALL).await?;
    let body: Body = serde_json::from_slice(&body)?;
    let now = federation.now();
    let wanted = |keys: BTreeMap<OwnedServerSigningKeyId, Criteria>| {
        keys.into_iter().map(|(id, wish)| (id, wish.minimum_valid_until_ts.unwrap_or(now))).collect()
    };
    let query = body.server_keys.into_iter().map(|(server, keys)| (server, wanted(keys))).collect();
    answer(&federation, query).await
}

async fn answer(federation: &Federation, query: NotaryQuery) -> ApiResult<Response> {
    let ring = &federation.outgoing().ring;
    let keys = answer_notary_query(ring, query, federation.now()).await.map_err(ApiError::internal)?;
    json(&BTreeMap::<&str, Vec<Box<RawValue>>>::from([("server_keys", keys)]))
}
