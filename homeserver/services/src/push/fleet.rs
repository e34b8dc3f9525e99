//! The pushers as the node that delivers has them in memory: who has some, which owe something, whose turn it is.

use super::notification::Target;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use waxwing_storage::{PusherKey, PusherRow, PusherTry};

/// Pushers that are delivered to at once: each waits for its gateway most of the time.
const MAX_RUNNING: usize = 64;
/// Those of one gateway: one that answers slowly leaves room for the others.
const MAX_OF_HOST: usize = 16;
/// When the pushers of a gateway that is busy are looked at again, milliseconds.
const HOST_BUSY: u64 = 50;

struct Slot {
    row: PusherRow,
    host: String,
    running: bool,
    /// Where it stands among those whose turn comes.
    due: Option<u64>,
}

#[derive(Default)]
struct State {
    users: HashMap<OwnedUserId, BTreeMap<PusherKey, Slot>>,
    due: BTreeSet<(u64, PusherKey)>,
    running: usize,
    of_host: HashMap<String, usize>,
}

/// All pushers.
#[derive(Default)]
pub(super) struct Fleet(Mutex<State>);

impl Fleet {
    /// Takes in what the database has, at the beginning.
    pub fn load(&self, rows: Vec<PusherRow>) {
        let mut state = self.0.lock();
        for row in rows {
            state.put(row);
        }
    }

    /// Takes in the pushers of a user, which changed.
    pub fn reload(&self, user: &UserId, rows: Vec<PusherRow>) {
        let mut state = self.0.lock();
        let gone: Vec<PusherKey> = state
            .users
            .get(user)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter(|key| rows.iter().all(|row| row.key != **key))
            .cloned()
            .collect();
        for key in gone {
            state.forget(&key);
        }
        for row in rows {
            state.put(row);
        }
    }

    /// Whether something may be told to the user.
    pub fn has(&self, user: &UserId) -> bool {
        self.0.lock().of(user).any(|slot| slot.row.enabled)
    }

    /// Whether a device of the user shows that something is unread.
    pub fn shows_badge(&self, user: &UserId) -> bool {
        self.0.lock().of(user).any(|slot| slot.row.enabled && slot.row.badge.is_some_and(|badge| badge > 0))
    }

    /// There is something to tell to these users, at `position` or before.
    pub fn mark(&self, users: &[OwnedUserId], position: i64) {
        let mut state = self.0.lock();
        for user in users {
            let keys: Vec<PusherKey> =
                state.users.get(user).into_iter().flatten().map(|(key, _)| key.clone()).collect();
            for key in keys {
                if let Some(slot) = state.slot(&key)
                    && slot.row.enabled
                {
                    slot.row.marked = slot.row.marked.max(position);
                }
                state.schedule(&key, 0);
            }
        }
    }

    /// The pusher as it stands.
    pub fn get(&self, key: &PusherKey) -> Option<PusherRow> {
        self.0.lock().slot(key).map(|slot| slot.row.clone())
    }

    /// A pusher whose turn it is at `now`, if there is room for it. It runs until [`Fleet::finished`].
    pub fn next(&self, now: u64) -> Option<PusherKey> {
        let mut state = self.0.lock();
        while state.running < MAX_RUNNING {
            let (at, key) = state.due.first().filter(|(at, _)| *at <= now)?.clone();
            state.due.remove(&(at, key.clone()));
            let Some(slot) = state.slot(&key) else { continue };
            slot.due = None;
            let host = slot.host.clone();
            if state.of_host.get(&host).is_some_and(|count| *count >= MAX_OF_HOST) {
                state.schedule(&key, now + HOST_BUSY);
                continue;
            }
            if let Some(slot) = state.slot(&key) {
                slot.running = true;
            }
            *state.of_host.entry(host).or_default() += 1;
            state.running += 1;
            return Some(key);
        }
        None
    }

    /// When the next turn comes, if nothing else happens and there is room.
    pub fn next_due(&self) -> Option<u64> {
        let state = self.0.lock();
        if state.running >= MAX_RUNNING {
            return None;
        }
        state.due.first().map(|(at, _)| *at)
    }

    /// A turn is over. If something is owed still, the next comes not before `not_before`.
    pub fn finished(&self, key: &PusherKey, host: &str, not_before: u64) {
        let mut state = self.0.lock();
        state.running = state.running.saturating_sub(1);
        if let Some(count) = state.of_host.get_mut(host) {
            *count -= 1;
            if *count == 0 {
                state.of_host.remove(host);
            }
        }
        if let Some(slot) = state.slot(key) {
            slot.running = false;
        }
        state.schedule(key, not_before);
    }

    /// The host of a pusher's gateway.
    pub fn host(&self, key: &PusherKey) -> String {
        self.0.lock().slot(key).map(|slot| slot.host.clone()).unwrap_or_default()
    }

    /// Everything up to `position` is delivered.
    pub fn delivered(&self, key: &PusherKey, position: i64, badge: Option<u64>) {
        if let Some(slot) = self.0.lock().slot(key) {
            slot.row.position = slot.row.position.max(position);
            slot.row.badge = badge;
            slot.row.failing = None;
        }
    }

    /// The gateway failed.
    pub fn failed(&self, key: &PusherKey, position: i64, failing: PusherTry) {
        if let Some(slot) = self.0.lock().slot(key) {
            slot.row.position = slot.row.position.max(position);
            slot.row.failing = Some(failing);
        }
    }

    /// How many pushers owe something.
    pub fn waiting(&self) -> usize {
        let state = self.0.lock();
        state.due.len() + state.running
    }
}

impl State {
    fn of(&self, user: &UserId) -> impl Iterator<Item = &Slot> {
        self.users.get(user).into_iter().flat_map(BTreeMap::values)
    }

    fn slot(&mut self, key: &PusherKey) -> Option<&mut Slot> {
        self.users.get_mut(&key.user_id)?.get_mut(key)
    }

    fn put(&mut self, mut row: PusherRow) {
        let key = row.key.clone();
        let host = Target::of(&row).and_then(|target| target.url.host_str().map(str::to_owned));
        let host = host.unwrap_or_default();
        match self.slot(&key) {
            Some(slot) => {
                // What was delivered may not be in the row that was read.
                if slot.row.position > row.position {
                    (row.position, row.badge) = (slot.row.position, slot.row.badge);
                }
                row.marked = row.marked.max(slot.row.marked);
                // A turn goes on counting for the gateway that it began with.
                if !slot.running {
                    slot.host = host;
                }
                slot.row = row;
            }
            None => {
                let slot = Slot { row, host, running: false, due: None };
                self.users.entry(key.user_id.clone()).or_default().insert(key.clone(), slot);
            }
        }
        self.unschedule(&key);
        self.schedule(&key, 0);
    }

    fn forget(&mut self, key: &PusherKey) {
        self.unschedule(key);
        if let Some(pushers) = self.users.get_mut(&key.user_id) {
            pushers.remove(key);
            if pushers.is_empty() {
                self.users.remove(&key.user_id);
            }
        }
    }

    fn unschedule(&mut self, key: &PusherKey) {
        if let Some(at) = self.slot(key).and_then(|slot| slot.due.take()) {
            self.due.remove(&(at, key.clone()));
        }
    }

    /// Gives a pusher that owes something and has no turn yet its place.
    fn schedule(&mut self, key: &PusherKey, not_before: u64) {
        let Some(slot) = self.slot(key) else { return };
        if slot.running || slot.due.is_some() || !slot.row.owes() {
            return;
        }
        let at = slot.row.failing.map_or(0, |failing| failing.retry_at).max(not_before);
        slot.due = Some(at);
        self.due.insert((at, key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(pushkey: &str, position: i64, marked: i64) -> PusherRow {
        let json = json!({ "kind": "http", "data": { "url": "https://gate.example/x" } }).to_string();
        let user_id = "@a:x".try_into().unwrap();
        PusherRow {
            key: PusherKey { user_id, app_id: "app".into(), pushkey: pushkey.into() },
            device_id: None,
            json,
            enabled: true,
            updated_at: 0,
            position,
            marked,
            badge: None,
            failing: None,
        }
    }

    #[test]
    fn who_owes_gets_a_turn_and_who_fails_waits() {
        let fleet = Fleet::default();
        fleet.load(vec![row("idle", 5, 5), row("late", 5, 7)]);
        let key = fleet.next(100).unwrap();
        assert_eq!(key.pushkey, "late");
        assert!(fleet.next(100).is_none());
        let failing = PusherTry { failing_since: 100, retry_at: 1100, interval: 1000 };
        fleet.failed(&key, 5, failing);
        fleet.finished(&key, "gate.example", 0);
        assert_eq!((fleet.next(1099), fleet.next_due()), (None, Some(1100)));
        assert_eq!(fleet.next(1100), Some(key.clone()));
        fleet.delivered(&key, 7, Some(1));
        // Marked while it runs: it gets another turn.
        fleet.mark(std::slice::from_ref(&key.user_id), 9);
        fleet.finished(&key, "gate.example", 0);
        assert!(fleet.shows_badge(&key.user_id));
        assert_eq!([fleet.next(1100), fleet.next(1100)].iter().flatten().count(), 2);
    }

    #[test]
    fn a_row_that_was_read_early_takes_nothing_back() {
        let fleet = Fleet::default();
        fleet.load(vec![row("k", 5, 7)]);
        let key = fleet.next(0).unwrap();
        fleet.delivered(&key, 7, Some(2));
        fleet.reload(&key.user_id, vec![row("k", 5, 7)]);
        assert_eq!(fleet.get(&key).map(|row| (row.position, row.badge)), Some((7, Some(2))));
        fleet.reload(&key.user_id, Vec::new());
        assert!(!fleet.has(&key.user_id) && fleet.get(&key).is_none());
    }

    #[test]
    fn one_gateway_does_not_take_all_turns() {
        let fleet = Fleet::default();
        fleet.load((0..100).map(|number| row(&number.to_string(), 0, 1)).collect());
        let running = std::iter::from_fn(|| fleet.next(10)).count();
        assert_eq!(running, MAX_OF_HOST);
        assert_eq!(fleet.next_due(), Some(10 + HOST_BUSY));
        assert_eq!(fleet.waiting(), 100);
    }
}
