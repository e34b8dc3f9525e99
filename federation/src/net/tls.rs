use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// Servers whose sessions are remembered: a handshake that resumes one costs neither side a signature. As many as the
/// largest rooms have servers.
const SESSIONS: usize = 8192;

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// An extra root certificate is not one.
    #[error("an extra root certificate is unusable: {0}")]
    Root(rustls::Error),
    /// No certificate authority is trusted at all: every connection would fail.
    #[error("the system has no trusted certificate authorities and none are configured")]
    NoRoots,
    /// The TLS library refused the configuration.
    #[error("TLS setup: {0}")]
    Setup(rustls::Error),
}

/// The TLS configuration of all outgoing connections: the system's authorities and the extra ones, HTTP/2 offered.
pub fn client_config(extra_roots: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a trusted certificate of the system could not be read");
    }
    roots.add_parsable_certificates(native.certs);
    for root in extra_roots {
        roots.add(root.clone()).map_err(TlsError::Root)?;
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
