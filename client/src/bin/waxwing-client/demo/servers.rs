//! Two servers on loopback, each with a name, a certificate and a directory of its own.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde::Serialize;
use tokio::process::{Child, Command};
use waxwing_client::Http;

pub const NAMES: [&str; 2] = ["alpha.localhost", "beta.localhost"];
/// A server that has not answered by then will not.
const START_LIMIT: Duration = Duration::from_secs(25);
const START_POLL: Duration = Duration::from_millis(100);
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A running server. Dropping it kills the process.
pub struct Server {
    pub name: String,
    pub data: PathBuf,
    binary: PathBuf,
    config: PathBuf,
    client_port: u16,
    process: Child,
}

#[derive(Serialize)]
struct Config {
    server_name: String,
    data_dir: PathBuf,
    registration: &'static str,
    listen: Listen,
    tls: Tls,
    federation: Federation,
}

#[derive(Serialize)]
struct Listen {
    client: Vec<String>,
    federation: Vec<String>,
    metrics: String,
}

#[derive(Serialize)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    extra_roots: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Federation {
    allow_private_addresses: bool,
    hosts: BTreeMap<String, String>,
}

/// Starts both servers and waits until both answer.
pub async fn start(binary: &Path, directory: &Path) -> Result<[Server; 2]> {
    write_certificates(directory)?;
    let [alpha_client, alpha_federation, beta_client, beta_federation] = free_ports()?;
    let hosts: BTreeMap<String, String> = [(NAMES[0], alpha_federation), (NAMES[1], beta_federation)]
        .map(|(name, port)| (name.to_owned(), format!("127.0.0.1:{port}")))
        .into();
    let mut alpha = Server::spawn(binary, directory, NAMES[0], [alpha_client, alpha_federation], &hosts)?;
    let mut beta = Server::spawn(binary, directory, NAMES[1], [beta_client, beta_federation], &hosts)?;
    tokio::try_join!(alpha.ready(), beta.ready())?;
    Ok([alpha, beta])
}

impl Server {
    pub fn log_path(directory: &Path, name: &str) -> PathBuf {
        directory.join(format!("{name}.log"))
    }

    pub fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    fn spawn(
        binary: &Path,
        directory: &Path,
        name: &str,
        [client, federation]: [u16; 2],
        hosts: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let data = directory.join(name);
        let config = Config {
            server_name: name.to_owned(),
            data_dir: data.clone(),
            registration: "open",
            listen: Listen {
                client: vec![format!("127.0.0.1:{client}")],
                federation: vec![format!("127.0.0.1:{federation}")],
                metrics: String::new(),
            },
            tls: Tls {
                certificate: certificate_path(directory, name),
                key: key_path(directory, name),
                extra_roots: vec![authority_path(directory)],
            },
            federation: Federation { allow_private_addresses: true, hosts: hosts.clone() },
        };
        let path = directory.join(format!("{name}.toml"));
        fs::write(&path, toml::to_string(&config)?)?;
        let log = File::create(Self::log_path(directory, name))?;
        let process = command(binary, &path)
            .arg("serve")
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let (name, binary) = (name.to_owned(), binary.to_owned());
        Ok(Self { name, data, binary, config: path, client_port: client, process })
    }

    async fn ready(&mut self) -> Result<()> {
        let http = Http::new(&self.client_url())?;
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        while tokio::time::Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended at once: {status}", self.name);
            }
            let asked = tokio::time::timeout(Duration::from_secs(1), http.fetch_versions()).await;
            if matches!(asked, Ok(Ok(_))) {
                return Ok(());
            }
            tokio::time::sleep(START_POLL).await;
        }
        bail!("{} did not answer within {START_LIMIT:?}", self.name)
    }

    /// Runs `waxwing audit …` on this server's database; returns whether it was content, and what it said.
    pub async fn audit(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = command(&self.binary, &self.config)
            .arg("audit")
            .args(arguments)
            .output()
            .await
            .context("cannot run `waxwing audit`")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            return Ok((false, format!("{said}{complaint}")));
        }
        Ok((true, said))
    }

    /// Asks the process to end, and insists when it does not.
    pub async fn stop(mut self) {
        if let Some(id) = self.process.id() {
            let _ =
                Command::new("kill").arg("-TERM").arg(id.to_string()).stderr(Stdio::null()).status().await;
        }
        if tokio::time::timeout(STOP_LIMIT, self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }
}

fn command(binary: &Path, config: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg("--config").arg(config).stdin(Stdio::null()).kill_on_drop(true);
    // Settings of the surrounding shell are for another server.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WAXWING_") {
            command.env_remove(name);
        }
    }
    command
}

/// Ports that were free a moment ago; all are held until the last is known, so that none comes twice.
fn free_ports() -> Result<[u16; 4]> {
    let mut listeners = Vec::new();
    let mut ports = [0; 4];
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

fn authority_path(directory: &Path) -> PathBuf {
    directory.join("authority.pem")
}

fn certificate_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.certificate.pem"))
}

fn key_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.key.pem"))
}

/// One authority that exists for this demonstration only, and a certificate for each server.
fn write_certificates(directory: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Waxwing demo authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(authority_path(directory), authority.pem())?;
    for name in NAMES {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        fs::write(certificate_path(directory, name), certificate.pem())?;
        fs::write(key_path(directory, name), key.serialize_pem())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_certificates_are_distinct() {
        let mut ports = free_ports().unwrap().to_vec();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 4);
        let directory = tempfile::tempdir().unwrap();
        write_certificates(directory.path()).unwrap();
        let read = |name: &str| fs::read_to_string(certificate_path(directory.path(), name)).unwrap();
        assert_ne!(read(NAMES[0]), read(NAMES[1]));
        assert!(read(NAMES[0]).starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
