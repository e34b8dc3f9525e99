//! Connections to the outside: name resolution, the guard around private addresses, TLS, the connector.

mod address;
mod connector;
mod dns;
mod hosts;
mod tls;

pub use address::AddressPolicy;
pub(crate) use connector::{Connector, HttpClient, http_client};
pub use dns::{Dns, DnsError, GuardedDns, Service, SystemDns};
pub use tls::{TlsError, client_config};

use std::net::IpAddr;

/// Where a connection goes in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address literal.
    Address(IpAddr),
    /// A name, still to be looked up.
    Name(String),
}

impl Host {
    /// Reads a host as a URL or server name writes it: IPv6 in brackets.
    pub fn parse(text: &str) -> Host {
        let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
        bare.parse().map_or_else(|_| Host::Name(text.to_ascii_lowercase()), Host::Address)
    }
}

/// One place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The operator wrote this host into the configuration: the private-address guard does not apply.
    pub trusted: bool,
}

/// How to reach a server: what to connect to, and as whom to address what answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The `Host` header (`:authority` in HTTP/2): a host, with a port exactly when the server name has one.
    pub authority: String,
    /// The name in SNI and in the certificate; an address literal is checked against the certificate as such.
    pub tls_name: String,
    /// Places to connect to, the best first.
    pub targets: Vec<Target>,
}

/// Splits `host:port` the way server names are written. The port is absent when it is not a number.
pub fn split_port(text: &str) -> (&str, Option<u16>) {
    let end_of_host = text.rfind(']').map_or(0, |at| at + 1);
    match text[end_of_host..].rfind(':') {
        Some(at) => match text[end_of_host + at + 1..].parse() {
            Ok(port) => (&text[..end_of_host + at], Some(port)),
            Err(_) => (text, None),
        },
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_ports_off_names_and_literals() {
        assert_eq!(split_port("example.org"), ("example.org", None));
        assert_eq!(split_port("example.org:443"), ("example.org", Some(443)));
        assert_eq!(split_port("1.2.3.4:8448"), ("1.2.3.4", Some(8448)));
        assert_eq!(split_port("[2001:db8::1]"), ("[2001:db8::1]", None));
        assert_eq!(split_port("[2001:db8::1]:80"), ("[2001:db8::1]", Some(80)));
        assert_eq!(split_port("example.org:99999"), ("example.org:99999", None));
    }

    #[test]
    fn tells_literals_from_names() {
        assert_eq!(Host::parse("[::1]"), Host::Address("::1".parse().unwrap()));
        assert_eq!(Host::parse("10.0.0.1"), Host::Address("10.0.0.1".parse().unwrap()));
        assert_eq!(Host::parse("Example.org"), Host::Name("example.org".into()));
    }
}
