//! Servers and name systems that mean harm: they get nothing, hold nobody up, and cost little memory.

use crate::sim::{NOW, Network, identity, us};
use crate::tls_server::{Authority, GOOD_UNTIL, TestDns, server, transport, transport_over};
use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::CONNECTION;
use axum::routing::get;
use futures_util::stream;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use waxwing_federation::discovery::{DiscoveryConfig, Ports};
use waxwing_federation::keys::OwnKeys;
use waxwing_federation::net::{AddressPolicy, Dns, DnsError, Service};
use waxwing_federation::signing::{AuthError, Incoming, authorization, verify_request};
use waxwing_federation::transport::{HttpTransport, Request, Transport, TransportError};

/// An address of this machine that stands for a public one.
const PUBLIC: &str = "127.0.0.2";
/// One that stands for what must not be reached.
const PRIVATE: &str = "127.0.0.1";
/// Servers that answer without end, at the same time.
const FLOODS: usize = 64;
/// What is taken of each answer.
const TAKEN: usize = 64 * 1024;
/// Memory that all of them may take beside what is there before, MB: buffers of TLS and HTTP, and what is taken.
const MOST_MEMORY: f64 = 100.0;

/// A name system that says something else each time; its last answer stays.
struct Rebinding(Mutex<Vec<Vec<&'static str>>>);

#[async_trait]
impl Dns for Rebinding {
    async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, DnsError> {
        let mut answers = self.0.lock();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        Ok(answer.into_iter().map(|address| address.parse().unwrap()).collect())
    }
    async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError> {
        Err(DnsError::NotFound(name.into()))
    }
}

async fn ask(transport: &HttpTransport, name: &str, path: &str) -> Result<Vec<u8>, TransportError> {
    let request = Request {
        destination: server(name).to_owned(),
        method: Method::GET,
        path_and_query: path.into(),
        body: None,
        authorization: None,
        timeout: Duration::from_secs(10),
    };
    Ok(transport.send(request).await?.collect(TAKEN).await?.to_vec())
}

/// Closes after each answer, so that each request looks the name up anew.
fn closing() -> Router {
    Router::new().fallback(|| async { ([(CONNECTION, "close")], "here") })
}

#[tokio::test]
async fn a_name_that_turns_private_after_the_first_look_is_not_followed() {
    let authority = Authority::new();
    let port = authority.serve_at(PUBLIC, "a.test", GOOD_UNTIL, closing()).await;
    let answers = vec![vec![PUBLIC], vec![PRIVATE], vec![PRIVATE, PUBLIC], vec![PRIVATE]];
    let dns = Arc::new(Rebinding(Mutex::new(answers)));
    let allowed = vec![format!("{PUBLIC}/32").parse().unwrap()];
    let addresses = AddressPolicy { allow_private: false, allowed };
    let discovery = DiscoveryConfig { hosts: BTreeMap::new(), ports: Ports::default() };
    let transport = transport_over(&authority, dns, discovery, addresses);
    let name = format!("a.test:{port}");
    assert_eq!(ask(&transport, &name, "/1").await.unwrap(), b"here");
    let refused = ask(&transport, &name, "/2").await.unwrap_err();
    assert!(refused.to_string().contains("private"), "{refused}");
    // Of several addresses only those that may be called are.
    assert_eq!(ask(&transport, &name, "/3").await.unwrap(), b"here");
    let refused = ask(&transport, &name, "/4").await.unwrap_err();
    assert!(refused.to_string().contains("private"), "{refused}");
}

#[tokio::test]
async fn an_expired_certificate_is_not_spoken_to() {
    let authority = Authority::new();
    let good = authority.serve_at(PRIVATE, "a.test", GOOD_UNTIL, closing()).await;
    let expired = authority.serve_at(PRIVATE, "a.test", 2020, closing()).await;
    let transport = transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true);
    assert!(ask(&transport, &format!("a.test:{good}"), "/").await.is_ok());
    let refused = ask(&transport, &format!("a.test:{expired}"), "/").await.unwrap_err();
    assert!(matches!(refused, TransportError::Connection(ref text) if text.contains("TLS")), "{refused}");
}

/// Memory of this process at most so far, MB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_end_take_little_memory_and_hold_nobody_up() {
    let authority = Authority::new();
    let flood = || async {
        let piece = || Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 64 * 1024]));
        Body::from_stream(stream::repeat_with(piece))
    };
    let app = Router::new().route("/flood", get(flood)).fallback(|| async { "here" });
    let port = authority.serve("a.test", app).await;
    let transport = Arc::new(transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true));
    let name = format!("a.test:{port}");
    ask(&transport, &name, "/").await.unwrap();
    let before = peak();
    let floods: Vec<_> = (0..FLOODS)
        .map(|_| {
            let (transport, name) = (Arc::clone(&transport), name.clone());
            tokio::spawn(async move { ask(&transport, &name, "/flood").await })
        })
        .collect();
    let began = Instant::now();
    assert_eq!(ask(&transport, &name, "/").await.unwrap(), b"here");
    let beside = began.elapsed();
    for flood in floods {
        let answer = flood.await.unwrap();
        assert!(matches!(answer, Err(TransportError::TooLarge(TAKEN))), "{answer:?}");
    }
    let more = peak() - before;
    println!(
        "{FLOODS} answers without end: {more:.1} MB more at the peak; an answer beside them took {beside:?}"
    );
    assert!(more < MOST_MEMORY, "{more} MB");
    assert!(beside < Duration::from_secs(5), "{beside:?}");
}

/// What another server signs in somebody's name is not that server's, wherever the header comes from.
#[tokio::test]
async fn requests_signed_again_by_others_are_refused() {
    let network = Arc::new(Network::default());
    let us = us(&network, &[]);
    for (server, seed) in [("them.test", 2), ("mallory.test", 3)] {
        let own = OwnKeys::new(identity(server, seed), Vec::new());
        let document: Value = serde_json::from_str(own.document(NOW).unwrap().get()).unwrap();
        network.add(server, move |_| Some((200, document.clone())));
    }
    let (path, body) = ("/_matrix/federation/v1/send/1", br#"{"pdus":[]}"#);
    let signed = |origin: &str, seed: u8, destination: &str| {
        authorization(&identity(origin, seed), server(destination), "PUT", path, Some(body)).unwrap()
    };
    let verify = async |headers: &[String]| {
        let values = headers.iter().map(|header| (AUTHORIZATION, header.parse().unwrap()));
        let headers: HeaderMap = values.fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        });
        let request = Incoming { method: "PUT", path_and_query: path, headers: &headers, body };
        verify_request(&us.ring, server("us.test"), request).await
    };
    // In another's name with one's own key.
    let forged = signed("them.test", 3, "us.test");
    assert!(matches!(verify(&[forged.clone()]).await, Err(AuthError::BadSignature)));
    // A good request of theirs to somebody else, passed on, and signed over.
    let elsewhere = signed("them.test", 2, "mallory.test");
    assert!(matches!(verify(&[elsewhere.clone()]).await, Err(AuthError::WrongDestination)));
    let patched = elsewhere.replace("mallory.test", "us.test");
    assert!(matches!(verify(&[patched]).await, Err(AuthError::BadSignature)));
    // Two headers that do not agree on who asks.
    let own = signed("mallory.test", 3, "us.test");
    assert!(verify(&[own.clone(), forged]).await.is_err());
    // As it is, it is mallory's, and nobody else's.
    assert_eq!(verify(&[own]).await.unwrap(), "mallory.test");
}
