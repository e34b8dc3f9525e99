//! A round-robin as people run it: it asks each node whether it is ready, and gives each request to the next that is.
//! A refused connection goes on to another node; so does a request that may be repeated, while no answer has begun.

use crate::node::free_port;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Response, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often nodes are asked, and how long one may take to answer.
const ASK: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_millis(1500);
/// Larger than any request of this test.
const LARGEST_BODY: usize = 1024 * 1024;

struct Backend {
    url: String,
    up: watch::Receiver<bool>,
}

struct Nodes {
    all: Vec<Backend>,
    turn: AtomicUsize,
    client: reqwest::Client,
}

pub struct Balancer {
    pub url: String,
    tasks: Vec<JoinHandle<()>>,
}

impl Balancer {
    /// In front of nodes at these URLs.
    pub async fn start(urls: Vec<String>) -> Balancer {
        let client = crate::harness::http::client();
        let (mut all, mut tasks) = (Vec::new(), Vec::new());
        for url in urls {
            let (told, up) = watch::channel(true);
            tasks.push(tokio::spawn(watch_over(client.clone(), url.clone(), told)));
            all.push(Backend { url, up });
        }
        let nodes = Arc::new(Nodes { all, turn: AtomicUsize::new(0), client });
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().fallback(move |request| forward(Arc::clone(&nodes), request));
        tasks.push(tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() }));
        Balancer { url, tasks }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn watch_over(client: reqwest::Client, url: String, told: watch::Sender<bool>) {
    let mut ticks = tokio::time::interval(ASK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = client.get(format!("{url}/_waxwing/ready")).timeout(PATIENCE).send().await;
        let up = asked.is_ok_and(|answer| answer.status().is_success());
        told.send_if_modified(|before| std::mem::replace(before, up) != up);
    }
}

/// A request as it came.
struct Asked {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

async fn forward(nodes: Arc<Nodes>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, LARGEST_BODY).await else {
        return failure("the request broke off");
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut headers = parts.headers;
    for name in ["host", "content-length", "transfer-encoding", "connection"] {
        headers.remove(name);
    }
    let asked = Asked { method: parts.method, path, headers, body };
    let first = nodes.turn.fetch_add(1, Ordering::Relaxed);
    let count = nodes.all.len();
    let mut order: Vec<&Backend> = (0..count).map(|offset| &nodes.all[(first + offset) % count]).collect();
    // Those that are not ready come last: where none is, it is worth trying.
    order.sort_by_key(|backend| !*backend.up.borrow());
    let mut why = Vec::new();
    for backend in order {
        match send(&nodes.client, backend, &asked).await {
            Ok(response) => return response,
            Err((again, error)) => {
                let end = if again { "" } else { " (not tried elsewhere)" };
                why.push(format!("{}: {error}{end}", backend.url));
                if !again {
                    break;
                }
            }
        }
    }
    failure(&why.join("; "))
}

/// The answer of a node; else whether the request may go to another one, and what went wrong.
async fn send(
    client: &reqwest::Client,
    backend: &Backend,
    asked: &Asked,
) -> Result<Response<Body>, (bool, String)> {
    let repeatable = asked.method != Method::POST;
    let request = client.request(asked.method.clone(), format!("{}{}", backend.url, asked.path));
    let request = request.headers(asked.headers.clone()).body(asked.body.clone());
    let mut up = backend.up.clone();
    let was_up = *up.borrow();
    let down = async {
        // A node that was down at the start is given its chance.
        let _ = if was_up { up.wait_for(|up| !*up).await.map(drop) } else { std::future::pending().await };
        // A draining node answers what it has.
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let sent = tokio::select! {
        sent = request.send() => sent.map_err(|error| (repeatable || error.is_connect(), crate::harness::http::root(&error))),
        () = down => Err((repeatable, "the node went down".to_owned())),
    };
    let answer = sent?;
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    for name in ["content-length", "transfer-encoding", "connection"] {
        headers.remove(name);
    }
    let body = answer.bytes().await.map_err(|error| (false, crate::harness::http::root(&error)))?;
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn failure(why: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(why.to_owned()));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
