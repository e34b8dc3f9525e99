//! Federation put together: what the federation package needs of us, and what other servers may ask for.

mod access;
mod edus;
mod error;
mod history;
mod invite;
mod join;
mod keys;
mod lanes;
mod leave;
mod older;
mod outbox;
mod queries;
mod replays;
mod resync;
mod run;
mod shards;
mod staging;

pub use edus::Edus;
pub use error::FederationError;
pub use history::{MissingEvents, RoomState};
pub use invite::Invitation;
pub use join::{Joined, Template};
pub(crate) use outbox::prune as prune_outgoing;
pub(crate) use replays::KEPT_FOR as ANSWERS_KEPT_FOR;

use crate::Core;
use crate::keys::Keys;
use crate::timeline::Timeline;
use outbox::DurableOutbox;
use ruma::OwnedServerName;
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_federation::Health;
use waxwing_federation::client::Client;
use waxwing_federation::discovery::DiscoveryConfig;
use waxwing_federation::inbound::{Inbound, InboundParts};
use waxwing_federation::keys::{KeyRing, KeyRingConfig, OwnKeys};
use waxwing_federation::net::{AddressPolicy, SystemDns};
use waxwing_federation::outbound::{Sender, SenderLimits};
use waxwing_federation::remote::RemoteMemberships;
use waxwing_federation::signing::Identity;
use waxwing_federation::transport::{HttpTransport, Transport, TransportConfig};

/// What the configuration says of other servers.
#[derive(Clone, Debug, Default)]
pub struct FederationSettings {
    /// Servers that are reached at a fixed `host:port`.
    pub hosts: BTreeMap<OwnedServerName, String>,
    /// Whether private addresses may be called.
    pub allow_private: bool,
    /// Certificate authorities to trust beside the system's, DER.
    pub extra_roots: Vec<Vec<u8>>,
    /// The `User-Agent` header.
    pub user_agent: String,
}

/// The part that speaks to other servers. A handle: clones share everything.
#[derive(Clone)]
pub struct Outgoing {
    /// Requests.
    pub client: Client,
    /// Keys of all servers, our own too.
    pub ring: Arc<KeyRing>,
    /// Memberships of our users elsewhere.
    pub remote: RemoteMemberships,
    /// What waits for other servers. Give it what may be lost (typing, receipts, presence); everything else goes
    /// through the outbox of the transaction that makes it.
    pub sender: Sender,
    pub(crate) outbox: DurableOutbox,
}

impl Outgoing {
    /// Sets it up; speaks to nobody yet.
    ///
    /// # Errors
    /// When the system's resolver or certificates cannot be read, or the signing key is none.
    pub fn new(
        core: &Core,
        settings: FederationSettings,
    ) -> Result<Outgoing, Box<dyn std::error::Error + Send + Sync>> {
        let config = TransportConfig {
            discovery: DiscoveryConfig { hosts: settings.hosts, ..DiscoveryConfig::default() },
            addresses: AddressPolicy { allow_private: settings.allow_private, allowed: Vec::new() },
            extra_roots: settings.extra_roots.into_iter().map(Into::into).collect(),
            user_agent: settings.user_agent,
        };
        let transport = HttpTransport::new(config, Arc::new(SystemDns::new()?), core.clock.clone())?;
        Ok(Outgoing::over(core, Arc::new(transport))?)
    }

    /// Over another network than the real one.
    ///
    /// # Errors
    /// When the signing key is none.
    pub fn over(
        core: &Core,
        transport: Arc<dyn Transport>,
    ) -> Result<Outgoing, waxwing_federation::signing::BadKey> {
        let identity = Identity::new(core.server_name.clone(), Arc::clone(&core.key))?;
        let health = Arc::new(Health::new(core.clock.clone()));
        let client = Client::new(identity.clone(), transport, health);
        let ring = Arc::new(KeyRing::new(
            KeyRingConfig::default(),
            OwnKeys::new(identity, Vec::new()),
            client.clone(),
            Arc::new(keys::Keys { core: core.clone() }),
            core.clock.clone(),
        ));
        let remote = RemoteMemberships::new(client.clone(), Arc::clone(&ring), core.clock.clone());
        let outbox = DurableOutbox::new(core.clone());
        let limits = SenderLimits::default();
        let sender = Sender::new(client.clone(), Arc::new(outbox.clone()), core.clock.clone(), limits);
        Ok(Outgoing { client, ring, remote, sender, outbox })
    }

    /// The durable queues, for a simulation that sends what waits at moments of its own choice.
    pub fn outbox(&self) -> &impl waxwing_federation::ports::Outbox {
        &self.outbox
    }

    /// Puts what was committed since the last call into those queues, which [`Federation::run`] does otherwise.
    ///
    /// # Errors
    /// The database's.
    pub async fn deal(&self) -> waxwing_storage::StoreResult<()> {
        self.outbox.renew().await?;
        self.outbox.follow().await.map(drop)
    }
}

/// Everything that other servers ask for. A handle: clones share everything.
#[derive(Clone)]
pub struct Federation {
    pub(crate) core: Core,
    pub(crate) timeline: Timeline,
    outgoing: Outgoing,
    inbound: Inbound,
    edus: Edus,
}

impl Federation {
    /// Puts the receiving side on top of the sending one.
    pub fn new(core: Core, outgoing: Outgoing, timeline: Timeline, edus: Edus) -> Federation {
        let inbound = Inbound::new(InboundParts {
            client: outgoing.client.clone(),
            ring: Arc::clone(&outgoing.ring),
            timeline: Arc::new(timeline.clone()),
            edus: Arc::new(edus.clone()),
            replays: Arc::new(replays::Replays { core: core.clone() }),
            staging: Arc::new(staging::Staged { core: core.clone(), owner: outgoing.outbox.owner() }),
        });
        Federation { core, timeline, outgoing, inbound, edus }
    }

    /// The part that speaks to other servers.
    pub fn outgoing(&self) -> &Outgoing {
        &self.outgoing
    }

    /// End-to-end keys of our users.
    pub fn keys(&self) -> &Keys {
        &self.edus.keys
    }

    /// Receives transactions and fetches history.
    pub fn inbound(&self) -> &Inbound {
        &self.inbound
    }

    /// The name of this server.
    pub fn server_name(&self) -> &ruma::ServerName {
        &self.core.server_name
    }

    /// Milliseconds since the epoch.
    pub fn now(&self) -> u64 {
        self.core.now()
    }
}
