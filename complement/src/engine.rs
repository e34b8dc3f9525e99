//! Everything that exists: networks, images and containers, each found by id or by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::certificate::Certificates;
use crate::container::{Container, KEPT, New, copy_tree};
use crate::error::Error;
use crate::labels::{Filter, Labels};
use crate::network::{Names, Subnet, lock};
use crate::process::log_tail;

/// Complement prints a server's log after every failed test; in a dirty run that is the log of hundreds of tests.
const LOG_TAIL: usize = 128 * 1024;

pub struct Engine {
    binary: PathBuf,
    state: PathBuf,
    logs: PathBuf,
    subnet: Subnet,
    names: Arc<Names>,
    certificates: Certificates,
    things: Mutex<Things>,
}

#[derive(Default)]
struct Things {
    counter: u64,
    networks: BTreeMap<String, Network>,
    images: BTreeMap<String, Image>,
    containers: BTreeMap<String, Arc<Container>>,
}

#[derive(Clone)]
pub struct Network {
    pub id: String,
    pub name: String,
    pub labels: Labels,
}

#[derive(Clone)]
pub struct Image {
    pub id: String,
    pub tag: String,
    pub labels: Labels,
    files: PathBuf,
}

/// What a container is to be created with.
pub struct Wish {
    pub name: String,
    pub image: String,
    pub env: Vec<String>,
    pub labels: Labels,
    pub network: String,
    pub aliases: Vec<String>,
}

impl Things {
    /// As long as an engine's ids, and different in the first twelve characters, which is what people read.
    fn next_id(&mut self) -> String {
        self.counter += 1;
        format!("{:012x}{:052x}", self.counter, 0)
    }
}

impl Engine {
    /// `binary` is the server; `state` holds the containers while they exist, `logs` what they wrote.
    pub fn new(binary: &Path, state: PathBuf, logs: PathBuf) -> Result<Self> {
        let binary =
            fs::canonicalize(binary).with_context(|| format!("no server at {}", binary.display()))?;
        fs::create_dir_all(&logs)?;
        for kind in ["containers", "images"] {
            fs::create_dir_all(state.join(kind))?;
        }
        let subnet = Subnet::claim()?;
        let (names, certificates, things) = Default::default();
        Ok(Self { binary, state: fs::canonicalize(state)?, logs, subnet, names, certificates, things })
    }

    pub fn networks(&self, filter: &Filter) -> Vec<Network> {
        let things = lock(&self.things);
        things.networks.values().filter(|network| filter.matches(&network.labels)).cloned().collect()
    }

    pub fn network_create(&self, name: &str, labels: Labels) -> Result<String, Error> {
        let mut things = lock(&self.things);
        if things.networks.values().any(|network| network.name == name) {
            return Err(Error::conflict(format!("network {name} exists")));
        }
        let id = things.next_id();
        let network = Network { id: id.clone(), name: name.to_owned(), labels };
        things.networks.insert(id.clone(), network);
        Ok(id)
    }

    pub async fn network_remove(&self, id: &str) -> Result<(), Error> {
        let (network, members) = {
            let things = lock(&self.things);
            let found = things.networks.values().find(|network| network.id == id || network.name == id);
            let network = found.cloned().ok_or_else(|| Error::missing("network", id))?;
            let members = things.containers.values().filter(|member| member.network == network.name);
            let members: Vec<_> = members.cloned().collect();
            (network, members)
        };
        for member in members {
            if !member.state().await.ports.is_empty() {
                return Err(Error::in_use(format!("{} is connected to {}", member.name, network.name)));
            }
        }
        lock(&self.things).networks.remove(&network.id);
        Ok(())
    }

    pub fn images(&self, filter: &Filter) -> Vec<Image> {
        let things = lock(&self.things);
        things.images.values().filter(|image| filter.matches(&image.labels)).cloned().collect()
    }

    fn image(&self, name: &str) -> Option<Image> {
        let things = lock(&self.things);
        things.images.values().find(|image| image.id == name || image.tag == name).cloned()
    }

    pub async fn image_remove(&self, name: &str) -> Result<String, Error> {
        let image = self.image(name).ok_or_else(|| Error::missing("image", name))?;
        lock(&self.things).images.remove(&image.id);
        tokio::task::spawn_blocking(move || fs::remove_dir_all(image.files)).await??;
        Ok(image.id)
    }

    /// Keeps a copy of what a container has, to create other containers from.
    pub async fn commit(&self, id: &str, tag: String, changes: Labels) -> Result<String, Error> {
        let container = self.container(id)?;
        let image_id = lock(&self.things).next_id();
        let files = self.state.join("images").join(&image_id);
        let (from, to) = (container.root.clone(), files.clone());
        // A running server could be in the middle of a write.
        let paused = container.pause(true).await;
        let copied = tokio::task::spawn_blocking(move || {
            KEPT.iter().try_for_each(|kept| copy_tree(&from.join(kept), &to.join(kept)))
        });
        let copied = copied.await?;
        if paused {
            container.pause(false).await;
        }
        copied?;
        let mut labels = container.labels.clone();
        labels.extend(changes);
        let id = format!("sha256:{image_id}");
        lock(&self.things).images.insert(id.clone(), Image { id: id.clone(), tag, labels, files });
        Ok(id)
    }

    pub fn containers(&self, filter: &Filter) -> Vec<Arc<Container>> {
        let things = lock(&self.things);
        things.containers.values().filter(|container| filter.matches(&container.labels)).cloned().collect()
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let things = lock(&self.things);
        let found = things.containers.values().find(|container| container.id == id || container.name == id);
        found.cloned().ok_or_else(|| Error::missing("container", id))
    }

    pub async fn container_create(&self, wish: Wish) -> Result<String, Error> {
        let image = self.image(&wish.image);
        // Any other name is the image under test: there is only one, and it is empty.
        if image.is_none() && (wish.image.starts_with("sha256:") || wish.image.starts_with("localhost/")) {
            return Err(Error::missing("image", &wish.image));
        }
        if self.container(&wish.name).is_ok() {
            return Err(Error::conflict(format!("the name {} is in use", wish.name)));
        }
        let id = lock(&self.things).next_id();
        let address = self.subnet.take()?;
        let mut labels = image.as_ref().map(|image| image.labels.clone()).unwrap_or_default();
        labels.extend(wish.labels);
        let env = wish.env.iter().filter_map(|pair| pair.split_once('='));
        let new = New {
            root: self.state.join("containers").join(&id),
            log: self.logs.join(format!("{}-{}.log", wish.name, &id[8..12])),
            id: id.clone(),
            name: wish.name,
            network: wish.network,
            aliases: wish.aliases,
            labels,
            env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            address,
        };
        let files = image.map(|image| image.files);
        let made = tokio::task::spawn_blocking(move || Container::create(new, files.as_deref())).await?;
        let container = Arc::new(made.inspect_err(|_| self.subnet.give_back(address))?);
        for alias in &container.aliases {
            self.names.add(&container.network, alias, address);
        }
        container.serve_names(self.names.clone()).await;
        lock(&self.things).containers.insert(id.clone(), container);
        Ok(id)
    }

    pub async fn container_start(&self, id: &str) -> Result<bool, Error> {
        Ok(self.container(id)?.start(&self.binary, &self.certificates).await?)
    }

    pub async fn container_stop(&self, id: &str, patience: Duration) -> Result<bool, Error> {
        Ok(self.container(id)?.stop(patience).await)
    }

    pub fn container_log(&self, id: &str) -> Result<Vec<u8>, Error> {
        Ok(log_tail(&self.container(id)?.log, LOG_TAIL))
    }

    pub async fn container_remove(&self, id: &str, force: bool) -> Result<(), Error> {
        let container = self.container(id)?;
        if !force && !container.state().await.ports.is_empty() {
            return Err(Error::conflict(format!("{} is running", container.name)));
        }
        lock(&self.things).containers.remove(&container.id);
        self.names.remove(container.address);
        let removed = container.remove().await;
        self.subnet.give_back(container.address);
        Ok(removed?)
    }

    /// Ends every process and deletes everything but the logs.
    pub async fn shut_down(&self) -> Result<()> {
        for container in self.containers(&Filter::default()) {
            container.kill().await;
        }
        *lock(&self.things) = Things::default();
        fs::remove_dir_all(&self.state).context("removing the containers' files")
    }
}
