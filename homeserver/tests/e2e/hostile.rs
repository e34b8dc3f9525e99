//! Requests that nobody means well with, at every operation of the table: always an error of the specification, never
//! a 5xx, a panic (the node fails the test when it ends) or a wait.

use crate::endpoints::{self, Auth, Kind, Operation, plausible};
use crate::http::{Answer, Raw};
use crate::site::{PASSWORD, Shape, Site};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// No request here asks for a long poll; a machine that runs tests is slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// Operations that are walked side by side.
const TOGETHER: usize = 6;
/// Made-up bodies for each operation.
const MADE_UP: usize = 12;

/// Names that endpoints read: what is made up uses them, or it would only test that unknown fields are skipped.
const FIELDS: &[&str] = &[
    "type",
    "user_id",
    "device_id",
    "room_id",
    "event_id",
    "content",
    "state_key",
    "body",
    "msgtype",
    "m.relates_to",
    "rel_type",
    "auth",
    "session",
    "identifier",
    "password",
    "new_password",
    "username",
    "token",
    "refresh_token",
    "kind",
    "initial_device_display_name",
    "client_secret",
    "email",
    "send_attempt",
    "sid",
    "medium",
    "address",
    "country",
    "phone_number",
    "threepid_creds",
    "id_server",
    "id_access_token",
    "messages",
    "device_keys",
    "one_time_keys",
    "fallback_keys",
    "keys",
    "signatures",
    "algorithms",
    "timeout",
    "master_key",
    "self_signing_key",
    "user_signing_key",
    "usage",
    "rooms",
    "sessions",
    "session_data",
    "first_message_index",
    "forwarded_count",
    "is_verified",
    "auth_data",
    "algorithm",
    "version",
    "search_categories",
    "room_events",
    "search_term",
    "keys",
    "filter",
    "limit",
    "order_by",
    "groupings",
    "event_context",
    "include_state",
    "room",
    "timeline",
    "state",
    "ephemeral",
    "account_data",
    "types",
    "not_types",
    "senders",
    "lists",
    "ranges",
    "room_subscriptions",
    "required_state",
    "extensions",
    "to_device",
    "e2ee",
    "conn_id",
    "preset",
    "invite",
    "invite_3pid",
    "initial_state",
    "creation_content",
    "power_level_content_override",
    "name",
    "topic",
    "room_alias_name",
    "visibility",
    "room_version",
    "new_version",
    "reason",
    "third_party_signed",
    "typing",
    "presence",
    "status_msg",
    "displayname",
    "avatar_url",
    "order",
    "tags",
    "pushkey",
    "app_id",
    "data",
    "url",
    "lang",
    "pattern",
    "conditions",
    "actions",
    "enabled",
    "m.fully_read",
    "m.read",
    "thread_id",
    "score",
    "devices",
    "locked",
    "suspended",
    "erase",
    "logout_devices",
    "since",
    "from",
    "server",
    "include_all_networks",
    "third_party_instance_id",
    "generic_search_term",
    "room_types",
    "room_alias",
    "aliases",
    "alias",
    "canonical",
    "via",
    "allow",
    "join_rule",
    "users",
    "users_default",
    "events",
    "redacts",
    "sequence_token",
    "txn_id",
    "automatic",
    "action",
    "next_link",
    "user",
    "mac",
    "nonce",
    "org.matrix.msc4140.delay",
    "next_batch",
];

/// Queries that endpoints read, with what they cannot be.
const QUERIES: &[&str] = &[
    "limit=-1&from=%00&to=%ff&dir=sideways&timeout=-1&since=nonsense&filter=%7B",
    "limit=99999999999999999999&dir=b&from=s99999999999999999999&to=t&since=s9_9_9_9&timeout=abc&at=x",
    "filter=%7B%22room%22%3A7%7D&format=nothing&membership=&not_membership=x&user_id=nonsense&version=-5",
    "limit=0&dir=f&from=&since=&to=&at=&order_by=&recurse=maybe&width=-1&height=99999999999&method=x",
    "server=%F0%9F&search=%2500&only=x&kind=nonsense&ts=-99999999999999999999&via=!&server_name=%20&token=%00",
    "filter=%5B%5B%5B%5B%5B%5B&ts=1e999&dir=b&session=%27%22%3Cscript%3E&redirectUrl=javascript%3Aalert(1)",
];

/// What stands for every variable of a path. A slash or a dot must not climb, and nothing has a length that breaks.
fn hostile_segments() -> Vec<String> {
    let fixed = [
        "%00",
        "..%2F..%2Fetc",
        "%2E%2E",
        "%F0%9F",
        "!",
        "@",
        "%23",
        "$",
        "*",
        "%ff%fe",
        "%25",
        "a%0Ab",
        "'--",
        "@:",
        "!:",
        "%23:",
        "@a:localhost:99999",
        "-1",
        "18446744073709551616",
        "%F0%9F%A6%86",
        "%7B%7D",
        ":",
        "@a",
    ];
    let mut all: Vec<String> = fixed.iter().map(|text| (*text).to_owned()).collect();
    all.extend([
        "a".repeat(3000),
        format!("@{}:localhost", "b".repeat(300)),
        format!("!{}", "c".repeat(300)),
    ]);
    all
}

/// Bodies that no endpoint wants.
fn hostile_bodies() -> Vec<Vec<u8>> {
    let fixed: [&[u8]; 16] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\"text\"",
        b"-0",
        b"1e999",
        b"{\"a\":NaN}",
        b"{\"a\":\"\\ud800\"}",
        b"{\"a\":\"\xff\xfe\"}",
        b"{\"a\":1,\"a\":[]}",
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b"\0",
        b"{\"__proto__\":{\"admin\":true},\"auth\":{\"type\":null,\"session\":7}}",
        b"{\"auth\":{\"type\":\"m.login.password\",\"identifier\":[],\"password\":{}}}",
    ];
    let mut all: Vec<Vec<u8>> = fixed.iter().map(|body| body.to_vec()).collect();
    all.push("[".repeat(60_000).into_bytes());
    all.push(format!("{}1{}", "{\"a\":".repeat(3_000), "}".repeat(3_000)).into_bytes());
    all.push(format!("{{\"content\":{}1{}}}", "[".repeat(100), "]".repeat(100)).into_bytes());
    all.push(format!("{{\"{}\":1}}", "k".repeat(60_000)).into_bytes());
    // Every name at once, of one wrong type each time.
    for value in [json!([]), json!({}), json!(-1), json!(1.5), json!(null), json!("\u{0}"), json!([[{}]])] {
        let object: Map<String, Value> =
            FIELDS.iter().map(|field| ((*field).to_owned(), value.clone())).collect();
        all.push(Value::Object(object).to_string().into_bytes());
    }
    all
}

/// Any JSON, with the names that endpoints read.
fn any_json() -> impl Strategy<Value = Value> {
    let texts = prop_oneof![
        Just(String::new()),
        Just("@alice:localhost".to_owned()),
        Just("!nothing:localhost".to_owned()),
        Just("$nothing".to_owned()),
        Just("m.room.encrypted".to_owned()),
        Just("m.login.password".to_owned()),
        "\\PC{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let key = prop_oneof![
            4 => prop::sample::select(FIELDS).prop_map(str::to_owned),
            1 => "[@!$#]?[a-z.]{0,8}(:localhost)?",
        ];
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => prop::collection::vec((key, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// The same bodies in each run: a failure can be repeated.
fn made_up(operation: &Operation) -> Vec<Value> {
    let mut seed = [0_u8; 32];
    for (at, byte) in operation.shown().bytes().enumerate() {
        seed[at % 32] = seed[at % 32].wrapping_mul(31).wrapping_add(byte);
    }
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..MADE_UP).map(|_| any_json().new_tree(&mut runner).unwrap().current()).collect()
}

/// The account that attacks; it logs in again when an operation ended its session.
struct Attacker {
    raw: Raw,
    room: String,
    wrong: Vec<String>,
}

impl Attacker {
    async fn new(site: &Site, name: &str) -> Attacker {
        let body = json!({"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}});
        let made = Raw::nobody(&site.url).post("/_matrix/client/v3/register", body).await.fine();
        let mut raw = Raw::nobody(&site.url).with_token(made["access_token"].as_str().unwrap());
        raw.user = made["user_id"].as_str().unwrap().to_owned();
        let room = raw.create_room(json!({})).await;
        Attacker { raw, room, wrong: Vec::new() }
    }

    /// Operations that end sessions succeed with some of these bodies.
    async fn be_logged_in(&mut self) {
        if self.raw.get("/_matrix/client/v3/account/whoami").await.status.is_success() {
            return;
        }
        let body = json!({
            "type": "m.login.password", "password": PASSWORD,
            "identifier": {"type": "m.id.user", "user": self.raw.user},
        });
        let session = self.raw.with_token("").post("/_matrix/client/v3/login", body).await.fine();
        self.raw = self.raw.with_token(session["access_token"].as_str().unwrap());
    }

    async fn attack(&mut self, operation: &Operation) {
        self.be_logged_in().await;
        let path = operation.filled(|name| plausible(name, &self.raw.user, &self.room));
        if operation.kind == Kind::Alias {
            // The same handler as under the newer path; what differs is how the path is read.
            return self.alias(operation, &path).await;
        }
        if matches!(operation.method, Method::POST | Method::PUT) {
            // Each twice: what is replayed is answered as well.
            for body in hostile_bodies() {
                self.send(operation, &path, &[], body.clone()).await;
            }
            for body in made_up(operation) {
                let body = body.to_string().into_bytes();
                self.send(operation, &path, &[], body.clone()).await;
                self.send(operation, &path, &[], body).await;
            }
        }
        for query in QUERIES {
            self.send(operation, &format!("{path}?{query}"), &[], b"{}".to_vec()).await;
        }
        if operation.path.contains('{') {
            for segment in hostile_segments() {
                let path = operation.filled(|_| segment.clone());
                self.send(operation, &path, &[], b"{}".to_vec()).await;
            }
        }
        self.headers(operation, &path).await;
    }

    async fn alias(&mut self, operation: &Operation, path: &str) {
        for body in ["{", "[]", "{\"a\":1,\"a\":[]}"] {
            self.send(operation, path, &[], body.as_bytes().to_vec()).await;
        }
        self.send(operation, &format!("{path}?{}", QUERIES[0]), &[], b"{}".to_vec()).await;
        if operation.path.contains('{') {
            for segment in hostile_segments().into_iter().step_by(4) {
                let path = operation.filled(|_| segment.clone());
                self.send(operation, &path, &[], b"{}".to_vec()).await;
            }
        }
    }

    async fn headers(&mut self, operation: &Operation, path: &str) {
        let long = "t".repeat(20_000);
        let odd: [&[(&str, &[u8])]; 6] = [
            &[("content-type", b"multipart/form-data; boundary=")],
            &[("content-type", b"\xff\xfe"), ("content-encoding", b"gzip"), ("user-agent", b"\xff")],
            &[("x-forwarded-for", b"nonsense, ::ffff:1.2.3.4.5"), ("range", b"bytes=9-1,-,x")],
            &[("if-match", b"\xff"), ("if-none-match", b"*"), ("accept-language", b"\xff;q=99")],
            &[("origin", b"null"), ("host", b"evil.example:99999")],
            &[("accept-encoding", b"gzip;q=9,\xff"), ("expect", b"nonsense")],
        ];
        for headers in odd {
            self.send(operation, path, headers, b"{}".to_vec()).await;
        }
        let nobody = self.raw.with_token("");
        let tokens: [&[u8]; 6] = [
            b"Bearer",
            b"Bearer  ",
            b"Basic YTpi",
            b"Bearer \xff\xfe",
            long.as_bytes(),
            b"X-Matrix origin=a,key=b",
        ];
        for token in tokens {
            let headers: &[(&str, &[u8])] = &[("authorization", token)];
            let began = Instant::now();
            let method = operation.method.clone();
            if let Some((answer, _)) = nobody.send_with(method, path, headers, *b"{}").await {
                self.judge(operation, path, &answer, began);
                if operation.auth == Auth::User && answer.status.is_success() {
                    self.wrong.push(format!("{}: served to nobody", operation.shown()));
                }
            }
        }
    }

    async fn send(&mut self, operation: &Operation, path: &str, headers: &[(&str, &[u8])], body: Vec<u8>) {
        let began = Instant::now();
        let shown: String = String::from_utf8_lossy(&body).chars().take(200).collect();
        let sent = self.raw.send_with(operation.method.clone(), path, headers, body);
        let Ok(answer) = tokio::time::timeout(PATIENCE, sent).await else {
            self.wrong.push(format!("{} {path} {shown}: no answer", operation.shown()));
            return;
        };
        if let Some((answer, _)) = answer {
            self.judge(operation, &format!("{path} {shown}"), &answer, began);
        }
    }

    fn judge(&mut self, operation: &Operation, what: &str, answer: &Answer, began: Instant) {
        let what: String = what.chars().take(300).collect();
        let status = answer.status.as_u16();
        let said: String = answer.body.to_string().chars().take(200).collect();
        let standard = answer.code().starts_with("M_") || answer.code().starts_with("ORG.");
        // User-interactive authentication has flows in place of an error code.
        let asks = status == 401 && answer.body.get("flows").is_some();
        let fine = match status {
            200..=399 => true,
            // The page that a browser shows says it in words.
            400..=499 => {
                standard && answer.body["error"].is_string() || asks || operation.kind == Kind::Prose
            }
            _ => false,
        };
        if !fine {
            self.wrong.push(format!("{} [{what}]: {status} {said}", operation.shown()));
        }
        if began.elapsed() > PATIENCE {
            self.wrong.push(format!("{} [{what}]: took {:?}", operation.shown(), began.elapsed()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_breaks_whatever_is_sent() {
    let site = Site::start_with(Shape::Sqlite, &["federation.enabled=false".to_owned()]).await.unwrap();
    let operations = endpoints::all();
    let mut attacks = Vec::new();
    for lane in 0..TOGETHER {
        let mut attacker = Attacker::new(&site, &format!("mallory{lane}")).await;
        let mine: Vec<Operation> = operations.iter().skip(lane).step_by(TOGETHER).cloned().collect();
        attacks.push(tokio::spawn(async move {
            for operation in &mine {
                attacker.attack(operation).await;
            }
            attacker.wrong
        }));
    }
    let mut wrong = Vec::new();
    for attack in attacks {
        wrong.extend(attack.await.unwrap());
    }
    assert!(wrong.is_empty(), "{} answers are wrong:\n{}", wrong.len(), wrong.join("\n"));
    // It still works for people.
    let alice = Raw::register(&site.url, "alice").await;
    let room = alice.create_room(json!({})).await;
    alice.send_sealed(&room, "1").await.fine();
}
