//! One container: its files, its process, its published ports.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::certificate::Certificates;
use crate::dns;
use crate::labels::Labels;
use crate::network::{HOST_NAME, Names};
use crate::process::{Process, Spec, log_tail};
use crate::proxy::Proxy;

pub const CLIENT_PORT: u16 = 8008;
pub const FEDERATION_PORT: u16 = 8448;
/// What a container keeps when it is committed.
pub const KEPT: [&str; 2] = ["data", "complement"];

const TEMPLATE: &str = include_str!("../homeserver.toml");
/// Complement itself waits 30 seconds for a server that has been started.
const START_PATIENCE: Duration = Duration::from_secs(25);
const START_PAUSE: Duration = Duration::from_millis(3);
/// Of the log of a server that did not start; Complement prints it beside the failed test.
const ERROR_TAIL: usize = 4096;

pub struct Container {
    pub id: String,
    pub name: String,
    pub network: String,
    pub aliases: Vec<String>,
    pub labels: Labels,
    pub env: Vec<(String, String)>,
    pub address: Ipv4Addr,
    pub root: PathBuf,
    pub log: PathBuf,
    running: Mutex<Option<Running>>,
    name_server: std::sync::Mutex<Option<JoinHandle<()>>>,
}

struct Running {
    process: Process,
    client: Proxy,
    federation: Proxy,
}

/// What inspecting a container tells.
pub struct State {
    pub status: &'static str,
    /// Port of the container and port of the machine.
    pub ports: Vec<(u16, u16)>,
}

pub struct New {
    pub id: String,
    pub name: String,
    pub network: String,
    pub aliases: Vec<String>,
    pub labels: Labels,
    pub env: Vec<(String, String)>,
    pub address: Ipv4Addr,
    pub root: PathBuf,
    pub log: PathBuf,
}

impl Container {
    /// Lays out the files; those of `image`, if any, are copied in.
    pub fn create(new: New, image: Option<&Path>) -> Result<Self> {
        let New { id, name, network, aliases, labels, env, address, root, log } = new;
        for kept in KEPT {
            match image {
                Some(image) => copy_tree(&image.join(kept), &root.join(kept))?,
                None => fs::create_dir_all(root.join(kept))?,
            }
        }
        fs::create_dir_all(root.join("complement/appservice"))?;
        fs::create_dir_all(root.join("tls"))?;
        let own_names = aliases.join(" ");
        let hosts =
            format!("127.0.0.1 localhost\n::1 localhost\n127.0.0.1 {HOST_NAME}\n{address} {own_names}\n");
        fs::write(root.join("hosts"), hosts)?;
        fs::write(root.join("resolv.conf"), format!("nameserver {address}\noptions timeout:1 attempts:1\n"))?;
        let (running, name_server) = (Mutex::default(), std::sync::Mutex::default());
        Ok(Self { id, name, network, aliases, labels, env, address, root, log, running, name_server })
    }

    /// Answers the container's questions for names from now on, also over restarts.
    pub async fn serve_names(&self, names: Arc<Names>) {
        let network = self.network.clone();
        let resolve = Arc::new(move |name: &str| names.resolve(&network, name));
        match UdpSocket::bind((self.address, 53)).await {
            Ok(socket) => {
                let task = tokio::spawn(dns::serve(socket, resolve));
                *crate::network::lock(&self.name_server) = Some(task);
            }
            // Only root may; then a server finds nobody but itself, and single-server tests still work.
            Err(error) => eprintln!("no name server for {}: {error}", self.name),
        }
    }

    /// Starts the server and waits until it accepts connections, so that a crash at start is an error at once instead
    /// of after Complement's whole patience. False if it was running already.
    pub async fn start(&self, binary: &Path, certificates: &Certificates) -> Result<bool> {
        let exited = {
            let mut running = self.running.lock().await;
            if running.as_ref().is_some_and(|running| running.process.exit().is_none()) {
                return Ok(false);
            }
            *running = None;
            let started = self.spawn(binary, certificates).await?;
            let exited = started.process.watch();
            *running = Some(started);
            exited
        };
        for port in [CLIENT_PORT, FEDERATION_PORT] {
            self.accepts(port, &exited).await?;
        }
        Ok(true)
    }

    async fn spawn(&self, binary: &Path, certificates: &Certificates) -> Result<Running> {
        let server_name = self.server_name()?;
        let complement = self.root.join("complement");
        certificates.write(&complement.join("ca"), server_name, &self.root.join("tls")).await?;
        let config = self.root.join("homeserver.toml");
        fs::write(&config, self.configuration(server_name)?)?;
        let client = Proxy::open(SocketAddr::from((self.address, CLIENT_PORT))).await?;
        let federation = Proxy::open(SocketAddr::from((self.address, FEDERATION_PORT))).await?;
        let process = Process::spawn(&Spec {
            binary,
            config: &config,
            hosts: &self.root.join("hosts"),
            resolv_conf: &self.root.join("resolv.conf"),
            env: &self.env,
            directory: &self.root,
            log: &self.log,
        })?;
        Ok(Running { process, client, federation })
    }

    fn server_name(&self) -> Result<&str> {
        let name = self.env.iter().find(|(key, _)| key == "SERVER_NAME");
        name.map(|(_, value)| value.as_str()).context("no SERVER_NAME in the container's environment")
    }

    fn configuration(&self, server_name: &str) -> Result<String> {
        let text =
            |path: PathBuf| path.into_os_string().into_string().ok().context("a path that is not Unicode");
        Ok(TEMPLATE
            .replace("@SERVER_NAME@", server_name)
            .replace("@ADDRESS@", &self.address.to_string())
            .replace("@DATA@", &text(self.root.join("data"))?)
            .replace("@COMPLEMENT@", &text(self.root.join("complement"))?)
            .replace("@TLS@", &text(self.root.join("tls"))?))
    }

    async fn accepts(&self, port: u16, exited: &watch::Receiver<Option<String>>) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        while TcpStream::connect((self.address, port)).await.is_err() {
            let end = exited.borrow().clone();
            let trouble = match end {
                Some(end) => format!("the server ended ({end})"),
                None if Instant::now() > deadline => format!("nothing listens on port {port}"),
                None => {
                    sleep(START_PAUSE).await;
                    continue;
                }
            };
            bail!("{trouble}:\n{}", String::from_utf8_lossy(&log_tail(&self.log, ERROR_TAIL)));
        }
        Ok(())
    }

    pub async fn state(&self) -> State {
        let running = self.running.lock().await;
        let (status, ports) = match running.as_ref() {
            None => ("exited", Vec::new()),
            Some(running) if running.process.exit().is_some() => ("exited", Vec::new()),
            Some(running) => {
                let status = if running.process.is_paused() { "paused" } else { "running" };
                let client = (CLIENT_PORT, running.client.port());
                (status, vec![client, (FEDERATION_PORT, running.federation.port())])
            }
        };
        State { status, ports }
    }

    /// False if it was not running.
    pub async fn stop(&self, patience: Duration) -> bool {
        let Some(mut running) = self.running.lock().await.take() else { return false };
        running.process.stop(patience).await;
        true
    }

    /// False if it was not running.
    pub async fn kill(&self) -> bool {
        let Some(mut running) = self.running.lock().await.take() else { return false };
        running.process.kill().await;
        true
    }

    /// False if it was not running.
    pub async fn pause(&self, pause: bool) -> bool {
        match self.running.lock().await.as_mut() {
            Some(running) if pause => running.process.pause(),
            Some(running) => running.process.unpause(),
            None => return false,
        }
        true
    }

    /// Ends its process and deletes its files. The log stays.
    pub async fn remove(&self) -> Result<()> {
        self.kill().await;
        if let Some(task) = crate::network::lock(&self.name_server).take() {
            task.abort();
        }
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || fs::remove_dir_all(root)).await??;
        Ok(())
    }
}

/// Copies directories and regular files, which is all a server keeps.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).with_context(|| format!("copying {}", source.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_filled_in() {
        let root = tempfile::tempdir().unwrap();
        let new = New {
            id: "1".to_owned(),
            name: "complement_fed_dirty_hs1".to_owned(),
            network: "net".to_owned(),
            aliases: vec!["hs1".to_owned()],
            labels: Labels::new(),
            env: vec![("SERVER_NAME".to_owned(), "hs1".to_owned())],
            address: Ipv4Addr::new(127, 77, 1, 2),
            root: root.path().to_owned(),
            log: root.path().join("log"),
        };
        let container = Container::create(new, None).unwrap();
        let filled = container.configuration(container.server_name().unwrap()).unwrap();
        let settings = filled.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        assert!(!settings.contains('@'), "{settings}");
        assert!(settings.contains("server_name = \"hs1\""));
        assert!(settings.contains("client = [\"127.77.1.2:8008\"]"));
    }

    #[test]
    fn a_tree_is_copied_whole() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/c"), "deep").unwrap();
        copy_tree(from.path(), &to.path().join("copy")).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("copy/a/b/c")).unwrap(), "deep");
    }
}
