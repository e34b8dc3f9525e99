//! Dehydrated devices (MSC3814), at their unstable paths, by hand: today's clients read the events with POST, which never
//! leaves `next_batch` out, and newer ones with GET, which leaves it out at the end.
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/3814>

use crate::access::{Rules, rules};
use crate::error::{ApiError, ApiResult};
use crate::extract::{authenticate_raw, json, path, read_body};
use crate::state::Api;
use axum::extract::{Query, Request, State};
use axum::routing::get;
use axum::{Json, Router};
use ruma::OwnedDeviceId;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_services::accounts::Requester;
use waxwing_services::keys::{Dehydration, KeyUpload};

const PATH: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route(PATH, get(load).put(put).delete(delete))
        .route(&format!("{PATH}/{{device_id}}/events"), get(events).post(events_by_post))
}

/// Who asks, the variables of the path, and the body.
struct Asked {
    requester: Arc<Requester>,
    path: Vec<String>,
    query: Option<String>,
    body: bytes::Bytes,
}

async fn asked(api: &Api, request: Request) -> ApiResult<Asked> {
    let (mut parts, body) = request.into_parts();
    let rules: Rules = rules(&parts.method, PATH, true);
    let requester = authenticate_raw(api, &rules, &parts).await?;
    let path = path(&mut parts).await?;
    let query = parts.uri.query().map(str::to_owned);
    Ok(Asked { requester, path, query, body: read_body(body, rules.body).await? })
}

#[derive(Deserialize)]
struct Put {
    device_id: OwnedDeviceId,
    device_data: Box<RawValue>,
    initial_device_display_name: Option<String>,
    device_keys: Box<RawValue>,
    #[serde(default)]
    one_time_keys: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    fallback_keys: BTreeMap<String, Box<RawValue>>,
}

fn texts(keys: BTreeMap<String, Box<RawValue>>) -> BTreeMap<String, String> {
    keys.into_iter().map(|(id, key)| (id, key.get().to_owned())).collect()
}

/// `PUT …/dehydrated_device`
async fn put(State(api): State<Api>, request: Request) -> ApiResult<Json<Value>> {
    let asked = asked(&api, request).await?;
    let put: Put = json(&asked.body)?;
    let device_id = put.device_id.clone();
    let wanted = Dehydration {
        device_id: put.device_id,
        device_data: put.device_data,
        display_name: put.initial_device_display_name,
        keys: KeyUpload {
            device_keys: Some(put.device_keys.get().to_owned()),
            one_time_keys: texts(put.one_time_keys),
            fallback_keys: texts(put.fallback_keys),
        },
    };
    api.keys.dehydrate(&asked.requester.user_id, wanted).await?;
    Ok(Json(json!({ "device_id": device_id })))
}

/// `GET …/dehydrated_device`
async fn load(State(api): State<Api>, request: Request) -> ApiResult<Json<Value>> {
    let asked = asked(&api, request).await?;
    let row = api.keys.dehydrated(&asked.requester.user_id).await?;
    Ok(Json(json!({ "device_id": row.device_id, "device_data": row.device_data })))
}

/// `DELETE …/dehydrated_device`
async fn delete(State(api): State<Api>, request: Request) -> ApiResult<Json<Value>> {
    let asked = asked(&api, request).await?;
    let device_id = api.keys.dehydrated_delete(&asked.requester.user_id).await?;
    Ok(Json(json!({ "device_id": device_id })))
}

/// `GET …/dehydrated_device/{deviceId}/events`
async fn events(State(api): State<Api>, request: Request) -> ApiResult<Json<Value>> {
    #[derive(Deserialize)]
    struct From {
        from: Option<String>,
    }
    let asked = asked(&api, request).await?;
    let uri =
        http::Uri::builder().path_and_query(format!("/?{}", asked.query.as_deref().unwrap_or_default()));
    let uri = uri.build().map_err(ApiError::invalid_param)?;
    let Query(from) = Query::<From>::try_from_uri(&uri).map_err(ApiError::invalid_param)?;
    let page = page(&api, &asked, from.from.as_deref()).await?;
    let mut body = json!({ "events": page.events });
    if page.more {
        body["next_batch"] = page.next.into();
    }
    Ok(Json(body))
}

/// `POST …/dehydrated_device/{deviceId}/events`
async fn events_by_post(State(api): State<Api>, request: Request) -> ApiResult<Json<Value>> {
    #[derive(Default, Deserialize)]
    struct From {
        next_batch: Option<String>,
    }
    let asked = asked(&api, request).await?;
    let from: From = if asked.body.is_empty() { From::default() } else { json(&asked.body)? };
    let page = page(&api, &asked, from.next_batch.as_deref()).await?;
    Ok(Json(json!({ "events": page.events, "next_batch": page.next })))
}

async fn page(
    api: &Api,
    asked: &Asked,
    from: Option<&str>,
) -> ApiResult<waxwing_services::keys::DehydratedEvents> {
    let device = OwnedDeviceId::from(asked.path.first().map(String::as_str).unwrap_or_default());
    Ok(api.keys.dehydrated_events(&asked.requester.user_id, &device, from).await?)
}
