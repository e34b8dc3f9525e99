//! What this server is and can do.

use crate::client::user::plain::{JsonAnswer, plain_request};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::state::Api;
use axum::Json;
use axum::extract::State;
use ruma::RoomVersionId;
use ruma::api::auth_scheme::AccessToken;
use ruma::api::client::discovery::discover_homeserver;
use ruma::api::client::discovery::get_capabilities::v3 as get_capabilities;
use ruma::api::client::discovery::get_supported_versions;
use serde_json::{Map, Value, json};

/// Versions of the client-server API that are served. Some clients know only the older names.
const VERSIONS: &[&str] = &[
    "r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3",
    "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15",
    "v1.16", "v1.17", "v1.18", "v1.19",
];

/// Features beyond these versions, or from before them, that clients look for. Only what exists here.
const FEATURES: &[&str] = &[
    "com.beeper.msc4169",
    "fi.mau.msc2659.stable",
    "org.matrix.e2e_cross_signing",
    "org.matrix.msc2285.stable",
    "org.matrix.msc3030",
    "org.matrix.msc3391",
    "org.matrix.msc3440.stable",
    "org.matrix.msc3771",
    "org.matrix.msc3773",
    "org.matrix.msc3814",
    "org.matrix.msc3827.stable",
    "org.matrix.msc3874",
    "org.matrix.msc3881",
    "org.matrix.msc3882",
    "org.matrix.msc3890",
    "org.matrix.msc3916.stable",
    "org.matrix.msc3981",
    "org.matrix.msc3912",
    "org.matrix.msc4108",
    "org.matrix.msc4140",
    "org.matrix.msc4143",
    "org.matrix.msc4151",
    "org.matrix.msc4155",
    "org.matrix.msc4222",
    "org.matrix.msc4306",
    "org.matrix.msc4354",
    "org.matrix.msc4380.stable",
    "org.matrix.simplified_msc3575",
    "uk.half-shot.msc2666.query_mutual_rooms",
    "uk.half-shot.msc2666.query_mutual_rooms.stable",
    "uk.tcpip.msc4133",
    "uk.tcpip.msc4133.stable",
    "uk.timedout.msc4323",
];

/// Ways of making a room, as Element's clients name them when they ask whether it will be encrypted.
const PRESETS: &[&str] = &["private", "public", "trusted_private"];

/// Where others find this server, from the configuration.
#[derive(Clone, Debug, Default)]
pub struct WellKnown {
    /// The base URL of the client API.
    pub client: Option<String>,
    /// The server that speaks federation, with its port.
    pub server: Option<String>,
    /// A page where people find help.
    pub support_page: Option<String>,
    /// Where the administrators are reached by mail.
    pub support_email: Option<String>,
    /// The account of an administrator.
    pub support_user: Option<String>,
    /// The authorisation services of LiveKit servers.
    pub livekit_service_urls: Vec<String>,
}

impl WellKnown {
    /// Where clients get into calls (MSC4143), as they read it.
    fn rtc_transports(&self) -> Vec<Value> {
        let transport = |url: &String| json!({ "type": "livekit", "livekit_service_url": url });
        self.livekit_service_urls.iter().map(transport).collect()
    }
}

plain_request!(
    /// `GET /rtc/transports`
    RtcTransports, GET, AccessToken, {
        unstable("org.matrix.msc4143") => "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
    }
);

/// `GET /_matrix/client/unstable/org.matrix.msc4143/rtc/transports`
pub(super) async fn rtc_transports(api: Api, _args: Args<RtcTransports>) -> ApiResult<JsonAnswer> {
    JsonAnswer::new(&json!({ "rtc_transports": api.well_known.rtc_transports() }))
}

/// `GET /_matrix/client/versions`
pub(super) async fn versions(
    api: Api,
    _args: Args<get_supported_versions::Request>,
) -> ApiResult<get_supported_versions::Response> {
    let mut response =
        get_supported_versions::Response::new(VERSIONS.iter().map(|version| (*version).to_owned()).collect());
    response.unstable_features = FEATURES.iter().map(|feature| ((*feature).to_owned(), true)).collect();
    if api.core.settings.push.encrypted_events {
        response.unstable_features.insert("org.matrix.msc4028".to_owned(), true);
    }
    if !api.core.settings.plaintext.accept {
        // So that clients do not offer what would be refused: each room is encrypted from its first event.
        let forced = PRESETS.iter().map(|preset| (format!("io.element.e2ee_forced.{preset}"), true));
        response.unstable_features.extend(forced);
    }
    Ok(response)
}

/// `GET /_matrix/client/v3/capabilities`. Every capability is written out: clients take the absence of one for the
/// older behaviour.
pub(super) async fn capabilities(api: Api, args: Args<get_capabilities::Request>) -> ApiResult<Value> {
    let experimental = waxwing_services::experimental_room_versions().iter();
    let versions: Map<String, Value> = waxwing_services::room_versions()
        .iter()
        .map(|version: &RoomVersionId| (version.to_string(), "stable".into()))
        .chain(experimental.map(|version| ((*version).to_owned(), "unstable".into())))
        .collect();
    let mut all = json!({
        "m.change_password": { "enabled": true },
        "m.room_versions": { "default": api.core.settings.default_room_version, "available": versions },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.3pid_changes": { "enabled": api.accounts.sends_mail() },
        "m.get_login_token": { "enabled": true },
        "m.profile_fields": { "enabled": true },
        "m.forget_forced_upon_leave": { "enabled": false },
    });
    if args.requester.is_admin {
        all["m.account_moderation"] = json!({ "suspend": true, "lock": true });
    }
    Ok(json!({ "capabilities": all }))
}

/// `GET /.well-known/matrix/client`
pub(super) async fn well_known_client(
    api: Api,
    _args: Args<discover_homeserver::Request>,
) -> ApiResult<Value> {
    let url = api.well_known.client.clone().ok_or_else(|| ApiError::not_found("Not served here"))?;
    let mut document = json!({ "m.homeserver": { "base_url": url } });
    let transports = api.well_known.rtc_transports();
    if !transports.is_empty() {
        document["org.matrix.msc4143.rtc_foci"] = transports.into();
    }
    Ok(document)
}

/// `GET /.well-known/matrix/server`
pub(super) async fn well_known_server(State(api): State<Api>) -> ApiResult<Json<Value>> {
    let server = api.well_known.server.clone().ok_or_else(|| ApiError::not_found("Not served here"))?;
    Ok(Json(json!({ "m.server": server })))
}

/// `GET /.well-known/matrix/support`: <https://spec.matrix.org/v1.19/client-server-api/#getwell-knownmatrixsupport>
pub(super) async fn well_known_support(State(api): State<Api>) -> ApiResult<Json<Value>> {
    let known = &api.well_known;
    let mut contact = Map::new();
    contact.extend(known.support_email.iter().map(|mail| ("email_address".to_owned(), json!(mail))));
    contact.extend(known.support_user.iter().map(|user| ("matrix_id".to_owned(), json!(user))));
    let mut document = Map::new();
    if !contact.is_empty() {
        contact.insert("role".to_owned(), json!("m.role.admin"));
        document.insert("contacts".to_owned(), json!([contact]));
    }
    document.extend(known.support_page.iter().map(|page| ("support_page".to_owned(), json!(page))));
    if document.is_empty() {
        return Err(ApiError::not_found("No contact is published"));
    }
    Ok(Json(document.into()))
}
