//! Builds the server from its parts: storage, then services, then the API.

use crate::config::{Badge, Config, Plaintext, Rate, Registration, RoomListPublication};
use crate::people;
use crate::signing_key;
use anyhow::Context;
use axum::Router;
use ruma::ServerName;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use waxwing_api::{Api, Limits, Parts, Rate as ApiRate, Rates, WellKnown};
use waxwing_model::Clock;
use waxwing_rooms::KeyPair;
use waxwing_services::account_data::AccountData;
use waxwing_services::accounts::Accounts;
use waxwing_services::appservices::{Appservices, Feeds, Link, Networks, Queries};
use waxwing_services::backups::Backups;
use waxwing_services::delayed::Delayed;
use waxwing_services::directory::Directory;
use waxwing_services::federation::{Edus, Federation, FederationSettings, Outgoing};
use waxwing_services::filters::Filters;
use waxwing_services::guests::Guests;
use waxwing_services::housekeeping::Housekeeping;
use waxwing_services::keys::Keys;
use waxwing_services::mail::Mailer;
use waxwing_services::notices::Notices;
use waxwing_services::notifications::Notifications;
use waxwing_services::notifier::Notifier;
use waxwing_services::outgoing::{Nowhere, Volatile};
use waxwing_services::people::People;
use waxwing_services::presence::PresenceService;
use waxwing_services::profiles::Profiles;
use waxwing_services::purge::{PurgeSettings, Purges, RetentionSettings};
use waxwing_services::push::{GatewaySettings, Gateways, Push};
use waxwing_services::push_rules::PushRules;
use waxwing_services::pushers::Pushers;
use waxwing_services::receipts::Receipts;
use waxwing_services::relationships::Relationships;
use waxwing_services::rendezvous::Rendezvous;
use waxwing_services::reports::Reports;
use waxwing_services::rooms_read::{RemoteHistory, RoomReader};
use waxwing_services::search::Search;
use waxwing_services::signing_keys;
use waxwing_services::sync::{Sync, Unread};
use waxwing_services::third_party::ThirdParty;
use waxwing_services::thread_subscriptions::ThreadSubscriptions;
use waxwing_services::timeline::Timeline;
use waxwing_services::to_device::ToDevice;
use waxwing_services::typing::Typing;
use waxwing_services::{Core, PasswordCost, PlaintextPolicy, PushSettings, RegistrationMode, Settings};
use waxwing_storage::Store;

/// How often the database learns when devices were last seen; after a crash so much of it is lost.
const WRITE_SEEN_EVERY: Duration = Duration::from_mins(1);

/// What a node serves and has to end.
pub struct App {
    /// Routes of the client listener.
    pub client: Router,
    /// Routes of the federation listener.
    pub federation: Router,
    /// A token with which the first administrator registers, while there is no account.
    pub first_token: Option<String>,
    /// What runs beside requests, until the token of [`App::build`] is cancelled.
    tasks: Vec<JoinHandle<()>>,
    core: Core,
}

/// Opens the database, brings it to the newest schema, and gathers what every service needs. `waxwing user` and
/// `waxwing audit` start here too, beside a running server or without one.
pub async fn core(config: &Config, key: KeyPair) -> anyhow::Result<Core> {
    let nats = crate::cluster::nats(config)?;
    let store = Store::open_with(config.database_url().expose(), nats)
        .await
        .with_context(|| format!("cannot open the database {}", config.database_shown()))?;
    let before = key.id();
    let key = signing_keys::newest(&store, key).await.context("cannot tell which signing key is in use")?;
    if key.id() != before {
        signing_key::keep(&config.data_dir, &key)?;
    }
    Ok(Core {
        server_name: config.server_name.clone(),
        clock: Clock::System,
        store,
        key: Arc::new(key),
        settings: Arc::new(settings(config)?),
    })
}

/// The part of the configuration that services act upon.
fn settings(config: &Config) -> anyhow::Result<Settings> {
    Ok(Settings {
        registration: match config.registration {
            Registration::Token => RegistrationMode::Token,
            Registration::Open => RegistrationMode::Open,
            Registration::Closed => RegistrationMode::Closed,
        },
        registration_shared_secret: config
            .registration_shared_secret
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
        plaintext: PlaintextPolicy {
            accept: config.plaintext == Plaintext::Accept,
            rooms: config.plaintext_rooms.clone(),
            appservices: config.plaintext_appservices.clone(),
        },
        default_room_version: config.default_room_version.clone(),
        presence: config.presence,
        max_upload_bytes: config.media.max_upload_bytes,
        password: PasswordCost {
            memory_kib: config.password.memory_kib,
            iterations: config.password.iterations,
        },
        everyone_publishes_rooms: config.room_list_publication == RoomListPublication::Everyone,
        federation: config.federation.enabled,
        push: PushSettings {
            allow_private: config.push.allow_private_addresses,
            badge: match config.push.badge {
                Badge::Messages => waxwing_services::Badge::Messages,
                Badge::Rooms => waxwing_services::Badge::Rooms,
            },
            encrypted_events: config.push.encrypted_events,
            thread_subscriptions: config.push.thread_subscriptions,
        },
        accounts: people::settings(config)?,
    })
}

/// What application services are asked through.
fn queries(config: &Config, appservices: &Arc<Appservices>) -> anyhow::Result<Queries> {
    let unknown = config.plaintext_appservices.iter().find(|id| appservices.by_id(id).is_none());
    if let Some(id) = unknown {
        tracing::warn!(id, "plaintext_appservices names an application service that is not registered");
    }
    let link = Link::new(&extra_roots(config)?, &user_agent()).map_err(|error| anyhow::anyhow!(error));
    let link = link.context("cannot set up requests to application services")?;
    Ok(Queries::new(Arc::clone(appservices), link))
}

/// The part that speaks to other servers; none when federation is off.
fn outgoing(config: &Config, core: &Core) -> anyhow::Result<Option<Outgoing>> {
    if !config.federation.enabled {
        return Ok(None);
    }
    let mut settings = FederationSettings {
        allow_private: config.federation.allow_private_addresses,
        user_agent: user_agent(),
        extra_roots: extra_roots(config)?,
        ..FederationSettings::default()
    };
    for (server, address) in &config.federation.hosts {
        let server = ServerName::parse(server)
            .with_context(|| format!("federation.hosts: {server} is no server name"))?;
        settings.hosts.insert(server, address.clone());
    }
    let outgoing = Outgoing::new(core, settings).map_err(|error| anyhow::anyhow!(error));
    outgoing.context("cannot set up federation").map(Some)
}

/// The same, together with what follows rotations of the signing key, those of other nodes and of the command line.
async fn outgoing_and_key(
    config: &Config,
    core: &Core,
    stop: &CancellationToken,
) -> anyhow::Result<(Option<Outgoing>, JoinHandle<()>)> {
    let outgoing = outgoing(config, core)?;
    if let Some(outgoing) = &outgoing {
        outgoing.ring.own().set_old(signing_keys::retired(&core.store).await?);
    }
    let data_dir = config.data_dir.clone();
    let keep = move |key: &KeyPair| {
        if let Err(error) = signing_key::keep(&data_dir, key) {
            tracing::error!(%error, "the new signing key could not be kept; the next start reads it again");
        }
    };
    let following = signing_keys::follow(core.clone(), outgoing.clone(), keep, stop.clone());
    Ok((outgoing, tokio::spawn(following)))
}

/// Certificate authorities of the configuration, DER.
pub fn extra_roots(config: &Config) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut roots = Vec::new();
    for path in &config.tls.extra_roots {
        let cannot = || format!("cannot read the certificates in {}", path.display());
        for certificate in CertificateDer::pem_file_iter(path).with_context(cannot)? {
            roots.push(certificate.with_context(cannot)?.to_vec());
        }
    }
    Ok(roots)
}

/// What this server calls itself to others.
pub fn user_agent() -> String {
    format!("Waxwing/{}", env!("CARGO_PKG_VERSION"))
}

/// What delivers push notifications; none when that is off, or when the system trusts no certificates.
fn push(
    config: &Config,
    core: &Core,
    notifier: &Arc<Notifier>,
    unread: &Arc<Unread>,
) -> anyhow::Result<Option<Push>> {
    if !config.push.enabled {
        return Ok(None);
    }
    let gateways = Gateways::new(GatewaySettings {
        allow_private: config.push.allow_private_addresses,
        extra_roots: extra_roots(config)?,
        user_agent: user_agent(),
    });
    let gateways = match gateways {
        Ok(gateways) => gateways,
        Err(error) => {
            tracing::error!(%error, "push notifications are off");
            return Ok(None);
        }
    };
    Ok(Some(Push::new(core.clone(), Arc::clone(notifier), Arc::clone(unread), gateways)))
}

/// The services that other servers push to beside events.
fn edus(config: &Config, core: &Core, outgoing: Option<&Outgoing>) -> Edus {
    let volatile: Arc<dyn Volatile> = match outgoing {
        Some(outgoing) => Arc::new(outgoing.sender.clone()),
        None => Arc::new(Nowhere),
    };
    Edus {
        typing: Typing::new(core.clone(), Arc::clone(&volatile)),
        receipts: Receipts::new(core.clone(), Arc::clone(&volatile)),
        presence: PresenceService::new(core.clone(), config.federation.presence.then_some(volatile)),
        keys: Keys::new(core.clone(), outgoing.map(|outgoing| outgoing.client.clone())),
        to_device: ToDevice::new(core.clone()),
    }
}

/// The rate limits.
fn limits(config: &Config) -> Limits {
    let rates = &config.rate_limits;
    if !rates.enabled {
        return Limits::off();
    }
    let rate = |rate: Rate| ApiRate { per_second: rate.per_second, burst: rate.burst };
    Limits::new(Rates {
        message: rate(rates.message),
        login: rate(rates.login),
        registration: rate(rates.registration),
        join: rate(rates.join),
        invite: rate(rates.invite),
        create_room: rate(rates.create_room),
        upload: rate(rates.upload),
        federation: rate(rates.federation),
    })
}

/// The accounts and the application services. `mailer`: none where no letters are to be sent.
pub fn accounts(config: &Config, core: &Core, mailer: Option<Mailer>) -> anyhow::Result<Arc<Accounts>> {
    let appservices = match &config.appservices {
        Some(folder) => Appservices::read(folder, &config.server_name)?,
        None => Appservices::default(),
    };
    Ok(Arc::new(Accounts::new(core.clone(), Arc::new(appservices), mailer)))
}

/// The accounts with what sends their letters, and the token of the first administrator while there is no account.
async fn accounts_at_start(
    config: &Config,
    core: &Core,
    stop: &CancellationToken,
) -> anyhow::Result<(Arc<Accounts>, Option<String>)> {
    let mailer = people::mailer(config, &extra_roots(config)?, stop)?;
    let accounts = accounts(config, core, mailer)?;
    accounts.create_appservice_senders().await?;
    let first_token = accounts.first_token().await?;
    Ok((accounts, first_token))
}

fn well_known(config: &Config) -> WellKnown {
    let client = config.well_known.client.as_ref().or(config.public_base_url.as_ref());
    WellKnown {
        client: client.map(|url| url.as_str().trim_end_matches('/').to_owned()),
        server: config.well_known.server.clone(),
        support_page: config.well_known.support_page.as_ref().map(ToString::to_string),
        support_email: config.well_known.support_email.clone(),
        support_user: config.well_known.support_user.clone(),
        livekit_service_urls: config
            .rtc
            .livekit_service_urls
            .iter()
            .map(|url| url.as_str().trim_end_matches('/').to_owned())
            .collect(),
    }
}

/// Writes down when devices were last seen, until the end and once more then.
async fn write_seen(accounts: Arc<Accounts>, stop: CancellationToken) {
    let mut go_on = true;
    while go_on {
        tokio::select! {
            () = tokio::time::sleep(WRITE_SEEN_EVERY) => {}
            () = stop.cancelled() => go_on = false,
        }
        if let Err(error) = accounts.write_seen().await {
            tracing::warn!(%error, "cannot write down when devices were seen");
        }
    }
}

/// What is new, for clients.
fn sync(core: &Core, notifier: &Arc<Notifier>, edus: &Edus, stop: &CancellationToken) -> Sync {
    let (typing, presence) = (edus.typing.clone(), edus.presence.clone());
    Sync::new(core.clone(), Arc::clone(notifier), typing, presence, stop.clone())
}

/// What is forgotten, and when.
pub fn purge_settings(config: &Config) -> PurgeSettings {
    let retention = &config.retention;
    let days = |days: u64| Duration::from_secs(days.saturating_mul(24 * 60 * 60));
    let retention = RetentionSettings {
        enabled: retention.enabled,
        default_max: retention.default_max_days.map(days),
        least: Some(days(retention.min_days)),
        most: retention.max_days.map(days),
        every: Duration::from_secs(retention.every_hours.max(1).saturating_mul(60 * 60)),
    };
    PurgeSettings { retention, ..PurgeSettings::default() }
}

/// Starts what runs beside requests; `key` does already.
fn run_beside(
    stop: &CancellationToken,
    key: JoinHandle<()>,
    accounts: Arc<Accounts>,
    housekeeping: Housekeeping,
    feeds: Feeds,
    delayed: Delayed,
    guests: Guests,
    purges: Purges,
    push: Option<Push>,
    federation: Option<Federation>,
) -> Vec<JoinHandle<()>> {
    let mut tasks = vec![
        key,
        tokio::spawn(write_seen(accounts, stop.clone())),
        tokio::spawn(housekeeping.run(stop.clone())),
        tokio::spawn(guests.run(stop.clone())),
    ];
    let told = stop.clone();
    tasks.push(tokio::spawn(async move { feeds.run(told).await }));
    if let Some(push) = push {
        let stop = stop.clone();
        tasks.push(tokio::spawn(async move { push.run(stop).await }));
    }
    tasks.push(tokio::spawn({
        let stop = stop.clone();
        async move { delayed.run(stop).await }
    }));
    tasks.push(tokio::spawn({
        let stop = stop.clone();
        async move { purges.run(stop).await }
    }));
    if let Some(federation) = federation {
        let stop = stop.clone();
        tasks.push(tokio::spawn(async move { federation.run(stop).await }));
    }
    tasks
}

impl App {
    /// Opens the database and builds everything over it. Long polls and tasks end when `stop` is cancelled.
    pub async fn build(config: &Config, key: KeyPair, stop: CancellationToken) -> anyhow::Result<App> {
        let core = core(config, key).await?;
        let (accounts, first_token) = accounts_at_start(config, &core, &stop).await?;
        let (outgoing, key) = outgoing_and_key(config, &core, &stop).await?;
        let queries = queries(config, accounts.appservices())?;
        let timeline = Timeline::new(core.clone(), outgoing.as_ref().map(|out| out.remote.clone()))
            .with_appservices(queries.clone());
        let edus = edus(config, &core, outgoing.as_ref());
        let feeds = Feeds::new(core.clone(), queries.clone(), edus.typing.clone(), edus.presence.clone());
        feeds.prepare().await?;
        let notifier = Notifier::start(core.clone()).await.context("cannot read who is in which room")?;
        let sync = sync(&core, &notifier, &edus, &stop);
        let push = push(config, &core, &notifier, sync.unread())?;
        let federation =
            outgoing.map(|outgoing| Federation::new(core.clone(), outgoing, timeline.clone(), edus.clone()));
        let history = federation.clone().map(|it| Arc::new(it) as Arc<dyn RemoteHistory>);
        let client = federation.as_ref().map(|federation| federation.outgoing().client.clone());
        let profiles = Profiles::new(core.clone(), timeline.clone(), client.clone());
        let media = crate::media::service(config, &core, client.clone())?;
        let delayed = Delayed::new(core.clone(), timeline.clone());
        let guests = Guests::new(core.clone(), timeline.clone());
        let purges = Purges::new(core.clone(), timeline.clone(), purge_settings(config));
        let reader = RoomReader::new(core.clone(), history, client.clone());
        let directory = Directory::new(core.clone(), timeline.clone(), client.clone());
        let housekeeping = Housekeeping::new(core.clone(), edus.to_device.clone(), media.clone())
            .with_timeline(timeline.clone());
        let api = Api::new(Parts {
            core: core.clone(),
            well_known: well_known(config),
            limits: limits(config),
            account_data: AccountData::new(core.clone()),
            accounts: Arc::clone(&accounts),
            feeds: feeds.clone(),
            networks: Networks::new(core.clone(), queries),
            federation: federation.clone(),
            delayed: delayed.clone(),
            filters: Filters::new(core.clone()),
            notices: Notices::new(core.clone(), Arc::clone(&accounts), timeline.clone()),
            notifications: Notifications::new(core.clone(), Arc::clone(sync.unread())),
            people: People::new(core.clone()),
            relationships: Relationships::new(core.clone(), reader.clone(), federation.clone()),
            rendezvous: Rendezvous::new(core.clone()),
            reports: Reports::new(core.clone()),
            search: Search::new(core.clone()),
            profiles,
            purges: purges.clone(),
            push_rules: PushRules::new(core.clone()),
            pushers: Pushers::new(core.clone()),
            third_party: ThirdParty::new(core.clone(), timeline.clone(), client),
            thread_subscriptions: ThreadSubscriptions::new(core.clone(), reader.clone()),
            timeline,
            previews: crate::media::previews(config, &core, &media),
            media,
            reader,
            sync,
            directory,
            typing: edus.typing,
            receipts: edus.receipts,
            presence: edus.presence,
            keys: edus.keys,
            to_device: edus.to_device,
            backups: Backups::new(core.clone()),
        });
        let client = waxwing_api::client_router(api.clone());
        let tasks =
            run_beside(&stop, key, accounts, housekeeping, feeds, delayed, guests, purges, push, federation);
        let federation = waxwing_api::federation_router(api);
        Ok(App { client, federation, first_token, tasks, core })
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.core.store
    }

    /// Closes the database: the last handle ends the task that commits. Requests have ended.
    pub async fn close(self) {
        let App { core, tasks, .. } = self;
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task failed");
            }
        }
        drop(core);
    }
}
