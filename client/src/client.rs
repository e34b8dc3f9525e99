//! The client: one device of one account. Cheap to clone; every method takes `&self`.

use std::{
    path::Path,
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
};

use client_ruma::{DeviceId, OwnedRoomId, RoomId, UserId};
use matrix_sdk_crypto::OlmMachine;
use matrix_sdk_sqlite::SqliteCryptoStore;
use tokio::sync::Mutex;

use crate::{
    error::{Error, Result},
    home::Home,
    http::{Http, Secret},
    session::{ClientBuilder, KEYS_DIRECTORY, SESSION_FILE, STATE_FILE, Session},
    store::{Membership, Room, Store},
    timeline::TimelineEvent,
};

#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: Http,
    home: Home,
    session: Session,
    machine: OlmMachine,
    store: StdMutex<Store>,
    /// One sync at a time: responses must reach the key machine in order.
    sync_turn: Mutex<()>,
    /// One sharing of room keys at a time, so that two sends do not claim keys twice.
    share_turn: Mutex<()>,
    /// One pass over the outgoing requests at a time, so that none is sent twice.
    outgoing_turn: Mutex<()>,
}

impl Client {
    /// Begins a new device on `homeserver` (a URL or a server name), kept in the directory `home`.
    pub fn builder(homeserver: &str, home: &Path) -> ClientBuilder {
        ClientBuilder::new(homeserver, home)
    }

    /// Opens the device that `home` holds.
    pub async fn open(home: &Path) -> Result<Self> {
        Self::open_with(home, None).await
    }

    /// Like [`Self::open`], for a key store that was encrypted with a passphrase.
    pub async fn open_with(home: &Path, passphrase: Option<&Secret>) -> Result<Self> {
        if !home.join(SESSION_FILE).exists() {
            return Err(Error::NotLoggedIn(home.to_owned()));
        }
        let home = Home::open(home)?;
        let session: Session =
            home.read(SESSION_FILE)?.ok_or_else(|| Error::NotLoggedIn(home.path().to_owned()))?;
        let http = Http::new(&session.homeserver)?;
        http.set_versions(&session.versions);
        Self::start(home, http, session, passphrase).await
    }

    pub(crate) async fn start(
        home: Home,
        http: Http,
        session: Session,
        passphrase: Option<&Secret>,
    ) -> Result<Self> {
        http.set_token(Some(session.access_token.clone()));
        let keys = home.path().join(KEYS_DIRECTORY);
        let keys = SqliteCryptoStore::open(&keys, passphrase.map(Secret::expose)).await?;
        let machine = OlmMachine::with_store(&session.user_id, &session.device_id, keys, None).await?;
        let store: Store = home.read(STATE_FILE)?.unwrap_or_default();
        Ok(Self {
            inner: Arc::new(Inner {
                http,
                home,
                session,
                machine,
                store: StdMutex::new(store),
                sync_turn: Mutex::new(()),
                share_turn: Mutex::new(()),
                outgoing_turn: Mutex::new(()),
            }),
        })
    }

    pub fn user_id(&self) -> &UserId {
        &self.inner.session.user_id
    }

    pub fn device_id(&self) -> &DeviceId {
        &self.inner.session.device_id
    }

    pub fn homeserver(&self) -> &str {
        self.inner.http.base()
    }

    /// The access token, for tests that speak to the server by other means.
    pub fn access_token(&self) -> &Secret {
        &self.inner.session.access_token
    }

    /// Typed requests beyond what this library wraps: `client.http().send(request)`.
    pub fn http(&self) -> &Http {
        &self.inner.http
    }

    /// The key machine, for what this library does not wrap.
    pub fn machine(&self) -> &OlmMachine {
        &self.inner.machine
    }

    /// Rooms by id, with our membership.
    pub fn rooms(&self) -> Vec<(OwnedRoomId, Room)> {
        self.store().rooms().map(|(id, room)| (id.to_owned(), room.clone())).collect()
    }

    pub fn room(&self, id: &RoomId) -> Option<Room> {
        self.store().room(id).cloned()
    }

    pub fn is_invited(&self, id: &RoomId) -> bool {
        self.room(id).is_some_and(|room| room.membership == Membership::Invited)
    }

    /// The decrypted events of a room that syncs of this process brought, oldest first.
    pub fn timeline(&self, room: &RoomId) -> Vec<TimelineEvent> {
        self.store().timeline(room).cloned().collect()
    }

    /// The store, briefly: never hold the guard across an `.await`.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.inner.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn save(&self) -> Result<()> {
        self.inner.home.write(STATE_FILE, &*self.store())
    }

    pub(crate) fn home(&self) -> &Home {
        &self.inner.home
    }

    pub(crate) fn sync_turn(&self) -> &Mutex<()> {
        &self.inner.sync_turn
    }

    pub(crate) fn share_turn(&self) -> &Mutex<()> {
        &self.inner.share_turn
    }

    pub(crate) fn outgoing_turn(&self) -> &Mutex<()> {
        &self.inner.outgoing_turn
    }
}
