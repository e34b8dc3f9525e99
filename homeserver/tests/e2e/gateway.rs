//! A push gateway on the loopback. It looks at each request as strictly as the push-gateway API allows.
//! <https://spec.matrix.org/v1.19/push-gateway-api/>

use super::node::free_port;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How long a notification may take: a gateway that failed is tried again after a second, then two, then four; a
/// crashed node's lease lasts for fifteen.
const PATIENCE: Duration = Duration::from_mins(1);
/// In which nothing more comes when nothing more is to come.
const QUIET: Duration = Duration::from_millis(700);

#[derive(Default)]
struct Seen {
    notifications: Vec<Value>,
    problems: Vec<String>,
    rejected: HashSet<String>,
    failing: bool,
}

pub struct Gateway {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    task: Option<JoinHandle<()>>,
}

impl Gateway {
    pub async fn start() -> Gateway {
        let mut gateway = Gateway { port: free_port(), seen: Arc::default(), task: None };
        gateway.open().await;
        gateway
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/_matrix/push/v1/notify", self.port)
    }

    /// The body that makes a pusher to it.
    pub fn pusher(&self, pushkey: &str, more: Value) -> Value {
        let mut data = json!({ "url": self.url(), "brand": "Aviary" });
        for (field, value) in more.as_object().unwrap() {
            data[field] = value.clone();
        }
        json!({
            "kind": "http", "app_id": "org.example.aviary", "pushkey": pushkey, "lang": "en",
            "app_display_name": "Aviary", "device_display_name": "Phone", "data": data,
        })
    }

    /// Listens. Connections are refused before, and after [`Gateway::close`].
    pub async fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let routes = Router::new().fallback(take).with_state(Arc::clone(&self.seen));
        self.task = Some(tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() }));
    }

    pub async fn close(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Whether it answers with errors from now on.
    pub fn fail(&self, failing: bool) {
        self.seen.lock().unwrap().failing = failing;
    }

    /// It does not take this pushkey any more.
    pub fn reject(&self, pushkey: &str) {
        self.seen.lock().unwrap().rejected.insert(pushkey.to_owned());
    }

    fn count(&self) -> usize {
        let seen = self.seen.lock().unwrap();
        assert!(seen.problems.is_empty(), "{:#?}", seen.problems);
        seen.notifications.len()
    }

    /// The next `count` notifications, and makes sure that no more come. Those that it failed do not count.
    pub async fn take(&self, count: usize) -> Vec<Value> {
        let until = Instant::now() + PATIENCE;
        while self.count() < count {
            assert!(
                Instant::now() < until,
                "{count} expected: {:#?}",
                self.seen.lock().unwrap().notifications
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(QUIET).await;
        let mut seen = self.seen.lock().unwrap();
        assert!(seen.problems.is_empty(), "{:#?}", seen.problems);
        assert_eq!(seen.notifications.len(), count, "{:#?}", seen.notifications);
        std::mem::take(&mut seen.notifications)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn take(
    State(seen): State<Arc<Mutex<Seen>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let mut seen = seen.lock().unwrap();
    if seen.failing {
        return (StatusCode::SERVICE_UNAVAILABLE, "down".to_owned());
    }
    let mut wrong = Vec::new();
    if method != Method::POST || uri.path() != "/_matrix/push/v1/notify" || uri.query().is_some() {
        wrong.push(format!("{method} {uri}"));
    }
    if headers.get("content-type").is_none_or(|kind| kind != "application/json") {
        wrong.push("no JSON".to_owned());
    }
    for secret in ["authorization", "cookie", "referer"] {
        if headers.contains_key(secret) {
            wrong.push(format!("{secret} is sent"));
        }
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    check(&body, &mut wrong);
    let notification = body["notification"].clone();
    seen.problems.extend(wrong.iter().map(|problem| format!("{problem} in {body}")));
    let keys = notification["devices"].as_array().into_iter().flatten();
    let keys: Vec<String> = keys.filter_map(|device| device["pushkey"].as_str().map(str::to_owned)).collect();
    let rejected: Vec<&String> = keys.iter().filter(|key| seen.rejected.contains(*key)).collect();
    let answer = json!({ "rejected": rejected }).to_string();
    if rejected.is_empty() {
        seen.notifications.push(notification);
    }
    (StatusCode::OK, answer)
}

type Check = fn(&Value) -> bool;

fn fields(name: &str, object: &Value, allowed: &[(&str, Check)], wrong: &mut Vec<String>) {
    let Some(object) = object.as_object() else { return wrong.push(format!("{name} is no object")) };
    for (field, value) in object {
        match allowed.iter().find(|(known, _)| known == field) {
            Some((_, fits)) if fits(value) => {}
            Some(_) => wrong.push(format!("{name}.{field} is {value}")),
            None => wrong.push(format!("{name}.{field} is unknown")),
        }
    }
}

fn check(body: &Value, wrong: &mut Vec<String>) {
    fields("body", body, &[("notification", Value::is_object)], wrong);
    let notification = &body["notification"];
    let known: &[(&str, Check)] = &[
        ("event_id", |id| id.as_str().is_some_and(|id| id.starts_with('$'))),
        ("room_id", |id| id.as_str().is_some_and(|id| id.starts_with('!'))),
        ("type", Value::is_string),
        ("sender", |id| id.as_str().is_some_and(|id| id.starts_with('@'))),
        ("sender_display_name", Value::is_string),
        ("room_name", Value::is_string),
        ("room_alias", |alias| alias.as_str().is_some_and(|alias| alias.starts_with('#'))),
        ("user_is_target", Value::is_boolean),
        ("prio", |prio| prio == "high" || prio == "low"),
        ("content", Value::is_object),
        ("counts", Value::is_object),
        ("devices", |devices| devices.as_array().is_some_and(|devices| devices.len() == 1)),
    ];
    fields("notification", notification, known, wrong);
    let has = |field: &str| notification.get(field).is_some();
    if has("event_id") != has("room_id") || !has("event_id") && !has("counts") || !has("devices") {
        wrong.push("it is about no event and no count".to_owned());
    }
    if let Some(counts) = notification.get("counts") {
        fields("counts", counts, &[("unread", Value::is_u64), ("missed_calls", Value::is_u64)], wrong);
    }
    let device = &notification["devices"][0];
    let known: &[(&str, Check)] = &[
        ("app_id", Value::is_string),
        ("pushkey", Value::is_string),
        // Seconds, not milliseconds.
        ("pushkey_ts", |ts| ts.as_u64().is_some_and(|ts| ts > 1_000_000_000 && ts < 100_000_000_000)),
        ("data", |data| data["brand"] == "Aviary" && data.get("url").is_none()),
        ("tweaks", |tweaks| tweaks.as_object().is_some_and(|tweaks: &Map<String, Value>| !tweaks.is_empty())),
    ];
    fields("device", device, known, wrong);
    for required in ["app_id", "pushkey", "data"] {
        if device.get(required).is_none() {
            wrong.push(format!("device.{required} is missing"));
        }
    }
}
