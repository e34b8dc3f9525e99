//! Presence: who is there. Kept in memory, off by the setting `presence`.
//! <https://spec.matrix.org/v1.19/client-server-api/#presence>

use crate::Core;
use crate::outgoing::Volatile;
use parking_lot::Mutex;
use ruma::api::federation::transactions::edu::{PresenceContent, PresenceUpdate};
use ruma::presence::PresenceState;
use ruma::{OwnedUserId, UInt, UserId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use waxwing_federation::outbound::VolatileEdu;
use waxwing_model::Clock;
use waxwing_storage::StoreError;

/// Without a request for this long a user of this server is offline: longer than a sync waits.
const OFFLINE_AFTER_MS: u64 = 60_000;
/// Without doing anything for this long a user is no longer there, by the specification's advice.
const IDLE_AFTER_MS: u64 = 300_000;
/// Another server's user of whom nothing was heard for this long counts as offline.
const REMOTE_OFFLINE_AFTER_MS: u64 = 1_800_000;
/// Activity within this time is "currently active".
const ACTIVE_MS: u64 = 60_000;
/// How often states are looked over.
const SWEEP: Duration = Duration::from_secs(5);
/// A status message may be this long.
const MAX_STATUS_BYTES: usize = 4096;
/// Users remembered: beyond them new ones of other servers are not taken in.
const MAX_USERS: usize = 200_000;
/// Changes that wait to be told to other servers: beyond them some are not told.
const MAX_WAITING: usize = 10_000;

/// Why presence was not answered or taken.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else's presence.
    #[error("you may only set your own presence")]
    NotYours,
    /// The two share no room.
    #[error("you may not see this user's presence")]
    NotVisible,
    /// The status message is too long.
    #[error("the status message is too long")]
    TooLong,
}

/// A user's presence as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Online, unavailable, offline.
    pub state: PresenceState,
    /// The user's own words.
    pub status_msg: Option<String>,
    /// Milliseconds since the user last did something; none when that is not known.
    pub last_active_ago: Option<u64>,
    /// The user is doing something now.
    pub currently_active: bool,
}

impl Presence {
    fn unknown() -> Presence {
        Presence {
            state: PresenceState::Offline,
            status_msg: None,
            last_active_ago: None,
            currently_active: false,
        }
    }
}

#[derive(Clone)]
struct Entry {
    state: PresenceState,
    status_msg: Option<String>,
    /// When the user last did something.
    active_at: u64,
    /// When the user's client (or server) was last heard of.
    heard_at: u64,
    local: bool,
    changed: u64,
}

impl Entry {
    fn shown(&self, now: u64) -> Presence {
        let ago = now.saturating_sub(self.active_at);
        Presence {
            state: self.state.clone(),
            status_msg: self.status_msg.clone(),
            last_active_ago: Some(ago),
            currently_active: self.state == PresenceState::Online && ago < ACTIVE_MS,
        }
    }
}

struct Inner {
    users: Mutex<HashMap<OwnedUserId, Entry>>,
    clock: watch::Sender<u64>,
    time: Clock,
    changes: mpsc::Sender<OwnedUserId>,
}

/// Who is there, as this node knows.
#[derive(Clone)]
pub struct PresenceService {
    core: Core,
    inner: Arc<Inner>,
}

impl PresenceService {
    /// Starts the tasks that let states decay and tell other servers; they end with the last handle.
    pub fn new(core: Core, outgoing: Arc<dyn Volatile>) -> PresenceService {
        let time = core.clock.clone();
        let (changes, waiting) = mpsc::channel(MAX_WAITING);
        let inner = Arc::new(Inner {
            users: Mutex::default(),
            clock: watch::Sender::new(time.millis()),
            time,
            changes,
        });
        if core.settings.presence {
            tokio::spawn(sweep(Arc::downgrade(&inner)));
            tokio::spawn(tell(Arc::downgrade(&inner), core.clone(), outgoing, waiting));
        }
        PresenceService { core, inner }
    }

    /// Whether presence is on.
    pub fn is_on(&self) -> bool {
        self.core.settings.presence
    }

    /// A user of this server says how it is. Where presence is off nothing happens.
    ///
    /// # Errors
    /// [`PresenceError::NotYours`], [`PresenceError::TooLong`].
    pub fn set(
        &self,
        asking: &UserId,
        user: &UserId,
        state: PresenceState,
        status_msg: Option<String>,
    ) -> Result<(), PresenceError> {
        if asking != user {
            return Err(PresenceError::NotYours);
        }
        if status_msg.as_ref().is_some_and(|message| message.len() > MAX_STATUS_BYTES) {
            return Err(PresenceError::TooLong);
        }
        if self.is_on() {
            self.inner.update_local(user, state, Some(status_msg));
        }
        Ok(())
    }

    /// A client of the user syncs with this `set_presence`. `offline` leaves everything as it is.
    pub fn syncing(&self, user: &UserId, state: &PresenceState) {
        if self.is_on() && *state != PresenceState::Offline {
            self.inner.update_local(user, state.clone(), None);
        }
    }

    /// How a user is, for one who asks.
    ///
    /// # Errors
    /// [`PresenceError::NotVisible`] when they share no room.
    pub async fn get(&self, asking: &UserId, user: &UserId) -> Result<Presence, PresenceError> {
        if asking != user {
            let mut conn = self.core.store.read().await?;
            if conn.users_sharing_among(asking, &[user.to_owned()]).await?.is_empty() {
                return Err(PresenceError::NotVisible);
            }
        }
        Ok(self.known(user).unwrap_or_else(Presence::unknown))
    }

    /// What is known of a user.
    pub fn known(&self, user: &UserId) -> Option<Presence> {
        let now = self.core.now();
        self.inner.users.lock().get(user).map(|entry| entry.shown(now))
    }

    /// The clock now: what a sync token carries.
    pub fn clock(&self) -> u64 {
        *self.inner.clock.borrow()
    }

    /// Users whose presence changed after `clock`; the caller shows those who share a room with the viewer.
    pub fn changed_since(&self, clock: u64) -> BTreeMap<OwnedUserId, Presence> {
        let now = self.core.now();
        let users = self.inner.users.lock();
        let changed = users.iter().filter(|(_, entry)| entry.changed > clock);
        changed.map(|(user, entry)| (user.clone(), entry.shown(now))).collect()
    }

    /// Follows the clock: it changes with each change, for waking syncs.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.clock.subscribe()
    }

    /// Takes what another server says of its users. Of users who share no room with anybody here it is dropped.
    pub async fn take(&self, content: PresenceContent) -> Result<(), PresenceError> {
        if !self.is_on() {
            return Ok(());
        }
        for update in content.push {
            if self.core.is_local(&update.user_id) {
                continue;
            }
            let rows = self.core.store.read().await?.memberships_of(&update.user_id).await?;
            if rows.iter().any(|row| row.membership == "join") {
                self.inner.update_remote(update);
            }
        }
        Ok(())
    }
}

impl Inner {
    fn tick(&self) -> u64 {
        let now = self.time.millis();
        let mut value = 0;
        self.clock.send_modify(|clock| {
            *clock = now.max(*clock + 1);
            value = *clock;
        });
        value
    }

    /// `status_msg`: none leaves it.
    fn update_local(&self, user: &UserId, state: PresenceState, status_msg: Option<Option<String>>) {
        let now = self.time.millis();
        let mut users = self.users.lock();
        let before = users.get(user).cloned();
        let status_msg =
            status_msg.unwrap_or_else(|| before.as_ref().and_then(|before| before.status_msg.clone()));
        let active_at = match (&before, &state) {
            (Some(before), PresenceState::Unavailable | PresenceState::Offline) => before.active_at,
            _ => now,
        };
        let same = before.as_ref().is_some_and(|before| {
            before.state == state
                && before.status_msg == status_msg
                && active_at.saturating_sub(before.active_at) < ACTIVE_MS
        });
        let changed = match &before {
            Some(before) if same => before.changed,
            _ => self.tick(),
        };
        users.insert(
            user.to_owned(),
            Entry { state, status_msg, active_at, heard_at: now, local: true, changed },
        );
        drop(users);
        if !same {
            // A full queue: others learn of the next change.
            let _ = self.changes.try_send(user.to_owned());
        }
    }

    fn update_remote(&self, update: PresenceUpdate) {
        let now = self.time.millis();
        let status_msg = update.status_msg.filter(|message| message.len() <= MAX_STATUS_BYTES);
        let active_at = now.saturating_sub(u64::from(update.last_active_ago));
        let mut users = self.users.lock();
        let before = users.get(&update.user_id);
        if before.is_none() && users.len() >= MAX_USERS {
            return;
        }
        let same = before.is_some_and(|before| {
            before.state == update.presence
                && before.status_msg == status_msg
                && active_at.saturating_sub(before.active_at) < ACTIVE_MS
        });
        let changed = match before {
            Some(before) if same => before.changed,
            _ => self.tick(),
        };
        let state = update.presence;
        users.insert(
            update.user_id,
            Entry { state, status_msg, active_at, heard_at: now, local: false, changed },
        );
    }

    /// Lets states decay that nobody refreshed.
    fn decay(&self) {
        let now = self.time.millis();
        let mut gone = Vec::new();
        let mut users = self.users.lock();
        for (user, entry) in users.iter_mut() {
            let limit = if entry.local { OFFLINE_AFTER_MS } else { REMOTE_OFFLINE_AFTER_MS };
            let state = if now.saturating_sub(entry.heard_at) > limit {
                PresenceState::Offline
            } else if entry.local
                && entry.state == PresenceState::Online
                && now.saturating_sub(entry.active_at) > IDLE_AFTER_MS
            {
                PresenceState::Unavailable
            } else {
                continue;
            };
            if state != entry.state {
                entry.state = state;
                entry.changed = self.tick();
                if entry.local {
                    gone.push(user.clone());
                }
            }
        }
        drop(users);
        for user in gone {
            let _ = self.changes.try_send(user);
        }
    }
}

async fn sweep(inner: Weak<Inner>) {
    let mut interval = tokio::time::interval(SWEEP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        inner.decay();
    }
}

/// Tells the servers of those who share a room.
async fn tell(
    inner: Weak<Inner>,
    core: Core,
    outgoing: Arc<dyn Volatile>,
    mut waiting: mpsc::Receiver<OwnedUserId>,
) {
    while let Some(user) = waiting.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        let Some(shown) = inner.users.lock().get(&user).map(|entry| entry.shown(core.now())) else {
            continue;
        };
        let servers = match servers_of(&core, &user).await {
            Ok(servers) => servers,
            Err(error) => {
                tracing::warn!(%error, "a presence change could not be told to other servers");
                continue;
            }
        };
        let ago = UInt::new_saturating(shown.last_active_ago.unwrap_or_default());
        let mut update = PresenceUpdate::new(user, shown.state, ago);
        update.status_msg = shown.status_msg;
        update.currently_active = shown.currently_active;
        for server in servers.iter().filter(|server| **server != core.server_name) {
            outgoing.push(server, VolatileEdu::Presence(update.clone()));
        }
    }
}

async fn servers_of(core: &Core, user: &UserId) -> Result<Vec<ruma::OwnedServerName>, StoreError> {
    core.store.read().await?.servers_sharing(user).await
}
