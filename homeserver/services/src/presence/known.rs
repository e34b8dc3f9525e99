//! What is known of users: pure state, fed with reports in one order, which is the same on every node.

use super::Presence;
use ruma::presence::PresenceState;
use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Without a request for this long a user of this server is offline: longer than a sync waits.
const OFFLINE_AFTER_MS: u64 = 60_000;
/// Another node, to which none of the user's clients speaks, waits a while longer for the one that knows.
const GRACE_MS: u64 = 45_000;
/// Without doing anything for this long a user is no longer there, by the specification's advice.
const IDLE_AFTER_MS: u64 = 300_000;
/// Another server's user of whom nothing was heard for this long counts as offline.
const REMOTE_OFFLINE_AFTER_MS: u64 = 1_800_000;
/// Activity within this time is "currently active".
const ACTIVE_MS: u64 = 60_000;
/// A report that a user is still there is believed about their state, too, when nothing was heard for so long.
const STALE_MS: u64 = 40_000;
/// Users remembered: beyond them new ones of other servers are not taken in.
const MAX_USERS: usize = 200_000;

/// What a node says of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    #[serde(rename = "u")]
    pub user: OwnedUserId,
    #[serde(rename = "s")]
    pub state: PresenceState,
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub status_msg: Option<String>,
    /// When the user last did something.
    #[serde(rename = "a")]
    pub active_at: u64,
    /// When the user's client (or server) was last heard of.
    #[serde(rename = "h")]
    pub heard_at: u64,
    /// Nothing has changed: the user is still there.
    #[serde(rename = "k", default, skip_serializing_if = "std::ops::Not::not")]
    pub still: bool,
}

#[derive(Clone)]
struct Entry {
    state: PresenceState,
    status_msg: Option<String>,
    active_at: u64,
    heard_at: u64,
    /// When a client spoke to this node; zero: never.
    heard_here_at: u64,
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

    fn report(&self, user: &UserId, still: bool) -> Report {
        Report {
            user: user.to_owned(),
            state: self.state.clone(),
            status_msg: self.status_msg.clone(),
            active_at: self.active_at,
            heard_at: self.heard_at,
            still,
        }
    }
}

/// All users, and a clock that ticks with each change.
pub(super) struct Known {
    users: HashMap<OwnedUserId, Entry>,
    /// By their last change, so that what is new is found without looking at everyone.
    order: BTreeMap<u64, OwnedUserId>,
    clock: u64,
}

impl Known {
    /// Nobody is known. `now`: so that the clock never falls behind a token of before a restart.
    pub fn new(now: u64) -> Known {
        Known { users: HashMap::new(), order: BTreeMap::new(), clock: now }
    }

    pub fn clock(&self) -> u64 {
        self.clock
    }

    pub fn shown(&self, user: &UserId, now: u64) -> Option<Presence> {
        self.users.get(user).map(|entry| entry.shown(now))
    }

    /// Users who changed after `clock`.
    pub fn changed_since(&self, clock: u64, now: u64) -> BTreeMap<OwnedUserId, Presence> {
        let changed = self.order.range(clock.saturating_add(1)..);
        changed.filter_map(|(_, user)| Some((user.clone(), self.shown(user, now)?))).collect()
    }

    /// A client of the user spoke to this node. Gives what is to be told, when it changes anything.
    /// `status_msg`: none leaves it.
    pub fn spoke(
        &mut self,
        user: &UserId,
        state: PresenceState,
        status_msg: Option<Option<String>>,
        now: u64,
    ) -> Option<Report> {
        let before = self.users.get_mut(user);
        let status_msg =
            status_msg.unwrap_or_else(|| before.as_ref().and_then(|before| before.status_msg.clone()));
        let active_at = match (&before, &state) {
            (Some(before), PresenceState::Unavailable | PresenceState::Offline) => before.active_at,
            _ => now,
        };
        let report =
            Report { user: user.to_owned(), state, status_msg, active_at, heard_at: now, still: false };
        let Some(before) = before else { return Some(report) };
        (before.heard_at, before.heard_here_at) = (now, now);
        (!same(before, &report)).then_some(report)
    }

    /// Takes a report. `stamp`: when it was made, the same on every node. `ours`: made by this node. Returns whether
    /// it changed anything that people see.
    pub fn take(&mut self, report: Report, local: bool, ours: bool, stamp: u64, now: u64) -> bool {
        let before = self.users.get(&report.user).cloned();
        if before.is_none() && !local && self.users.len() >= MAX_USERS {
            return false;
        }
        if let Some(before) =
            before.as_ref().filter(|before| report.still && now.saturating_sub(before.heard_at) < STALE_MS)
        {
            let entry = Entry {
                heard_at: before.heard_at.max(report.heard_at),
                active_at: before.active_at.max(report.active_at),
                ..before.clone()
            };
            self.users.insert(report.user, entry);
            return false;
        }
        let unchanged = before.as_ref().is_some_and(|before| same(before, &report));
        let changed = match &before {
            Some(before) if unchanged => before.changed,
            _ => {
                self.clock = stamp.max(self.clock + 1);
                self.clock
            }
        };
        if let Some(before) = &before {
            self.order.remove(&before.changed);
        }
        self.order.insert(changed, report.user.clone());
        let heard_before = before.as_ref().map_or(0, |before| before.heard_at);
        let heard_here = before.as_ref().map_or(0, |before| before.heard_here_at);
        let entry = Entry {
            state: report.state,
            status_msg: report.status_msg,
            active_at: report.active_at,
            heard_at: heard_before.max(report.heard_at),
            heard_here_at: if ours { heard_here.max(report.heard_at) } else { heard_here },
            local,
            changed,
        };
        self.users.insert(report.user, entry);
        !unchanged
    }

    /// What becomes of those whom nobody has refreshed: reports to be told.
    pub fn decayed(&self, now: u64) -> Vec<Report> {
        let mut reports = Vec::new();
        for (user, entry) in &self.users {
            let offline_after = match (entry.local, entry.heard_here_at) {
                (false, _) => REMOTE_OFFLINE_AFTER_MS,
                (true, 0) => OFFLINE_AFTER_MS + GRACE_MS,
                (true, _) => OFFLINE_AFTER_MS,
            };
            let state = if now.saturating_sub(entry.heard_at) > offline_after {
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
                reports.push(Report { state, ..entry.report(user, false) });
            }
        }
        reports
    }

    /// Those whose clients spoke to this node after `since`: still there.
    pub fn still_there(&self, since: u64) -> Vec<Report> {
        let here = self.users.iter().filter(|(_, entry)| entry.local && entry.heard_here_at > since);
        here.map(|(user, entry)| entry.report(user, true)).collect()
    }

    /// Everyone who is there, for a node that has just begun.
    pub fn everyone(&self) -> Vec<Report> {
        let there = self.users.iter().filter(|(_, entry)| entry.state != PresenceState::Offline);
        there.map(|(user, entry)| entry.report(user, true)).collect()
    }
}

/// Whether a report says what is known.
fn same(before: &Entry, report: &Report) -> bool {
    before.state == report.state
        && before.status_msg == report.status_msg
        && report.active_at.saturating_sub(before.active_at) < ACTIVE_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000_000_000_000;

    fn user(name: &str) -> OwnedUserId {
        UserId::parse(format!("@{name}:test")).unwrap()
    }

    /// Two nodes, fed with the same reports.
    fn both(nodes: &mut [Known; 2], from: usize, report: Report, stamp: u64) {
        for (number, node) in nodes.iter_mut().enumerate() {
            node.take(report.clone(), true, number == from, stamp, stamp);
        }
    }

    #[test]
    fn nodes_that_hear_the_same_have_the_same_clock() {
        // One began earlier than the other.
        let mut nodes = [Known::new(START), Known::new(START - 5000)];
        let alice = user("alice");
        let online = nodes[0].spoke(&alice, PresenceState::Online, None, START + 10).unwrap();
        both(&mut nodes, 0, online, START + 10);
        let bob = nodes[1].spoke(&user("bob"), PresenceState::Online, None, START + 10).unwrap();
        // Its clock goes behind the other's.
        both(&mut nodes, 1, bob, START + 5);
        assert_eq!(nodes[0].clock(), START + 11);
        assert_eq!(nodes[1].clock(), START + 11);
        for node in &nodes {
            assert_eq!(node.changed_since(START + 9, START + 20).len(), 2);
            let later: Vec<_> = node.changed_since(START + 10, START + 20).into_keys().collect();
            assert_eq!(later, [user("bob")]);
        }
    }

    #[test]
    fn a_client_that_speaks_again_changes_nothing_but_is_remembered() {
        let mut node = Known::new(START);
        let alice = user("alice");
        let report = node.spoke(&alice, PresenceState::Online, None, START).unwrap();
        assert!(node.take(report, true, true, START, START));
        assert_eq!(node.spoke(&alice, PresenceState::Online, None, START + 30_000), None);
        assert!(node.decayed(START + 80_000).is_empty());
        assert_eq!(node.still_there(START + 29_999).len(), 1);
        assert!(node.still_there(START + 30_000).is_empty());
        let gone = node.decayed(START + 91_000);
        assert_eq!((gone.len(), &gone[0].state), (1, &PresenceState::Offline));
    }

    #[test]
    fn still_there_keeps_a_user_and_never_brings_back_an_older_state() {
        let mut nodes = [Known::new(START), Known::new(START)];
        let alice = user("alice");
        let online = nodes[0].spoke(&alice, PresenceState::Online, None, START).unwrap();
        both(&mut nodes, 0, online, START);
        let still = nodes[0].still_there(0);
        let away = nodes[1].spoke(&alice, PresenceState::Unavailable, None, START + 1000).unwrap();
        both(&mut nodes, 1, away, START + 1000);
        for report in still {
            both(&mut nodes, 0, report, START + 1001);
        }
        assert_eq!(nodes[0].shown(&alice, START).unwrap().state, PresenceState::Unavailable);
        // The node that hears nothing waits longer than the one that should know.
        assert_eq!(nodes[1].decayed(START + 62_000).len(), 1);
        let mut third = Known::new(START);
        for report in nodes[0].everyone() {
            assert!(third.take(report, true, false, START + 2000, START + 2000));
        }
        assert!(third.decayed(START + 90_000).is_empty());
        assert_eq!(third.decayed(START + 120_000).len(), 1);
    }

    #[test]
    fn idle_users_are_away() {
        let mut node = Known::new(START);
        let report = node.spoke(&user("a"), PresenceState::Online, None, START).unwrap();
        node.take(report, true, true, START, START);
        let report = Report { active_at: START, heard_at: START + 299_000, ..node.everyone().remove(0) };
        node.take(Report { still: true, ..report }, true, true, START, START + 1);
        let away = node.decayed(START + 301_000);
        assert_eq!(away[0].state, PresenceState::Unavailable);
    }
}
