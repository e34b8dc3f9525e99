//! Files of another organisation's server, which is good, old, slow, boastful or broken.

use super::pictures::picture;
use super::{DOWNLOAD, Served, THUMBNAIL, files, get, until_files, upload};
use crate::federation::{Federation, NAMES, write_certificates};
use crate::http::Raw;
use crate::node::{Node, free_port};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get as on_get;
use axum_server::tls_rustls::RustlsConfig;
use image::ImageFormat;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// What the server under test takes at most.
const LIMIT: usize = 200_000;

type Asked = Arc<Mutex<BTreeMap<String, usize>>>;

/// A server whose other side is a test.
struct Hostile {
    alpha: Node,
    asked: Asked,
    alice: Raw,
    folder: TempDir,
}

impl Hostile {
    async fn start() -> Hostile {
        let folder = tempfile::tempdir().unwrap();
        write_certificates(folder.path());
        let at = |file: String| folder.path().join(file);
        let asked = Asked::default();
        let port = free_port();
        let tls = RustlsConfig::from_pem_file(
            at(format!("{}.certificate.pem", NAMES[1])),
            at(format!("{}.key.pem", NAMES[1])),
        );
        waxwing_client::install_tls_provider();
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let server = axum_server::bind_rustls(address, tls.await.unwrap());
        let routes = Router::new()
            .route("/_matrix/federation/v1/media/{kind}/{id}", on_get(media))
            .route("/_matrix/media/v3/download/{server}/{id}", on_get(old))
            .with_state(Arc::clone(&asked));
        tokio::spawn(async move { server.serve(routes.into_make_service()).await.unwrap() });
        let settings = [
            format!("server_name={}", NAMES[0]),
            format!("tls.extra_roots=[\"{}\"]", at("authority.pem".to_owned()).display()),
            format!("federation.hosts={{ \"{}\" = \"127.0.0.1:{port}\" }}", NAMES[1]),
            format!("media.max_upload_bytes={LIMIT}"),
        ];
        let mut alpha = Node::new(&folder.path().join("alpha"), &settings);
        alpha.start().await;
        let alice = Raw::register(&alpha.client_url(), "alice").await;
        Hostile { alpha, asked, alice, folder }
    }

    async fn download(&self, id: &str) -> Served {
        get(&self.alice, &format!("{DOWNLOAD}/{}/{id}", NAMES[1]), &[]).await
    }

    fn asked(&self, id: &str) -> usize {
        self.asked.lock().unwrap().get(id).copied().unwrap_or_default()
    }

    fn files(&self) -> std::path::PathBuf {
        self.folder.path().join("alpha/data/media")
    }
}

fn multipart(head: &str, body: Body) -> Response {
    let head = format!("--b\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--b\r\n{head}\r\n\r\n");
    let pieces = futures_util::stream::iter([Ok::<_, axum::Error>(Bytes::from(head))]);
    let tail = futures_util::stream::iter([Ok(Bytes::from("\r\n--b--\r\n"))]);
    use futures_util::StreamExt;
    let body = Body::from_stream(pieces.chain(body.into_data_stream()).chain(tail));
    ([(header::CONTENT_TYPE, "multipart/mixed; boundary=b")], body).into_response()
}

fn endless() -> Body {
    Body::from_stream(futures_util::stream::repeat_with(|| {
        Ok::<_, axum::Error>(Bytes::from(vec![7; 10_000]))
    }))
}

async fn media(State(asked): State<Asked>, Path((kind, id)): Path<(String, String)>) -> Response {
    *asked.lock().unwrap().entry(id.clone()).or_default() += 1;
    match (kind.as_str(), id.as_str()) {
        (_, "good") => {
            // Long enough for others to ask meanwhile.
            tokio::time::sleep(Duration::from_millis(500)).await;
            multipart(
                "Content-Type: text/plain\r\nContent-Disposition: inline; filename=a.txt",
                "good".into(),
            )
        }
        ("thumbnail", "oversized") => {
            multipart("Content-Type: image/png", picture(ImageFormat::Png, 80, 60).into())
        }
        (_, "oversized") => multipart("Content-Type: image/png", endless()),
        (_, "stalled") => {
            use futures_util::StreamExt;
            let first = futures_util::stream::iter([Ok::<_, axum::Error>(Bytes::from("a few bytes"))]);
            multipart(
                "Content-Type: text/plain",
                Body::from_stream(first.chain(futures_util::stream::pending())),
            )
        }
        (_, "lying") => {
            let head =
                [(header::CONTENT_TYPE, "multipart/mixed; boundary=b"), (header::CONTENT_LENGTH, "5000")];
            let part = "--b\r\n\r\n{}\r\n--b\r\nContent-Type: text/plain\r\n\r\nshort";
            let body = futures_util::stream::iter([Ok::<_, axum::Error>(Bytes::from(part))]);
            (head, Body::from_stream(body)).into_response()
        }
        (_, "boasting") => {
            let head = [(header::CONTENT_TYPE, "multipart/mixed; boundary=b")];
            (head, "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nno header at all")
                .into_response()
        }
        (_, "downgraded") => multipart("Location: http://127.0.0.1:1/file", Body::empty()),
        (_, "private") => multipart("Location: https://169.254.169.254/file", Body::empty()),
        (_, "plain") => "no parts".into_response(),
        (_, "waiting") => {
            let body = r#"{"errcode":"M_NOT_YET_UPLOADED","error":"wait"}"#;
            (StatusCode::GATEWAY_TIMEOUT, body).into_response()
        }
        (_, "old") => (StatusCode::BAD_REQUEST, "what is that?").into_response(),
        _ => (StatusCode::NOT_FOUND, r#"{"errcode":"M_NOT_FOUND","error":"no"}"#).into_response(),
    }
}

async fn old(Path((server, id)): Path<(String, String)>) -> Response {
    assert_eq!((server.as_str(), id.as_str()), (NAMES[1], "old"));
    ([(header::CONTENT_TYPE, "text/plain")], "from before").into_response()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_mean_no_good() {
    let hostile = Arc::new(Hostile::start().await);
    // One of them hangs, and holds up nobody.
    let waiting = Arc::clone(&hostile);
    let stalled = tokio::spawn(async move { waiting.download("stalled").await });
    for (id, status, code) in [
        ("oversized", 502, "M_TOO_LARGE"),
        ("lying", 502, "M_UNKNOWN"),
        ("boasting", 502, "M_UNKNOWN"),
        ("downgraded", 502, "M_UNKNOWN"),
        ("private", 502, "M_UNKNOWN"),
        ("plain", 502, "M_UNKNOWN"),
        ("missing", 404, "M_NOT_FOUND"),
    ] {
        for _ in 0..3 {
            let served = hostile.download(id).await;
            let body: serde_json::Value = serde_json::from_slice(&served.bytes).unwrap();
            assert_eq!(
                (served.status.as_u16(), body["errcode"].as_str()),
                (status, Some(code)),
                "{id} {body}"
            );
            assert!(!body.to_string().contains("127.0.0.1"), "{body}");
        }
        // What failed a moment ago is not tried again.
        assert_eq!(hostile.asked(id), 1, "{id}");
    }
    for tries in 1..=2 {
        let served = hostile.download("waiting").await;
        assert_eq!((served.status.as_u16(), hostile.asked("waiting")), (504, tries));
    }
    // Many who want one file are one request.
    let mut many = Vec::new();
    for _ in 0..20 {
        let hostile = Arc::clone(&hostile);
        many.push(tokio::spawn(async move { hostile.download("good").await }));
    }
    for served in many {
        let served = served.await.unwrap();
        assert_eq!((served.status.as_u16(), &served.bytes[..]), (200, &b"good"[..]));
        assert!(served.header("content-disposition").contains("a.txt"), "{:?}", served.headers);
    }
    assert_eq!(hostile.asked("good"), 1);
    assert_eq!(hostile.download("old").await.bytes, b"from before");
    // Too large a picture is seen by its own server's thumbnail.
    let thumbnail = format!("{THUMBNAIL}/{}/oversized?width=96&height=96", NAMES[1]);
    for _ in 0..2 {
        let served = get(&hostile.alice, &thumbnail, &[]).await;
        assert_eq!((served.status.as_u16(), served.header("content-type")), (200, "image/png"));
    }
    assert_eq!(hostile.asked("oversized"), 2);
    stalled.abort();
    // Of what failed nothing stays but what still hangs: two files and a thumbnail.
    for _ in 0..100 {
        if files(&hostile.files()) <= 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(files(&hostile.files()) <= 4, "{} files", files(&hostile.files()));
    assert!(!hostile.alpha.logged().contains("ERROR"), "{}", hostile.alpha.logged());
}

/// Two real servers: files, thumbnails, moving ones too, and a cache that stays within its bounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_of_other_servers_files_is_bounded() {
    let small = ["media.remote_cache_bytes=1000000"];
    let federation = Federation::start_with([&[], &small]).await;
    let alice = Raw::register(&federation.nodes[0].client_url(), "alice").await;
    let bob = Raw::register(&federation.nodes[1].client_url(), "bob").await;
    let folder = federation.nodes[1].data().join("media");
    let mut uris = Vec::new();
    for number in 0..12_u8 {
        let uri = upload(&alice, "application/octet-stream", vec![number; 200_000]).await;
        let served = get(&bob, &format!("{DOWNLOAD}/{uri}"), &[]).await;
        assert_eq!((served.status.as_u16(), served.bytes.len()), (200, 200_000));
        uris.push(uri);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Their rows went at once; the objects go when no download can read them any more.
    let address = format!("sqlite:{}", federation.nodes[1].data().join("waxwing.db").display());
    let store = waxwing_storage::Store::open(&address).await.unwrap();
    let held =
        async || store.read().await.unwrap().media_remote_bytes(NAMES[1].try_into().unwrap()).await.unwrap();
    for _ in 0..100 {
        if held().await <= 1_000_000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(held().await <= 1_000_000, "{}", held().await);
    assert!(files(&folder) >= 12);
    // What went is fetched again.
    let served = get(&bob, &format!("{DOWNLOAD}/{}", uris[0]), &[]).await;
    assert_eq!(served.bytes, vec![0; 200_000]);
    let photo = upload(&alice, "image/png", picture(ImageFormat::Png, 400, 300)).await;
    let served = get(&bob, &format!("{THUMBNAIL}/{photo}?width=96&height=96&method=crop"), &[]).await;
    assert_eq!(image::load_from_memory(&served.bytes).unwrap().width(), 96);
    // Whoever has no token does not make this server fetch.
    let another = upload(&alice, "text/plain", "another").await;
    let nobody = Raw::nobody(&federation.nodes[1].client_url());
    nobody.get(&format!("/_matrix/media/v3/download/{another}")).await.refused(404, "M_NOT_FOUND");
    let allowed = format!("/_matrix/media/v3/download/{another}?allow_remote=false");
    nobody.get(&allowed).await.refused(404, "M_NOT_FOUND");
    until_files(&federation.nodes[0].data().join("media"), 14).await;
}
