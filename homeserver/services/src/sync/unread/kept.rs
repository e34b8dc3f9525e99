//! What is unread in the rooms of users who sync at the same time, within a budget of memory.

use super::Room;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Bytes of rooms that are kept: a room in which little is unread takes 500, one with 500 unread messages 60,000.
const BYTES: u64 = 16 * 1024 * 1024;
/// A guess of the rooms in that many bytes.
const ITEMS: usize = 30_000;

type Key = (OwnedUserId, OwnedRoomId);
type Slot = Arc<Mutex<Option<Room>>>;

/// A room of a user with the power of two above its weight: weights must not change while something is kept.
type Weighed = (Slot, u64);

#[derive(Clone)]
struct Weight;

impl Weighter<Key, Weighed> for Weight {
    fn weight(&self, _: &Key, (_, weight): &Weighed) -> u64 {
        *weight
    }
}

pub(super) struct Kept(Cache<Key, Weighed, Weight>);

impl Default for Kept {
    fn default() -> Kept {
        Kept(Cache::with_weighter(ITEMS, BYTES, Weight))
    }
}

impl Kept {
    /// Whether something is known of the room.
    pub fn has(&self, user: &UserId, room: &RoomId) -> bool {
        self.0.peek(&(user.to_owned(), room.to_owned())).is_some()
    }

    /// What is known of the room, or a place for it.
    pub fn slot(&self, user: &UserId, room: &RoomId) -> Slot {
        let key = (user.to_owned(), room.to_owned());
        if let Some((slot, _)) = self.0.get(&key) {
            return slot;
        }
        let slot = Slot::default();
        self.0.insert(key, (Arc::clone(&slot), 512));
        slot
    }

    /// Keeps what is known of a room, of this weight.
    pub fn put(&self, user: &UserId, room: &RoomId, known: Room, weight: u64) {
        let slot = Arc::new(Mutex::new(Some(known)));
        self.0.insert((user.to_owned(), room.to_owned()), (slot, weight.next_power_of_two()));
    }

    /// What is known of a room weighs so much now.
    pub fn weigh(&self, user: &UserId, room: &RoomId, weight: u64) {
        let key = (user.to_owned(), room.to_owned());
        let weight = weight.next_power_of_two();
        if let Some((slot, before)) = self.0.peek(&key)
            && before != weight
        {
            self.0.insert(key, (slot, weight));
        }
    }
}
