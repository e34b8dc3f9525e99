//! <https://spec.matrix.org/v1.19/client-server-api/#third-party-networks>

use crate::error::ApiResult;
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::client::thirdparty::{
    get_location_for_protocol, get_location_for_room_alias, get_protocol, get_protocols,
    get_user_for_protocol, get_user_for_user_id,
};
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma_json(protocols)
        .ruma_json(protocol)
        .ruma_json(users)
        .ruma_json(places)
        .ruma_json(users_of)
        .ruma_json(places_of)
}

/// `GET /thirdparty/protocols`
async fn protocols(api: Api, _args: Args<get_protocols::v3::Request>) -> ApiResult<BTreeMap<String, Value>> {
    Ok(api.networks.protocols().await)
}

/// `GET /thirdparty/protocol/{protocol}`
async fn protocol(api: Api, args: Args<get_protocol::v3::Request>) -> ApiResult<Value> {
    Ok(api.networks.protocol(&args.request.protocol).await?)
}

/// `GET /thirdparty/user/{protocol}`
async fn users(api: Api, args: Args<get_user_for_protocol::v3::Request>) -> ApiResult<Vec<Value>> {
    let request = args.request;
    Ok(api.networks.users(&request.protocol, &fields(request.fields)).await?)
}

/// `GET /thirdparty/location/{protocol}`
async fn places(api: Api, args: Args<get_location_for_protocol::v3::Request>) -> ApiResult<Vec<Value>> {
    let request = args.request;
    Ok(api.networks.places(&request.protocol, &fields(request.fields)).await?)
}

/// `GET /thirdparty/user`
async fn users_of(api: Api, args: Args<get_user_for_user_id::v3::Request>) -> ApiResult<Vec<Value>> {
    Ok(api.networks.users_of(&args.request.userid).await?)
}

/// `GET /thirdparty/location`
async fn places_of(api: Api, args: Args<get_location_for_room_alias::v3::Request>) -> ApiResult<Vec<Value>> {
    Ok(api.networks.places_of(&args.request.alias).await?)
}

/// What is asked of the network: the token is nobody else's business.
fn fields(mut fields: BTreeMap<String, String>) -> BTreeMap<String, String> {
    fields.remove("access_token");
    fields
}
