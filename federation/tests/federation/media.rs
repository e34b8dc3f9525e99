//! Downloading media from a real HTTPS server.

use axum::Router;
use axum::extract::Query;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::routing::get;
use futures_util::TryStreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::Health;
use waxwing_federation::client::{Client, ClientError, MediaError, RemoteMedia, ThumbnailQuery};
use waxwing_federation::discovery::Ports;
use waxwing_model::Clock;

use crate::sim::identity;
use crate::tls_server::{Authority, TestDns, transport};

const WAIT: Duration = Duration::from_secs(2);

fn multipart(second: &str) -> ([(HeaderName, &'static str); 1], String) {
    let body = format!("--b\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--b\r\n{second}\r\n--b--\r\n");
    ([(CONTENT_TYPE, "multipart/mixed; boundary=b")], body)
}

fn app() -> Router {
    let file =
        "Content-Type: text/plain\r\nContent-Disposition: inline; filename=a.txt\r\n\r\nhello\r\nthere";
    let unrecognized = (StatusCode::NOT_FOUND, r#"{"errcode":"M_UNRECOGNIZED"}"#);
    let old = |Query(query): Query<BTreeMap<String, String>>| async move {
        assert_eq!(query["allow_remote"], "false");
        ([(CONTENT_TYPE, "image/png"), (CONTENT_DISPOSITION, "inline")], "old")
    };
    let elsewhere = |headers: HeaderMap| async move {
        // The signature is for the first server only.
        if headers.contains_key("authorization") { "leaked" } else { "elsewhere" }
    };
    Router::new()
        .route("/_matrix/federation/v1/media/download/here", get(move || async move { multipart(file) }))
        .route("/_matrix/federation/v1/media/thumbnail/here", get(move || async move { multipart(file) }))
        .route("/_matrix/federation/v1/media/download/old", get(move || async move { unrecognized }))
        .route("/_matrix/media/v3/download/{server}/old", get(old))
        .route(
            "/_matrix/federation/v1/media/download/older",
            get(|| async { (StatusCode::BAD_REQUEST, "what is that?") }),
        )
        .route(
            "/_matrix/federation/v1/media/download/refused",
            get(|| async { (StatusCode::FORBIDDEN, r#"{"errcode":"M_FORBIDDEN"}"#) }),
        )
        .route("/_matrix/media/v3/download/{server}/older", get(old))
        .route("/_matrix/media/v3/download/{server}/refused", get(old))
        .route(
            "/_matrix/federation/v1/media/download/moved",
            get(|headers: HeaderMap| async move {
                let host = headers.get("host").map(|host| host.to_str().unwrap().to_owned());
                multipart(&format!("Location: https://{}/elsewhere\r\n\r\n", host.unwrap_or_default()))
            }),
        )
        .route("/_matrix/federation/v1/media/download/plain", get(|| async { "no multipart" }))
        .route("/elsewhere", get(elsewhere))
}

async fn read(media: RemoteMedia) -> Result<String, MediaError> {
    let pieces: Vec<bytes::Bytes> = media.content.try_collect().await?;
    Ok(String::from_utf8(pieces.concat()).unwrap())
}

#[tokio::test]
async fn files_come_in_parts_from_elsewhere_or_the_old_way() {
    let authority = Authority::new();
    let port = authority.serve_http1("a.test", app()).await;
    let transport = transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true);
    let health = Arc::new(Health::new(Clock::System));
    let client = Client::new(identity("us.test", 1), Arc::new(transport), health);
    let name = format!("a.test:{port}");
    let server = name.as_str().try_into().unwrap();
    let media = client.media_download(server, "here", WAIT, 100).await.unwrap();
    assert_eq!(media.content_type.as_deref(), Some("text/plain"));
    assert_eq!(media.content_disposition.as_deref(), Some("inline; filename=a.txt"));
    assert_eq!(read(media).await.unwrap(), "hello\r\nthere");
    let size = ThumbnailQuery { width: 32, height: 32, method: Some("crop"), animated: Some(false) };
    let thumbnail = client.media_thumbnail(server, "here", size, WAIT, 100).await.unwrap();
    assert_eq!(read(thumbnail).await.unwrap(), "hello\r\nthere");
    let old = client.media_download(server, "old", WAIT, 100).await.unwrap();
    assert_eq!(old.content_type.as_deref(), Some("image/png"));
    assert_eq!(read(old).await.unwrap(), "old");
    let older = client.media_download(server, "older", WAIT, 100).await.unwrap();
    assert_eq!(read(older).await.unwrap(), "old");
    // Who knows the endpoint and says no is not asked in another way.
    let refused = client.media_download(server, "refused", WAIT, 100).await;
    assert!(matches!(refused, Err(MediaError::Client(ClientError::Refused(_)))));
    let moved = client.media_download(server, "moved", WAIT, 100).await.unwrap();
    assert_eq!(read(moved).await.unwrap(), "elsewhere");
    let large = client.media_download(server, "here", WAIT, 5).await.unwrap();
    assert!(matches!(read(large).await, Err(MediaError::TooLarge(5))));
    assert!(matches!(client.media_download(server, "old", WAIT, 2).await, Err(MediaError::TooLarge(2))));
    assert!(matches!(client.media_download(server, "plain", WAIT, 100).await, Err(MediaError::Malformed(_))));
    let missing = client.media_download(server, "nothing", WAIT, 100).await;
    assert!(matches!(missing, Err(MediaError::Client(ClientError::Refused(_)))));
}
