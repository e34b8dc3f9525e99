//! Discovery and transport against real HTTPS servers.

use crate::tls_server::{Authority, TestDns, server, transport, transport_with_hosts};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request as AxumRequest;
use axum::http::header::{CACHE_CONTROL, CONNECTION, HOST, LOCATION};
use axum::http::{Response as AxumResponse, StatusCode};
use axum::routing::get;
use futures_util::{StreamExt, TryStreamExt};
use http::Method;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use url::Url;
use waxwing_federation::discovery::Ports;
use waxwing_federation::transport::{HttpTransport, Request, Transport, TransportError};

fn request(destination: &str, path: &str) -> Request {
    Request {
        destination: server(destination).to_owned(),
        method: Method::GET,
        path_and_query: path.into(),
        body: None,
        authorization: None,
        timeout: Duration::from_secs(5),
    }
}

async fn get_text(
    transport: &HttpTransport,
    destination: &str,
    path: &str,
) -> Result<String, TransportError> {
    let body = transport.send(request(destination, path)).await?.collect(100_000).await?;
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

/// Answers with who it thinks it is: the Host header or HTTP/2 authority.
fn mirror() -> Router {
    Router::new().fallback(|request: AxumRequest| async move {
        let host = request.headers().get(HOST).map(|value| value.to_str().unwrap().to_owned());
        host.or(request.uri().authority().map(ToString::to_string)).unwrap_or_default()
    })
}

fn well_known(body: String) -> Router {
    Router::new().route("/.well-known/matrix/server", get(|| async move { body }))
}

#[tokio::test]
async fn an_explicit_port_needs_no_look_up_and_keeps_the_port_in_host() {
    let authority = Authority::new();
    let port = authority.serve("a.test", mirror()).await;
    let transport = transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true);
    let name = format!("a.test:{port}");
    assert_eq!(get_text(&transport, &name, "/x").await.unwrap(), name);
}

#[tokio::test]
async fn an_address_literal_is_checked_against_the_certificate_as_such() {
    let authority = Authority::new();
    let port = authority.serve("127.0.0.1", mirror()).await;
    let wrong = authority.serve("a.test", mirror()).await;
    let ports = Ports { well_known: 1, federation: port };
    let transport = transport(&authority, TestDns::default(), ports, true);
    assert_eq!(get_text(&transport, "127.0.0.1", "/x").await.unwrap(), "127.0.0.1");
    let name = format!("127.0.0.1:{port}");
    assert_eq!(get_text(&transport, &name, "/x").await.unwrap(), name);
    assert!(get_text(&transport, &format!("127.0.0.1:{wrong}"), "/x").await.is_err());
}

#[tokio::test]
async fn well_known_delegates_name_certificate_and_port() {
    let authority = Authority::new();
    let target = authority.serve("matrix.a.test", mirror()).await;
    let document = format!(r#"{{"m.server":"matrix.a.test:{target}"}}"#);
    let web = authority.serve("a.test", well_known(document)).await;
    let ports = Ports { well_known: web, federation: 1 };
    let transport = transport(&authority, TestDns::local(&["a.test", "matrix.a.test"]), ports, true);
    assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), format!("matrix.a.test:{target}"));
}

#[tokio::test]
async fn a_delegated_name_without_port_is_looked_up_by_srv() {
    let authority = Authority::new();
    let target = authority.serve("m.a.test", mirror()).await;
    let web = authority.serve("a.test", well_known(r#"{"m.server":"m.a.test"}"#.into())).await;
    let dns =
        TestDns::local(&["a.test", "srv.a.test"]).service("_matrix-fed._tcp.m.a.test", "srv.a.test", target);
    let transport = transport(&authority, dns, Ports { well_known: web, federation: 1 }, true);
    // Host and certificate are the delegated name, not the target of the record.
    assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), "m.a.test");
}

#[tokio::test]
async fn without_well_known_the_srv_records_count_the_new_name_first() {
    let authority = Authority::new();
    let new = authority.serve("a.test", mirror()).await;
    let old = authority.serve("b.test", mirror()).await;
    let dns = TestDns::local(&["srv.test"])
        .service("_matrix-fed._tcp.a.test", "srv.test", new)
        .service("_matrix._tcp.a.test", "srv.test", 1)
        .service("_matrix._tcp.b.test", "srv.test", old);
    let transport = transport(&authority, dns, Ports { well_known: 1, federation: 1 }, true);
    assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), "a.test");
    assert_eq!(get_text(&transport, "b.test", "/x").await.unwrap(), "b.test");
}

#[tokio::test]
async fn the_second_srv_target_is_tried_when_the_first_is_dead() {
    let authority = Authority::new();
    let port = authority.serve("a.test", mirror()).await;
    let dns = TestDns::local(&["srv.test"])
        .service("_matrix-fed._tcp.a.test", "gone.test", 1)
        .service("_matrix-fed._tcp.a.test", "srv.test", 1)
        .service("_matrix-fed._tcp.a.test", "srv.test", port);
    let transport = transport(&authority, dns, Ports { well_known: 1, federation: 1 }, true);
    assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), "a.test");
}

#[tokio::test]
async fn the_default_port_is_the_last_resort() {
    let authority = Authority::new();
    let port = authority.serve("a.test", mirror()).await;
    let ports = Ports { well_known: 1, federation: port };
    let transport = transport(&authority, TestDns::local(&["a.test"]), ports, true);
    assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), "a.test");
}

#[tokio::test]
async fn the_override_table_changes_the_place_but_not_the_name() {
    let authority = Authority::new();
    let port = authority.serve("a.test", mirror()).await;
    let hosts = [("a.test", format!("127.0.0.1:{port}")), ("a.test:99", format!("127.0.0.1:{port}"))];
    // Private addresses are refused, but this one is the operator's own word.
    let transport = transport_with_hosts(&authority, TestDns::default(), Ports::default(), false, &hosts);
    assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), "a.test");
    assert_eq!(get_text(&transport, "a.test:99", "/x").await.unwrap(), "a.test:99");
}

#[tokio::test]
async fn well_known_is_asked_once_and_a_loop_of_redirects_ends() {
    let authority = Authority::new();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let web = Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            AxumResponse::builder()
                .status(StatusCode::FOUND)
                .header(LOCATION, "/.well-known/matrix/server")
                .body(Body::empty())
                .unwrap()
        }
    });
    let web = authority.serve("a.test", web).await;
    let port = authority.serve("a.test", mirror()).await;
    let ports = Ports { well_known: web, federation: port };
    let transport = transport(&authority, TestDns::local(&["a.test"]), ports, true);
    for _ in 0..3 {
        assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), "a.test");
    }
    assert_eq!(count.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn a_redirected_well_known_is_followed() {
    let authority = Authority::new();
    let target = authority.serve("m.test", mirror()).await;
    let document = format!(r#"{{"m.server":"m.test:{target}"}}"#);
    let elsewhere =
        Router::new().route("/doc", get(|| async move { ([(CACHE_CONTROL, "max-age=60")], document) }));
    let elsewhere = authority.serve("www.test", elsewhere).await;
    let to = format!("https://www.test:{elsewhere}/doc#x");
    let web = Router::new().fallback(move || {
        let to = to.clone();
        async move { (StatusCode::MOVED_PERMANENTLY, [(LOCATION, to)]) }
    });
    let web = authority.serve("a.test", web).await;
    let dns = TestDns::local(&["a.test", "www.test", "m.test"]);
    let transport = transport(&authority, dns, Ports { well_known: web, federation: 1 }, true);
    assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), format!("m.test:{target}"));
}

#[tokio::test]
async fn oversized_malformed_and_wrongly_certified_well_known_is_no_delegation() {
    let authority = Authority::new();
    let port = authority.serve("a.test", mirror()).await;
    let huge = format!(r#"{{"m.server":"evil.test:1","x":"{}"}}"#, "x".repeat(100_000));
    let bad = authority.serve("other.test", well_known(r#"{"m.server":"evil.test:1"}"#.into())).await;
    for web in [
        authority.serve("a.test", well_known(huge)).await,
        authority.serve("a.test", well_known("{".into())).await,
        authority.serve("a.test", well_known(r#"{"m.server":"not a name"}"#.into())).await,
        bad,
    ] {
        let ports = Ports { well_known: web, federation: port };
        let transport = transport(&authority, TestDns::local(&["a.test"]), ports, true);
        assert_eq!(get_text(&transport, "a.test", "/x").await.unwrap(), "a.test");
    }
}

#[tokio::test]
async fn a_wrong_certificate_is_not_spoken_to() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let wrong_name = authority.serve("b.test", mirror()).await;
    let wrong_issuer = stranger.serve("a.test", mirror()).await;
    let transport = transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true);
    for port in [wrong_name, wrong_issuer] {
        let error = get_text(&transport, &format!("a.test:{port}"), "/x").await.unwrap_err();
        assert!(matches!(error, TransportError::Connection(ref text) if text.contains("TLS")), "{error}");
    }
}

#[tokio::test]
async fn private_addresses_are_refused_after_the_name_is_resolved() {
    let authority = Authority::new();
    let port = authority.serve("a.test", mirror()).await;
    let ports = Ports { well_known: port, federation: port };
    let dns = TestDns::local(&["a.test"]).service("_matrix-fed._tcp.b.test", "a.test", port);
    let transport = transport(&authority, dns, ports, false);
    for name in ["a.test".to_owned(), format!("a.test:{port}"), format!("127.0.0.1:{port}"), "b.test".into()]
    {
        let error = get_text(&transport, &name, "/x").await.unwrap_err();
        assert!(error.to_string().contains("private"), "{name}: {error}");
    }
    let url = Url::parse(&format!("https://127.0.0.1:{port}/")).unwrap();
    assert!(transport.fetch(&url, Duration::from_secs(5)).await.is_err());
}

#[tokio::test]
async fn redirects_of_signed_requests_are_not_followed() {
    let authority = Authority::new();
    let app = Router::new().fallback(|| async { (StatusCode::FOUND, [(LOCATION, "/elsewhere")]) });
    let port = authority.serve("a.test", app).await;
    let transport = transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true);
    let response = transport.send(request(&format!("a.test:{port}"), "/x")).await.unwrap();
    assert_eq!(response.status, StatusCode::FOUND);
}

#[tokio::test]
async fn slow_heads_and_oversized_bodies_are_cut_off() {
    let authority = Authority::new();
    let app = Router::new()
        .route(
            "/slow",
            get(|| async {
                tokio::time::sleep(Duration::from_mins(1)).await;
            }),
        )
        .route(
            "/endless",
            get(|| async {
                let piece = || Ok::<_, std::io::Error>(Bytes::from(vec![0; 10_000]));
                Body::from_stream(futures_util::stream::repeat_with(piece))
            }),
        );
    let port = authority.serve("a.test", app).await;
    let name = format!("a.test:{port}");
    let transport = transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true);
    let mut slow = request(&name, "/slow");
    slow.timeout = Duration::from_millis(200);
    let started = Instant::now();
    assert!(matches!(transport.send(slow).await, Err(TransportError::Timeout)));
    assert!(started.elapsed() < Duration::from_secs(5));
    let response = transport.send(request(&name, "/endless")).await.unwrap();
    assert!(matches!(response.collect(50_000).await, Err(TransportError::TooLarge(50_000))));
}

#[tokio::test]
async fn a_new_connection_resumes_the_session_of_the_last_one() {
    let authority = Authority::new();
    let app = Router::new().fallback(|| async { ([(CONNECTION, "close")], "well") });
    let (port, resumed) = authority.serve_resuming("a.test", app).await;
    let transport = transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true);
    for _ in 0..3 {
        assert_eq!(get_text(&transport, &format!("a.test:{port}"), "/x").await.unwrap(), "well");
    }
    assert_eq!(*resumed.lock(), [false, true, true]);
}

#[tokio::test]
async fn many_requests_share_connections() {
    let authority = Authority::new();
    let (port, connections) = authority.serve_counting("a.test", mirror()).await;
    let name = format!("a.test:{port}");
    let transport = Arc::new(transport(&authority, TestDns::local(&["a.test"]), Ports::default(), true));
    let answers: Vec<String> = futures_util::stream::iter(0..50)
        .map(|n| {
            let (transport, name) = (Arc::clone(&transport), name.clone());
            async move { get_text(&transport, &name, &format!("/{n}")).await }
        })
        .buffer_unordered(10)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(answers.len(), 50);
    // The first ones may each have opened a connection before any was there to share.
    assert!(connections.load(Ordering::SeqCst) <= 10, "{connections:?}");
}
