//! Where a server is: <https://spec.matrix.org/v1.19/server-server-api/#server-discovery>.

mod well_known;

use moka::Expiry;
use moka::future::Cache;
use ruma::{OwnedServerName, ServerName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use waxwing_model::Clock;

use crate::net::{DnsError, GuardedDns, Host, HttpClient, Route, Target, split_port};
use well_known::WellKnownCache;

pub(crate) use well_known::{call_web, fetch_following_redirects};

/// Servers whose route is remembered.
const ROUTES: u64 = 20_000;
/// How long a route counts. Well-known answers have their own, longer life; the DNS records below have theirs.
const ROUTE_TTL: Duration = Duration::from_mins(5);
/// How long a route counts that was made while the DNS did not answer.
const SHAKY_ROUTE_TTL: Duration = Duration::from_secs(30);

/// The ports that the protocol fixes. Only tests have reason to change them.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Where `.well-known` is asked for.
    pub well_known: u16,
    /// Where a server listens that says nothing else.
    pub federation: u16,
}

impl Default for Ports {
    fn default() -> Ports {
        Ports { well_known: 443, federation: 8448 }
    }
}

/// What discovery is told by the configuration.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryConfig {
    /// Servers that are reached at a fixed `host:port`, whatever the DNS says. `Host`, SNI and certificate stay the
    /// server's name. For tests and networks with a split horizon.
    pub hosts: BTreeMap<OwnedServerName, String>,
    /// The ports of the protocol.
    pub ports: Ports,
}

/// Finds servers, and remembers where they are.
pub struct Discovery {
    config: DiscoveryConfig,
    dns: GuardedDns,
    well_known: WellKnownCache,
    routes: Cache<OwnedServerName, Found>,
}

#[derive(Clone)]
struct Found {
    route: Arc<Route>,
    ttl: Duration,
}

struct ByTtl;

impl Expiry<OwnedServerName, Found> for ByTtl {
    fn expire_after_create(&self, _: &OwnedServerName, found: &Found, _: Instant) -> Option<Duration> {
        Some(found.ttl)
    }
}

impl Discovery {
    /// `http` and `learn` fetch well-known documents: the same client that sends the signed requests.
    pub(crate) fn new(
        config: DiscoveryConfig,
        dns: GuardedDns,
        http: HttpClient,
        connector: crate::net::Connector,
        clock: Clock,
    ) -> Discovery {
        let well_known = WellKnownCache::new(http, connector, clock, config.ports.well_known);
        let routes = Cache::builder().max_capacity(ROUTES).expire_after(ByTtl).build();
        Discovery { config, dns, well_known, routes }
    }

    /// The route to a server. Always finds one: that nothing answers there, connecting will tell.
    pub async fn route(&self, server: &ServerName) -> Arc<Route> {
        let found = self.routes.get_with_by_ref(server, self.find(server)).await;
        found.route
    }

    /// Forgets the route after a connection failed: the server may have moved.
    pub async fn forget(&self, server: &ServerName) {
        self.routes.invalidate(server).await;
    }

    async fn find(&self, server: &ServerName) -> Found {
        if let Some(fixed) = self.fixed(server) {
            return fixed;
        }
        // Step 1 and 2: literals and explicit ports need no look-up here.
        if server.is_ip_literal() || server.port().is_some() {
            return self.direct(server);
        }
        // Step 3: delegation.
        if let Some(delegated) = self.well_known.delegated(server.host()).await {
            if let Some(fixed) = self.fixed(&delegated) {
                return fixed;
            }
            if delegated.is_ip_literal() || delegated.port().is_some() {
                return self.direct(&delegated);
            }
            return self.by_services(&delegated).await;
        }
        // Steps 4 to 6.
        self.by_services(server).await
    }

    fn fixed(&self, server: &ServerName) -> Option<Found> {
        let place = self.config.hosts.get(server)?;
        let (host, port) = split_port(place);
        let port = port.or(server.port()).unwrap_or(self.config.ports.federation);
        Some(found(server, vec![Target { host: Host::parse(host), port, trusted: true }], ROUTE_TTL))
    }

    fn direct(&self, server: &ServerName) -> Found {
        let port = server.port().unwrap_or(self.config.ports.federation);
        found(server, vec![Target { host: Host::parse(server.host()), port, trusted: false }], ROUTE_TTL)
    }

    /// SRV records, else the default port.
    async fn by_services(&self, server: &ServerName) -> Found {
        let mut ttl = ROUTE_TTL;
        for service in ["_matrix-fed._tcp", "_matrix._tcp"] {
            match self.dns.services(&format!("{service}.{}", server.host())).await {
                Ok(services) if !services.is_empty() => {
                    let targets = services.into_iter().map(|service| Target {
                        host: Host::Name(service.host),
                        port: service.port,
                        trusted: false,
                    });
                    return found(server, targets.collect(), ttl);
                }
                Ok(_) | Err(DnsError::NotFound(_) | DnsError::Refused(_)) => {}
                Err(DnsError::Failed(..)) => ttl = SHAKY_ROUTE_TTL,
            }
        }
        Found { ttl, ..self.direct(server) }
    }
}

/// A route that is addressed as `server`: the name of the server itself, or the one that it delegates to.
fn found(server: &ServerName, targets: Vec<Target>, ttl: Duration) -> Found {
    let route = Route { authority: server.as_str().to_owned(), tls_name: server.host().to_owned(), targets };
    Found { route: Arc::new(route), ttl }
}
