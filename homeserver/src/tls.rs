//! The certificate of the federation listener.

use crate::config::Tls;
use crate::data_dir::{create, write_secret};
use anyhow::Context;
use axum_server::tls_rustls::RustlsConfig;
use ruma::ServerName;
use std::path::{Path, PathBuf};

/// Where the certificate and its key are.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    /// The configured files, or self-signed ones under the data directory, made on the first start.
    pub fn find_or_make(tls: &Tls, data_dir: &Path, server_name: &ServerName) -> anyhow::Result<Files> {
        if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
            return Ok(Files { certificate: certificate.clone(), key: key.clone() });
        }
        let folder = data_dir.join("tls");
        let files = Files { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        if !files.certificate.exists() {
            create(&folder)?;
            make(&files, server_name)?;
        }
        Ok(files)
    }

    /// Reads both files for the listener.
    pub async fn load(&self) -> anyhow::Result<RustlsConfig> {
        RustlsConfig::from_pem_file(&self.certificate, &self.key).await.with_context(|| self.what())
    }

    /// Reads both files again for a listener that runs; on an error it keeps what it has.
    pub async fn reload(&self, running: &RustlsConfig) -> anyhow::Result<()> {
        running.reload_from_pem_file(&self.certificate, &self.key).await.with_context(|| self.what())
    }

    fn what(&self) -> String {
        format!(
            "cannot use the certificate {} with the key {}",
            self.certificate.display(),
            self.key.display()
        )
    }
}

/// The certificate is written last: where it is, the key is.
fn make(files: &Files, server_name: &ServerName) -> anyhow::Result<()> {
    let host = server_name.host().trim_matches(['[', ']']).to_owned();
    let mut names = vec![host];
    for name in ["localhost", "127.0.0.1"] {
        if names[0] != name {
            names.push(name.to_owned());
        }
    }
    let made = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    write_secret(&files.key, &made.signing_key.serialize_pem())?;
    write_secret(&files.certificate, &made.cert.pem())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::server_name;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_certificate_is_made_once_and_loads() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        for name in [server_name!("example.org:8448"), server_name!("[::1]:8448")] {
            let files = Files::find_or_make(&Tls::default(), folder.path(), name).unwrap();
            files.load().await.unwrap();
            let mode = std::fs::metadata(&files.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let first = std::fs::read(&files.certificate).unwrap();
            Files::find_or_make(&Tls::default(), folder.path(), name).unwrap();
            assert_eq!(first, std::fs::read(&files.certificate).unwrap());
            std::fs::remove_file(&files.certificate).unwrap();
        }
    }

    #[tokio::test]
    async fn a_missing_certificate_is_named() {
        let tls = Tls {
            certificate: Some("/nowhere/c.pem".into()),
            key: Some("/nowhere/k.pem".into()),
            ..Tls::default()
        };
        let files = Files::find_or_make(&tls, Path::new("/nowhere"), server_name!("a.example")).unwrap();
        let error = format!("{:#}", files.load().await.unwrap_err());
        assert!(error.contains("/nowhere/c.pem"), "{error}");
    }
}
