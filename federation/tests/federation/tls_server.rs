//! Real HTTPS servers on loopback, with certificates of a throw-away authority.

use async_trait::async_trait;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as CertKey};
use ruma::ServerName;
use rustls::HandshakeKind;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use waxwing_federation::discovery::{DiscoveryConfig, Ports};
use waxwing_federation::net::{AddressPolicy, Dns, DnsError, Service};
use waxwing_federation::transport::{HttpTransport, TransportConfig};
use waxwing_model::Clock;

/// The year until which certificates are good.
pub const GOOD_UNTIL: i32 = 4000;

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, CertKey>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, CertKey::generate().unwrap()).unwrap();
        Authority { issuer }
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    fn acceptor(&self, name: &str, protocols: &[&str], until: i32) -> TlsAcceptor {
        let key = CertKey::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Serves `app` with a certificate for `name`; gives the port.
    pub async fn serve(&self, name: &str, app: Router) -> u16 {
        self.serve_counting(name, app).await.0
    }

    /// The same, counting connections.
    pub async fn serve_counting(&self, name: &str, app: Router) -> (u16, Arc<AtomicUsize>) {
        self.serve_speaking(name, app, &["h2", "http/1.1"]).await
    }

    /// The same at an address of this machine, with a certificate that ended with the year `until`.
    pub async fn serve_at(&self, address: &str, name: &str, until: i32, app: Router) -> u16 {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let acceptor = self.acceptor(name, &["http/1.1"], until);
        Authority::accept_all(listener, acceptor, app, |_| ())
    }

    /// The same by a server that knows nothing of HTTP/2.
    pub async fn serve_http1(&self, name: &str, app: Router) -> u16 {
        self.serve_speaking(name, app, &["http/1.1"]).await.0
    }

    /// The same, saying of each connection whether it resumed an older session.
    pub async fn serve_resuming(&self, name: &str, app: Router) -> (u16, Arc<Mutex<Vec<bool>>>) {
        let resumed = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&resumed);
        let note = move |resumed| noted.lock().push(resumed);
        (self.serve_noting(name, app, &["http/1.1"], note).await, resumed)
    }

    async fn serve_speaking(&self, name: &str, app: Router, protocols: &[&str]) -> (u16, Arc<AtomicUsize>) {
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let note = move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        (self.serve_noting(name, app, protocols, note).await, connections)
    }

    /// Serves `app`; of each connection `note` is told whether it resumed an older session.
    async fn serve_noting(
        &self,
        name: &str,
        app: Router,
        protocols: &[&str],
        note: impl Fn(bool) + Clone + Send + 'static,
    ) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = self.acceptor(name, protocols, GOOD_UNTIL);
        Authority::accept_all(listener, acceptor, app, note)
    }

    fn accept_all(
        listener: TcpListener,
        acceptor: TlsAcceptor,
        app: Router,
        note: impl Fn(bool) + Clone + Send + 'static,
    ) -> u16 {
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, app, note) = (acceptor.clone(), app.clone(), note.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    note(tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(tls), TowerToHyperService::new(app)).await;
                });
            }
        });
        port
    }
}

/// A name system made of two tables.
#[derive(Default, Clone)]
pub struct TestDns {
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    pub services: BTreeMap<String, Vec<Service>>,
}

impl TestDns {
    /// All these names are this machine.
    pub fn local(names: &[&str]) -> TestDns {
        let here = vec!["127.0.0.1".parse().unwrap()];
        TestDns {
            addresses: names.iter().map(|name| ((*name).to_owned(), here.clone())).collect(),
            services: BTreeMap::new(),
        }
    }

    pub fn service(mut self, name: &str, host: &str, port: u16) -> TestDns {
        let service = Service { host: host.into(), port, priority: 0, weight: 0 };
        self.services.entry(name.to_owned()).or_default().push(service);
        self
    }
}

#[async_trait]
impl Dns for TestDns {
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DnsError> {
        self.addresses.get(name).cloned().ok_or_else(|| DnsError::NotFound(name.into()))
    }

    async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError> {
        self.services.get(name).cloned().ok_or_else(|| DnsError::NotFound(name.into()))
    }
}

/// A transport that trusts the authority.
pub fn transport(authority: &Authority, dns: TestDns, ports: Ports, allow_private: bool) -> HttpTransport {
    transport_with_hosts(authority, dns, ports, allow_private, &[])
}

pub fn transport_with_hosts(
    authority: &Authority,
    dns: TestDns,
    ports: Ports,
    allow_private: bool,
    hosts: &[(&str, String)],
) -> HttpTransport {
    let hosts = hosts.iter().map(|(name, place)| ((*name).try_into().unwrap(), place.clone())).collect();
    let addresses = AddressPolicy { allow_private, allowed: Vec::new() };
    transport_over(authority, Arc::new(dns), DiscoveryConfig { hosts, ports }, addresses)
}

pub fn transport_over(
    authority: &Authority,
    dns: Arc<dyn Dns>,
    discovery: DiscoveryConfig,
    addresses: AddressPolicy,
) -> HttpTransport {
    let config = TransportConfig {
        discovery,
        addresses,
        extra_roots: vec![authority.root()],
        user_agent: "test".into(),
    };
    HttpTransport::new(config, dns, Clock::System).unwrap()
}

pub fn server(name: &str) -> &ServerName {
    name.try_into().unwrap()
}
