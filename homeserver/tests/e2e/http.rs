//! Requests that no library of ours would make, and what came back.

use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::{Duration, Instant};

/// What is to happen soon has happened by then; machines that run tests have other work too.
const SOON: Duration = Duration::from_secs(20);

/// The path of something in a room.
pub fn at(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{room}/{rest}")
}

/// Longer than the longest poll of a test.
const LIMIT: Duration = Duration::from_mins(1);

/// A client for plain HTTP on the loopback.
pub fn plain() -> reqwest::Client {
    waxwing_client::install_tls_provider();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(LIMIT).build().unwrap()
}

/// The same for one in the middle: where a server sends a browser, the browser goes.
pub fn passing_on() -> reqwest::Client {
    waxwing_client::install_tls_provider();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(LIMIT);
    builder.redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// A client that takes any certificate.
pub fn careless() -> reqwest::Client {
    waxwing_client::install_tls_provider();
    let builder = reqwest::Client::builder().no_proxy().timeout(LIMIT);
    builder.tls_danger_accept_invalid_certs(true).build().unwrap()
}

/// A status and a body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Answer {
    pub async fn of(response: reqwest::Response) -> Answer {
        let status = response.status();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status, body }
    }

    pub fn code(&self) -> &str {
        self.body["errcode"].as_str().unwrap_or_default()
    }

    /// Asserts an error of the specification.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        assert_eq!((self.status.as_u16(), self.code()), (status, code), "{}", self.body);
        assert!(self.body["error"].as_str().is_some_and(|text| !text.is_empty()), "{}", self.body);
    }

    /// The body of a success.
    #[track_caller]
    pub fn fine(self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.body);
        self.body
    }
}

/// One account, by its token.
#[derive(Clone)]
pub struct Raw {
    pub base: String,
    pub token: String,
    pub user: String,
    client: reqwest::Client,
}

impl Raw {
    /// Registers `name` at `base`.
    pub async fn register(base: &str, name: &str) -> Raw {
        let mut raw = Raw::nobody(base);
        let body = serde_json::json!({
            "username": name, "password": "correct horse", "auth": {"type": "m.login.dummy"},
        });
        let made = raw.send(Method::POST, "/_matrix/client/v3/register", body.to_string()).await.fine();
        made["access_token"].as_str().unwrap().clone_into(&mut raw.token);
        made["user_id"].as_str().unwrap().clone_into(&mut raw.user);
        raw
    }

    /// Without a token.
    pub fn nobody(base: &str) -> Raw {
        Raw { base: base.to_owned(), token: String::new(), user: String::new(), client: plain() }
    }

    /// The same connection with another token.
    pub fn with_token(&self, token: &str) -> Raw {
        Raw { token: token.to_owned(), ..self.clone() }
    }

    /// The same account at another node.
    pub fn at(&self, base: &str) -> Raw {
        Raw { base: base.to_owned(), ..self.clone() }
    }

    /// Asks until the answer is as it should be.
    pub async fn until(&self, path: &str, good: impl Fn(&Answer) -> bool) -> Value {
        let end = Instant::now() + SOON;
        loop {
            let answer = self.get(path).await;
            if good(&answer) {
                return answer.body;
            }
            assert!(Instant::now() < end, "{path}: {} {}", answer.status, answer.body);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn send(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).body(body);
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        Answer::of(request.send().await.unwrap()).await
    }

    /// With headers of the caller's making, none where the client
    /// library itself refuses to send them.
    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &[u8])],
        body: impl Into<Vec<u8>>,
    ) -> Option<(Answer, reqwest::header::HeaderMap)> {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method.clone(), url).body(body.into());
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        for (name, value) in headers {
            request = request.header(*name, reqwest::header::HeaderValue::from_bytes(value).ok()?);
        }
        match self.client.execute(request.build().ok()?).await {
            Ok(response) => {
                let headers = response.headers().clone();
                Some((Answer::of(response).await, headers))
            }
            Err(error) => panic!("{method} {path}: {error:?}"),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, body.to_string()).await
    }

    /// An encrypted room.
    pub async fn create_room(&self, body: Value) -> String {
        let made = self.post("/_matrix/client/v3/createRoom", body).await.fine();
        made["room_id"].as_str().unwrap().to_owned()
    }

    /// Sends what looks like a sealed letter.
    pub async fn send_sealed(&self, room: &str, transaction: &str) -> Answer {
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.encrypted/{transaction}");
        self.put(&path, sealed("QUJDREVGRw")).await
    }
}

/// The content of a sealed letter that nobody can open.
pub fn sealed(ciphertext: &str) -> Value {
    serde_json::json!({
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": ciphertext,
        "device_id": "DEVICE",
        "sender_key": "hZ0TMmvWPJbKXlxOoF7yk5ZfWdZbBzmyLyS3PFGUdkk",
        "session_id": "X3lUlvLELLYxeTx4yOVu6UDpasGEVO0Jbu+QFnm0cKQ",
    })
}
