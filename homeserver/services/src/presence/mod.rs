//! Presence: who is there. Kept in memory, off by the setting `presence`; known on every node: they tell each other of
//! changes at once, and every now and then of who is still there.
//! <https://spec.matrix.org/v1.19/client-server-api/#presence>

mod carry;
mod known;

use crate::Core;
use crate::outgoing::Volatile;
use known::{Known, Report};
use ruma::api::federation::transactions::edu::{PresenceContent, PresenceUpdate};
use ruma::presence::PresenceState;
use ruma::{OwnedUserId, UInt, UserId};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use waxwing_federation::outbound::VolatileEdu;
use waxwing_storage::{Engine, StoreError};

/// How often states are looked over.
const SWEEP: Duration = Duration::from_secs(5);
/// How often a node tells the others who is still there: well within the time after which they would be offline.
const TELL_EVERY: Duration = Duration::from_secs(25);
/// Changes wait so long for more before they are told to other nodes.
const COLLECT: Duration = Duration::from_millis(10);
/// The longest that a user waits until their own change has gone round.
const ROUND: Duration = Duration::from_millis(500);
/// A status message may be this long.
const MAX_STATUS_BYTES: usize = 4096;
/// Changes that wait to be told to other servers, or to other nodes: beyond them some are not told.
const MAX_WAITING: usize = 10_000;
/// Reports that are told at once.
const MAX_TOLD: usize = 1000;

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

struct Inner {
    core: Core,
    known: parking_lot::Mutex<Known>,
    clock: watch::Sender<u64>,
    /// This node, as it calls itself to the others.
    node: String,
    /// Reports of this node for all nodes.
    reports: mpsc::Sender<Report>,
    /// Users whose changes this node tells to other servers; none: presence does not leave this server.
    changes: Option<mpsc::Sender<OwnedUserId>>,
}

/// Who is there, as this node knows.
#[derive(Clone)]
pub struct PresenceService {
    core: Core,
    inner: Arc<Inner>,
}

impl PresenceService {
    /// Starts the tasks that let states decay and tell the other nodes and, by `outgoing`, other servers (none: they
    /// are neither told nor believed). They end with the last handle.
    pub fn new(core: Core, outgoing: Option<Arc<dyn Volatile>>) -> PresenceService {
        let known = Known::new(core.clock.millis());
        let (reports, to_tell) = mpsc::channel(MAX_WAITING);
        let (changes, waiting) = mpsc::channel(MAX_WAITING);
        let inner = Arc::new(Inner {
            core: core.clone(),
            clock: watch::Sender::new(known.clock()),
            known: parking_lot::Mutex::new(known),
            node: waxwing_model::opaque_id(12),
            reports,
            changes: outgoing.is_some().then_some(changes),
        });
        if core.settings.presence {
            tokio::spawn(sweep(Arc::downgrade(&inner)));
            if let Some(outgoing) = outgoing {
                tokio::spawn(tell(Arc::downgrade(&inner), core.clone(), outgoing, waiting));
            }
            if core.store.engine() == Engine::Postgres {
                tokio::spawn(tell_nodes(Arc::downgrade(&inner), to_tell));
                tokio::spawn(hear_nodes(Arc::downgrade(&inner), core.store.whispers()));
                core.store.whisper(carry::question(&inner.node, core.now()));
            }
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
    pub async fn set(
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
        if !self.is_on() {
            return Ok(());
        }
        let mut clock = self.inner.clock.subscribe();
        self.inner.spoke(user, state.clone(), Some(status_msg.clone()));
        let seen = || {
            let known = self.known(user);
            known.is_some_and(|known| known.state == state && known.status_msg == status_msg)
        };
        // It comes back from the other nodes' bus: whoever sets it reads it.
        let round = async { while !seen() && clock.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(ROUND, round).await;
        Ok(())
    }

    /// A client of the user syncs with this `set_presence`. `offline` leaves everything as it is.
    pub fn syncing(&self, user: &UserId, state: &PresenceState) {
        if self.is_on() && *state != PresenceState::Offline {
            self.inner.spoke(user, state.clone(), None);
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
        self.inner.known.lock().shown(user, self.core.now())
    }

    /// The clock now: what a sync token carries. The same on every node that has heard the same.
    pub fn clock(&self) -> u64 {
        *self.inner.clock.borrow()
    }

    /// Users whose presence changed after `clock`; the caller shows those who share a room with the viewer.
    pub fn changed_since(&self, clock: u64) -> BTreeMap<OwnedUserId, Presence> {
        self.inner.known.lock().changed_since(clock, self.core.now())
    }

    /// Follows the clock: it changes with each change, for waking syncs.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.clock.subscribe()
    }

    /// Takes what another server says of its users. Of users who share no room with anybody here it is dropped.
    pub async fn take(&self, content: PresenceContent) -> Result<(), PresenceError> {
        if !self.is_on() || self.inner.changes.is_none() {
            return Ok(());
        }
        for update in content.push {
            if self.core.is_local(&update.user_id) {
                continue;
            }
            let rows = self.core.store.read().await?.memberships_of(&update.user_id).await?;
            if rows.iter().any(|row| row.membership == "join") {
                self.inner.report(remote(update, self.core.now()));
            }
        }
        Ok(())
    }
}

fn remote(update: PresenceUpdate, now: u64) -> Report {
    Report {
        user: update.user_id,
        state: update.presence,
        status_msg: update.status_msg.filter(|message| message.len() <= MAX_STATUS_BYTES),
        active_at: now.saturating_sub(u64::from(update.last_active_ago)),
        heard_at: now,
        still: false,
    }
}

impl Inner {
    fn spoke(&self, user: &UserId, state: PresenceState, status_msg: Option<Option<String>>) {
        let report = self.known.lock().spoke(user, state, status_msg, self.core.now());
        if let Some(report) = report {
            self.report(report);
        }
    }

    /// Tells every node. With one node that is this one, at once.
    fn report(&self, report: Report) {
        if self.core.store.engine() == Engine::Sqlite {
            self.apply(vec![report], self.core.now(), true);
        } else {
            // A full queue: they learn of the next change.
            let _ = self.reports.try_send(report);
        }
    }

    fn apply(&self, reports: Vec<Report>, stamp: u64, ours: bool) {
        let now = self.core.now();
        let mut changed = Vec::new();
        let clock = {
            let mut known = self.known.lock();
            for report in reports {
                let (user, local) = (report.user.clone(), self.core.is_local(&report.user));
                if known.take(report, local, ours, stamp, now) && local && ours {
                    changed.push(user);
                }
            }
            known.clock()
        };
        self.clock.send_if_modified(|before| std::mem::replace(before, clock) != clock);
        if let Some(changes) = &self.changes {
            for user in changed {
                // A full queue: others learn of the next change.
                let _ = changes.try_send(user);
            }
        }
    }
}

async fn sweep(inner: Weak<Inner>) {
    let mut interval = tokio::time::interval(SWEEP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        let decayed = inner.known.lock().decayed(inner.core.now());
        for report in decayed {
            inner.report(report);
        }
    }
}

/// Tells the other nodes, and this one with them so that all hear the same in one order, what clients said here; and
/// from time to time who is still there.
async fn tell_nodes(inner: Weak<Inner>, mut to_tell: mpsc::Receiver<Report>) {
    let mut every = tokio::time::interval(TELL_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told_at = 0;
    loop {
        let mut reports = Vec::new();
        tokio::select! {
            received = to_tell.recv_many(&mut reports, MAX_TOLD) => {
                if received == 0 {
                    return;
                }
                tokio::time::sleep(COLLECT).await;
                while reports.len() < MAX_TOLD && let Ok(report) = to_tell.try_recv() {
                    reports.push(report);
                }
            }
            _ = every.tick() => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        let now = inner.core.now();
        if reports.is_empty() {
            reports = inner.known.lock().still_there(told_at);
            told_at = now;
        }
        for text in carry::texts(&inner.node, now, reports) {
            inner.core.store.whisper(text);
        }
    }
}

/// Hears what the nodes tell each other, this one too.
async fn hear_nodes(inner: Weak<Inner>, mut whispers: broadcast::Receiver<Arc<str>>) {
    loop {
        let text = match whispers.recv().await {
            Ok(text) => text,
            // Who is still there is told again before long.
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let Some(letter) = carry::read(&text) else { continue };
        let Some(inner) = inner.upgrade() else { return };
        let ours = letter.node == inner.node;
        if letter.asks && !ours {
            let everyone = inner.known.lock().everyone();
            for text in carry::texts(&inner.node, inner.core.now(), everyone) {
                inner.core.store.whisper(text);
            }
        }
        inner.apply(letter.reports, letter.stamp, ours);
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
        let Some(shown) = inner.known.lock().shown(&user, core.now()) else { continue };
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
