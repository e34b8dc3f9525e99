//! The network between the servers: it loses requests and answers, and falls apart.

use crate::dice::fate;
use crate::node::{Node, Question, Refusal};
use async_trait::async_trait;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use url::Url;
use waxwing_federation::signing::{Incoming, verify_request};
use waxwing_federation::transport::{Request, Response, Transport, TransportError, WebRequest};

/// Old transactions that may come again.
pub const ECHOES: usize = 50;

/// What is wrong with the network at the moment.
#[derive(Default)]
pub struct Faults {
    /// Requests of a thousand that never arrive.
    pub lost: u64,
    /// Requests of a thousand whose answer never arrives.
    pub unanswered: u64,
    /// Who cannot reach whom.
    pub cut: BTreeSet<(OwnedServerName, OwnedServerName)>,
    /// Servers that answer no questions about rooms.
    pub silent: BTreeSet<OwnedServerName>,
}

pub struct Net {
    seed: u64,
    step: AtomicU64,
    pub faults: Mutex<Faults>,
    nodes: Mutex<BTreeMap<OwnedServerName, Arc<dyn Node>>>,
    /// Transactions that were accepted: they may come again.
    accepted: Mutex<Vec<(OwnedServerName, Request)>>,
}

impl Net {
    pub fn new(seed: u64) -> Arc<Net> {
        let (faults, nodes, accepted) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Net { seed, step: AtomicU64::new(0), faults, nodes, accepted })
    }

    pub fn add(&self, node: Arc<dyn Node>) {
        self.nodes.lock().insert(node.name().to_owned(), node);
    }

    /// A transaction that was accepted, and whose it is.
    pub fn accepted(&self, choose: impl FnOnce(usize) -> usize) -> Option<(OwnedServerName, Request)> {
        let accepted = self.accepted.lock();
        (!accepted.is_empty()).then(|| accepted[choose(accepted.len())].clone())
    }

    /// Time goes on: the same request may fare better.
    pub fn step(&self) {
        self.step.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything arrives from now on.
    pub fn heal(&self) {
        *self.faults.lock() = Faults::default();
    }

    fn draw(&self, from: &ServerName, request: &Request, what: &str) -> u64 {
        let body = request.body.as_deref().map_or(String::new(), |body| body.len().to_string());
        let texts = [from.as_str(), request.destination.as_str(), &request.path_and_query, &body, what];
        fate(self.seed, self.step.load(Ordering::Relaxed), &texts) % 1000
    }
}

/// One server's way into the network.
pub struct Link {
    pub net: Arc<Net>,
    pub from: OwnedServerName,
}

#[async_trait]
impl Transport for Link {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let (lost, unanswered, silent) = {
            let faults = self.net.faults.lock();
            if faults.cut.contains(&(self.from.clone(), request.destination.clone())) {
                return Err(TransportError::Connection("cut off".to_owned()));
            }
            (faults.lost, faults.unanswered, faults.silent.contains(&request.destination))
        };
        if self.net.draw(&self.from, &request, "request") < lost {
            return Err(TransportError::Timeout);
        }
        let node = self.net.nodes.lock().get(&request.destination).cloned();
        let node = node.ok_or_else(|| TransportError::Connection("no such server".to_owned()))?;
        let about_keys = request.path_and_query.starts_with("/_matrix/key/");
        if silent && !about_keys && !request.path_and_query.contains("/send/") {
            return Err(TransportError::Timeout);
        }
        let (status, body) = if about_keys {
            (200, node.key_document())
        } else {
            match serve(&*node, &request).await {
                Ok(body) => (200, body),
                Err(Refusal(status, errcode)) => (status, json!({ "errcode": errcode, "error": errcode })),
            }
        };
        if status == 200 && request.path_and_query.contains("/send/") {
            let mut accepted = self.net.accepted.lock();
            if accepted.len() < ECHOES {
                accepted.push((self.from.clone(), request.clone()));
            }
        }
        if self.net.draw(&self.from, &request, "answer") < unanswered {
            return Err(TransportError::Timeout);
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = Bytes::from(serde_json::to_vec(&body).expect("JSON"));
        Ok(Response::complete(status, HeaderMap::new(), body))
    }

    async fn fetch(&self, _: &Url, _: Duration) -> Result<Response, TransportError> {
        Err(TransportError::Connection("no web here".to_owned()))
    }

    async fn call(&self, _: WebRequest) -> Result<Response, TransportError> {
        Err(TransportError::Connection("no web here".to_owned()))
    }
}

/// What the listener and the router do in the program: who asks, and what.
async fn serve(node: &dyn Node, request: &Request) -> Result<Value, Refusal> {
    let mut headers = HeaderMap::new();
    if let Some(value) = &request.authorization {
        headers
            .insert(AUTHORIZATION, HeaderValue::from_str(value).map_err(|_| Refusal(401, "M_UNAUTHORIZED"))?);
    }
    let incoming = Incoming {
        method: request.method.as_str(),
        path_and_query: &request.path_and_query,
        headers: &headers,
        body: request.body.as_deref().unwrap_or_default(),
    };
    let origin = verify_request(node.ring(), node.name(), incoming).await;
    let origin = origin.map_err(|_| Refusal(401, "M_UNAUTHORIZED"))?;
    node.heard_from(&origin);
    let question = Question::read(request).ok_or(Refusal(404, "M_UNRECOGNIZED"))?;
    node.answer(&origin, question).await
}
