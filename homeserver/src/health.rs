//! What load balancers and supervisors ask a node: whether it is alive, and whether it is to be given requests.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use waxwing_api::Answering;
use waxwing_storage::Store;

/// A node that has heard nothing from its database for so long (it asks every second) sends its requests elsewhere.
const SILENT: Duration = Duration::from_secs(4);

/// How a node is. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    store: Store,
    draining: Arc<AtomicBool>,
}

impl Health {
    /// Of a node over this database.
    pub fn new(store: Store) -> Health {
        Health { store, draining: Arc::default() }
    }

    /// From now on the node asks to be given no more requests. It serves those that come all the same.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the node should be given requests; else why not.
    fn ready(&self) -> Result<(), &'static str> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("stopping");
        }
        if self.store.silent_for() > SILENT {
            return Err("no answer from the database");
        }
        Ok(())
    }

    /// `routes` with those of this module beside them; connections over which a draining node answers are closed.
    pub fn around(&self, routes: &Router) -> Router {
        routes.clone().layer(from_fn_with_state(self.clone(), say_goodbye)).merge(self.routes())
    }

    /// `/_waxwing/live` answers while the process runs. `/_waxwing/ready` answers 503 while the node should be given
    /// no requests; so does `/health`, where tools look for it on other homeservers.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/_waxwing/live", get(|| async { "alive\n" }))
            .route("/_waxwing/ready", get(readiness))
            .route("/health", get(readiness))
            .with_state(self.clone())
    }
}

async fn readiness(State(health): State<Health>) -> (StatusCode, String) {
    match health.ready() {
        Ok(()) => (StatusCode::OK, "OK".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// Whoever keeps the connection would send the next request to a node that is about to go.
async fn say_goodbye(State(health): State<Health>, request: Request, next: Next) -> Response {
    let (version, answering) = (request.version(), Answering::of(&request));
    let response = next.run(request).await;
    answering.finish(response, move |response| {
        // HTTP/2 has no such header; there the listener says it when it closes.
        if version < Version::HTTP_2 && health.draining.load(Ordering::Relaxed) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    })
}
