use parking_lot::Mutex;
use ruma::{OwnedRoomId, RoomId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// Pieces of work that may wait for one room. More means that the room takes in less than is sent to it: the senders
/// are told to come back.
const MAX_WAITING: usize = 64;

/// One room at a time does one thing; rooms are independent.
#[derive(Clone, Default)]
pub(super) struct RoomLocks {
    rooms: Arc<Mutex<BTreeMap<OwnedRoomId, Arc<tokio::sync::Mutex<()>>>>>,
}

/// The right to work on a room, in the order of asking.
pub(super) struct Turn {
    locks: RoomLocks,
    room: OwnedRoomId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl RoomLocks {
    /// Whether another piece of work may queue up for the room.
    pub(super) fn has_room(&self, room: &RoomId) -> bool {
        // One reference is the table's own.
        self.rooms.lock().get(room).is_none_or(|lock| Arc::strong_count(lock) <= MAX_WAITING)
    }

    /// Waits for the room, however many wait already.
    pub(super) async fn enter_patiently(&self, room: &RoomId) -> Turn {
        let lock = Arc::clone(self.rooms.lock().entry(room.to_owned()).or_default());
        let mut turn = Turn { locks: self.clone(), room: room.to_owned(), guard: None };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut rooms = self.locks.rooms.lock();
        if rooms.get(&self.room).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            rooms.remove(&self.room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left_behind() {
        let locks = RoomLocks::default();
        let room: OwnedRoomId = "!r:a.b".try_into().unwrap();
        let other: OwnedRoomId = "!o:a.b".try_into().unwrap();
        let turn = locks.enter_patiently(&room).await;
        let _free = locks.enter_patiently(&other).await;
        let mut second = Box::pin(locks.enter_patiently(&room));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(turn);
        drop(second.await);
        assert_eq!(locks.rooms.lock().len(), 1);
    }

    #[tokio::test]
    async fn given_up_waits_are_cleaned_up_and_the_queue_is_bounded() {
        let locks = RoomLocks::default();
        let room: OwnedRoomId = "!r:a.b".try_into().unwrap();
        let turn = locks.enter_patiently(&room).await;
        let mut waiting = Vec::new();
        while locks.has_room(&room) {
            let mut wait = Box::pin(locks.enter_patiently(&room));
            assert!(futures_util::poll!(&mut wait).is_pending());
            waiting.push(wait);
            assert!(waiting.len() <= MAX_WAITING);
        }
        drop(waiting);
        drop(turn);
        assert!(locks.has_room(&room) && locks.rooms.lock().is_empty());
    }
}
