//! Requests to push gateways. Users name the gateways, so these are strangers: they may lead into our own network,
//! answer never, slowly or with too much.
//! <https://spec.matrix.org/v1.19/push-gateway-api/>

use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;
use waxwing_federation::net::{AddressPolicy, GuardedDns, SystemDns, client_config};

/// From the first look-up to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The whole request: a gateway passes it on to Apple or Google before it answers.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer that are read: it holds at most the one pushkey that was asked about.
const MAX_ANSWER: usize = 16 << 10;
/// Idle connections kept for one gateway.
const IDLE_PER_HOST: usize = 4;

/// What a gateway needs to be reached.
#[derive(Clone, Debug, Default)]
pub struct GatewaySettings {
    /// Whether private addresses may be called.
    pub allow_private: bool,
    /// Certificate authorities to trust beside the system's, DER.
    pub extra_roots: Vec<Vec<u8>>,
    /// The `User-Agent` header.
    pub user_agent: String,
}

/// A gateway did not take a notification.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatewayError {
    #[error("a private address is not connected to")]
    Private,
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("it answers {0}")]
    Status(u16),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    rejected: Vec<String>,
}

/// Speaks to gateways. A handle: clones share connections.
#[derive(Clone)]
pub struct Gateways {
    client: reqwest::Client,
    dns: GuardedDns,
}

impl Gateways {
    /// Sets it up; speaks to nobody yet.
    ///
    /// # Errors
    /// When the system's resolver or certificates cannot be read.
    pub fn new(settings: GatewaySettings) -> Result<Gateways, Box<dyn std::error::Error + Send + Sync>> {
        let policy = AddressPolicy { allow_private: settings.allow_private, allowed: Vec::new() };
        let dns = GuardedDns::new(Arc::new(SystemDns::new()?), policy);
        let roots: Vec<_> = settings.extra_roots.into_iter().map(Into::into).collect();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(client_config(&roots)?.as_ref().clone())
            .dns_resolver(dns.clone())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .user_agent(settings.user_agent)
            .build()?;
        Ok(Gateways { client, dns })
    }

    /// Sends one notification. Gives the pushkeys that the gateway does not take any more.
    pub(super) async fn notify(&self, url: &Url, body: &Value) -> Result<Vec<String>, GatewayError> {
        let host = url.host_str().unwrap_or_default();
        // Of address literals the resolver is not asked.
        if !self.dns.permits_host(host) {
            return Err(GatewayError::Private);
        }
        let started = Instant::now();
        let result = self.send(url, body).await;
        metrics::histogram!("waxwing_push_request_seconds").record(started.elapsed().as_secs_f64());
        result
    }

    async fn send(&self, url: &Url, body: &Value) -> Result<Vec<String>, GatewayError> {
        let unreachable = |error: reqwest::Error| GatewayError::Unreachable(describe(&error.without_url()));
        let mut response = self.client.post(url.clone()).json(body).send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(GatewayError::Status(response.status().as_u16()));
        }
        let mut answer = Vec::new();
        // It took the notification: what it says beyond that may be lost.
        while let Ok(Some(chunk)) = response.chunk().await {
            if answer.len() + chunk.len() > MAX_ANSWER {
                return Ok(Vec::new());
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(serde_json::from_slice::<Answer>(&answer).map(|answer| answer.rejected).unwrap_or_default())
    }
}

/// An error with its causes: the outermost says only that sending failed.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
