//! The certificate of a server under test: a leaf with the server's name, signed by the authority of the test package.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::sync::Mutex;

/// The authority's certificate and the server's name.
type Key = (Vec<u8>, String);

/// Making a certificate takes longer than starting a server, and a test package needs the same few again and again.
#[derive(Default)]
pub struct Certificates {
    made: Mutex<BTreeMap<Key, Pair>>,
}

#[derive(Clone)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificates {
    /// Writes `server.crt` and `server.key` into `directory`, signed by `ca.crt` and `ca.key` of `authority`.
    pub async fn write(&self, authority: &Path, server_name: &str, directory: &Path) -> Result<()> {
        let issuer = fs::read(authority.join("ca.crt")).context("no certificate authority was copied in")?;
        let mut made = self.made.lock().await;
        let pair = match made.get(&(issuer.clone(), server_name.to_owned())) {
            Some(pair) => pair.clone(),
            None => {
                let pair = make(authority, server_name, directory).await?;
                made.insert((issuer, server_name.to_owned()), pair.clone());
                pair
            }
        };
        fs::write(directory.join("server.crt"), &pair.certificate)?;
        fs::write(directory.join("server.key"), &pair.key)?;
        Ok(())
    }
}

/// A leaf and nothing more: a certificate that may itself sign is refused as a server's.
fn settings(server_name: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if server_name.is_empty() || !server_name.chars().all(plain) {
        bail!("'{server_name}' can't be a server's name here");
    }
    Ok(format!(
        "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = leaf\n\
         [name]\ncommonName = {server_name}\n\
         [leaf]\nsubjectAltName = DNS:{server_name}\nbasicConstraints = critical, CA:FALSE\n\
         keyUsage = digitalSignature\nextendedKeyUsage = serverAuth\n"
    ))
}

async fn make(authority: &Path, server_name: &str, directory: &Path) -> Result<Pair> {
    let config = directory.join("openssl.cnf");
    fs::write(&config, settings(server_name)?)?;
    let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    command.args(["-days", "365", "-config"]).arg(&config);
    command.arg("-CA").arg(authority.join("ca.crt")).arg("-CAkey").arg(authority.join("ca.key"));
    command.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    let output = command.output().await.context("starting openssl")?;
    if !output.status.success() {
        bail!("openssl: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Pair { certificate: fs::read(certificate)?, key: fs::read(key)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_add_settings() {
        assert!(settings("hs1").unwrap().contains("subjectAltName = DNS:hs1\n"));
        assert!(settings("hs1\nbasicConstraints = CA:TRUE").is_err());
        assert!(settings("").is_err());
    }

    #[tokio::test]
    async fn the_leaf_verifies_and_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut ca = Command::new("openssl");
        ca.args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Test", "-keyout", "ca.key", "-out",
        ]);
        assert!(ca.arg("ca.crt").current_dir(path).output().await.unwrap().status.success());

        let certificates = Certificates::default();
        certificates.write(path, "hs1", path).await.unwrap();
        let mut verify = Command::new("openssl");
        verify.args([
            "verify",
            "-purpose",
            "sslserver",
            "-verify_hostname",
            "hs1",
            "-CAfile",
            "ca.crt",
            "server.crt",
        ]);
        assert!(verify.current_dir(path).output().await.unwrap().status.success());

        let first = fs::read(path.join("server.crt")).unwrap();
        certificates.write(path, "hs1", path).await.unwrap();
        assert_eq!(fs::read(path.join("server.crt")).unwrap(), first);
        certificates.write(path, "hs2", path).await.unwrap();
        assert_ne!(fs::read(path.join("server.crt")).unwrap(), first);
    }
}
