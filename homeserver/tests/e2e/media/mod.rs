//! Files: uploads that are announced, downloads in parts, what is served to whom and for how long.

mod bulk;
mod pages;
mod pictures;
mod remote;

use crate::http::{Answer, Raw, plain};
use crate::site::{Shape, Site};
use crate::standing::administrator;
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

const CREATE: &str = "/_matrix/media/v1/create";
const UPLOAD: &str = "/_matrix/media/v3/upload";
const DOWNLOAD: &str = "/_matrix/client/v1/media/download";
const THUMBNAIL: &str = "/_matrix/client/v1/media/thumbnail";

/// A file as it was served.
pub struct Served {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Served {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// What a browser does.
pub async fn get(who: &Raw, path: &str, headers: &[(&str, &str)]) -> Served {
    let mut request = plain().get(format!("{}{path}", who.base));
    if !who.token.is_empty() {
        request = request.bearer_auth(&who.token);
    }
    for (name, value) in headers {
        request = request.header(HeaderName::try_from(*name).unwrap(), *value);
    }
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Served { status, headers, bytes: response.bytes().await.unwrap().to_vec() }
}

pub async fn put(
    who: &Raw,
    method: Method,
    path: &str,
    kind: &str,
    bytes: impl Into<reqwest::Body>,
) -> Answer {
    let request = plain().request(method, format!("{}{path}", who.base)).bearer_auth(&who.token);
    Answer::of(request.header("content-type", kind).body(bytes).send().await.unwrap()).await
}

/// Uploads; gives `server/id`.
pub async fn upload(who: &Raw, kind: &str, bytes: impl Into<reqwest::Body>) -> String {
    let made = put(who, Method::POST, UPLOAD, kind, bytes).await.fine();
    made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
}

/// Files in a folder and below it.
pub fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

pub async fn until_files(folder: &Path, wanted: usize) {
    for _ in 0..200 {
        if files(folder) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} files in {}, not {wanted}", files(folder), folder.display());
}

async fn announced_uploads(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let bob = Raw::register(&site.url, "bob").await;
    let made = alice.post(CREATE, json!({})).await.fine();
    let expires = made["unused_expires_at"].as_u64().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(expires > now + 3_600_000, "{expires}");
    let uri = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    let download = format!("{DOWNLOAD}/{uri}");
    for path in [
        format!("{download}?timeout_ms=0"),
        format!("{download}/name.txt?timeout_ms=200"),
        format!("{THUMBNAIL}/{uri}?width=32&height=32&timeout_ms=0"),
    ] {
        bob.get(&path).await.refused(504, "M_NOT_YET_UPLOADED");
    }
    bob.get(&format!("{download}?timeout_ms=soon")).await.refused(400, "M_INVALID_PARAM");
    let to = format!("{UPLOAD}/{uri}");
    put(&bob, Method::PUT, &to, "text/plain", "hers").await.refused(403, "M_FORBIDDEN");
    put(&alice, Method::PUT, &format!("{UPLOAD}/localhost/unknown"), "text/plain", "x")
        .await
        .refused(404, "M_NOT_FOUND");
    // Downloads on every node wait, and wake when it has come.
    let mut waiting = Vec::new();
    for node in &site.nodes {
        let (bob, path) = (bob.at(&node.client_url()), format!("{download}?timeout_ms=20000"));
        waiting.push(tokio::spawn(async move { (get(&bob, &path, &[]).await, Instant::now()) }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let uploader = alice.at(&site.nodes[0].client_url());
    put(&uploader, Method::PUT, &to, "text/plain", "the file").await.fine();
    let done = Instant::now();
    for download in waiting {
        let (served, at) = download.await.unwrap();
        assert_eq!((served.status.as_u16(), &served.bytes[..]), (200, &b"the file"[..]));
        assert!(at.saturating_duration_since(done) < Duration::from_millis(2500), "it woke late");
    }
    put(&alice, Method::PUT, &to, "text/plain", "another").await.refused(409, "M_CANNOT_OVERWRITE_MEDIA");
    assert_eq!(get(&alice, &download, &[]).await.bytes, b"the file");
    until_files(&site.folder.path().join("media"), 1).await;
    // Somebody who announces and never uploads is told to wait.
    for _ in 0..100 {
        bob.post(CREATE, json!({})).await.fine();
    }
    bob.post(CREATE, json!({})).await.refused(429, "M_LIMIT_EXCEEDED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_in_parts_and_not_at_all() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let bytes: Vec<u8> = (0..=255).cycle().take(1_300_000).collect();
    let uri = upload(&alice, "application/pdf", bytes.clone()).await;
    let path = format!("{DOWNLOAD}/{uri}");
    let whole = get(&alice, &path, &[]).await;
    assert_eq!((whole.status.as_u16(), whole.bytes == bytes), (200, true));
    assert!(whole.header("cache-control").contains("immutable"), "{:?}", whole.headers);
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert_eq!(whole.header("x-content-type-options"), "nosniff");
    assert_eq!(whole.header("cross-origin-resource-policy"), "cross-origin");
    assert!(whole.header("content-security-policy").starts_with("sandbox;"));
    assert!(whole.header("content-disposition").starts_with("attachment"));
    let tag = whole.header("etag").to_owned();
    assert!(tag.len() > 10 && tag.starts_with('"'), "{tag}");
    for (range, first, last) in
        [("bytes=0-0", 0, 0), ("bytes=1000000-", 1_000_000, 1_299_999), ("bytes=-10", 1_299_990, 1_299_999)]
    {
        let part = get(&alice, &path, &[("range", range), ("if-range", &tag)]).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {first}-{last}/1300000"));
        assert!(part.bytes == bytes[first..=last], "{range}");
    }
    let none = get(&alice, &path, &[("range", "bytes=1300000-")]).await;
    assert_eq!((none.status.as_u16(), none.header("content-range")), (416, "bytes */1300000"));
    let other = get(&alice, &path, &[("range", "bytes=0-1"), ("if-range", "\"other\"")]).await;
    assert_eq!((other.status.as_u16(), other.bytes.len()), (200, bytes.len()));
    let known = get(&alice, &path, &[("if-none-match", &tag)]).await;
    assert_eq!((known.status.as_u16(), known.bytes.len(), known.header("etag")), (304, 0, tag.as_str()));
    let head = plain().head(format!("{}{path}", site.url)).bearer_auth(&alice.token).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "1300000");
}

/// A file is served as its uploader says, and runs nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_safe_is_shown_in_a_browser() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    for (kind, disposition) in [
        ("text/html", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/xhtml+xml", "attachment"),
        ("text/javascript", "attachment"),
        ("image/png", "inline"),
        ("IMAGE/PNG; a=b", "inline"),
        ("text/plain; charset=utf-8", "inline"),
        ("video/mp4", "inline"),
    ] {
        let uri = upload(&alice, kind, "<script>alert(1)</script>").await;
        let served = get(&alice, &format!("{DOWNLOAD}/{uri}"), &[]).await;
        assert!(
            served.header("content-disposition").starts_with(disposition),
            "{kind}: {:?}",
            served.headers
        );
        assert!(served.header("content-security-policy").contains("default-src 'none'"));
    }
    let uri = upload(&alice, "text/plain", "x").await;
    let named = get(&alice, &format!("{DOWNLOAD}/{uri}/a%22b%0d%0aX-Evil%3a%201.txt"), &[]).await;
    assert_eq!(named.status.as_u16(), 200);
    assert!(!named.headers.contains_key("x-evil"));
}

/// What is stored after the freeze needs a token; where there is none everything is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_endpoints_are_frozen() {
    let mut site =
        Site::start_with(Shape::Sqlite, &["media.freeze_unauthenticated=false".to_owned()]).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let nobody = Raw::nobody(&site.url);
    let old = |uri: &str| format!("/_matrix/media/v3/download/{uri}");
    let before = upload(&alice, "text/plain", "before").await;
    assert_eq!(get(&nobody, &old(&before), &[]).await.bytes, b"before");
    site.nodes[0].stop().await;
    site.nodes[0].set("media.freeze_unauthenticated=true".to_owned());
    site.nodes[0].start().await;
    let after = upload(&alice, "text/plain", "after").await;
    assert_eq!(get(&nobody, &old(&before), &[]).await.bytes, b"before");
    nobody.get(&old(&after)).await.refused(404, "M_NOT_FOUND");
    alice.get(&old(&after)).await.refused(404, "M_NOT_FOUND");
    let thumbnail = format!("/_matrix/media/r0/thumbnail/{after}?width=32&height=32");
    nobody.get(&thumbnail).await.refused(404, "M_NOT_FOUND");
    nobody.get(&format!("{DOWNLOAD}/{after}")).await.refused(401, "M_MISSING_TOKEN");
    assert_eq!(get(&alice, &format!("{DOWNLOAD}/{after}"), &[]).await.bytes, b"after");
    for path in ["/_matrix/media/v3/config", "/_matrix/client/v1/media/config"] {
        nobody.get(path).await.refused(401, "M_MISSING_TOKEN");
        assert!(alice.get(path).await.fine()["m.upload.size"].as_u64() > Some(1_000_000));
    }
}

/// A person may store so much and no more, and again when something has gone.
async fn quotas_and_erasure(mut site: Site) {
    for node in &mut site.nodes {
        node.stop().await;
        node.set("media.user_quota_bytes=1000".to_owned());
        node.set("media.user_quota_info=https://files.example/more".to_owned());
        node.start().await;
    }
    let alice = Raw::register(&site.url, "alice").await;
    let media = site.folder.path().join("media");
    upload(&alice, "text/plain", vec![7; 600]).await;
    let full = put(&alice, Method::POST, UPLOAD, "text/plain", vec![7; 401]).await;
    full.refused(403, "M_USER_LIMIT_EXCEEDED");
    assert_eq!(full.body["info_uri"], "https://files.example/more", "{}", full.body);
    // The same without a length that says so.
    let pieces = (0..5).map(|_| Ok::<_, std::io::Error>(vec![7_u8; 100]));
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    put(&alice, Method::POST, UPLOAD, "text/plain", stream).await.refused(403, "M_USER_LIMIT_EXCEEDED");
    let second = upload(&alice, "text/plain", vec![7; 400]).await;
    put(&alice, Method::POST, UPLOAD, "text/plain", vec![7; 1]).await.refused(403, "M_USER_LIMIT_EXCEEDED");
    alice.post("/_matrix/media/v1/create", json!({})).await.refused(403, "M_USER_LIMIT_EXCEEDED");
    until_files(&media, 2).await;
    // Somebody else has room of their own, and keeps it.
    let bob = Raw::register(&site.url, "bob").await;
    let kept = upload(&bob, "text/plain", vec![8; 900]).await;
    let close = "/_matrix/client/v3/account/deactivate";
    let answer = alice.post(close, json!({"erase": true})).await;
    let auth = json!({"type": "m.login.password", "password": "correct horse",
        "identifier": {"type": "m.id.user", "user": "alice"}, "session": answer.body["session"]});
    alice.post(close, json!({"erase": true, "auth": auth})).await.fine();
    until_files(&media, 1).await;
    bob.get(&format!("{DOWNLOAD}/{second}")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(get(&bob, &format!("{DOWNLOAD}/{kept}"), &[]).await.bytes.len(), 900);
}

in_each_shape!(announced_uploads, quotas_and_erasure);

/// Operators put files under quarantine and remove them, by the program and by the paths that tools know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_withhold_and_remove_files() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let node = &site.nodes[0];
    let alice = Raw::register(&site.url, "alice").await;
    let bad = upload(&alice, "text/plain", "bad").await;
    let good = upload(&alice, "text/plain", "good").await;
    let download = |uri: &str| format!("{DOWNLOAD}/{uri}");
    let run = async |arguments: &[&str]| {
        let output = node.run(&[&["media"], arguments].concat()).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
        said
    };
    run(&["quarantine", &format!("mxc://{bad}")]).await;
    alice.get(&download(&bad)).await.refused(404, "M_NOT_FOUND");
    // The same bytes again, and a file of another server before it ever comes.
    let again = upload(&alice, "text/plain", "bad").await;
    alice.get(&download(&again)).await.refused(404, "M_NOT_FOUND");
    run(&["quarantine", "mxc://elsewhere.example/abc"]).await;
    alice.get(&download("elsewhere.example/abc")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(get(&alice, &download(&good), &[]).await.bytes, b"good");
    let listed = run(&["list", &alice.user]).await;
    assert_eq!(listed.matches("quarantined").count(), 2, "{listed}");
    assert!(listed.contains(&good) && listed.contains("10 bytes together"), "{listed}");
    run(&["release", &format!("mxc://{bad}")]).await;
    assert_eq!(get(&alice, &download(&again), &[]).await.bytes, b"bad");
    let output = node.run(&["media", "quarantine", "nonsense"]).await;
    assert_eq!(output.status.code(), Some(1));
    // By the paths of tools: administrators alone.
    let admin = "/_synapse/admin/v1";
    alice.post(&format!("{admin}/media/quarantine/{good}"), json!({})).await.refused(403, "M_FORBIDDEN");
    let root = administrator(&site).await;
    root.post(&format!("{admin}/media/quarantine/{good}"), json!({})).await.fine();
    alice.get(&download(&good)).await.refused(404, "M_NOT_FOUND");
    root.post(&format!("{admin}/media/unquarantine/{good}"), json!({})).await.fine();
    let all = root.get(&format!("{admin}/users/{}/media", alice.user)).await.fine();
    assert_eq!((all["media"].as_array().unwrap().len(), &all["bytes"]), (3, &json!(10)));
    root.send(Method::DELETE, &format!("{admin}/media/{good}"), "").await.fine();
    alice.get(&download(&good)).await.refused(404, "M_NOT_FOUND");
    root.send(Method::DELETE, &format!("{admin}/media/{good}"), "").await.refused(404, "M_NOT_FOUND");
    run(&["remove", &alice.user]).await;
    until_files(&site.folder.path().join("media"), 0).await;
}
