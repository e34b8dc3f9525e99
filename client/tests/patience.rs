//! The connection's patience, against a server that answers by script.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use waxwing_client::{Error, Http};

/// Serves one scripted answer per connection and counts them.
async fn server(answers: Vec<String>) -> (String, tokio::task::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let mut count = 0;
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
            count += 1;
        }
        count
    });
    (address, served)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

const VERSIONS: &str = r#"{"versions":["v1.11"]}"#;

#[tokio::test]
async fn waits_as_long_as_a_rate_limit_asks() {
    let limited = r#"{"errcode":"M_LIMIT_EXCEEDED","error":"slow down","retry_after_ms":300}"#;
    let script = vec![answer("429 Too Many Requests", "", limited), answer("200 OK", "", VERSIONS)];
    let (address, served) = server(script).await;
    let began = Instant::now();
    let versions = Http::new(&address).unwrap().fetch_versions().await.unwrap();
    assert_eq!(versions.versions, ["v1.11"]);
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(served.await.unwrap(), 2);
}

#[tokio::test]
async fn does_not_wait_for_an_hour() {
    let limited = answer("429 Too Many Requests", "retry-after: 3600\r\n", "{}");
    let (address, _) = server(vec![limited]).await;
    let refused = Http::new(&address).unwrap().fetch_versions().await.unwrap_err();
    assert!(matches!(refused, Error::RateLimited { wait } if wait == Duration::from_hours(1)));
}

#[tokio::test]
async fn comes_back_after_a_gateway_failure() {
    let script = vec![answer("502 Bad Gateway", "", "<html>"), answer("200 OK", "", VERSIONS)];
    let (address, served) = server(script).await;
    Http::new(&address).unwrap().fetch_versions().await.unwrap();
    assert_eq!(served.await.unwrap(), 2);
}

#[tokio::test]
async fn says_why_there_is_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let http = Http::new(&address).unwrap();
    let failed = tokio::time::timeout(Duration::from_secs(30), http.fetch_versions()).await.unwrap();
    let said = failed.unwrap_err().to_string();
    assert!(said.contains("refused"), "{said}");
}
