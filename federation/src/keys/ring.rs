use futures_util::{FutureExt, StreamExt};
use moka::sync::Cache;
use ruma::serde::Base64;
use ruma::{OwnedServerName, OwnedServerSigningKeyId, ServerName};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use waxwing_model::Clock;

use super::document::{KeyDocument, ServerKeys};
use super::own::OwnKeys;
use crate::client::{Client, KeyCriteria};
use crate::ports::{KeyStore, PortResult};

/// Servers whose keys are kept in memory; each is a few hundred bytes and a document of a few kilobytes.
const CACHED_SERVERS: u64 = 20_000;
/// Keys fetched at the same time: a join to a large room needs those of thousands of servers, many of them dead.
const PARALLEL: usize = 32;
/// After any fetch, the same server is left alone this long, even when a request cannot be verified without it:
/// anybody can write any server's name into a header.
const SPACING: u64 = 10 * 1000;
/// Keys for old events are not tried again for longer and longer, up to this.
const MAX_BACKOFF: u64 = 60 * 60 * 1000;
/// From this many servers on, notaries are asked first, all in one request.
const BATCH_FROM: usize = 8;
/// Servers in one question to a notary.
const BATCH: usize = 100;
/// Per-server locks live as long as somebody is fetching.
const LOCKS_IDLE: Duration = Duration::from_mins(2);

/// Keys to gather: per server and key id the latest time at which it has to have counted (zero: any).
pub type KeyNeeds = BTreeMap<OwnedServerName, BTreeMap<OwnedServerSigningKeyId, u64>>;
/// Public keys by server and key id, as verification wants them.
pub type KeyMap = BTreeMap<String, BTreeMap<String, Base64>>;

/// What the key ring is told by the configuration.
#[derive(Clone, Debug, Default)]
pub struct KeyRingConfig {
    /// Servers to ask for keys of servers that do not answer. Trusted to have checked what they pass on.
    pub notaries: Vec<OwnedServerName>,
}

/// The keys gathered for some events.
#[derive(Clone, Debug, Default)]
pub struct KeyBook(BTreeMap<OwnedServerName, Arc<ServerKeys>>);

impl KeyBook {
    /// One key that counted at `at` (any when `None`).
    pub fn key(&self, server: &ServerName, id: &OwnedServerSigningKeyId, at: Option<u64>) -> Option<&[u8]> {
        self.0.get(server)?.key(id, at)
    }

    /// Those of `needs` that are known and counted at `at`. Unknown and expired keys are left out: signatures by them
    /// are skipped, and one valid signature has to remain.
    pub fn map(&self, needs: &KeyNeeds, at: Option<u64>) -> KeyMap {
        let mut map = KeyMap::new();
        for (server, ids) in needs {
            let found = ids.keys().filter_map(|id| {
                let key = self.key(server, id, at)?;
                Some((id.to_string(), Base64::new(key.to_vec())))
            });
            map.insert(server.to_string(), found.collect());
        }
        map
    }
}

#[derive(Clone, Copy, Default)]
struct Attempt {
    at: u64,
    failures: u32,
}

/// The keys of all servers.
pub struct KeyRing {
    config: KeyRingConfig,
    own: OwnKeys,
    client: Client,
    store: Arc<dyn KeyStore>,
    clock: Clock,
    cache: Cache<OwnedServerName, Arc<ServerKeys>>,
    attempts: Cache<OwnedServerName, Attempt>,
    locks: Cache<OwnedServerName, Arc<Mutex<()>>>,
}

/// Why keys are needed: decides how soon after a failure it is tried again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Urgency {
    Request,
    Event,
}

impl KeyRing {
    /// A key ring over `store`, fetching through `client`.
    pub fn new(
        config: KeyRingConfig,
        own: OwnKeys,
        client: Client,
        store: Arc<dyn KeyStore>,
        clock: Clock,
    ) -> KeyRing {
        KeyRing {
            config,
            own,
            client,
            store,
            clock,
            cache: Cache::new(CACHED_SERVERS),
            attempts: Cache::new(CACHED_SERVERS),
            locks: Cache::builder().time_to_idle(LOCKS_IDLE).build(),
        }
    }

    /// Our own keys.
    pub fn own(&self) -> &OwnKeys {
        &self.own
    }

    /// The key that has signed a request, if it counts now.
    pub async fn request_key(
        &self,
        server: &ServerName,
        id: &OwnedServerSigningKeyId,
    ) -> PortResult<Option<Vec<u8>>> {
        let now = self.clock.millis();
        let wanted = BTreeMap::from([(id.clone(), now)]);
        let keys = self.server_keys(server, &wanted, Urgency::Request).await?;
        Ok(keys.key(id, Some(now)).map(<[u8]>::to_vec))
    }

    /// Asks a server for its keys once more because a signature does not fit the one at hand: a server that was set
    /// up anew may use the old id for its new key. Whether any key is another one now; asks no sooner than after
    /// [`SPACING`].
    pub(crate) async fn again(&self, server: &ServerName) -> PortResult<bool> {
        let before = self.known(server).await?;
        let after = self.renew(server, &BTreeMap::new(), Urgency::Request, true).await?;
        Ok(!before.same_keys(&after))
    }

    /// Gathers keys for events, fetching what is not known. What cannot be had is missing from the book.
    pub async fn gather(&self, needs: &KeyNeeds) -> PortResult<KeyBook> {
        self.ask_notaries_first(needs).await?;
        let mut fetches = Vec::with_capacity(needs.len());
        for (server, wanted) in needs {
            let fetch = async move {
                let keys = self.server_keys(server, wanted, Urgency::Event).await?;
                PortResult::Ok((server.clone(), keys))
            };
            fetches.push(fetch.boxed());
        }
        let mut book = KeyBook::default();
        let mut fetched = futures_util::stream::iter(fetches).buffer_unordered(PARALLEL);
        while let Some(one) = fetched.next().await {
            let (server, keys) = one?;
            book.0.insert(server, keys);
        }
        Ok(book)
    }

    /// The newest document of a server for a notary's answer, fetched anew when the one at hand is past half its life
    /// or does not reach `minimum`.
    pub(super) async fn document(
        &self,
        server: &ServerName,
        wanted: &BTreeMap<OwnedServerSigningKeyId, u64>,
    ) -> PortResult<Option<Arc<RawValue>>> {
        let known = self.known(server).await?;
        let now = self.clock.millis();
        let fresh = known.document.as_ref().is_some_and(|(json, fetched)| {
            let until =
                KeyDocument::verify(server, (**json).to_owned(), *fetched).map_or(0, |doc| doc.valid_until);
            now < fetched.saturating_add(until.saturating_sub(*fetched) / 2)
        });
        if fresh && satisfied(&known, wanted) {
            return Ok(known.document.as_ref().map(|(json, _)| Arc::clone(json)));
        }
        let renewed = self.renew(server, wanted, Urgency::Event, true).await?;
        Ok(renewed.document.as_ref().map(|(json, _)| Arc::clone(json)))
    }

    /// What is known of a server, without asking it.
    async fn known(&self, server: &ServerName) -> PortResult<Arc<ServerKeys>> {
        if server == self.own.server() {
            return Ok(Arc::new(self.own.server_keys()));
        }
        if let Some(keys) = self.cache.get(server) {
            return Ok(keys);
        }
        let record = self.store.server_keys_load(server).await?.unwrap_or_default();
        let keys = Arc::new(ServerKeys::from_record(record));
        self.cache.insert(server.to_owned(), Arc::clone(&keys));
        Ok(keys)
    }

    async fn server_keys(
        &self,
        server: &ServerName,
        wanted: &BTreeMap<OwnedServerSigningKeyId, u64>,
        urgency: Urgency,
    ) -> PortResult<Arc<ServerKeys>> {
        let known = self.known(server).await?;
        if server == self.own.server() || satisfied(&known, wanted) {
            return Ok(known);
        }
        self.renew(server, wanted, urgency, false).await
    }

    /// Fetches a server's keys, one fetch at a time, unless that was tried too recently.
    async fn renew(
        &self,
        server: &ServerName,
        wanted: &BTreeMap<OwnedServerSigningKeyId, u64>,
        urgency: Urgency,
        whatever: bool,
    ) -> PortResult<Arc<ServerKeys>> {
        if server == self.own.server() {
            return self.known(server).await;
        }
        let lock = self.locks.get_with(server.to_owned(), Arc::default);
        let _fetching = lock.lock().await;
        let known = self.known(server).await?;
        if (!whatever && satisfied(&known, wanted)) || !self.may_fetch(server, urgency) {
            return Ok(known);
        }
        let fetched = self.client.server_keys(server).await;
        metrics::counter!("waxwing_federation_key_fetches_total", "ok" => fetched.is_ok().to_string())
            .increment(1);
        let document = match fetched {
            Ok(json) => KeyDocument::verify(server, json, self.clock.millis())
                .inspect_err(|error| tracing::info!(%server, %error, "a key document is not believed"))
                .ok(),
            Err(error) => {
                tracing::debug!(%server, %error, "keys could not be fetched");
                None
            }
        };
        self.record_attempt(server, document.is_some());
        let mut keys = match document {
            Some(document) => self.learn(server, &document).await?,
            None => known,
        };
        if !satisfied(&keys, wanted) {
            let needs = KeyNeeds::from([(server.to_owned(), wanted.clone())]);
            self.ask_notaries(&needs).await?;
            keys = self.known(server).await?;
        }
        Ok(keys)
    }

    fn may_fetch(&self, server: &ServerName, urgency: Urgency) -> bool {
        let Some(last) = self.attempts.get(server) else { return true };
        let backoff = match urgency {
            Urgency::Request => SPACING,
            Urgency::Event => SPACING.saturating_mul(1 << last.failures.min(10)).min(MAX_BACKOFF),
        };
        self.clock.millis() >= last.at.saturating_add(backoff)
    }

    fn record_attempt(&self, server: &ServerName, ok: bool) {
        let before = self.attempts.get(server).unwrap_or_default();
        let failures = if ok { 0 } else { before.failures.saturating_add(1) };
        self.attempts.insert(server.to_owned(), Attempt { at: self.clock.millis(), failures });
    }

    /// Adds a verified document to what is known, in the database first.
    async fn learn(&self, server: &ServerName, document: &KeyDocument) -> PortResult<Arc<ServerKeys>> {
        let mut keys = (*self.known(server).await?).clone();
        keys.add(document, self.clock.millis());
        self.store.server_keys_save(server, &keys.to_record()).await?;
        let keys = Arc::new(keys);
        self.cache.insert(server.to_owned(), Arc::clone(&keys));
        Ok(keys)
    }

    /// For many servers at once, notaries answer for all in one request, also for the dead.
    async fn ask_notaries_first(&self, needs: &KeyNeeds) -> PortResult<()> {
        if self.config.notaries.is_empty() || needs.len() < BATCH_FROM {
            return Ok(());
        }
        let mut missing = KeyNeeds::new();
        for (server, wanted) in needs {
            if server != self.own.server() && !satisfied(&*self.known(server).await?, wanted) {
                missing.insert(server.clone(), wanted.clone());
            }
        }
        if missing.len() < BATCH_FROM { Ok(()) } else { self.ask_notaries(&missing).await }
    }

    async fn ask_notaries(&self, needs: &KeyNeeds) -> PortResult<()> {
        let entries: Vec<_> = needs.iter().collect();
        for notary in self.config.notaries.iter().filter(|notary| **notary != *self.own.server()) {
            for batch in entries.chunks(BATCH) {
                let query =
                    batch.iter().map(|(server, wanted)| ((*server).clone(), criteria(wanted))).collect();
                let answers = match self.client.notary_query(notary, &query).await {
                    Ok(answers) => answers,
                    Err(error) => {
                        tracing::debug!(%notary, %error, "a notary did not answer");
                        continue;
                    }
                };
                for json in answers.into_iter().take(BATCH * 2) {
                    self.learn_from_notary(notary, &query, json).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes one document from a notary: it must be of a server that was asked for, signed by its owner and by the
    /// notary.
    async fn learn_from_notary(
        &self,
        notary: &ServerName,
        query: &BTreeMap<OwnedServerName, BTreeMap<OwnedServerSigningKeyId, KeyCriteria>>,
        json: Box<RawValue>,
    ) -> PortResult<()> {
        let Some(server) = named(&json).filter(|server| query.contains_key(server)) else { return Ok(()) };
        let Some(id) = super::notary::signature_of(&json, notary) else { return Ok(()) };
        // Boxed: verifying a notary's signature may fetch the notary's keys (never through a notary's signature again:
        // the notary itself is asked directly first).
        let key = if *server == *notary { None } else { Box::pin(self.request_key(notary, &id)).await? };
        let countersigned =
            *server == *notary || key.is_some_and(|key| super::notary::signed_by(&json, notary, &id, &key));
        if !countersigned {
            tracing::info!(%notary, %server, "a notary's answer is not signed by it");
            return Ok(());
        }
        match KeyDocument::verify(&server, json, self.clock.millis()) {
            Ok(document) => self.learn(&server, &document).await.map(drop),
            Err(error) => {
                tracing::info!(%notary, %server, %error, "a notary's answer is not believed");
                Ok(())
            }
        }
    }
}

fn criteria(
    wanted: &BTreeMap<OwnedServerSigningKeyId, u64>,
) -> BTreeMap<OwnedServerSigningKeyId, KeyCriteria> {
    wanted.iter().map(|(id, at)| (id.clone(), KeyCriteria { minimum_valid_until_ts: *at })).collect()
}

fn named(json: &RawValue) -> Option<OwnedServerName> {
    #[derive(serde::Deserialize)]
    struct Named {
        server_name: OwnedServerName,
    }
    serde_json::from_str::<Named>(json.get()).ok().map(|named| named.server_name)
}

fn satisfied(keys: &ServerKeys, wanted: &BTreeMap<OwnedServerSigningKeyId, u64>) -> bool {
    wanted.iter().all(|(id, at)| keys.key(id, Some(*at)).is_some())
}
