//! What happened between two positions that may concern a user, from memory where the tail reaches.

use super::build::Build;
use crate::folds::Membership;
use ruma::{OwnedEventId, OwnedRoomId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, LogRow, StoreResult, StoredEvent};

/// Rows of one room that are read from the database at most: beyond it the state is compared as a whole.
const MAX_ROOM_ROWS: usize = 200;
/// Rows that name the user which are read from the database at most.
const MAX_OWN_ROWS: i64 = 20_000;
/// A stretch of the tail that is scanned when it is not known which rooms changed for the user.
const MAX_SCAN: i64 = 5_000;

/// What happened in one room.
#[derive(Debug)]
pub(super) enum RoomRows {
    /// All of it; rows of events carry them.
    All(Vec<Arc<LogRow>>),
    /// Too much to list.
    Many,
}

impl RoomRows {
    pub fn rows(&self) -> &[Arc<LogRow>] {
        match self {
            RoomRows::All(rows) => rows,
            RoomRows::Many => &[],
        }
    }
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// By room: the user's own, and those that rows naming the user name.
    pub rooms: BTreeMap<OwnedRoomId, RoomRows>,
    /// The rows that name the user.
    pub own: Vec<Arc<LogRow>>,
}

impl Build<'_> {
    /// Gathers it. Empty for a client that has nothing yet.
    pub async fn window(&self) -> StoreResult<Window> {
        let Some(since) = self.since else { return Ok(Window::default()) };
        if since >= self.upto {
            return Ok(Window::default());
        }
        if let Some(window) = self.window_of_tail(since).await? {
            return Ok(window);
        }
        self.window_of_database(since).await
    }

    async fn window_of_tail(&self, since: LogPosition) -> StoreResult<Option<Window>> {
        let tail = self.core().store.tail();
        let Some(own) = tail.range_of_user(self.user(), since, self.upto) else { return Ok(None) };
        let mut changed: BTreeSet<OwnedRoomId> = own.iter().filter_map(|row| row.room.clone()).collect();
        match self.follower.rooms_changed(since) {
            Some(rooms) => changed.extend(rooms),
            None if self.upto.0 - since.0 <= MAX_SCAN => {
                let Some(rows) = tail.range(since, self.upto) else { return Ok(None) };
                let rooms = rows.iter().filter_map(|row| row.room.as_ref());
                changed.extend(rooms.filter(|room| self.rooms.contains_key(*room)).cloned());
            }
            None => changed.extend(self.joined().cloned()),
        }
        let mut rooms = BTreeMap::new();
        for room in changed {
            let Some(rows) = tail.range_of_room(&room, since, self.upto) else { return Ok(None) };
            if !rows.is_empty() {
                let rows = self.hydrated(rows).await?;
                rooms.insert(room, RoomRows::All(rows));
            }
        }
        Ok(Some(Window { rooms, own }))
    }

    async fn window_of_database(&self, since: LogPosition) -> StoreResult<Window> {
        let mut conn = self.core().store.read().await?;
        let own = conn.log_range_of_user(self.user(), since, self.upto, MAX_OWN_ROWS).await?;
        let own: Vec<Arc<LogRow>> = own.into_iter().map(Arc::new).collect();
        let joined: Vec<OwnedRoomId> = self.joined().cloned().collect();
        let mut changed: BTreeSet<OwnedRoomId> =
            conn.log_rooms_changed(&joined, since, self.upto).await?.into_iter().collect();
        changed.extend(own.iter().filter_map(|row| row.room.clone()));
        let mut found = Vec::with_capacity(changed.len());
        for room in changed {
            let rows = conn.log_range_of_room(&room, since, self.upto, MAX_ROOM_ROWS as i64 + 1).await?;
            found.push((room, rows));
        }
        drop(conn);
        let mut rooms = BTreeMap::new();
        for (room, rows) in found {
            let rows = if rows.len() > MAX_ROOM_ROWS {
                RoomRows::Many
            } else {
                RoomRows::All(self.hydrated(rows.into_iter().map(Arc::new).collect()).await?)
            };
            rooms.insert(room, rows);
        }
        let own = self.hydrated(own).await?;
        Ok(Window { rooms, own })
    }

    pub fn joined(&self) -> impl Iterator<Item = &OwnedRoomId> {
        self.rooms.iter().filter(|(_, membership)| **membership == Membership::Join).map(|(room, _)| room)
    }

    /// The rows with their events as they are now: those that the rows lack, and those that changed later.
    async fn hydrated(&self, mut rows: Vec<Arc<LogRow>>) -> StoreResult<Vec<Arc<LogRow>>> {
        let changed: BTreeSet<OwnedEventId> = rows
            .iter()
            .filter(|row| row.fact == Fact::EventChanged)
            .filter_map(|row| row.event_id())
            .collect();
        let stale = |row: &LogRow| {
            row.fact == Fact::Event
                && row.event.as_ref().is_none_or(|stored| changed.contains(&stored.event.event_id))
        };
        let wanted: Vec<OwnedEventId> =
            rows.iter().filter(|row| stale(row)).filter_map(|row| row.event_id()).collect();
        if wanted.is_empty() {
            return Ok(rows);
        }
        let events: HashMap<OwnedEventId, Arc<StoredEvent>> = self.core().store.events(&wanted).await?;
        for row in &mut rows {
            if stale(row) {
                let event = row.event_id().and_then(|id| events.get(&id).cloned());
                *row = Arc::new(LogRow { event, ..LogRow::clone(row) });
            }
        }
        Ok(rows)
    }
}
