//! How far each destination has come with the events that go out, in memory. Pure: it knows no database.
//!
//! Events are read once and dealt out to the lanes of the destinations that get them. A destination that has everything
//! has no lane. What a lane does not hold (the destination fails, or is too slow) is read again from the database, from
//! the lane's cursor on; the lane holds events again when it has caught up.

use ruma::{OwnedServerName, ServerName};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use waxwing_storage::OutgoingRow;

/// Events that one lane holds: a destination that lacks more reads them from the database.
const MAX_HELD: usize = 256;

/// What one destination lacks.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// It has every event up to here.
    cursor: i64,
    /// What it lacks after that, unless it is behind.
    held: VecDeque<Arc<OutgoingRow>>,
    /// What it lacks is in the database only.
    behind: bool,
    /// The database has a row for it: it failed, and keeps its own cursor.
    kept: bool,
    /// It may have rows of its own.
    own: bool,
    /// So has the batch that is on its way.
    own_sent: bool,
}

/// What a delivery changes in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivered {
    /// Rows of its own were in it.
    pub own: bool,
    /// The destination has a row, for it had failed.
    pub kept: bool,
    /// It has all that is known.
    pub caught_up: bool,
}

/// What to look at for the next batch of a destination.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// It has every event up to here.
    pub after: i64,
    /// Up to where events are known.
    pub upto: i64,
    /// The events between, the oldest ones at least; none: ask the database.
    pub held: Option<Vec<Arc<OutgoingRow>>>,
    /// Rows of its own may wait too.
    pub own: bool,
}

/// The lanes of the destinations for which this node sends.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Everything up to here has been dealt out.
    read: i64,
    lanes: BTreeMap<OwnedServerName, Lane>,
}

impl Lanes {
    /// Up to where events have been dealt out.
    pub fn read(&self) -> i64 {
        self.read
    }

    /// Nothing before `head` is for lanes that are not there.
    pub fn start(&mut self, head: i64) {
        debug_assert!(self.lanes.is_empty(), "started already");
        self.read = head;
    }

    /// Everything up to `head` has been dealt out.
    pub fn advance(&mut self, head: i64) {
        self.read = self.read.max(head);
    }

    /// An event for a destination. Those for one destination come in order.
    pub fn deal(&mut self, destination: &ServerName, row: &Arc<OutgoingRow>) {
        let lane = match self.lanes.get_mut(destination) {
            Some(lane) => lane,
            None => {
                let new = Lane { cursor: row.position - 1, ..Lane::default() };
                self.lanes.entry(destination.to_owned()).or_insert(new)
            }
        };
        if lane.behind || row.position <= lane.cursor {
            return;
        }
        if lane.held.len() == MAX_HELD {
            lane.held.clear();
            lane.behind = true;
        } else {
            lane.held.push_back(Arc::clone(row));
        }
    }

    /// A destination that the database remembers as one that failed.
    pub fn resume(&mut self, destination: &ServerName, delivered_upto: i64) {
        let lane = Lane { cursor: delivered_upto, behind: true, kept: true, ..Lane::default() };
        self.lanes.entry(destination.to_owned()).or_insert(lane);
    }

    /// A destination got rows of its own.
    pub fn own_rows(&mut self, destination: &ServerName) {
        let read = self.read;
        let lane = self.lanes.entry(destination.to_owned());
        lane.or_insert_with(|| Lane { cursor: read, ..Lane::default() }).own = true;
    }

    /// What to look at for a batch of at most `limit` events. Rows of its own count as looked at: those that come
    /// from now on are told again.
    pub fn look(&mut self, destination: &ServerName, limit: usize) -> Option<Look> {
        let upto = self.read;
        let lane = self.lanes.get_mut(destination)?;
        if lane.cursor >= upto {
            // A take-over of what another node dealt out further than we have read.
            lane.behind &= lane.kept;
        }
        let held = (!lane.behind).then(|| lane.held.iter().take(limit + 1).cloned().collect());
        Some(Look { after: lane.cursor, upto, held, own: std::mem::take(&mut lane.own) || lane.kept })
    }

    /// The look failed or saw only a part of the destination's own rows.
    pub fn look_again(&mut self, destination: &ServerName) {
        if let Some(lane) = self.lanes.get_mut(destination) {
            lane.own = true;
        }
    }

    /// A batch is on its way; `own`: with rows of its own.
    pub fn opened(&mut self, destination: &ServerName, own: bool) {
        if let Some(lane) = self.lanes.get_mut(destination) {
            lane.own_sent = own;
        }
    }

    /// The destination has everything up to `upto`.
    pub fn delivered(&mut self, destination: &ServerName, upto: i64) -> Delivered {
        let read = self.read;
        let Some(lane) = self.lanes.get_mut(destination) else {
            return Delivered { own: true, kept: false, caught_up: true };
        };
        lane.cursor = lane.cursor.max(upto);
        while lane.held.front().is_some_and(|row| row.position <= upto) {
            lane.held.pop_front();
        }
        let caught_up = lane.cursor >= read;
        let delivered = Delivered { own: std::mem::take(&mut lane.own_sent), kept: lane.kept, caught_up };
        if caught_up {
            lane.behind = false;
            lane.kept = false;
            if !lane.own {
                self.lanes.remove(destination);
            }
        }
        delivered
    }

    /// The destination failed. Gives its cursor, for the database to remember; [`Lanes::remembered`] follows.
    pub fn failed(&mut self, destination: &ServerName) -> i64 {
        let read = self.read;
        let lane = self.lanes.entry(destination.to_owned());
        let lane = lane.or_insert_with(|| Lane { cursor: read, ..Lane::default() });
        lane.held.clear();
        lane.behind = true;
        lane.own = true;
        lane.cursor
    }

    /// The database has a row for the destination: its cursor is not the shard's any more.
    pub fn remembered(&mut self, destination: &ServerName) {
        if let Some(lane) = self.lanes.get_mut(destination).filter(|lane| lane.behind) {
            lane.kept = true;
        }
    }

    /// Destinations that lack something.
    pub fn waiting(&self) -> Vec<OwnedServerName> {
        self.lanes.keys().cloned().collect()
    }

    /// Up to where every destination of a shard has everything, those apart that the database remembers.
    pub fn floor(&self, of_shard: impl Fn(&ServerName) -> bool) -> i64 {
        let lanes = self.lanes.iter().filter(|(name, lane)| !lane.kept && of_shard(name));
        lanes.map(|(_, lane)| lane.cursor).min().unwrap_or(self.read).min(self.read)
    }

    /// Forgets destinations that another node serves now.
    pub fn retain(&mut self, ours: impl Fn(&ServerName) -> bool) {
        self.lanes.retain(|name, _| ours(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{event_id, room_id, server_name};
    use waxwing_storage::Outgoing;

    fn row(position: i64) -> Arc<OutgoingRow> {
        Arc::new(OutgoingRow {
            position,
            what: Outgoing::Event { room: room_id!("!a:x").to_owned(), event: event_id!("$e").to_owned() },
            servers: "s".into(),
        })
    }

    fn positions(look: &Look) -> Vec<i64> {
        look.held.iter().flatten().map(|row| row.position).collect()
    }

    #[test]
    fn a_destination_that_has_everything_has_no_lane_and_holds_nothing_back() {
        let (mut lanes, a, b) = (Lanes::default(), server_name!("a.x"), server_name!("b.x"));
        lanes.start(10);
        for position in [11, 12] {
            lanes.deal(a, &row(position));
            lanes.deal(b, &row(position));
        }
        lanes.advance(12);
        assert_eq!(lanes.floor(|_| true), 10);
        let look = lanes.look(a, 50).unwrap();
        assert_eq!((positions(&look), look.after, look.upto, look.own), (vec![11, 12], 10, 12, false));
        assert_eq!(lanes.delivered(a, 12), Delivered { own: false, kept: false, caught_up: true });
        assert!(lanes.look(a, 50).is_none());
        assert_eq!(lanes.floor(|name| name == a), 12);
        assert_eq!(lanes.floor(|_| true), 10);
        assert_eq!(lanes.delivered(b, 11), Delivered { own: false, kept: false, caught_up: false });
        assert_eq!(lanes.floor(|_| true), 11);
    }

    #[test]
    fn who_fails_is_remembered_apart_and_reads_the_database_until_it_has_caught_up() {
        let (mut lanes, a) = (Lanes::default(), server_name!("a.x"));
        lanes.start(10);
        lanes.deal(a, &row(11));
        lanes.advance(11);
        assert_eq!(lanes.failed(a), 10);
        assert_eq!(lanes.floor(|_| true), 10);
        lanes.remembered(a);
        assert_eq!(lanes.floor(|_| true), 11);
        lanes.deal(a, &row(12));
        lanes.advance(12);
        let look = lanes.look(a, 50).unwrap();
        assert_eq!((look.held, look.after, look.upto, look.own), (None, 10, 12, true));
        lanes.deal(a, &row(13));
        lanes.advance(13);
        lanes.opened(a, true);
        assert_eq!(lanes.delivered(a, 12), Delivered { own: true, kept: true, caught_up: false });
        assert_eq!(lanes.look(a, 50).unwrap().held, None);
        assert_eq!(lanes.delivered(a, 13), Delivered { own: false, kept: true, caught_up: true });
        lanes.deal(a, &row(14));
        assert_eq!(positions(&lanes.look(a, 50).unwrap()), [14]);
    }

    #[test]
    fn a_slow_destination_takes_bounded_memory_and_loses_nothing() {
        let (mut lanes, a) = (Lanes::default(), server_name!("a.x"));
        lanes.start(0);
        for position in 1..=2 * MAX_HELD as i64 {
            lanes.deal(a, &row(position));
            lanes.advance(position);
        }
        let look = lanes.look(a, 50).unwrap();
        assert_eq!((look.held, look.after), (None, 0));
        assert_eq!(lanes.floor(|_| true), 0);
    }

    #[test]
    fn rows_of_its_own_are_told_once_and_again_when_more_come() {
        let (mut lanes, a) = (Lanes::default(), server_name!("a.x"));
        lanes.start(5);
        lanes.own_rows(a);
        assert!(lanes.look(a, 50).unwrap().own);
        assert!(!lanes.look(a, 50).unwrap().own);
        lanes.own_rows(a);
        lanes.delivered(a, 5);
        assert!(lanes.look(a, 50).unwrap().own);
        lanes.delivered(a, 5);
        assert!(lanes.look(a, 50).is_none());
    }
}
