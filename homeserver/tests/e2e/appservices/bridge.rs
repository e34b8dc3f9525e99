//! An application service on the loopback: it keeps what it is sent, answers what it is asked, and can be told to
//! refuse.

use crate::http::{Answer, Raw};
use crate::node::free_port;
use crate::site::{PATIENCE, Shape, Site};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;

pub const AS_TOKEN: &str = "the-token-that-the-bridge-shows";
pub const HS_TOKEN: &str = "the-token-that-the-server-shows";

/// A transaction as it came, each time that it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub id: String,
    pub body: Bytes,
    pub accepted: bool,
}

impl Attempt {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

#[derive(Default)]
struct Inner {
    attempts: Mutex<Vec<Attempt>>,
    /// Paths with queries that were asked.
    asked: Mutex<Vec<String>>,
    refuses: AtomicBool,
    /// It speaks only the paths of before `/_matrix/app/v1`.
    old: AtomicBool,
    /// What it does at the server when it is asked for a user or a room.
    server: Mutex<Option<Raw>>,
}

#[derive(Clone)]
pub struct Bridge {
    pub url: String,
    inner: Arc<Inner>,
    end: Arc<Notify>,
}

impl Bridge {
    pub async fn start() -> Bridge {
        let inner = Arc::new(Inner::default());
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        let routes = Router::new().fallback(serve).with_state(Arc::clone(&inner));
        let end = Arc::new(Notify::new());
        let ended = Arc::clone(&end);
        tokio::spawn(async move {
            let serving = axum::serve(listener, routes);
            serving.with_graceful_shutdown(async move { ended.notified().await }).await.unwrap();
        });
        Bridge { url, inner, end }
    }

    /// The bridge and a server that knows it. `more`: further lines of its registration.
    pub async fn with_site(shape: Shape, more: &str) -> Option<(Site, Bridge, tempfile::TempDir)> {
        Bridge::with_settings(shape, more, &[]).await
    }

    /// The same with settings of the server.
    pub async fn with_settings(
        shape: Shape,
        more: &str,
        settings: &[String],
    ) -> Option<(Site, Bridge, tempfile::TempDir)> {
        let bridge = Bridge::start().await;
        let folder = tempfile::tempdir().unwrap();
        bridge.register(folder.path(), more);
        let mut settings = settings.to_vec();
        settings.push(format!("appservices={}", folder.path().display()));
        let site = Site::start_with(shape, &settings).await?;
        *bridge.inner.server.lock().unwrap() = Some(Raw::nobody(&site.url).with_token(AS_TOKEN));
        Some((site, bridge, folder))
    }

    fn register(&self, folder: &Path, more: &str) {
        let file = format!(
            "id: birds\nurl: {}\nas_token: {AS_TOKEN}\nhs_token: {HS_TOKEN}\nsender_localpart: _birds_bot\n\
             rate_limited: false\nprotocols: [birds]\nnamespaces:\n  users:\n    - exclusive: true\n      \
             regex: '@_birds_.*'\n  aliases:\n    - exclusive: true\n      regex: '#_birds_.*'\n{more}",
            self.url
        );
        std::fs::write(folder.join("birds.yaml"), file).unwrap();
    }

    pub fn refuse(&self, refuse: bool) {
        self.inner.refuses.store(refuse, Ordering::SeqCst);
    }

    pub fn grow_old(&self) {
        self.inner.old.store(true, Ordering::SeqCst);
    }

    pub fn attempts(&self) -> Vec<Attempt> {
        self.inner.attempts.lock().unwrap().clone()
    }

    /// The transactions that were accepted, each once: one that comes again, because the answer was lost, is the same.
    pub fn accepted(&self) -> Vec<Attempt> {
        let mut all: Vec<Attempt> = Vec::new();
        for attempt in self.attempts().into_iter().filter(|attempt| attempt.accepted) {
            match all.iter().find(|before| before.id == attempt.id) {
                Some(before) => assert_eq!(before.body, attempt.body, "byte for byte"),
                None => all.push(attempt),
            }
        }
        all
    }

    /// Everything accepted under this key, in order.
    pub fn told(&self, key: &str) -> Vec<Value> {
        let list = |attempt: Attempt| attempt.json()[key].as_array().cloned().unwrap_or_default();
        self.accepted().into_iter().flat_map(list).collect()
    }

    pub fn asked(&self) -> Vec<String> {
        self.inner.asked.lock().unwrap().clone()
    }

    /// Waits until something under the key fits.
    pub async fn wait(&self, key: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.until(&format!("{key} that fits"), |bridge| bridge.told(key).into_iter().find(&fits)).await
    }

    pub async fn until<T>(&self, what: &str, found: impl Fn(&Bridge) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let shown = || {
                let attempts = self.attempts();
                let text = |attempt: &Attempt| String::from_utf8_lossy(&attempt.body).into_owned();
                attempts.iter().map(text).collect::<Vec<_>>().join("\n")
            };
            assert!(Instant::now() < end, "no {what}; the bridge was told:\n{}", shown());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops listening, and closes connections.
    pub fn stop(&self) {
        self.end.notify_one();
    }
}

async fn serve(State(inner): State<Arc<Inner>>, request: Request) -> impl IntoResponse {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 * 1024 * 1024).await.unwrap();
    let path = parts.uri.path().strip_prefix("/base").unwrap_or_default().to_owned();
    let old = inner.old.load(Ordering::SeqCst);
    let path = match (path.strip_prefix("/_matrix/app/v1"), old) {
        (Some(path), false) => path.to_owned(),
        (None, true) => {
            let given = parts.uri.query().unwrap_or_default().contains(&format!("access_token={HS_TOKEN}"));
            assert!(given, "who knows the old paths looks for the token in the query");
            path.clone()
        }
        _ => return answer(404, &json!({ "errcode": "M_UNRECOGNIZED" })),
    };
    if !is_authentic(&parts.headers) {
        return answer(403, &json!({ "errcode": "M_FORBIDDEN" }));
    }
    if let Some(id) = path.strip_prefix("/transactions/") {
        assert_eq!(parts.method, Method::PUT);
        let accepted = !inner.refuses.load(Ordering::SeqCst);
        let attempt = Attempt { id: id.to_owned(), body, accepted };
        inner.attempts.lock().unwrap().push(attempt);
        return answer(if accepted { 200 } else { 503 }, &json!({}));
    }
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    inner.asked.lock().unwrap().push(format!("{path}{query}"));
    let server = inner.server.lock().unwrap().clone();
    asked(&inner, server, &path).await
}

async fn asked(inner: &Inner, server: Option<Raw>, path: &str) -> (StatusCode, String) {
    let decoded = path.replace("%23", "#").replace("%40", "@").replace("%3A", ":");
    if path == "/ping" && inner.refuses.load(Ordering::SeqCst) {
        return answer(418, &json!({ "errcode": "M_TEAPOT" }));
    }
    if let (Some(user), Some(server)) = (decoded.strip_prefix("/users/"), &server) {
        if !user.contains("_made") {
            return answer(404, &json!({ "errcode": "M_NOT_FOUND" }));
        }
        make_user(server, user.split(':').next().unwrap().trim_start_matches('@')).await.fine();
        return answer(200, &json!({}));
    }
    if let (Some(alias), Some(server)) = (decoded.strip_prefix("/rooms/"), &server) {
        if !alias.contains("_made") {
            return answer(404, &json!({ "errcode": "M_NOT_FOUND" }));
        }
        let name = alias.split(':').next().unwrap().trim_start_matches('#');
        server.create_room(json!({ "room_alias_name": name, "preset": "public_chat" })).await;
        return answer(200, &json!({}));
    }
    match path {
        "/ping" => answer(200, &json!({})),
        "/thirdparty/protocol/birds" => answer(
            200,
            &json!({
                "user_fields": ["ring"], "location_fields": ["tree"], "icon": "mxc://a/b",
                "field_types": { "ring": { "regexp": ".*", "placeholder": "A1" } },
                "instances": [{ "network_id": "north", "desc": "Northern birds", "fields": {} }],
            }),
        ),
        "/thirdparty/user/birds" | "/thirdparty/user" => answer(
            200,
            &json!([{ "userid": "@_birds_a:x", "protocol": "birds", "fields": { "ring": "A1" } }]),
        ),
        "/thirdparty/location/birds" | "/thirdparty/location" => answer(200, &json!([])),
        _ => answer(404, &json!({ "errcode": "M_UNRECOGNIZED" })),
    }
}

/// Makes a user of the bridge, as the bridge does it: without logging in.
pub async fn make_user(server: &Raw, name: &str) -> Answer {
    let body = json!({ "type": "m.login.application_service", "username": name, "inhibit_login": true });
    server.post("/_matrix/client/v3/register", body).await
}

fn is_authentic(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_some_and(|value| value == &format!("Bearer {HS_TOKEN}"))
}

fn answer(status: u16, body: &Value) -> (StatusCode, String) {
    (StatusCode::from_u16(status).unwrap(), body.to_string())
}
