//! Wakes what waits for news of a user: long polls.
//!
//! One task per node follows the tail of the log, applies each row to the [`Folds`] and tells the users it concerns.
//! A user is followed while a client of theirs syncs; of a followed user it is known which rooms changed when, so a
//! sync looks at those and at nothing else. An idle poll costs one parked task.

use crate::Core;
use crate::folds::{Effect, Folds, State, effect_of};
use parking_lot::{Mutex, RwLock};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, LogRow, StoreResult};

/// Rows taken in at once when this node is behind.
const BATCH_ROWS: i64 = 1000;
/// A user without a sync for so long is not followed any more (milliseconds).
const FORGET_AFTER: u64 = 30 * 60 * 1000;
/// How often users are looked over for that.
const SWEEP: Duration = Duration::from_mins(1);
/// After a failure to read the log.
const RETRY: Duration = Duration::from_millis(500);

/// What changed for a user since it is followed.
struct Changes {
    /// Everything after this position is known.
    floor: LogPosition,
    by_position: BTreeMap<LogPosition, Arc<OwnedRoomId>>,
    by_room: HashMap<Arc<OwnedRoomId>, LogPosition>,
    /// When the device list of someone whom the user shares a room with last changed.
    device_lists: LogPosition,
}

/// A user whose news someone waits for.
pub struct Follower {
    wakes: AtomicU64,
    notify: Notify,
    changes: Mutex<Changes>,
    last_used: AtomicU64,
}

impl Follower {
    fn new(floor: LogPosition) -> Follower {
        let changes =
            Changes { floor, by_position: BTreeMap::new(), by_room: HashMap::new(), device_lists: floor };
        Follower {
            wakes: AtomicU64::new(0),
            notify: Notify::new(),
            changes: Mutex::new(changes),
            last_used: AtomicU64::new(0),
        }
    }

    /// How often the user was woken. Take it before looking for news; see [`Follower::wait`].
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::SeqCst)
    }

    /// Waits until the user has been woken after `wakes` was taken, or until `deadline`. Whether there was a wake.
    pub async fn wait(&self, wakes: u64, deadline: Instant) -> bool {
        loop {
            let woken = self.notify.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if self.wakes() != wakes {
                return true;
            }
            if tokio::time::timeout_at(deadline, woken).await.is_err() {
                return false;
            }
        }
    }

    /// The rooms in which something happened after `after` that the user may see; `None` when that is too long ago.
    /// May name a room in which nothing did.
    pub fn rooms_changed(&self, after: LogPosition) -> Option<Vec<OwnedRoomId>> {
        let changes = self.changes.lock();
        if after < changes.floor {
            return None;
        }
        let newer = changes.by_position.range(after.next()..);
        Some(newer.map(|(_, room)| OwnedRoomId::clone(room)).collect())
    }

    /// Whether a device list that concerns the user may have changed after `after`.
    pub fn device_lists_changed(&self, after: LogPosition) -> bool {
        let changes = self.changes.lock();
        after < changes.floor || changes.device_lists > after
    }

    fn room_changed(&self, room: &Arc<OwnedRoomId>, position: LogPosition) {
        let mut changes = self.changes.lock();
        if let Some(before) = changes.by_room.insert(Arc::clone(room), position) {
            changes.by_position.remove(&before);
        }
        changes.by_position.insert(position, Arc::clone(room));
    }

    fn device_list_changed(&self, position: LogPosition) {
        self.changes.lock().device_lists = position;
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.notify.notify_waiters();
    }
}

/// Follows the log for the users of this node.
pub struct Notifier {
    core: Core,
    folds: Folds,
    followers: RwLock<HashMap<OwnedUserId, Arc<Follower>>>,
    taken_in: watch::Sender<LogPosition>,
}

impl Notifier {
    /// Loads the folds and starts to follow the log. The task ends when the notifier is dropped.
    pub async fn start(core: Core) -> StoreResult<Arc<Notifier>> {
        let folds = Folds::load(&core.store).await?;
        let taken_in = watch::Sender::new(folds.head());
        let notifier = Arc::new(Notifier { core, folds, followers: RwLock::default(), taken_in });
        notifier.catch_up().await?;
        let weak = Arc::downgrade(&notifier);
        let mut head = notifier.core.store.tail().subscribe();
        tokio::spawn(async move {
            loop {
                let changed = tokio::time::timeout(SWEEP, head.changed()).await;
                let Some(notifier) = weak.upgrade() else { return };
                match changed {
                    Ok(Ok(())) => {
                        head.mark_unchanged();
                        if let Err(error) = notifier.catch_up().await {
                            tracing::warn!(%error, "cannot take in the log; trying again");
                            tokio::time::sleep(RETRY).await;
                            head.mark_changed();
                        }
                    }
                    Ok(Err(_)) => return,
                    Err(_) => {}
                }
                notifier.sweep();
            }
        });
        Ok(notifier)
    }

    /// The folds that it keeps.
    pub fn folds(&self) -> &Folds {
        &self.folds
    }

    /// Follows a user from now on. Hold on to the answer while waiting.
    pub fn follow(&self, user: &UserId) -> Arc<Follower> {
        let known = self.followers.read().get(user).cloned();
        let follower = known.unwrap_or_else(|| {
            self.folds.at_rest(|head| {
                let mut followers = self.followers.write();
                Arc::clone(followers.entry(user.to_owned()).or_insert_with(|| Arc::new(Follower::new(head))))
            })
        });
        follower.last_used.store(self.core.now(), Ordering::Relaxed);
        follower
    }

    /// Waits until everything up to `position` is taken in, or until `deadline`: after a write, what it wrote shows.
    /// Whether it is; where that is no matter, the caller goes on with what there is.
    pub async fn reach(&self, position: LogPosition, deadline: Instant) -> bool {
        let mut taken_in = self.taken_in.subscribe();
        let reached = taken_in.wait_for(|head| *head >= position);
        matches!(tokio::time::timeout_at(deadline, reached).await, Ok(Ok(_)))
    }

    /// Wakes the local members of a room for something that is not in the log: typing.
    pub fn wake_room(&self, room: &RoomId) {
        let users = self.folds.joined_locals(room);
        self.wake_users(users.iter().map(|user| &**user));
    }

    /// Wakes users for something that is not in the log: presence.
    pub fn wake_users<'a>(&self, users: impl Iterator<Item = &'a UserId>) {
        let followers = self.followers.read();
        for user in users {
            if let Some(follower) = followers.get(user) {
                follower.wake();
            }
        }
    }

    async fn catch_up(&self) -> StoreResult<()> {
        loop {
            let (after, upto) = (self.folds.head(), self.core.store.tail().head());
            if after >= upto {
                return Ok(());
            }
            let rows = self.core.store.log_rows(after, upto, BATCH_ROWS).await?;
            let Some(last) = rows.last().map(|row| row.position) else { return Ok(()) };
            let mut effects = Vec::with_capacity(rows.len());
            for row in &rows {
                let is_local = |user: &UserId| self.core.is_local(user);
                effects.push(effect_of(&self.core.store, &self.folds, is_local, row).await?);
            }
            self.take_in(&rows, &effects, last);
        }
    }

    /// Applies rows and notes whom they concern while the folds are locked, then wakes.
    fn take_in(&self, rows: &[Arc<LogRow>], effects: &[Effect], last: LogPosition) {
        let mut woken: HashSet<*const Follower> = HashSet::new();
        let mut wake: Vec<Arc<Follower>> = Vec::new();
        {
            let mut state = self.folds.write();
            let followers = self.followers.read();
            for (row, effect) in rows.iter().zip(effects) {
                let mut note = |follower: &Arc<Follower>| {
                    if woken.insert(Arc::as_ptr(follower)) {
                        wake.push(Arc::clone(follower));
                    }
                };
                tell(&state, &followers, row, &mut note);
                state.apply(row, effect);
                if row.fact == Fact::DeviceList {
                    tell_sharing(&state, &followers, row, &mut note);
                }
                // The one who came or went: known before or after, whichever has a membership.
                tell_named(&followers, row, effect, &mut note);
            }
            state.head = last;
        }
        self.taken_in.send_replace(last);
        for follower in wake {
            follower.wake();
        }
    }

    fn sweep(&self) {
        let oldest = self.core.now().saturating_sub(FORGET_AFTER);
        let stale = |follower: &Arc<Follower>| {
            Arc::strong_count(follower) == 1 && follower.last_used.load(Ordering::Relaxed) < oldest
        };
        if self.followers.read().values().any(stale) {
            self.followers.write().retain(|_, follower| !stale(follower));
        }
    }
}

type Followers = HashMap<OwnedUserId, Arc<Follower>>;

/// Tells the members of the row's room.
fn tell(state: &State, followers: &Followers, row: &LogRow, note: &mut impl FnMut(&Arc<Follower>)) {
    let private = row.fact == Fact::Receipt && row.reference.as_deref() != Some("m.read");
    if private || !matches!(row.fact, Fact::Event | Fact::State | Fact::Receipt | Fact::Room) {
        return;
    }
    let Some(room) = &row.room else { return };
    let Some(joined) = state.joined(room) else { return };
    let room = Arc::new(room.clone());
    if joined.len() <= followers.len() {
        for follower in joined.iter().filter_map(|user| followers.get(user)) {
            follower.room_changed(&room, row.position);
            note(follower);
        }
    } else {
        for (_, follower) in followers.iter().filter(|(user, _)| joined.contains(*user)) {
            follower.room_changed(&room, row.position);
            note(follower);
        }
    }
}

/// Tells those in a room, and who left it, that someone came or went: whom they share a room with changed.
fn tell_sharing(state: &State, followers: &Followers, row: &LogRow, note: &mut impl FnMut(&Arc<Follower>)) {
    let Some(room) = &row.room else { return };
    let joined = state.joined(room).into_iter().flatten();
    for follower in joined.chain(&row.user).filter_map(|user| followers.get(user)) {
        follower.device_list_changed(row.position);
        note(follower);
    }
}

/// Tells the users that the row names.
fn tell_named(followers: &Followers, row: &LogRow, effect: &Effect, note: &mut impl FnMut(&Arc<Follower>)) {
    if let Effect::DeviceList(users) = effect {
        for follower in users.iter().filter_map(|user| followers.get(user)) {
            follower.device_list_changed(row.position);
            note(follower);
        }
        return;
    }
    let wakes = matches!(
        row.fact,
        Fact::Event
            | Fact::State
            | Fact::Outside
            | Fact::Receipt
            | Fact::AccountData
            | Fact::ToDevice
            | Fact::OneTimeKeys
            | Fact::Forgotten
    );
    if !wakes {
        return;
    }
    let Some(follower) = row.user.as_ref().and_then(|user| followers.get(user)) else { return };
    if let Some(room) = &row.room {
        follower.room_changed(&Arc::new(room.clone()), row.position);
    }
    note(follower);
}
