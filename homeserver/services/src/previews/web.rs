//! Requests to pages on the web. People name them, so they are strangers: they may lead into our own network, on and
//! on, answer never, slowly or with too much.

use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use std::sync::Arc;
use std::time::Duration;
use url::Url;
use waxwing_federation::net::{AddressPolicy, GuardedDns, SystemDns, client_config};

/// From the first look-up to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One request, from the first look-up to the last byte that is read.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Redirects that are followed: enough for a shortener, a scheme, a language and a consent page.
const MAX_REDIRECTS: usize = 5;
/// Longer addresses are no links that people share.
const MAX_URL: usize = 4096;
/// Idle connections kept for one host: a page and its picture.
const IDLE_PER_HOST: usize = 1;

/// What is needed to read pages.
#[derive(Clone, Debug, Default)]
pub struct WebSettings {
    /// Whether private addresses may be called.
    pub allow_private: bool,
    /// Hosts that are not called, with all below them.
    pub denied_hosts: Vec<String>,
    /// Certificate authorities to trust beside the system's, DER.
    pub extra_roots: Vec<Vec<u8>>,
    /// The `User-Agent` header.
    pub user_agent: String,
}

/// Why a page was not read. The text is for our log.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum WebError {
    /// It is no address of a page.
    #[error("no address of a page")]
    Address,
    /// The configuration or the guard of private addresses forbids it.
    #[error("a host that is not called")]
    Refused,
    /// It redirects too often, or nowhere.
    #[error("redirects that lead nowhere")]
    Redirects,
    /// It says no.
    #[error("it answers {0}")]
    Status(u16),
    /// It cannot be reached.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
}

/// A page or a file as it arrives.
pub(super) struct Answer {
    /// Where it was in the end.
    pub url: Url,
    /// As the web server says.
    pub content_type: String,
    response: reqwest::Response,
}

impl Answer {
    /// The body up to `limit` bytes; what comes after them is not read. Also says whether that was all.
    pub async fn read(mut self, limit: usize) -> Result<(Vec<u8>, bool), WebError> {
        let announced = self.response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let announced = announced.and_then(|text| text.parse::<usize>().ok()).unwrap_or_default();
        let mut body = Vec::with_capacity(announced.min(limit));
        while let Some(piece) = self.response.chunk().await.map_err(unreachable)? {
            let room = limit - body.len();
            body.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.len() > room {
                return Ok((body, false));
            }
        }
        Ok((body, true))
    }
}

/// Reads pages. A handle: clones share connections.
#[derive(Clone)]
pub struct Web {
    client: reqwest::Client,
    dns: GuardedDns,
    denied: Arc<[String]>,
}

impl Web {
    /// Sets it up; speaks to nobody yet.
    ///
    /// # Errors
    /// When the system's resolver or certificates cannot be read.
    pub fn new(settings: WebSettings) -> Result<Web, Box<dyn std::error::Error + Send + Sync>> {
        let policy = AddressPolicy { allow_private: settings.allow_private, allowed: Vec::new() };
        let dns = GuardedDns::new(Arc::new(SystemDns::new()?), policy);
        let roots: Vec<_> = settings.extra_roots.into_iter().map(Into::into).collect();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(client_config(&roots)?.as_ref().clone())
            .dns_resolver(dns.clone())
            // Followed here, so that each address passes the guard.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .user_agent(settings.user_agent)
            .build()?;
        let denied = settings.denied_hosts.iter().map(|host| host.trim_matches('.').to_ascii_lowercase());
        Ok(Web { client, dns, denied: denied.collect() })
    }

    /// Whether a page at this address may be read, as far as that can be told before its host is looked up.
    pub(super) fn permits(&self, url: &Url) -> Result<(), WebError> {
        let Some(host) = url.host_str() else { return Err(WebError::Address) };
        let web = matches!(url.scheme(), "http" | "https");
        if !web || url.as_str().len() > MAX_URL || !url.username().is_empty() || url.password().is_some() {
            return Err(WebError::Address);
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let below = |denied: &String| {
            host.strip_suffix(denied.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        // Of address literals the resolver is not asked.
        if self.denied.iter().any(below) || !self.dns.permits_host(&host) {
            return Err(WebError::Refused);
        }
        Ok(())
    }

    /// Asks for a page or a file.
    pub(super) async fn get(&self, mut url: Url, accept: &str) -> Result<Answer, WebError> {
        for _ in 0..=MAX_REDIRECTS {
            self.permits(&url)?;
            let request = self.client.get(url.clone()).header(ACCEPT, accept);
            let response = request.send().await.map_err(unreachable)?;
            let status = response.status();
            if status.is_redirection() {
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                url = location.and_then(|text| url.join(text).ok()).ok_or(WebError::Redirects)?;
                continue;
            }
            if !status.is_success() {
                return Err(WebError::Status(status.as_u16()));
            }
            let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let content_type = kind.unwrap_or_default().to_owned();
            return Ok(Answer { url, content_type, response });
        }
        Err(WebError::Redirects)
    }
}

/// Without the address, which is part of somebody's message.
fn unreachable(error: reqwest::Error) -> WebError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    WebError::Unreachable(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(allow_private: bool) -> Web {
        let denied_hosts = vec!["intranet.example".to_owned(), ".Bad.test".to_owned()];
        Web::new(WebSettings { allow_private, denied_hosts, ..WebSettings::default() }).unwrap()
    }

    #[tokio::test]
    async fn addresses_that_are_not_called() {
        let web = web(false);
        let permitted = |text: &str| web.permits(&Url::parse(text).unwrap());
        for fine in [
            "https://example.org/a?b=c",
            "http://example.org:8080/",
            "https://notbad.test/",
            "http://9.9.9.9/",
        ] {
            assert!(permitted(fine).is_ok(), "{fine}");
        }
        for (bad, refused) in [
            ("ftp://example.org/", false),
            ("file:///etc/passwd", false),
            ("data:text/html,hello", false),
            ("https://user:word@example.org/", false),
            ("http://127.0.0.1/", true),
            ("http://2130706433/", true),
            ("http://0x7f.1/", true),
            ("http://[::1]/", true),
            ("http://[::ffff:10.0.0.1]/", true),
            ("http://169.254.169.254/latest/meta-data", true),
            ("http://intranet.example/", true),
            ("http://a.Intranet.example./", true),
            ("http://bad.test/", true),
        ] {
            match permitted(bad) {
                Err(WebError::Refused) => assert!(refused, "{bad}"),
                Err(WebError::Address) => assert!(!refused, "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
        assert!(permitted(&format!("https://example.org/{}", "x".repeat(MAX_URL))).is_err());
    }

    #[tokio::test]
    async fn names_that_lead_to_private_addresses_are_not_called() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url =
            Url::parse(&format!("http://localhost:{}/", listener.local_addr().unwrap().port())).unwrap();
        let refused = web(false).get(url.clone(), "*/*").await;
        assert!(matches!(refused, Err(WebError::Unreachable(_))));
        let untouched = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(untouched.is_err(), "something connected");
    }
}
