//! What is unread of users who have pushers, room by room. Each notification says how much is unread in all, so this is
//! kept, and only rooms in which something happened are counted again.

use super::Parts;
use super::rules::Source;
use crate::folds::{Membership, UserRooms};
use crate::notifier::Follower;
use crate::thread_subscriptions::changed_room;
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::Mutex;
use waxwing_model::LogPosition;
use waxwing_storage::StoreResult;

/// Users whose unread events are kept.
const USERS: usize = 20_000;

/// An unread event: its number and its id.
pub(super) type UnreadEvent = (i64, OwnedEventId);

/// A user's unread events, as of some position.
pub(super) struct Inbox {
    follower: Arc<Follower>,
    upto: LogPosition,
    pub rooms: Arc<UserRooms>,
    source: Source,
    pub ignored: Arc<BTreeSet<OwnedUserId>>,
    /// Those rooms in which there are any.
    pub unread: HashMap<OwnedRoomId, Vec<UnreadEvent>>,
}

/// The inboxes that are kept.
pub(super) struct Inboxes(Cache<OwnedUserId, Arc<Mutex<Option<Inbox>>>>);

impl Default for Inboxes {
    fn default() -> Inboxes {
        Inboxes(Cache::new(USERS))
    }
}

impl Parts {
    /// Brings the user's inbox up to `upto` and gives it to `look`.
    pub(super) async fn with_inbox<T>(
        &self,
        user: &UserId,
        upto: LogPosition,
        look: impl FnOnce(&Inbox) -> T,
    ) -> StoreResult<T> {
        let slot = self.inboxes.0.get(user).unwrap_or_else(|| {
            let slot = Arc::default();
            self.inboxes.0.insert(user.to_owned(), Arc::clone(&slot));
            slot
        });
        let mut slot = slot.lock().await;
        let known = slot.take();
        let inbox = self.refreshed(user, known, upto).await?;
        Ok(look(slot.insert(inbox)))
    }

    async fn refreshed(&self, user: &UserId, known: Option<Inbox>, upto: LogPosition) -> StoreResult<Inbox> {
        let rules = self.unread.rules().of(user, upto).await?;
        let ignored = self.ignored.of(&self.core, user, upto).await?;
        let rooms = self.notifier.folds().snapshot(user).rooms;
        let follower = match &known {
            Some(known) => Arc::clone(&known.follower),
            None => self.notifier.follow(user),
        };
        let same = known.filter(|known| known.source == rules.source && known.ignored == ignored);
        let changed = same.as_ref().and_then(|known| {
            let mut rooms: BTreeSet<OwnedRoomId> = follower.rooms_changed(known.upto)?.into_iter().collect();
            // Rules ask whether the user follows a thread.
            let own = self.core.store.tail().range_of_user(user, known.upto, upto)?;
            rooms.extend(own.iter().filter_map(|row| changed_room(row)));
            Some(rooms)
        });
        let (mut unread, stale) = match (same, changed) {
            (Some(known), Some(mut stale)) => {
                if !Arc::ptr_eq(&known.rooms, &rooms) {
                    stale.extend(rooms_that_differ(&known.rooms, &rooms));
                }
                (known.unread, stale)
            }
            _ => (HashMap::new(), rooms.keys().cloned().collect()),
        };
        for room in stale {
            let events = self.unread_in(user, &room, &rooms, &ignored, upto).await?;
            if events.is_empty() {
                unread.remove(&room);
            } else {
                unread.insert(room, events);
            }
        }
        Ok(Inbox { follower, upto, rooms, source: rules.source.clone(), ignored, unread })
    }

    async fn unread_in(
        &self,
        user: &UserId,
        room: &RoomId,
        rooms: &UserRooms,
        ignored: &Arc<BTreeSet<OwnedUserId>>,
        upto: LogPosition,
    ) -> StoreResult<Vec<UnreadEvent>> {
        if rooms.get(room) == Some(&Membership::Join) {
            self.unread.unread_events(user, room, ignored, upto).await
        } else {
            Ok(Vec::new())
        }
    }
}

/// Rooms of which the user's membership is not the same in both.
fn rooms_that_differ(before: &UserRooms, now: &UserRooms) -> Vec<OwnedRoomId> {
    let moved = |one: &UserRooms, other: &UserRooms| {
        let differs =
            |(room, membership): &(&OwnedRoomId, &Membership)| other.get(*room) != Some(*membership);
        one.iter().filter(differs).map(|(room, _)| room.clone()).collect::<Vec<_>>()
    };
    let mut rooms = moved(before, now);
    rooms.extend(moved(now, before));
    rooms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_that_were_left_joined_or_moved_differ() {
        let rooms = |list: &[(&str, Membership)]| -> UserRooms {
            list.iter().map(|(room, membership)| ((*room).try_into().unwrap(), *membership)).collect()
        };
        let before =
            rooms(&[("!a:x", Membership::Join), ("!b:x", Membership::Invite), ("!c:x", Membership::Join)]);
        let now =
            rooms(&[("!b:x", Membership::Join), ("!c:x", Membership::Join), ("!d:x", Membership::Invite)]);
        let differ: BTreeSet<OwnedRoomId> = rooms_that_differ(&before, &now).into_iter().collect();
        let differ: Vec<&str> = differ.iter().map(|room| room.as_str()).collect();
        assert_eq!(differ, ["!a:x", "!b:x", "!d:x"]);
    }
}
