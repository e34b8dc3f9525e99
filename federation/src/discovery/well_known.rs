use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use moka::sync::Cache;
use ruma::OwnedServerName;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use url::Url;
use waxwing_model::Clock;

use crate::net::{Connector, Host, HttpClient, Route, Target};
use crate::transport::WebRequest;

/// The document is a line of JSON.
const MAX_BODY: usize = 50 * 1024;
/// Redirects followed before it counts as a loop.
const MAX_REDIRECTS: usize = 5;
/// From the first request to the last byte, redirects included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Servers whose answer is remembered.
const ENTRIES: u64 = 20_000;

const MINUTE: u64 = 60 * 1000;
const HOUR: u64 = 60 * MINUTE;
/// An answer without cache headers counts this long.
const DEFAULT_TTL: u64 = 24 * HOUR;
/// No answer counts longer than this.
const MAX_TTL: u64 = 48 * HOUR;
/// `no-cache` must not make us ask before every request.
const MIN_TTL: u64 = 5 * MINUTE;
/// The first failure counts this long, each further one twice as long as the one before.
const FIRST_ERROR_TTL: u64 = MINUTE;
/// A failure never counts longer than this.
const MAX_ERROR_TTL: u64 = HOUR;

#[derive(Clone)]
struct Entry {
    delegated: Option<OwnedServerName>,
    expires: u64,
    failures: u32,
    /// The last good answer and until when it may stand in while the web server is unwell.
    last_good: Option<(OwnedServerName, u64)>,
}

/// The outcome of one fetch.
enum Answer {
    Delegated(OwnedServerName, u64),
    /// The web server answered that there is no such document.
    Absent,
    /// It did not answer, or nonsense.
    Failed,
}

/// Fetches and remembers `.well-known/matrix/server`.
pub(super) struct WellKnownCache {
    http: HttpClient,
    connector: Connector,
    clock: Clock,
    port: u16,
    entries: Cache<String, Entry>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "m.server")]
    server: OwnedServerName,
}

impl WellKnownCache {
    pub(super) fn new(http: HttpClient, connector: Connector, clock: Clock, port: u16) -> WellKnownCache {
        WellKnownCache { http, connector, clock, port, entries: Cache::new(ENTRIES) }
    }

    /// The server that `host` delegates to, if it does.
    pub(super) async fn delegated(&self, host: &str) -> Option<OwnedServerName> {
        let before = self.entries.get(host);
        let now = self.clock.millis();
        if let Some(entry) = before.as_ref().filter(|entry| entry.expires > now) {
            return entry.delegated.clone();
        }
        let answer = tokio::time::timeout(TIMEOUT, self.fetch(host)).await.unwrap_or(Answer::Failed);
        let entry = next_entry(before, answer, self.clock.millis());
        self.entries.insert(host.to_owned(), entry.clone());
        entry.delegated
    }

    async fn fetch(&self, host: &str) -> Answer {
        let port = if self.port == 443 { String::new() } else { format!(":{}", self.port) };
        let Ok(url) = Url::parse(&format!("https://{host}{port}/.well-known/matrix/server")) else {
            return Answer::Failed;
        };
        let response = match fetch_following_redirects(&self.http, &self.connector, url).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(host, %error, "no well-known document");
                return Answer::Failed;
            }
        };
        if response.status() != StatusCode::OK {
            let absent = response.status().is_client_error();
            return if absent { Answer::Absent } else { Answer::Failed };
        }
        let ttl = ttl(response.headers());
        let Ok(body) = Limited::new(response.into_body(), MAX_BODY).collect().await else {
            return Answer::Failed;
        };
        match serde_json::from_slice::<Document>(&body.to_bytes()) {
            Ok(document) => Answer::Delegated(document.server, ttl),
            Err(_) => Answer::Failed,
        }
    }
}

fn next_entry(before: Option<Entry>, answer: Answer, now: u64) -> Entry {
    match answer {
        Answer::Delegated(server, ttl) => Entry {
            delegated: Some(server.clone()),
            expires: now + ttl,
            failures: 0,
            last_good: Some((server, now + MAX_TTL)),
        },
        Answer::Absent | Answer::Failed => {
            let failures = before.as_ref().map_or(0, |entry| entry.failures).saturating_add(1);
            let ttl = FIRST_ERROR_TTL.saturating_mul(1 << (failures - 1).min(10)).min(MAX_ERROR_TTL);
            let last_good = match answer {
                Answer::Absent => None,
                _ => before.and_then(|entry| entry.last_good).filter(|(_, until)| *until > now),
            };
            let delegated = last_good.as_ref().map(|(server, _)| server.clone());
            Entry { delegated, expires: now + ttl, failures, last_good }
        }
    }
}

/// How long an answer counts, by its `Cache-Control`.
fn ttl(headers: &HeaderMap) -> u64 {
    let directives = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|v| v.split(','));
    let mut ttl = DEFAULT_TTL;
    for directive in directives {
        let directive = directive.trim().to_ascii_lowercase();
        if directive == "no-store" || directive == "no-cache" {
            return MIN_TTL;
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            ttl = seconds.trim_matches('"').parse::<u64>().map_or(ttl, |s| s.saturating_mul(1000));
        }
    }
    ttl.clamp(MIN_TTL, MAX_TTL)
}

/// Why an unsigned document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("only https is fetched")]
    Scheme,
    #[error("more redirects than {MAX_REDIRECTS}")]
    Redirects,
    #[error("a redirect leads nowhere")]
    Location,
    #[error("{0}")]
    Http(#[from] hyper_util::client::legacy::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
}

/// `GET`s a public document without signature, following redirects; every hop goes through the private-address guard.
pub(crate) async fn fetch_following_redirects(
    http: &HttpClient,
    connector: &Connector,
    mut url: Url,
) -> Result<Response<Incoming>, FetchError> {
    for _ in 0..=MAX_REDIRECTS {
        let (route, host_header) = web_route(&url).ok_or(FetchError::Scheme)?;
        connector.learn(&route);
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let request = http::Request::builder()
            .method(Method::GET)
            .uri(format!("https://{}{}{query}", route.authority, url.path()))
            .header(HOST, host_header)
            .header(ACCEPT, "*/*")
            .body(Full::new(Bytes::new()))?;
        let response = http.request(request).await?;
        let followed = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        if !followed {
            return Ok(response);
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        url = location.and_then(|text| url.join(text).ok()).ok_or(FetchError::Location)?;
    }
    Err(FetchError::Redirects)
}

/// Calls a web server once, with a token for it; the private-address guard holds here, too.
pub(crate) async fn call_web(
    http: &HttpClient,
    connector: &Connector,
    user_agent: &str,
    request: WebRequest,
) -> Result<Response<Incoming>, FetchError> {
    let (route, host_header) = web_route(&request.url).ok_or(FetchError::Scheme)?;
    connector.learn(&route);
    let query = request.url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut builder = http::Request::builder()
        .method(request.method)
        .uri(format!("https://{}{}{query}", route.authority, request.url.path()))
        .header(HOST, host_header)
        .header(USER_AGENT, user_agent)
        .header(ACCEPT, "application/json");
    if let Some(token) = request.bearer {
        builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if request.body.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    Ok(http.request(builder.body(Full::new(request.body.unwrap_or_default()))?).await?)
}

/// The route of an ordinary web address, and its `Host` header. The authority always carries a port: the routes of
/// servers are kept in the same table, and there `example.org` alone means port 8448.
fn web_route(url: &Url) -> Option<(Arc<Route>, String)> {
    if url.scheme() != "https" {
        return None;
    }
    let host = url.host_str()?;
    let port = url.port_or_known_default()?;
    let host_header = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let target = Target { host: Host::parse(host), port, trusted: false };
    let route =
        Route { authority: format!("{host}:{port}"), tls_name: host.to_owned(), targets: vec![target] };
    Some((Arc::new(route), host_header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> OwnedServerName {
        name.try_into().unwrap()
    }

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(CACHE_CONTROL, value.parse().unwrap())])
    }

    #[test]
    fn cache_headers_count_within_bounds() {
        assert_eq!(ttl(&HeaderMap::new()), DEFAULT_TTL);
        assert_eq!(ttl(&headers("public, max-age=7200")), 2 * HOUR);
        assert_eq!(ttl(&headers("max-age=999999999")), MAX_TTL);
        assert_eq!(ttl(&headers("max-age=18446744073709551615")), MAX_TTL);
        assert_eq!(ttl(&headers("max-age=0")), MIN_TTL);
        assert_eq!(ttl(&headers("no-store")), MIN_TTL);
        assert_eq!(ttl(&headers("max-age=soon")), DEFAULT_TTL);
    }

    #[test]
    fn failures_back_off_up_to_an_hour() {
        let mut entry = None;
        let mut waits = Vec::new();
        for _ in 0..12 {
            let next = next_entry(entry, Answer::Failed, 0);
            waits.push(next.expires / MINUTE);
            entry = Some(next);
        }
        assert_eq!(waits[..7], [1, 2, 4, 8, 16, 32, 60]);
        assert_eq!(waits[11], 60);
    }

    #[test]
    fn the_last_good_answer_stands_in_for_a_sick_web_server_only() {
        let good = next_entry(None, Answer::Delegated(server("b.example"), HOUR), 0);
        let sick = next_entry(Some(good.clone()), Answer::Failed, 2 * HOUR);
        assert_eq!(sick.delegated, Some(server("b.example")));
        let absent = next_entry(Some(good), Answer::Absent, 2 * HOUR);
        assert_eq!(absent.delegated, None);
        let forgotten = next_entry(Some(sick), Answer::Failed, 3 * MAX_TTL);
        assert_eq!(forgotten.delegated, None);
    }

    #[test]
    fn web_addresses_never_share_an_authority_with_a_bare_server_name() {
        let (route, host) = web_route(&Url::parse("https://example.org/x").unwrap()).unwrap();
        assert_eq!((route.authority.as_str(), host.as_str()), ("example.org:443", "example.org"));
        let (route, host) = web_route(&Url::parse("https://[2001:db8::1]:8443/").unwrap()).unwrap();
        assert_eq!((route.authority.as_str(), host.as_str()), ("[2001:db8::1]:8443", "[2001:db8::1]:8443"));
        assert!(web_route(&Url::parse("http://example.org/").unwrap()).is_none());
    }
}
