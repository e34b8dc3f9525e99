//! A round-robin in front of several nodes: each request goes to the next one, whoever sends it.

use super::node::free_port;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Response, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Larger than any file of a test.
const LARGEST_BODY: usize = 64 * 1024 * 1024;

pub struct Proxy {
    pub url: String,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts it; `backends` are base URLs.
    pub async fn start(backends: Vec<String>) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (turn, backends) = (Arc::new(AtomicUsize::new(0)), Arc::new(backends));
        let client = super::http::passing_on();
        let routes = Router::new().fallback(move |request: Request| {
            let backend = backends[turn.fetch_add(1, Ordering::Relaxed) % backends.len()].clone();
            forward(client.clone(), backend, request)
        });
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Proxy { url, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(client: reqwest::Client, backend: String, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, LARGEST_BODY).await.unwrap();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = parts.headers;
    for name in ["host", "content-length", "transfer-encoding", "connection"] {
        headers.remove(name);
    }
    let asked = client.request(parts.method, format!("{backend}{path}")).headers(headers).body(body).send();
    let answer = match asked.await {
        Ok(answer) => answer,
        Err(error) => return failure(&error),
    };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    for name in ["content-length", "transfer-encoding", "connection"] {
        headers.remove(name);
    }
    match answer.bytes().await {
        Ok(body) => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
        Err(error) => failure(&error),
    }
}

fn failure(error: &reqwest::Error) -> Response<Body> {
    let mut response = Response::new(Body::from(error.to_string()));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
