use async_trait::async_trait;
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use rand::RngExt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::address::AddressPolicy;
use super::hosts::HostsFile;

/// How long one name server gets for one question. With two tries a dead name server costs six seconds, not thirty.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);
const QUERY_ATTEMPTS: usize = 2;
/// Names kept in the resolver's own cache (it honours the records' times to live).
const CACHED_NAMES: u64 = 8192;
/// SRV targets used of one answer: more would only make a hostile answer expensive.
const MAX_SERVICES: usize = 8;
/// Addresses used of one answer.
const MAX_ADDRESSES: usize = 8;

/// A name could not be resolved.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DnsError {
    /// There is no such name, or it has no record of the kind.
    #[error("no such name: {0}")]
    NotFound(String),
    /// It has addresses, but none that may be connected to.
    #[error("{0} leads to a private address")]
    Refused(String),
    /// The question was not answered.
    #[error("{0}: {1}")]
    Failed(String, String),
}

/// A target of an SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The target's name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Smaller is tried earlier.
    pub priority: u16,
    /// Share of the load among equals.
    pub weight: u16,
}

/// Name resolution: the system's, or a test's.
#[async_trait]
pub trait Dns: Send + Sync + 'static {
    /// The IPv4 and IPv6 addresses of a name.
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DnsError>;
    /// The SRV records of a name, in the order in which to try them.
    async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError>;
}

/// The system's name resolution: its hosts file, then the name servers of its `resolv.conf`.
pub struct SystemDns {
    resolver: TokioResolver,
    hosts: HostsFile,
}

impl SystemDns {
    /// Reads the system's configuration. Without one, every name outside the hosts file is not found.
    pub fn new() -> Result<SystemDns, DnsError> {
        let failed = |error: NetError| DnsError::Failed("resolver".into(), error.to_string());
        let builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
            tracing::warn!(%error, "the system has no usable resolver configuration: only the hosts file counts");
            Resolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
        });
        let mut builder = builder;
        tune(builder.options_mut());
        Ok(SystemDns { resolver: builder.build().map_err(failed)?, hosts: HostsFile::new("/etc/hosts") })
    }
}

fn tune(options: &mut ResolverOpts) {
    options.timeout = QUERY_TIMEOUT;
    options.attempts = QUERY_ATTEMPTS;
    options.cache_size = CACHED_NAMES;
    options.use_hosts_file = ResolveHosts::Never;
    options.negative_max_ttl = Some(Duration::from_mins(5));
}

/// A name with a dot in it is absolute: the search list of the machine's network must not turn a server's name into
/// one of the local domain. A bare word may only be local, so it takes the search list.
fn absolute(name: &str) -> Result<Name, DnsError> {
    let text = if name.contains('.') && !name.ends_with('.') { format!("{name}.") } else { name.to_owned() };
    Name::from_ascii(text).map_err(|_| DnsError::NotFound(name.to_owned()))
}

fn refusal(name: &str, error: &NetError) -> DnsError {
    if error.is_nx_domain() || error.is_no_records_found() || matches!(error, NetError::NoConnections) {
        DnsError::NotFound(name.to_owned())
    } else {
        DnsError::Failed(name.to_owned(), error.to_string())
    }
}

#[async_trait]
impl Dns for SystemDns {
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DnsError> {
        let written = self.hosts.addresses(name);
        if !written.is_empty() {
            return Ok(written);
        }
        let found = self.resolver.lookup_ip(absolute(name)?).await.map_err(|error| refusal(name, &error))?;
        let addresses: Vec<IpAddr> = found.iter().take(MAX_ADDRESSES).collect();
        if addresses.is_empty() { Err(DnsError::NotFound(name.to_owned())) } else { Ok(addresses) }
    }

    async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError> {
        let found = self
            .resolver
            .lookup(absolute(name)?, RecordType::SRV)
            .await
            .map_err(|error| refusal(name, &error))?;
        let records = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(Service {
                host: srv.target.to_ascii().trim_end_matches('.').to_owned(),
                port: srv.port,
                priority: srv.priority,
                weight: srv.weight,
            }),
            _ => None,
        });
        Ok(order_services(records.take(MAX_SERVICES).collect()))
    }
}

/// Orders SRV records: by priority, among equals at random by weight (RFC 2782). A single target `.` means that the
/// service is decidedly not offered.
fn order_services(mut services: Vec<Service>) -> Vec<Service> {
    services.retain(|service| !service.host.is_empty() && service.port != 0);
    let mut rng = rand::rng();
    let mut keyed: Vec<(u16, f64, Service)> = services
        .into_iter()
        .map(|service| {
            // Exponential race: the smallest of these is each one with a chance in proportion to its weight.
            let uniform: f64 = rng.random_range(f64::EPSILON..1.0);
            (service.priority, -uniform.ln() / (f64::from(service.weight) + 0.01), service)
        })
        .collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    keyed.into_iter().map(|(_, _, service)| service).collect()
}

/// Name resolution that leaves out every address that the policy does not permit. Also serves as the resolver of an
/// ordinary `reqwest` client (push gateways, previews). Such a client asks no resolver about address literals: check
/// those with [`GuardedDns::permits_host`], also in its redirect policy.
#[derive(Clone)]
pub struct GuardedDns {
    dns: Arc<dyn Dns>,
    policy: AddressPolicy,
}

impl GuardedDns {
    /// Puts the guard before `dns`.
    pub fn new(dns: Arc<dyn Dns>, policy: AddressPolicy) -> GuardedDns {
        GuardedDns { dns, policy }
    }

    /// The permitted addresses of a name.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DnsError> {
        let mut found = self.dns.addresses(name).await?;
        found.retain(|address| self.policy.permits(*address));
        if found.is_empty() { Err(DnsError::Refused(name.to_owned())) } else { Ok(found) }
    }

    /// The addresses of a name without the guard, for hosts from the configuration.
    pub(crate) async fn addresses_unguarded(&self, name: &str) -> Result<Vec<IpAddr>, DnsError> {
        self.dns.addresses(name).await
    }

    /// The SRV records of a name.
    pub(crate) async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError> {
        self.dns.services(name).await
    }

    /// Whether this address may be connected to.
    pub fn permits(&self, address: IpAddr) -> bool {
        self.policy.permits(address)
    }

    /// Whether the host of a URL may be connected to as far as that can be told before DNS: refuses literals of
    /// private addresses.
    pub fn permits_host(&self, host: &str) -> bool {
        match super::Host::parse(host) {
            super::Host::Address(address) => self.permits(address),
            super::Host::Name(_) => true,
        }
    }
}

impl reqwest::dns::Resolve for GuardedDns {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let guarded = self.clone();
        Box::pin(async move {
            let addresses = guarded.addresses(name.as_str()).await?;
            let sockets = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(sockets) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(host: &str, priority: u16, weight: u16) -> Service {
        Service { host: host.into(), port: 1, priority, weight }
    }

    #[test]
    fn services_are_ordered_by_priority_then_weight() {
        let mut first_by_weight = 0;
        for _ in 0..500 {
            let order = order_services(vec![
                service("last", 20, 100),
                service("light", 10, 1),
                service("heavy", 10, 99),
                service("", 0, 0),
            ]);
            assert_eq!(order.len(), 3);
            assert_eq!(order[2].host, "last");
            first_by_weight += usize::from(order[0].host == "heavy");
        }
        assert!(first_by_weight > 450, "{first_by_weight}");
    }

    #[test]
    fn dotted_names_are_absolute() {
        assert!(absolute("example.org").unwrap().is_fqdn());
        assert!(!absolute("hs1").unwrap().is_fqdn());
        assert!(absolute("bad name with spaces and \u{fc}").is_err());
    }

    #[tokio::test]
    async fn the_hosts_file_is_read() {
        let dns = SystemDns::new().unwrap();
        assert!(dns.addresses("localhost").await.unwrap().iter().any(IpAddr::is_loopback));
        let guarded = GuardedDns::new(Arc::new(dns), AddressPolicy::default());
        assert!(matches!(guarded.addresses("localhost").await, Err(DnsError::Refused(_))));
        assert!(!guarded.permits_host("[::1]") && guarded.permits_host("localhost"));
    }
}
