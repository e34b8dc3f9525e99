//! Large files, and files in a bucket.

use super::pictures::picture;
use super::{DOWNLOAD, THUMBNAIL, UPLOAD, get, put, upload};
use crate::federation::Federation;
use crate::http::{Raw, plain};
use crate::node::{Node, say};
use crate::site::{Shape, Site};
use futures_util::StreamExt;
use image::ImageFormat;
use reqwest::Method;
use std::time::Duration;

/// Bytes of a large file, and of the pieces in which it is sent.
const LARGE: usize = 160_000_000;
const PIECE: usize = 100_000;
/// What a server may take more for a file, however large: buffers of sockets, two parts, and what a build without
/// optimisation and an allocator that gives back late add: less than half of the file.
const BUFFERS: u64 = 72_000_000;

fn large() -> reqwest::Body {
    let pieces = (0..LARGE / PIECE).map(|number| Ok::<_, std::io::Error>(vec![number as u8; PIECE]));
    reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
}

/// The most memory that a node has held, in bytes.
fn peak(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Reads a download as it comes; gives its length and whether it is what [`large`] sent.
async fn drained(who: &Raw, path: &str) -> (usize, bool) {
    let request = plain().get(format!("{}{path}", who.base)).bearer_auth(&who.token);
    let mut body = request.timeout(Duration::from_mins(3)).send().await.unwrap().bytes_stream();
    let (mut length, mut right) = (0, true);
    while let Some(piece) = body.next().await {
        let piece = piece.unwrap();
        for (offset, byte) in piece.iter().enumerate().step_by(977) {
            right &= *byte == ((length + offset) / PIECE) as u8;
        }
        length += piece.len();
    }
    (length, right)
}

/// Up, down, and over to another server: nobody holds the file in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files_take_no_memory() {
    let most = ["media.max_upload_bytes=400000000"];
    let federation = Federation::start_with([&most, &most]).await;
    let [alpha, beta] = [0, 1].map(|node: usize| &federation.nodes[node]);
    let alice = Raw::register(&alpha.client_url(), "alice").await;
    let bob = Raw::register(&beta.client_url(), "bob").await;
    let small = upload(&alice, "text/plain", "warm").await;
    get(&bob, &format!("{DOWNLOAD}/{small}"), &[]).await;
    let before = [peak(alpha), peak(beta)];
    let uri = upload(&alice, "application/octet-stream", large()).await;
    let path = format!("{DOWNLOAD}/{uri}");
    assert_eq!(drained(&alice, &path).await, (LARGE, true));
    assert_eq!(drained(&bob, &path).await, (LARGE, true));
    let grown = [peak(alpha) - before[0], peak(beta) - before[1]];
    assert!(grown.iter().all(|bytes| *bytes < BUFFERS), "{grown:?}");
}

/// The whole of it in a bucket: in one request, in parts, in ranges, and gone again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_in_a_bucket() {
    let Ok(endpoint) = std::env::var("WAXWING_TEST_S3") else {
        say("NOT RUN: WAXWING_TEST_S3 is not set (scripts/s3.sh starts a store)");
        return;
    };
    let bucket = format!("waxwing-{}", std::process::id());
    let made = plain().put(format!("{endpoint}/{bucket}")).send().await.unwrap();
    assert!(made.status().is_success(), "{}", made.status());
    let settings = [
        format!("media.store=s3://{bucket}/some/where"),
        format!("media.s3.endpoint={endpoint}"),
        "media.s3.access_key_id=test".to_owned(),
        "media.s3.secret_access_key=shh-do-not-log".to_owned(),
        "media.user_quota_bytes=20000000".to_owned(),
    ];
    let Some(site) = Site::start_with(Shape::TwoNodes, &settings).await else { return };
    let alice = Raw::register(&site.url, "alice").await;
    let list = async || {
        let url = format!("{endpoint}/{bucket}?list-type=2");
        let text = plain().get(url).send().await.unwrap().text().await.unwrap();
        assert!(!text.contains("<Key>some/where/../"), "{text}");
        (text.matches("<Key>some/where/").count(), text.matches("<Key>").count())
    };
    let unfinished = async || {
        let url = format!("{endpoint}/{bucket}?uploads");
        plain().get(url).send().await.unwrap().text().await.unwrap().matches("<UploadId>").count()
    };
    let bytes: Vec<u8> = (0..=250).cycle().take(12_345_678).collect();
    let uri = upload(&alice, "application/octet-stream", bytes.clone()).await;
    let photo = upload(&alice, "image/png", picture(ImageFormat::Png, 400, 300)).await;
    for node in &site.nodes {
        let alice = alice.at(&node.client_url());
        let path = format!("{DOWNLOAD}/{uri}");
        assert!(get(&alice, &path, &[]).await.bytes == bytes);
        let part = get(&alice, &path, &[("range", "bytes=5242870-5242890")]).await;
        assert_eq!((part.status.as_u16(), &part.bytes[..]), (206, &bytes[5_242_870..=5_242_890]));
        let small = get(&alice, &format!("{THUMBNAIL}/{photo}?width=96&height=96"), &[]).await;
        assert_eq!(image::load_from_memory(&small.bytes).unwrap().width(), 96);
    }
    assert_eq!((list().await, unfinished().await), ((3, 3), 0));
    // What is over the quota breaks off after some parts, and nothing of it stays.
    let pieces = (0..120).map(|_| Ok::<_, std::io::Error>(vec![1_u8; 100_000]));
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    put(&alice, Method::POST, UPLOAD, "text/plain", stream).await.refused(403, "M_USER_LIMIT_EXCEEDED");
    let output = site.nodes[0].run(&["media", "remove", &format!("mxc://{uri}")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for _ in 0..100 {
        if (list().await.0, unfinished().await) == (2, 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((list().await, unfinished().await), ((2, 2), 0));
    for node in &site.nodes {
        assert!(!node.logged().contains("shh-do-not-log"));
    }
}
