//! TURN credentials, and the place where devices meet.

use crate::http::Raw;
use crate::site::{Shape, Site};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::json;
use sha1::Sha1;

const TURN: &str = "/_matrix/client/v3/voip/turnServer";
const MEET: &str = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turn_credentials_end_by_themselves() {
    let settings = [
        r#"turn.uris=["turn:turn.example:3478?transport=udp"]"#.to_owned(),
        "turn.shared_secret=wormwood".to_owned(),
        "turn.lifetime_seconds=600".to_owned(),
        "turn.guests=false".to_owned(),
    ];
    let site = Site::start_with(Shape::Sqlite, &settings).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let given = alice.get(TURN).await.fine();
    assert_eq!(
        (&given["ttl"], &given["uris"][0]),
        (&json!(600), &json!("turn:turn.example:3478?transport=udp"))
    );
    let username = given["username"].as_str().unwrap();
    let (until, user) = username.split_once(':').unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let until: u64 = until.parse().unwrap();
    assert!(user == alice.user && (now + 500..now + 700).contains(&until));
    let mut mac = Hmac::<Sha1>::new_from_slice(b"wormwood").unwrap();
    mac.update(username.as_bytes());
    let password: Vec<u8> = mac.finalize().into_bytes().to_vec();
    assert_eq!(decoded(given["password"].as_str().unwrap()), password);
    let guest = Raw::nobody(&site.url).post("/_matrix/client/v3/register?kind=guest", json!({})).await.fine();
    let guest = alice.with_token(guest["access_token"].as_str().unwrap());
    assert_eq!(guest.get(TURN).await.fine(), json!({}));
    alice.with_token("").get(TURN).await.refused(401, "M_MISSING_TOKEN");
}

fn decoded(text: &str) -> Vec<u8> {
    let value = |letter: u8| {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        letters.iter().position(|other| *other == letter).unwrap() as u32
    };
    let text = text.trim_end_matches('=').as_bytes();
    let bits: Vec<u8> =
        text.iter().flat_map(|letter| (0..6).rev().map(move |at| (value(*letter) >> at & 1) as u8)).collect();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | bit)).collect()
}

async fn send(
    raw: &Raw,
    method: Method,
    path: &str,
    header: Option<(&str, &str)>,
    body: &str,
) -> (u16, HeaderMap, String) {
    let mut headers: Vec<(&str, &[u8])> = vec![("content-type", b"text/plain")];
    if let Some((name, value)) = header {
        headers.push((name, value.as_bytes()));
    }
    let (answer, headers) = raw.send_with(method, path, &headers, body).await.unwrap();
    let text = answer.body.as_str().map_or_else(|| answer.body.to_string(), str::to_owned);
    (answer.status.as_u16(), headers, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_meet_and_neither_writes_over_the_other() {
    let site = Site::start_with(Shape::Sqlite, &["public_base_url=http://aviary.example/".to_owned()])
        .await
        .unwrap();
    let raw = Raw::nobody(&site.url);
    let (status, headers, body) = send(&raw, Method::POST, MEET, None, "hello").await;
    assert_eq!(status, 201);
    let made: serde_json::Value = serde_json::from_str(&body).unwrap();
    let url = made["url"].as_str().unwrap();
    let path = url.strip_prefix("http://aviary.example").unwrap();
    let first = headers["etag"].to_str().unwrap().to_owned();
    assert!(headers.contains_key("expires") && headers.contains_key("last-modified"));
    assert_eq!(headers["access-control-expose-headers"], "ETag");
    let (status, headers, body) = send(&raw, Method::GET, path, None, "").await;
    assert_eq!((status, body.as_str(), &headers["etag"]), (200, "hello", &first.parse().unwrap()));
    assert_eq!(send(&raw, Method::GET, path, Some(("if-none-match", &first)), "").await.0, 304);
    let (status, headers, _) =
        send(&raw, Method::PUT, path, Some(("if-match", &first)), "from the other").await;
    assert_eq!(status, 202);
    let second = headers["etag"].to_str().unwrap().to_owned();
    assert_ne!(first, second);
    let (status, headers, body) = send(&raw, Method::PUT, path, Some(("if-match", &first)), "too late").await;
    assert_eq!((status, headers["etag"].to_str().unwrap()), (412, &*second));
    assert!(body.contains("M_CONCURRENT_WRITE"), "{body}");
    assert_eq!(send(&raw, Method::PUT, path, None, "x").await.0, 400);
    let large = "x".repeat(5000);
    assert_eq!(send(&raw, Method::PUT, path, Some(("if-match", &second)), &large).await.0, 413);
    assert_eq!(send(&raw, Method::POST, MEET, None, &large).await.0, 413);
    assert_eq!(send(&raw, Method::GET, path, None, "").await.2, "from the other");
    assert_eq!(send(&raw, Method::DELETE, path, None, "").await.0, 204);
    assert_eq!(send(&raw, Method::GET, path, None, "").await.0, 404);

    let meet = "/_matrix/client/unstable/io.element.msc4388/rendezvous";
    assert_eq!(raw.get(meet).await.fine(), json!({"create_available": true}));
    let made = raw.post(meet, json!({"data": "hello"})).await.fine();
    assert!(made["expires_in_ms"].as_u64().unwrap() > 60_000);
    let path = format!("{meet}/{}", made["id"].as_str().unwrap());
    let put = |token: &serde_json::Value| json!({"data": "other", "sequence_token": token});
    let written = raw.put(&path, put(&made["sequence_token"])).await.fine();
    raw.put(&path, put(&made["sequence_token"])).await.refused(409, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE");
    let read = raw.get(&path).await.fine();
    assert_eq!((&read["data"], &read["sequence_token"]), (&json!("other"), &written["sequence_token"]));
    raw.send(Method::DELETE, &path, "").await.fine();
    raw.get(&path).await.refused(404, "M_NOT_FOUND");
}
