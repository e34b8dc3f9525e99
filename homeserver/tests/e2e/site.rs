//! The three shapes in which one organisation runs its server.

use super::node::Node;
use super::postgres::Database;
use super::proxy::Proxy;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use waxwing_client::Client;
use waxwing_client::ruma::OwnedRoomId;
use waxwing_storage::Store;

/// How long a step may take on a machine that has other work too.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const PASSWORD: &str = "correct horse battery staple";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One node, a file.
    Sqlite,
    /// One node, a database server.
    Postgres,
    /// Two nodes over one database server, behind a round-robin.
    TwoNodes,
}

/// A running server in one of its shapes, and the people's folders.
pub struct Site {
    /// Where clients go.
    pub url: String,
    pub nodes: Vec<Node>,
    _proxy: Option<Proxy>,
    pub folder: TempDir,
    // Last: nodes end before their database goes.
    pub database: Option<Database>,
}

impl Site {
    /// Starts it. `None` where it needs a PostgreSQL that is not there, and may be.
    pub async fn start(shape: Shape) -> Option<Site> {
        Site::start_with(shape, &[]).await
    }

    /// The same with settings beyond the usual.
    pub async fn start_with(shape: Shape, settings: &[String]) -> Option<Site> {
        let database = if shape == Shape::Sqlite { None } else { Some(Database::create()?) };
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings.to_vec();
        if !settings.iter().any(|setting| setting.starts_with("media.store=")) {
            settings.push(format!("media.path={}", folder.path().join("media").display()));
        }
        if let Some(database) = &database {
            settings.push(format!("database={}", database.url()));
        }
        let mut first = Node::new(&folder.path().join("node-1"), &settings);
        first.start().await;
        let mut nodes = vec![first];
        let mut proxy = None;
        if shape == Shape::TwoNodes {
            let mut second = Node::new(&folder.path().join("node-2"), &settings);
            // The key is the server's, not the node's.
            fs::create_dir_all(second.data()).unwrap();
            fs::copy(nodes[0].data().join("signing.key"), second.data().join("signing.key")).unwrap();
            second.start().await;
            nodes.push(second);
            proxy = Some(Proxy::start(nodes.iter().map(Node::client_url).collect()).await);
        }
        let url = proxy.as_ref().map_or_else(|| nodes[0].client_url(), |proxy| proxy.url.clone());
        Some(Site { url, nodes, _proxy: proxy, folder, database })
    }

    /// The database, beside the nodes.
    pub async fn store(&self) -> Store {
        let url = match &self.database {
            Some(database) => database.url(),
            None => format!("sqlite:{}", self.nodes[0].data().join("waxwing.db").display()),
        };
        Store::open(&url).await.unwrap()
    }

    /// A person's folder.
    pub fn home(&self, name: &str) -> PathBuf {
        self.folder.path().join("people").join(name)
    }

    pub async fn register(&self, name: &str) -> Client {
        register_at(&self.url, &self.home(name), name).await
    }

    /// Another device of `who`.
    pub async fn login(&self, who: &Client, home: &str) -> Client {
        let builder = Client::builder(&self.url, &self.home(home));
        builder.login(who.user_id().as_str(), PASSWORD).await.unwrap()
    }

    /// Stops every node and starts it again.
    pub async fn restart(&mut self) {
        for node in &mut self.nodes {
            node.stop().await;
        }
        for node in &mut self.nodes {
            node.start().await;
        }
    }
}

pub async fn register_at(url: &str, home: &Path, name: &str) -> Client {
    fs::create_dir_all(home.parent().unwrap()).unwrap();
    Client::builder(url, home).register(name, PASSWORD).await.unwrap()
}

/// An encrypted room in which both are.
pub async fn room_of_two(alice: &Client, bob: &Client) -> OwnedRoomId {
    let room = alice.create_encrypted_room("Aviary", &[bob.user_id()]).await.unwrap();
    bob.wait_for_invitation(&room, PATIENCE).await.unwrap();
    bob.join((*room).into(), &[]).await.unwrap();
    alice.wait_for_member(&room, bob.user_id(), PATIENCE).await.unwrap();
    bob.sync_once(Duration::ZERO).await.unwrap();
    room
}
