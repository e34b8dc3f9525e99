//! Which member events a device has been sent, so that clients that load members lazily get few twice. Forgetting is
//! allowed: <https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members>

use crate::render::Viewer;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use waxwing_model::LogPosition;

/// Bytes of what is remembered: of some 30,000 rooms of devices in which few speak.
const BYTES: u64 = 8 * 1024 * 1024;
/// A guess of the rooms in that many bytes.
const ITEMS: usize = 30_000;
/// Members that are remembered of each: a room in which more speak is sent some of them again.
const MEMBERS: usize = 500;

type Key = (Viewer, OwnedRoomId);
/// Events, by a hash that nobody outside can foresee, in order of it.
type Sent = Arc<[(u64, LogPosition)]>;

#[derive(Clone)]
struct Weight;

impl Weighter<Key, Sent> for Weight {
    fn weight(&self, (viewer, room): &Key, sent: &Sent) -> u64 {
        let device = viewer.device.as_ref().map_or(0, String::len);
        (180 + viewer.user.as_str().len() + device + room.as_str().len() + 16 * sent.len()) as u64
    }
}

/// What was sent, and with the token of which answer: a client that asks again with an older token did not get it.
pub(super) struct SentMembers {
    sent: Cache<Key, Sent, Weight>,
    hasher: RandomState,
}

impl Default for SentMembers {
    fn default() -> SentMembers {
        SentMembers { sent: Cache::with_weighter(ITEMS, BYTES, Weight), hasher: RandomState::new() }
    }
}

impl SentMembers {
    /// Whether a client whose token is `since` has this member event.
    pub fn was_sent(&self, viewer: &Viewer, room: &RoomId, id: &EventId, since: LogPosition) -> bool {
        let Some(sent) = self.sent.get(&(viewer.clone(), room.to_owned())) else { return false };
        let hash = self.hasher.hash_one(id.as_str());
        let found = sent.binary_search_by_key(&hash, |(hash, _)| *hash);
        found.is_ok_and(|index| sent[index].1 <= since)
    }

    /// These are sent with the answer whose token is `upto`; `anew` when the client begins with the room.
    pub fn sent<'a>(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        ids: impl Iterator<Item = &'a OwnedEventId>,
        upto: LogPosition,
        anew: bool,
    ) {
        let mut ids = ids.map(|id| self.hasher.hash_one(id.as_str())).peekable();
        if ids.peek().is_none() {
            return;
        }
        let key = (viewer.clone(), room.to_owned());
        let before = self.sent.get(&key).filter(|sent| !anew && sent.len() <= MEMBERS);
        let mut sent = before.as_deref().map(<[_]>::to_vec).unwrap_or_default();
        let mut new = false;
        for hash in ids {
            if let Err(index) = sent.binary_search_by_key(&hash, |(hash, _)| *hash) {
                sent.insert(index, (hash, upto));
                new = true;
            }
        }
        if new {
            self.sent.insert(key, sent.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::{room_id, user_id};

    #[test]
    fn what_a_client_lost_is_sent_again() {
        let cache = SentMembers::default();
        let viewer = Viewer::new(user_id!("@a:x"));
        let room = room_id!("!r:x");
        let id: OwnedEventId = "$m".try_into().unwrap();
        let other: OwnedEventId = "$o".try_into().unwrap();
        cache.sent(&viewer, room, [&id].into_iter(), LogPosition(7), true);
        cache.sent(&viewer, room, [&id, &other].into_iter(), LogPosition(9), false);
        assert!(cache.was_sent(&viewer, room, &id, LogPosition(7)));
        assert!(!cache.was_sent(&viewer, room, &id, LogPosition(6)));
        assert!(cache.was_sent(&viewer, room, &other, LogPosition(9)));
        assert!(!cache.was_sent(&viewer, room, &other, LogPosition(8)));
        assert!(!cache.was_sent(&Viewer::new(user_id!("@b:x")), room, &id, LogPosition(7)));
        cache.sent(&viewer, room, [&other].into_iter(), LogPosition(10), true);
        assert!(!cache.was_sent(&viewer, room, &id, LogPosition(10)));
    }
}
