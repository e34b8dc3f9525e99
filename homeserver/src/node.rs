//! One node: started, announced, stopped.

use crate::config::{Addresses, Config, Registration};
use crate::data_dir::DataDir;
use crate::health::Health;
use crate::listen::{Listeners, Scheme, Sockets};
use crate::wiring::App;
use crate::{metrics, signing_key, tls};
use anyhow::Context;
use axum_server::tls_rustls::RustlsConfig;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long requests may go on after the signal to stop. Long polls end at once.
const GRACE: Duration = Duration::from_secs(10);

/// A database that does not answer is not waited for: the others see that this node is gone when its leases run out.
const LEAVING: Duration = Duration::from_secs(1);

/// Serves until a signal says to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    let node = Node::start(config).await?;
    node.announce()?;
    node.until(signals).await
}

/// A running node.
pub struct Node {
    config: Config,
    app: App,
    health: Health,
    listeners: Listeners,
    addresses: Bound,
    certificate: Option<(tls::Files, RustlsConfig)>,
    stop: CancellationToken,
    upkeep: tokio::task::JoinHandle<()>,
    began: Instant,
    // Last, so that the lock falls when everything else is gone.
    _data_dir: DataDir,
}

/// Where a node really listens.
#[derive(Clone, Debug)]
pub struct Bound {
    pub client: Vec<SocketAddr>,
    pub federation: Vec<SocketAddr>,
    pub metrics: Vec<SocketAddr>,
}

impl Node {
    /// Starts everything; when this returns, requests are answered.
    pub async fn start(config: Config) -> anyhow::Result<Node> {
        let began = Instant::now();
        let data_dir = DataDir::lock(&config.data_dir)?;
        let key = signing_key::load_or_make(data_dir.path())?;
        metrics::recorder();
        let client = Sockets::bind("listen.client", &config.listen.client)?;
        let nowhere = Addresses::default();
        let federation = if config.federation.enabled { &config.listen.federation } else { &nowhere };
        let federation = Sockets::bind("listen.federation", federation)?;
        let metrics_sockets = Sockets::bind("listen.metrics", &config.listen.metrics)?;
        let addresses = Bound {
            client: client.addresses(),
            federation: federation.addresses(),
            metrics: metrics_sockets.addresses(),
        };
        let certificate = if addresses.federation.is_empty() {
            None
        } else {
            let files = tls::Files::find_or_make(&config.tls, data_dir.path(), &config.server_name)?;
            let loaded = files.load().await?;
            Some((files, loaded))
        };
        let stop = CancellationToken::new();
        let app = App::build(&config, key, stop.clone()).await?;
        let health = Health::new(app.store().clone());
        let mut listeners = Listeners::default();
        listeners.serve(client, &Scheme::Http, &health.around(&app.client))?;
        if let Some((_, tls)) = &certificate {
            listeners.serve(federation, &Scheme::Https(tls.clone()), &health.around(&app.federation))?;
        }
        listeners.serve(metrics_sockets, &Scheme::Http, &metrics::routes().merge(health.routes()))?;
        let upkeep = tokio::spawn(metrics::keep_up());
        Ok(Node {
            config,
            app,
            health,
            listeners,
            addresses,
            certificate,
            stop,
            upkeep,
            began,
            _data_dir: data_dir,
        })
    }

    pub fn addresses(&self) -> &Bound {
        &self.addresses
    }

    /// Tells people, on standard output, where the server is.
    fn announce(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "Waxwing {} serves {}", env!("CARGO_PKG_VERSION"), self.config.server_name)?;
        for (name, scheme, path, addresses) in [
            ("clients", "http", "", &self.addresses.client),
            ("federation", "https", "", &self.addresses.federation),
            ("metrics", "http", "/metrics", &self.addresses.metrics),
        ] {
            for address in addresses {
                writeln!(out, "  {name:<12} {scheme}://{address}{path}")?;
            }
        }
        writeln!(out, "  {:<12} {}", "database", self.config.database_shown())?;
        let registration = match (self.config.registration, &self.app.first_token) {
            (_, Some(token)) => {
                format!("the first administrator registers with this token, once: {token}")
            }
            (Registration::Token, None) => "with a registration token".to_owned(),
            (Registration::Open, None) => "open to anyone".to_owned(),
            (Registration::Closed, None) => "closed".to_owned(),
        };
        writeln!(out, "  {:<12} {registration}", "accounts")?;
        writeln!(out, "ready after {} ms", self.began.elapsed().as_millis())?;
        out.flush()?;
        Ok(())
    }

    /// Serves until a signal, or until a listener fails.
    async fn until(mut self, mut signals: Signals) -> anyhow::Result<()> {
        let failure = loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Stop => break None,
                    Asked::Reload => self.reload().await,
                },
                error = self.listeners.failed() => break Some(error),
                () = self.app.store().gone_back() => break Some(anyhow::anyhow!(
                    "the database lacks what this node has read from it: it was restored, or fell to a replica that \
                     was behind; this process cannot go on, the next one can"
                )),
            }
        };
        tracing::info!("stopping");
        let drain =
            if failure.is_none() { Duration::from_secs(self.config.drain_seconds) } else { Duration::ZERO };
        let stopping = async {
            self.health.drain();
            self.leave().await;
            // Whoever shares requests out sees that this node is going, and sends them to others.
            tokio::time::sleep(drain).await;
            self.stop().await;
        };
        tokio::select! {
            () = stopping => tracing::info!("stopped"),
            // Whoever asks twice does not want to wait.
            () = signals.again() => tracing::warn!("stopped without waiting for requests"),
        }
        failure.map_or(Ok(()), Err)
    }

    /// Others take over what this node has leases of.
    async fn leave(&self) {
        match tokio::time::timeout(LEAVING, self.app.store().leave_cluster()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the other nodes could not be told that this one goes"),
            Err(_) => tracing::warn!("the other nodes could not be told that this one goes: no answer"),
        }
    }

    async fn reload(&self) {
        let Some((files, running)) = &self.certificate else { return };
        match files.reload(running).await {
            Ok(()) => tracing::info!("the certificate was read again"),
            Err(error) => tracing::error!("the old certificate stays: {error:#}"),
        }
    }

    /// Stops accepting, ends long polls, lets requests finish, closes the database.
    pub async fn stop(self) {
        self.stop.cancel();
        self.listeners.close(GRACE).await;
        self.app.close().await;
        self.upkeep.abort();
    }
}

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// Waits for a second signal to stop.
    async fn again(&mut self) {
        while let Asked::Reload = self.next().await {}
    }
}
