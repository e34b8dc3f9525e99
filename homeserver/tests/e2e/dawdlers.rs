//! Servers that take part in a room and do all they can to be a burden: none of them holds up the others.

use crate::federation::{NAMES, write_certificates_for};
use crate::http::Raw;
use crate::neighbours::join_as;
use crate::node::{Node, free_port, say};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::LOCATION;
use axum::http::{Response, StatusCode};
use axum_server::tls_rustls::RustlsConfig;
use futures_util::StreamExt;
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use waxwing_federation::keys::OwnKeys;
use waxwing_federation::signing::Identity;
use waxwing_rooms::KeyPair;

/// More than the transactions that a server has in flight to servers that answer promptly.
const COUNT: usize = 96;
/// What one of them gives out, at most, where it may give as much as it likes.
const FLOOD: usize = 512 * 1024 * 1024;
/// The first message must not wait for time-outs, the next not even for the first signs of slowness.
const FIRST: Duration = Duration::from_secs(20);
const NEXT: Duration = Duration::from_secs(5);
/// What the server may take in the meantime (a debug build with nothing else to do takes about 100 MB), kilobytes.
const MOST_MEMORY: u64 = 500 * 1024;

/// The names are before all others, so that whoever goes by the alphabet serves them first.
fn name(number: usize) -> String {
    format!("a{number:03}.burden.localhost")
}

/// Answers for all of them: their keys as it should be, everything else as a burden.
async fn answer(identities: Arc<BTreeMap<String, Identity>>, request: Request) -> Response<Body> {
    let host = request.uri().host().map(str::to_owned).or_else(|| {
        let host = request.headers().get("host")?.to_str().ok()?;
        Some(host.split(':').next().unwrap_or(host).to_owned())
    });
    let host = host.unwrap_or_default();
    let Some(identity) = identities.get(&host) else { return status(StatusCode::NOT_FOUND) };
    if request.uri().path() == "/_matrix/key/v2/server" {
        let now = u64::from(MilliSecondsSinceUnixEpoch::now().get());
        let document = OwnKeys::new(identity.clone(), Vec::new()).document(now).unwrap();
        return Response::new(Body::from(document.get().to_owned()));
    }
    match host[1..4].parse::<usize>().unwrap() % 4 {
        // Never answers.
        0 => std::future::pending().await,
        // A byte now and then.
        1 => {
            let drops = futures_util::stream::repeat(Bytes::from_static(b" "));
            let drops = drops.then(|drop| async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Ok::<_, std::io::Error>(drop)
            });
            Response::new(Body::from_stream(drops))
        }
        // As much as it can.
        2 => {
            let piece = Bytes::from(vec![b' '; 64 * 1024]);
            let flood = futures_util::stream::repeat(piece).take(FLOOD / (64 * 1024));
            Response::new(Body::from_stream(flood.map(Ok::<_, std::io::Error>)))
        }
        // Round and round.
        _ => Response::builder()
            .status(StatusCode::TEMPORARY_REDIRECT)
            .header(LOCATION, format!("https://{host}{}", request.uri().path()))
            .body(Body::empty())
            .unwrap(),
    }
}

fn status(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

/// Memory that a process takes, kilobytes.
fn memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// How long it takes until what `from` sends is in the timeline of `to`.
async fn travel(from: &Raw, to: &Raw, room: &str, transaction: &str) -> Duration {
    let began = Instant::now();
    let sent = from.send_sealed(room, transaction).await.fine()["event_id"].clone();
    let path = format!("/_matrix/client/v3/rooms/{room}/event/{}", sent.as_str().unwrap());
    while !to.get(&path).await.status.is_success() {
        assert!(began.elapsed() < 2 * FIRST, "it did not arrive");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

/// Alpha and beta, which find all others at `port`.
async fn start_nodes(folder: &Path, names: &[String], port: u16) -> [Node; 2] {
    let at = |file: String| folder.join(file).display().to_string();
    let mut nodes = NAMES.map(|name| {
        let settings = [
            format!("server_name={name}"),
            format!("tls.certificate={}", at(format!("{name}.certificate.pem"))),
            format!("tls.key={}", at(format!("{name}.key.pem"))),
            format!("tls.extra_roots=[\"{}\"]", at("authority.pem".to_owned())),
            "federation.allow_private_addresses=true".to_owned(),
        ];
        Node::new(&folder.join(name), &settings)
    });
    let mut hosts: Vec<String> =
        names.iter().map(|name| format!("\"{name}\" = \"127.0.0.1:{port}\"")).collect();
    for (name, node) in NAMES.iter().zip(&nodes) {
        hosts.push(format!("\"{name}\" = \"127.0.0.1:{}\"", node.federation_port));
    }
    for node in &mut nodes {
        node.set(format!("federation.hosts={{ {} }}", hosts.join(", ")));
        node.start().await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_a_burden_hold_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..COUNT).map(name).collect();
    let mut all: Vec<&str> = NAMES.to_vec();
    all.push("*.burden.localhost");
    write_certificates_for(folder.path(), &all);
    let at = |file: String| folder.path().join(file).display().to_string();
    let identities: BTreeMap<String, Identity> = names
        .iter()
        .map(|name| {
            let key = Arc::new(KeyPair::generate().unwrap());
            (name.clone(), Identity::new(name.as_str().try_into().unwrap(), key).unwrap())
        })
        .collect();
    let identities = Arc::new(identities);

    let port = free_port();
    let tls = RustlsConfig::from_pem_file(
        at("*.burden.localhost.certificate.pem".to_owned()),
        at("*.burden.localhost.key.pem".to_owned()),
    )
    .await
    .unwrap();
    let shared = Arc::clone(&identities);
    let app = Router::new().fallback(move |request: Request| answer(Arc::clone(&shared), request));
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let burden = axum_server::from_tcp_rustls(listener, tls).unwrap().serve(app.into_make_service());
    let burden = tokio::spawn(burden);

    let nodes = start_nodes(folder.path(), &names, port).await;
    let [alpha, beta] = [nodes[0].client_url(), nodes[1].client_url()];
    let alice = Raw::register(&alpha, "alice").await;
    let bob = Raw::register(&beta, "bob").await;
    let encryption = json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
    let room = alice.create_room(json!({"preset": "public_chat", "initial_state": encryption})).await;
    let version = RoomVersionId::V12;
    for (name, identity) in identities.iter() {
        join_as(identity, &alpha, &room, &format!("@eve:{name}"), &version).await;
    }
    let join = format!("/_matrix/client/v3/join/{room}?server_name={}", NAMES[0]);
    let _: Value = bob.post(&join, json!({})).await.fine();

    let before = memory(nodes[0].id());
    let mut took = Vec::new();
    for transaction in ["one", "two", "three"] {
        took.push(travel(&alice, &bob, &room, transaction).await);
    }
    let memory = memory(nodes[0].id());
    say(&format!(
        "beside {COUNT} burdens messages to an honest server took {took:?}; memory: {} MB before, {} after",
        before / 1024,
        memory / 1024
    ));
    assert!(took[0] < FIRST, "{took:?}");
    assert!(took[1..].iter().all(|took| *took < NEXT), "{took:?}");
    assert!(memory < MOST_MEMORY, "{memory} kB");
    burden.abort();
}
