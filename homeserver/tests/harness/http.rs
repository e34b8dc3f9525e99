//! Requests of people, as plain as a client makes them.

use reqwest::Method;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// An answer, or a wait for one, that takes longer is a failure. A poll of eight seconds may be begun anew on each of three
/// nodes, where one after the other goes.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Between two tries of the same request.
const PAUSE: Duration = Duration::from_millis(200);

/// A client for plain HTTP on the loopback.
pub fn client() -> reqwest::Client {
    // It fails only where a provider is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    builder.redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// What happened to requests.
#[derive(Default)]
pub struct Tally {
    /// Answered as they should be.
    pub served: AtomicU64,
    /// Refused for now, broken off or not answered: to be sent again.
    pub failed: AtomicU64,
    /// Each of them, with what it was answered.
    pub why: Mutex<Vec<String>>,
    /// The most tries that one request took.
    pub most_tries: AtomicU64,
}

/// One account with one device.
#[derive(Clone)]
pub struct Account {
    pub base: String,
    pub token: String,
    pub user: String,
    pub tally: Arc<Tally>,
    client: reqwest::Client,
}

impl Account {
    /// Registers `name` at `base`.
    pub async fn register(base: &str, name: &str, client: &reqwest::Client, tally: &Arc<Tally>) -> Account {
        let mut account = Account {
            base: base.to_owned(),
            token: String::new(),
            user: String::new(),
            tally: Arc::clone(tally),
            client: client.clone(),
        };
        let body = json!({
            "username": name, "password": "correct horse", "device_id": "DEVICE",
            "auth": {"type": "m.login.dummy"},
        });
        let made = account.sure(Method::POST, "/_matrix/client/v3/register", &body).await;
        made["access_token"].as_str().unwrap().clone_into(&mut account.token);
        made["user_id"].as_str().unwrap().clone_into(&mut account.user);
        account
    }

    /// Sends a request once: the status and the body, or what went wrong on the way.
    pub async fn once(&self, method: Method, path: &str, body: &Value) -> Result<(u16, Value), String> {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.base)).timeout(LIMIT);
        if method != Method::GET {
            request = request.body(body.to_string());
        }
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        let response = request.send().await.map_err(|error| root(&error))?;
        let status = response.status().as_u16();
        let text = response.text().await.map_err(|error| root(&error))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Sends a request until it is served. `None` when it was not by `deadline`.
    ///
    /// # Panics
    /// Where it is refused for good.
    pub async fn until(&self, method: Method, path: &str, body: &Value, deadline: Instant) -> Option<Value> {
        for tries in 1.. {
            let outcome = self.once(method.clone(), path, body).await;
            match outcome {
                Ok((200..=299, body)) => {
                    self.tally.served.fetch_add(1, Ordering::Relaxed);
                    self.tally.most_tries.fetch_max(tries, Ordering::Relaxed);
                    return Some(body);
                }
                failed @ (Ok((429 | 500..=599, _)) | Err(_)) => {
                    self.tally.failed.fetch_add(1, Ordering::Relaxed);
                    self.tally.why.lock().unwrap().push(format!("{method} {failed:?} {path}"));
                }
                Ok((status, body)) => panic!("{method} {path}: {status} {body}"),
            }
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    /// The same for one that must be served within the time that a restart of everything takes.
    pub async fn sure(&self, method: Method, path: &str, body: &Value) -> Value {
        let deadline = Instant::now() + Duration::from_mins(1);
        let served = self.until(method.clone(), path, body, deadline).await;
        served.unwrap_or_else(|| panic!("{method} {path} was not served for a minute"))
    }
}

/// What an error comes from.
pub fn root(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root)
}

/// The content of a sealed letter that nobody can open, with a mark.
pub fn sealed(mark: &str) -> Value {
    json!({
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": format!("{mark}{}", "A".repeat(300)),
        "device_id": "DEVICE",
        "sender_key": "hZ0TMmvWPJbKXlxOoF7yk5ZfWdZbBzmyLyS3PFGUdkk",
        "session_id": "X3lUlvLELLYxeTx4yOVu6UDpasGEVO0Jbu+QFnm0cKQ",
    })
}

/// The mark of a sealed letter.
pub fn mark_of(event: &Value) -> Option<&str> {
    event["content"]["ciphertext"].as_str().map(|text| text.trim_end_matches('A'))
}
