//! Previews of pages on the web.

use super::pictures::picture;
use super::{DOWNLOAD, get};
use crate::http::{Answer, Raw};
use crate::site::{Shape, Site};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect};
use axum::routing::get as on_get;
use image::ImageFormat;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;

const PREVIEW: &str = "/_matrix/client/v1/media/preview_url";

/// A page of each kind. Gives the address, and how often the first page was read.
async fn pages() -> (String, Arc<AtomicUsize>) {
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let html =
        |text: &str| ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], text.to_owned()).into_response();
    let page = move || async move {
        counted.fetch_add(1, Ordering::SeqCst);
        html(
            "<html><head><title>no</title><meta property='og:title' content='Caf&eacute; &amp; more'>\
             <meta property='og:image' content='/broken.png'><meta property='og:image' content='picture.png'>\
             <meta property='og:image:width' content='99999'></head>",
        )
    };
    let png = || async {
        ([(header::CONTENT_TYPE, "image/png")], picture(ImageFormat::Png, 64, 48)).into_response()
    };
    let endless = || async {
        let head = futures_util::stream::iter([Ok::<_, axum::Error>(Bytes::from("<title>Endless</title>"))]);
        let more = futures_util::stream::repeat_with(|| Ok(Bytes::from(vec![b' '; 10_000])));
        let body = Body::from_stream(futures_util::StreamExt::chain(head, more));
        ([(header::CONTENT_TYPE, "text/html")], body).into_response()
    };
    let routes = Router::new()
        .route("/page", on_get(page))
        .route("/picture.png", on_get(png))
        .route("/broken.png", on_get(|| async { ([(header::CONTENT_TYPE, "image/png")], "no picture") }))
        .route(
            "/latin",
            on_get(|| async {
                let body: &[u8] = b"<title>caf\xe9</title><p>Some words.</p>";
                ([(header::CONTENT_TYPE, "text/html; charset=iso-8859-1")], body)
            }),
        )
        .route("/moved", on_get(|| async { Redirect::temporary("/latin") }))
        .route("/loop", on_get(|| async { Redirect::temporary("/loop") }))
        .route("/file", on_get(|| async { Redirect::temporary("file:///etc/passwd") }))
        .route("/endless", on_get(endless))
        .route("/video", on_get(|| async {
            let page = "<title>no</title><meta property='og:description' content='Its own words'>\
                        <link rel=alternate type='application/json+oembed' href='/embed?format=json&amp;a=b'>";
            ([(header::CONTENT_TYPE, "text/html")], page)
        }))
        .route("/lured", on_get(|| async {
            let page = "<title>Lured</title><link type='application/json+oembed' \
                        href='https://www.intranet.example/secret'>";
            ([(header::CONTENT_TYPE, "text/html")], page)
        }))
        .route("/embed", on_get(|query: axum::extract::RawQuery| async move {
            assert_eq!(query.0.as_deref(), Some("format=json&a=b"));
            let said = json!({
                "version": "1.0", "type": "video", "title": "Owls at night", "provider_name": "Birdtube",
                "html": "<p>Not these</p>", "thumbnail_url": "picture.png",
            });
            axum::Json(said)
        }))
        .route("/pdf", on_get(|| async { ([(header::CONTENT_TYPE, "application/pdf")], "%PDF") }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "no") });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    (address, read)
}

async fn preview(who: &Raw, url: &str) -> Answer {
    let query = url::form_urlencoded::byte_serialize(url.as_bytes()).collect::<String>();
    who.get(&format!("{PREVIEW}?url={query}")).await
}

async fn pages_say_what_they_are(mut site: Site) {
    for node in &mut site.nodes {
        node.stop().await;
        node.set("url_previews.enabled=true".to_owned());
        node.set("url_previews.allow_private_addresses=true".to_owned());
        node.set("url_previews.denied_hosts=[\"intranet.example\"]".to_owned());
        node.start().await;
    }
    let alice = Raw::register(&site.url, "alice").await;
    let (base, read) = pages().await;
    // Many at once are one reading.
    let first = alice.at(&site.nodes[0].client_url());
    let mut many = Vec::new();
    for _ in 0..10 {
        let (first, url) = (first.clone(), format!("{base}/page#part"));
        many.push(tokio::spawn(async move { preview(&first, &url).await.fine() }));
    }
    for seen in many {
        let seen = seen.await.unwrap();
        assert_eq!(seen["og:title"], "Café & more");
        assert_eq!((&seen["og:image:width"], &seen["og:image:height"]), (&json!(64), &json!(48)));
        assert_eq!(seen["og:image:type"], "image/png");
        let picture = seen["og:image"].as_str().unwrap().strip_prefix("mxc://").unwrap();
        let served = get(&alice, &format!("{DOWNLOAD}/{picture}"), &[]).await;
        assert_eq!(served.bytes.len() as u64, seen["matrix:image:size"].as_u64().unwrap());
    }
    for node in &site.nodes {
        preview(&alice.at(&node.client_url()), &format!("{base}/page")).await.fine();
    }
    assert_eq!(read.load(Ordering::SeqCst), 1);
    let seen = preview(&alice, &format!("{base}/moved")).await.fine();
    assert_eq!(seen, json!({"og:title": "café", "og:description": "Some words."}));
    assert_eq!(preview(&alice, &format!("{base}/endless")).await.fine(), json!({"og:title": "Endless"}));
    assert_eq!(preview(&alice, &format!("{base}/pdf")).await.fine(), json!({}));
    let video = preview(&alice, &format!("{base}/video")).await.fine();
    assert_eq!(video["og:title"], "Owls at night");
    assert_eq!(video["og:description"], "Its own words");
    assert_eq!((&video["og:site_name"], &video["og:type"]), (&json!("Birdtube"), &json!("video.other")));
    assert_eq!((&video["og:image:width"], &video["og:image:type"]), (&json!(64), &json!("image/png")));
    // Where the site may not be asked, the page speaks for itself.
    assert_eq!(preview(&alice, &format!("{base}/lured")).await.fine(), json!({"og:title": "Lured"}));
    let picture = preview(&alice, &format!("{base}/picture.png")).await.fine();
    assert_eq!(picture["og:image:width"], 64);
    let old = format!("/_matrix/media/v3/preview_url?ts=1&url={base}/page");
    assert_eq!(alice.get(&old).await.fine()["og:title"], "Café & more");
    for (path, status, code) in
        [("/loop", 502, "M_UNKNOWN"), ("/nothing", 502, "M_UNKNOWN"), ("/file", 400, "M_INVALID_PARAM")]
    {
        preview(&alice, &format!("{base}{path}")).await.refused(status, code);
    }
    for url in ["", "nonsense", "ftp://example.org/", "javascript:alert(1)", "http://a:b@example.org/"] {
        preview(&alice, url).await.refused(400, "M_INVALID_PARAM");
    }
    preview(&alice, "https://www.intranet.example/").await.refused(403, "M_FORBIDDEN");
    alice.get(PREVIEW).await.refused(400, "M_MISSING_PARAM");
    Raw::nobody(&site.url).get(&format!("{PREVIEW}?url={base}/page")).await.refused(401, "M_MISSING_TOKEN");
}

in_each_shape!(pages_say_what_they_are);

/// Nobody makes the server call its own network, and by default it reads no pages at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_addresses_are_not_read() {
    let mut site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let (base, read) = pages().await;
    preview(&alice, &format!("{base}/page")).await.refused(403, "M_FORBIDDEN");
    site.nodes[0].stop().await;
    site.nodes[0].set("url_previews.enabled=true".to_owned());
    site.nodes[0].start().await;
    let port = base.rsplit(':').next().unwrap();
    for host in
        ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254"]
    {
        preview(&alice, &format!("http://{host}:{port}/page")).await.refused(403, "M_FORBIDDEN");
    }
    preview(&alice, &format!("http://localhost:{port}/page")).await.refused(502, "M_UNKNOWN");
    assert_eq!(read.load(Ordering::SeqCst), 0);
}
