//! Registers endpoints at all paths that ruma knows for them.

use crate::access::{Rules, rules};
use crate::drain::drain;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Args, ClientAuth, Received, Scheme, receive, scheme, typed};
use crate::load;
use crate::observe::observe;
use crate::polls::Place;
use crate::state::Api;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Method;
use ruma::api::path_builder::PathBuilder;
use ruma::api::{IncomingRequest, OutgoingResponse, OutgoingResponseExt};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{Predicate, SizeAbove};

/// Smaller answers are not worth compressing.
const COMPRESS_ABOVE: u64 = 1024;

type Running = BoxFuture<'static, ApiResult<Response>>;
type Run = Arc<dyn Fn(Api, Received) -> Running + Send + Sync>;

/// Registers typed handlers: `async fn(Api, Args<R>) -> Result<R::OutgoingResponse, ApiError>`.
pub(crate) trait RouterExt: Sized {
    /// At all paths of the request's metadata.
    fn ruma<R, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: ClientAuth,
        F: Fn(Api, Args<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<R::OutgoingResponse>> + Send;

    /// The same for answers that ruma's type cannot express.
    fn ruma_json<R, F, Fut, T>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: ClientAuth,
        F: Fn(Api, Args<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<T>> + Send,
        T: Serialize;

    /// At the same paths, with the same checks, a handler that reads the request by itself.
    fn untyped<R, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest,
        R::Authentication: ClientAuth,
        F: Fn(Api, Received) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static;

    /// At this path, which ruma does not know, a handler that reads the request by itself. A token is needed.
    fn authenticated<F, Fut>(self, method: Method, path: &str, handler: F) -> Self
    where
        F: Fn(Api, Received) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static;

    /// The same, and also without the last variable of the path, which is then empty: state keys.
    fn untyped_empty_last<R, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest,
        R::Authentication: ClientAuth,
        F: Fn(Api, Received) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static;

    /// As [`RouterExt::ruma`], and also without the last variable of the path, which is then empty.
    fn ruma_empty_last<R, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: ClientAuth,
        F: Fn(Api, Args<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<R::OutgoingResponse>> + Send;
}

impl RouterExt for Router<Api> {
    fn untyped<R, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest,
        R::Authentication: ClientAuth,
        F: Fn(Api, Received) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static,
    {
        let paths = all_paths::<R>();
        let run: Run = Arc::new(move |api, received| Box::pin(handler(api, received)));
        register(self, Endpoint::of::<R>(&paths), paths, false, run)
    }

    fn authenticated<F, Fut>(self, method: Method, path: &str, handler: F) -> Self
    where
        F: Fn(Api, Received) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static,
    {
        let run: Run = Arc::new(move |api, received| Box::pin(handler(api, received)));
        let rules = rules(&method, path, true);
        let endpoint = Endpoint { filter: filter(&method), scheme: Scheme::Required, rules };
        register(self, endpoint, vec![path.to_owned()], false, run)
    }

    fn ruma<R, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: ClientAuth,
        F: Fn(Api, Args<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<R::OutgoingResponse>> + Send,
    {
        let paths = all_paths::<R>();
        register(self, Endpoint::of::<R>(&paths), paths, false, run(handler))
    }

    fn ruma_json<R, F, Fut, T>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: ClientAuth,
        F: Fn(Api, Args<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<T>> + Send,
        T: Serialize,
    {
        let paths = all_paths::<R>();
        let run: Run = Arc::new(move |api, received| {
            let handler = handler.clone();
            Box::pin(async move {
                let args = typed::<R>(received)?;
                Ok(axum::Json(handler(api, args).await?).into_response())
            })
        });
        register(self, Endpoint::of::<R>(&paths), paths, false, run)
    }

    fn ruma_empty_last<R, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: ClientAuth,
        F: Fn(Api, Args<R>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<R::OutgoingResponse>> + Send,
    {
        let paths = all_paths::<R>();
        register_empty_last(self, Endpoint::of::<R>(&paths), paths, &run(handler))
    }

    fn untyped_empty_last<R, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest,
        R::Authentication: ClientAuth,
        F: Fn(Api, Received) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static,
    {
        let paths = all_paths::<R>();
        let run: Run = Arc::new(move |api, received| Box::pin(handler(api, received)));
        register_empty_last(self, Endpoint::of::<R>(&paths), paths, &run)
    }
}

#[derive(Clone, Copy)]
struct Endpoint {
    filter: MethodFilter,
    scheme: Scheme,
    rules: Rules,
}

impl Endpoint {
    fn of<R>(paths: &[String]) -> Endpoint
    where
        R: IncomingRequest,
        R::Authentication: ClientAuth,
    {
        let scheme = scheme::<R::Authentication>();
        let newest = paths.last().map_or("", String::as_str);
        // A client whose token is no longer good asks this first.
        let scheme = if newest == "/_matrix/client/versions" { Scheme::None } else { scheme };
        let token = matches!(scheme, Scheme::Required | Scheme::Appservice);
        let rules = rules(&R::METHOD, newest, token);
        Endpoint { filter: filter(&R::METHOD), scheme, rules }
    }
}

fn filter(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET)
}

/// The path with its variables renamed in order, so that requests that name them differently share it.
fn neutral(path: &str) -> String {
    let mut names = ('a'..='z').cycle();
    let neutral = |segment: &str| match (segment.starts_with('{'), names.next()) {
        (true, Some(name)) => format!("{{{name}}}"),
        _ => segment.to_owned(),
    };
    path.split('/').map(neutral).collect::<Vec<_>>().join("/")
}

/// All paths of a request, oldest first, each once.
pub(crate) fn all_paths<R: IncomingRequest>() -> Vec<String> {
    let mut seen = BTreeSet::new();
    R::PATH_BUILDER.all_paths().filter(|path| seen.insert(*path)).map(str::to_owned).collect()
}

fn run<R, F, Fut>(handler: F) -> Run
where
    R: IncomingRequest + Send + 'static,
    R::Authentication: ClientAuth,
    F: Fn(Api, Args<R>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ApiResult<R::OutgoingResponse>> + Send,
{
    Arc::new(move |api, received| {
        let handler = handler.clone();
        Box::pin(async move {
            let args = typed::<R>(received)?;
            answer(handler(api, args).await?)
        })
    })
}

/// A ruma response as axum sends it.
pub(crate) fn answer(response: impl OutgoingResponse) -> ApiResult<Response> {
    Ok(response.try_into_http_response::<Vec<u8>>()?.map(Body::from))
}

fn register(
    router: Router<Api>,
    endpoint: Endpoint,
    paths: Vec<String>,
    short: bool,
    run: Run,
) -> Router<Api> {
    paths
        .into_iter()
        .fold(router, |router, path| router.route(&neutral(&path), serve(endpoint, short, Arc::clone(&run))))
}

/// At these paths, and at those without their last variable.
fn register_empty_last(
    router: Router<Api>,
    endpoint: Endpoint,
    paths: Vec<String>,
    run: &Run,
) -> Router<Api> {
    let short = paths
        .iter()
        .filter_map(|path| path.rsplit_once('/'))
        .flat_map(|(path, _)| [path.to_owned(), format!("{path}/")])
        .collect();
    let router = register(router, endpoint, paths, false, Arc::clone(run));
    register(router, endpoint, short, true, Arc::clone(run))
}

fn serve(endpoint: Endpoint, short: bool, run: Run) -> MethodRouter<Api> {
    on(endpoint.filter, move |State(api): State<Api>, request: Request| async move {
        let place = if endpoint.rules.polls { Place::of(&request) } else { None };
        match handler(&run, api, endpoint, short, request).await {
            Ok((running_place, running)) => {
                let answer = running.map(|answer| answer.unwrap_or_else(ApiError::into_response));
                match place {
                    Some(place) => place.leave(answer.boxed()),
                    None => {
                        let answer = answer.await;
                        drop(running_place);
                        answer
                    }
                }
            }
            Err(error) => error.into_response(),
        }
    })
}

/// The handler, running, of a request that may be made. On the heap, and gone while the handler waits: of a long poll
/// nothing is kept but what it waits with.
fn handler(
    run: &Run,
    api: Api,
    endpoint: Endpoint,
    short: bool,
    request: Request,
) -> BoxFuture<'_, ApiResult<(Option<load::Running>, Running)>> {
    Box::pin(async move {
        let place = if endpoint.rules.waits { None } else { Some(api.limits.load.run()?) };
        let mut received = receive(&api, &endpoint.rules, endpoint.scheme, request).await?;
        if short {
            received.path.push(String::new());
        }
        Ok((place, run(api, received)))
    })
}

/// What every listener has: answers for what is not there, and [`observe`] around everything.
pub(crate) fn finish(router: Router<Api>, api: Api) -> Router {
    router
        .fallback(|| async { ApiError::unrecognized() })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                http::StatusCode::METHOD_NOT_ALLOWED,
                ruma::api::error::ErrorCode::Unrecognized,
                "The endpoint does not know this method",
            )
        })
        .layer(axum::middleware::from_fn(drain))
        .layer(axum::middleware::from_fn(observe))
        .layer(compression())
        .with_state(api)
}

/// What makes long JSON short for those who take it.
pub(crate) fn compression() -> CompressionLayer<impl Predicate> {
    let json = |_: http::StatusCode, _: http::Version, headers: &http::HeaderMap, _: &http::Extensions| {
        headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
    };
    CompressionLayer::new().gzip(true).compress_when(SizeAbove::new(COMPRESS_ABOVE).and(json))
}
