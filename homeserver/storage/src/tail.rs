//! The newest stretch of the log, decoded, in memory. A reader inside it asks the database nothing.

use crate::events::StoredEvent;
use crate::log::{Fact, LogRow};
use parking_lot::RwLock;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use tokio::sync::watch;
use waxwing_model::LogPosition;

/// Bytes of rows kept: minutes of a busy server, and what most clients that come back within the hour need.
const TAIL_BYTES: usize = 16 * 1024 * 1024;

/// Rows of one room that are gone through for its newest events: beyond them the database is as quick.
const MAX_STEPS: usize = 2000;

/// The newest events of a room.
pub(crate) struct NewestOfRoom {
    /// Newest first, as they were when they came.
    pub events: Vec<Arc<StoredEvent>>,
    /// Those of them that changed later.
    pub changed: HashSet<OwnedEventId>,
    /// What came up to here is not among them.
    pub floor: LogPosition,
}

#[derive(Default)]
struct Rows {
    /// Everything after this position and up to the head is here.
    floor: LogPosition,
    queue: VecDeque<Arc<LogRow>>,
    bytes: usize,
    by_room: HashMap<OwnedRoomId, VecDeque<LogPosition>>,
    by_user: HashMap<OwnedUserId, VecDeque<LogPosition>>,
}

/// The tail of the log on this node.
pub struct Tail {
    rows: RwLock<Rows>,
    head: watch::Sender<LogPosition>,
}

impl Tail {
    pub(crate) fn new(head: LogPosition) -> Tail {
        let rows = Rows { floor: head, ..Rows::default() };
        Tail { rows: RwLock::new(rows), head: watch::Sender::new(head) }
    }

    /// The newest position that this node has seen. Everything up to it is committed.
    pub fn head(&self) -> LogPosition {
        *self.head.borrow()
    }

    /// Follows the head: changes after rows were added.
    pub fn subscribe(&self) -> watch::Receiver<LogPosition> {
        self.head.subscribe()
    }

    /// Everything after the returned position is in memory.
    pub fn floor(&self) -> LogPosition {
        self.rows.read().floor
    }

    /// The rows after `after` up to and including `upto`; `None` when the tail does not reach back that far.
    pub fn range(&self, after: LogPosition, upto: LogPosition) -> Option<Vec<Arc<LogRow>>> {
        let rows = self.rows.read();
        if after < rows.floor {
            return None;
        }
        let start = rows.queue.partition_point(|row| row.position <= after);
        let end = rows.queue.partition_point(|row| row.position <= upto);
        Some(rows.queue.range(start..end.max(start)).cloned().collect())
    }

    /// The row at `position`, where it is in memory.
    pub fn row(&self, position: LogPosition) -> Option<Arc<LogRow>> {
        self.rows.read().at(position).cloned()
    }

    /// Like [`Tail::range`], the rows that name `room`.
    pub fn range_of_room(
        &self,
        room: &RoomId,
        after: LogPosition,
        upto: LogPosition,
    ) -> Option<Vec<Arc<LogRow>>> {
        let rows = self.rows.read();
        (after >= rows.floor).then(|| rows.select(rows.by_room.get(room), after, upto))
    }

    /// Like [`Tail::range`], the rows that name `user`.
    pub fn range_of_user(
        &self,
        user: &UserId,
        after: LogPosition,
        upto: LogPosition,
    ) -> Option<Vec<Arc<LogRow>>> {
        let rows = self.rows.read();
        (after >= rows.floor).then(|| rows.select(rows.by_user.get(user), after, upto))
    }

    /// Whether one of the rows after `after` up to `upto` that name `room` is such a one; `None` when the tail does not
    /// reach back that far.
    pub(crate) fn room_has(
        &self,
        room: &RoomId,
        after: LogPosition,
        upto: LogPosition,
        such: impl Fn(&LogRow) -> bool,
    ) -> Option<bool> {
        let rows = self.rows.read();
        (after >= rows.floor).then(|| rows.has(rows.by_room.get(room), after, upto, such))
    }

    /// Like [`Tail::room_has`], of the rows that name `user`.
    pub(crate) fn user_has(
        &self,
        user: &UserId,
        after: LogPosition,
        upto: LogPosition,
        such: impl Fn(&LogRow) -> bool,
    ) -> Option<bool> {
        let rows = self.rows.read();
        (after >= rows.floor).then(|| rows.has(rows.by_user.get(user), after, upto, such))
    }

    /// The newest events of the room's timeline before `before` that are in memory, newest first, at most `limit`.
    /// `None` when memory cannot tell: too much happened since, events are gone, or one is not at hand.
    pub(crate) fn newest_of_room(&self, room: &RoomId, before: i64, limit: usize) -> Option<NewestOfRoom> {
        let rows = self.rows.read();
        let (mut events, mut changed) = (Vec::new(), HashSet::new());
        let positions = rows.by_room.get(room).into_iter().flatten().rev();
        for (step, position) in positions.enumerate() {
            if events.len() == limit {
                break;
            }
            if step == MAX_STEPS {
                return None;
            }
            let row = rows.at(*position)?;
            match row.fact {
                Fact::Event if position.0 < before => {
                    events.push(Arc::clone(row.event.as_ref().filter(|stored| stored.flags.visible())?));
                }
                Fact::EventChanged => changed.extend(row.event_id()),
                Fact::Room if row.data.as_deref() == Some(crate::PURGED) => return None,
                _ => {}
            }
        }
        changed.retain(|id| events.iter().any(|stored: &Arc<StoredEvent>| stored.event.event_id == *id));
        Some(NewestOfRoom { events, changed, floor: rows.floor })
    }

    /// Adds rows that follow the head without a gap, then wakes the readers.
    pub(crate) fn append(&self, new: Vec<LogRow>) {
        let Some(last) = new.last().map(|row| row.position) else { return };
        {
            let mut rows = self.rows.write();
            for row in new {
                rows.push(Arc::new(row));
            }
            while rows.bytes > TAIL_BYTES {
                rows.drop_oldest();
            }
        }
        self.head.send_replace(last);
    }
}

impl Rows {
    fn push(&mut self, row: Arc<LogRow>) {
        self.bytes += row.weight();
        if let Some(room) = &row.room {
            self.by_room.entry(room.clone()).or_default().push_back(row.position);
        }
        if let Some(user) = &row.user {
            self.by_user.entry(user.clone()).or_default().push_back(row.position);
        }
        self.queue.push_back(row);
    }

    fn drop_oldest(&mut self) {
        let Some(row) = self.queue.pop_front() else { return };
        self.bytes -= row.weight();
        self.floor = row.position;
        if let Some(room) = &row.room
            && let Some(positions) = self.by_room.get_mut(room)
        {
            positions.pop_front();
            if positions.is_empty() {
                self.by_room.remove(room);
            }
        }
        if let Some(user) = &row.user
            && let Some(positions) = self.by_user.get_mut(user)
        {
            positions.pop_front();
            if positions.is_empty() {
                self.by_user.remove(user);
            }
        }
    }

    fn has(
        &self,
        positions: Option<&VecDeque<LogPosition>>,
        after: LogPosition,
        upto: LogPosition,
        such: impl Fn(&LogRow) -> bool,
    ) -> bool {
        let Some(positions) = positions else { return false };
        let newer = positions.iter().rev().take_while(|position| **position > after);
        newer
            .filter(|position| **position <= upto)
            .filter_map(|position| self.at(*position))
            .any(|row| such(row))
    }

    /// The row at `position`. There are gaps where rows were purged before this node read them; mostly there are none.
    fn at(&self, position: LogPosition) -> Option<&Arc<LogRow>> {
        let first = self.queue.front()?.position;
        let without_gaps = usize::try_from(position.0.checked_sub(first.0)?).ok()?;
        match self.queue.get(without_gaps) {
            Some(row) if row.position == position => Some(row),
            _ => {
                let index = self.queue.binary_search_by_key(&position, |row| row.position).ok()?;
                self.queue.get(index)
            }
        }
    }

    fn select(
        &self,
        positions: Option<&VecDeque<LogPosition>>,
        after: LogPosition,
        upto: LogPosition,
    ) -> Vec<Arc<LogRow>> {
        let Some(positions) = positions else { return Vec::new() };
        let start = positions.partition_point(|position| *position <= after);
        positions
            .range(start..)
            .take_while(|position| **position <= upto)
            .filter_map(|position| self.at(*position).cloned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(position: i64, user: &str) -> LogRow {
        LogRow {
            position: LogPosition(position),
            fact: Fact::Other,
            room: None,
            user: Some(user.try_into().unwrap()),
            reference: None,
            data: None,
            event: None,
        }
    }

    #[test]
    fn answers_only_what_it_has() {
        let tail = Tail::new(LogPosition(5));
        tail.append(vec![row(6, "@a:x"), row(7, "@b:x"), row(8, "@a:x")]);
        assert_eq!(tail.head(), LogPosition(8));
        assert!(tail.range(LogPosition(4), LogPosition(8)).is_none());
        assert_eq!(tail.range(LogPosition(5), LogPosition(7)).unwrap().len(), 2);
        assert_eq!(tail.row(LogPosition(7)).unwrap().position, LogPosition(7));
        assert!(tail.row(LogPosition(5)).is_none() && tail.row(LogPosition(9)).is_none());
        assert!(tail.row(LogPosition(-3)).is_none(), "events of history have numbers below zero");
        let user: OwnedUserId = "@a:x".try_into().unwrap();
        let found = tail.range_of_user(&user, LogPosition(6), LogPosition(8)).unwrap();
        assert_eq!(found.iter().map(|row| row.position.0).collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn finds_rows_on_either_side_of_a_gap() {
        let tail = Tail::new(LogPosition(5));
        // 7 and 8 were purged before this node read them.
        tail.append(vec![row(6, "@a:x"), row(9, "@a:x"), row(10, "@b:x")]);
        assert_eq!(tail.row(LogPosition(9)).unwrap().position, LogPosition(9));
        assert!(tail.row(LogPosition(7)).is_none());
        let user: OwnedUserId = "@a:x".try_into().unwrap();
        let found = tail.range_of_user(&user, LogPosition(5), LogPosition(10)).unwrap();
        assert_eq!(found.iter().map(|row| row.position.0).collect::<Vec<_>>(), [6, 9]);
    }
}
