//! Long polls wait outside of everything that stands around a handler. Thousands of clients hold one each, nearly always
//! idle, and what the router and its middleware keep of a request until it is answered is many times what waiting takes. So
//! the handler of a poll leaves the rest of its work in a place that came with the request and returns; when all around it
//! is gone, [`answer`] goes on with that, and what a middleware has to do to an answer it does then.

use crate::error::ApiError;
use crate::routes::compression;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, header};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tower::{Layer, Service, ServiceExt};
use tracing::Instrument;

type Finish = Box<dyn FnOnce(&mut Response) + Send>;

/// What is left to do of one request.
struct Rest {
    answer: BoxFuture<'static, Response>,
    finish: Vec<Finish>,
}

/// A place for the rest of one request.
#[derive(Clone, Default)]
pub(crate) struct Place(Arc<Mutex<Option<Rest>>>);

impl Place {
    /// Of a request that is served by [`answer`].
    pub fn of(request: &Request) -> Option<Place> {
        request.extensions().get().filter(|_| request.method() != Method::HEAD).cloned()
    }

    /// Leaves the rest. Nobody sees the response that this gives.
    pub fn leave(&self, answer: BoxFuture<'static, Response>) -> Response {
        *self.0.lock() = Some(Rest { answer, finish: Vec::new() });
        Response::default()
    }
}

/// How a middleware gets at the answer to a request, which may be still to come when what it stands around returns.
///
/// Take it from the request before that is handed on.
pub struct Answering(Option<Place>);

impl Answering {
    /// Of this request.
    pub fn of(request: &Request) -> Answering {
        Answering(request.extensions().get().cloned())
    }

    /// Does `finish` to the answer: to `response`, which what stands inside returned, unless that is still to come.
    #[must_use]
    pub fn finish(
        self,
        mut response: Response,
        finish: impl FnOnce(&mut Response) + Send + 'static,
    ) -> Response {
        if let Some(Place(place)) = &self.0
            && let Some(rest) = place.lock().as_mut()
        {
            rest.finish.push(Box::new(finish));
        } else {
            finish(&mut response);
        }
        response
    }

    /// What is still to come happens within this span.
    pub(crate) fn within(&self, span: &tracing::Span) {
        let Some(Place(place)) = &self.0 else { return };
        let mut place = place.lock();
        if let Some(Rest { answer, finish }) = place.take() {
            *place = Some(Rest { answer: answer.instrument(span.clone()).boxed(), finish });
        }
    }
}

/// Serves a request, long polls without what `routes` keep of them. Routers that are called in another way serve them too.
pub async fn answer<B>(mut routes: Router, request: http::Request<B>) -> Response
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let place = Place::default();
    let mut request = request.map(Body::new);
    // A copy: header values share the buffer in which the request was read.
    let accepted = request.headers().get(header::ACCEPT_ENCODING);
    let accepted = accepted.and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok());
    request.extensions_mut().insert(place.clone());
    let response = match Box::pin(routes.call(request)).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    drop(routes);
    let rest = place.0.lock().take();
    let Some(Rest { answer, finish }) = rest else { return response };
    drop(response);
    let mut response = match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(response) => response,
        Err(_) => ApiError::internal("the handler panicked").into_response(),
    };
    for finish in finish {
        finish(&mut response);
    }
    Box::pin(compressed(accepted, response)).await
}

/// The answer as the client takes it.
async fn compressed(accepted: Option<HeaderValue>, response: Response) -> Response {
    let mut request = Request::new(Body::empty());
    if let Some(accepted) = accepted {
        request.headers_mut().insert(header::ACCEPT_ENCODING, accepted);
    }
    let mut response = Some(response);
    let given = tower::service_fn(move |_: Request| {
        std::future::ready(Ok::<_, Infallible>(response.take().unwrap_or_default()))
    });
    match compression().layer(given).oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::middleware::Next;
    use axum::routing::get;
    use std::time::Duration;

    async fn around(request: Request, next: Next) -> Response {
        let answering = Answering::of(&request);
        let response = next.run(request).await;
        answering.finish(response, |response| {
            let length = response.body().size_hint().exact().unwrap_or_default();
            response.headers_mut().insert("x-length", HeaderValue::from(length));
        })
    }

    fn routes(panics: bool) -> Router {
        let poll = move |request: Request| async move {
            let rest = async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert!(!panics, "as it should");
                axum::Json("a".repeat(5000)).into_response()
            };
            match Place::of(&request) {
                Some(place) => place.leave(Box::pin(rest)),
                None => rest.await,
            }
        };
        Router::new().route("/", get(poll)).layer(axum::middleware::from_fn(around))
    }

    async fn ask(routes: Router, method: Method, encoding: Option<&'static str>) -> (Response, usize) {
        let mut request = Request::builder().method(method).uri("/");
        if let Some(encoding) = encoding {
            request = request.header(header::ACCEPT_ENCODING, encoding);
        }
        let response = answer(routes, request.body(Body::empty()).unwrap()).await;
        let (parts, body) = response.into_parts();
        let length = axum::body::to_bytes(body, 10_000).await.unwrap().len();
        (Response::from_parts(parts, Body::empty()), length)
    }

    #[tokio::test]
    async fn what_stands_around_sees_the_answer_and_not_that_it_came_later() {
        let (whole, length) = ask(routes(false), Method::GET, None).await;
        assert_eq!((whole.status().as_u16(), length), (200, 5002));
        assert_eq!(whole.headers()["x-length"], "5002");
        let (small, length) = ask(routes(false), Method::GET, Some("gzip")).await;
        assert_eq!(small.headers()[header::CONTENT_ENCODING], "gzip");
        assert_eq!(small.headers()["x-length"], "5002");
        assert!(length < 1000, "{length}");
        // Without a place the handler waits where it stands.
        let (head, length) = ask(routes(false), Method::HEAD, None).await;
        assert_eq!((head.status().as_u16(), length), (200, 0));
        let direct = routes(false).oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(direct.headers()["x-length"], "5002");
    }

    #[tokio::test]
    async fn a_poll_that_panics_is_answered() {
        let (response, _) = ask(routes(true), Method::GET, None).await;
        assert_eq!(response.status().as_u16(), 500);
        assert!(response.headers().contains_key("x-length"));
    }
}
