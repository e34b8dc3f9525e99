//! Which member events a device has been sent, so that clients that load members lazily get few twice. Forgetting is
//! allowed: <https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members>

use crate::render::Viewer;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_model::LogPosition;

/// Rooms of devices that are remembered.
const ROOMS: usize = 50_000;
/// Members that are remembered of each: a room in which more speak is sent some of them again.
const MEMBERS: usize = 500;

type Key = (Viewer, OwnedRoomId);
type Sent = HashMap<OwnedEventId, LogPosition>;

/// What was sent, and with the token of which answer: a client that asks again with an older token did not get it.
pub(super) struct SentMembers(Cache<Key, Arc<Mutex<Sent>>>);

impl Default for SentMembers {
    fn default() -> SentMembers {
        SentMembers(Cache::new(ROOMS))
    }
}

impl SentMembers {
    /// Whether a client whose token is `since` has this member event.
    pub fn was_sent(&self, viewer: &Viewer, room: &RoomId, id: &EventId, since: LogPosition) -> bool {
        let sent = self.0.get(&(viewer.clone(), room.to_owned()));
        sent.is_some_and(|sent| sent.lock().get(id).is_some_and(|upto| *upto <= since))
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
        let mut ids = ids.peekable();
        if ids.peek().is_none() {
            return;
        }
        let key = (viewer.clone(), room.to_owned());
        let sent = self.0.get(&key).unwrap_or_else(|| {
            let sent = Arc::<Mutex<Sent>>::default();
            self.0.insert(key, Arc::clone(&sent));
            sent
        });
        let mut sent = sent.lock();
        if anew || sent.len() > MEMBERS {
            sent.clear();
        }
        for id in ids {
            sent.entry(id.clone()).or_insert(upto);
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
        cache.sent(&viewer, room, [&id].into_iter(), LogPosition(7), true);
        assert!(cache.was_sent(&viewer, room, &id, LogPosition(7)));
        assert!(!cache.was_sent(&viewer, room, &id, LogPosition(6)));
        assert!(!cache.was_sent(&Viewer::new(user_id!("@b:x")), room, &id, LogPosition(7)));
    }
}
