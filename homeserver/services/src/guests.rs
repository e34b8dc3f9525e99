//! Where guests may be: in rooms that say so, and no longer than they say it.
//! <https://spec.matrix.org/v1.19/client-server-api/#guest-access>
//!
//! Whoever changes `m.room.guest_access`, here or on another server: that is a row of the log, and whichever node reads
//! it first takes our guests out. At its start a node looks at all rooms with guests, for what nobody read.

use crate::Core;
use crate::timeline::{Author, Timeline, TimelineError};
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_model::Event;
use waxwing_storage::{Fact, NewRow, StoreResult};

/// The reference of log rows that say that guest access to a room changed; their data is the room.
const CHANGED: &str = "guest_access";
/// What the guests' leaving says to the others.
const REASON: &str = "Guests are no longer allowed in this room";
/// After an error of the database.
const RETRY: Duration = Duration::from_secs(2);

/// The row that an event of a room's state leaves for [`Guests`], if it matters to guests.
pub(crate) fn log_row(event: &Event) -> Option<NewRow> {
    let changes = event.is_state_of(&StateEventType::RoomGuestAccess, "");
    changes.then(|| NewRow::new(Fact::Other).reference(CHANGED).data(event.room_id.as_str()))
}

/// Whether the account is a guest's.
pub(crate) async fn is_guest(core: &Core, user: &UserId) -> StoreResult<bool> {
    Ok(core.store.read().await?.user_load(user).await?.is_some_and(|row| row.guest))
}

/// Whether the room, as this server knows it, lets guests in.
pub(crate) async fn may_enter(core: &Core, room: &RoomId) -> StoreResult<bool> {
    let id = {
        let mut conn = core.store.read().await?;
        let Some(row) = conn.room_load(room).await? else { return Ok(false) };
        core.store.state(&mut conn).get(row.state_root, StateEventType::RoomGuestAccess, "").await?
    };
    let Some(id) = id else { return Ok(false) };
    let access = core.store.event(&id).await?.and_then(|stored| stored.event.content_str("guest_access"));
    Ok(access.as_deref() == Some("can_join"))
}

/// Takes guests out of rooms that no longer want them.
pub struct Guests {
    core: Core,
    timeline: Timeline,
}

impl Guests {
    /// Over the rooms of `timeline`.
    pub fn new(core: Core, timeline: Timeline) -> Guests {
        Guests { core, timeline }
    }

    /// Follows the log until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut heads = self.core.store.tail().subscribe();
        let mut seen = *heads.borrow_and_update();
        // Everything, at first and whenever rows have left memory unread.
        let mut wanted: Option<BTreeSet<OwnedRoomId>> = None;
        while !stop.is_cancelled() {
            if let Err(error) = self.look(wanted.as_ref()).await {
                tracing::warn!(%error, "guests could not be taken out of rooms");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => continue,
                }
            }
            wanted = loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = heads.changed() => if changed.is_err() { return },
                }
                let head = *heads.borrow_and_update();
                let Some(rows) = self.core.store.tail().range(seen, head) else {
                    seen = head;
                    break None;
                };
                seen = head;
                let changed = rows
                    .iter()
                    .filter(|row| row.fact == Fact::Other && row.reference.as_deref() == Some(CHANGED));
                let rooms: BTreeSet<OwnedRoomId> =
                    changed.filter_map(|row| RoomId::parse(row.data.as_deref()?).ok()).collect();
                if !rooms.is_empty() {
                    break Some(rooms);
                }
            };
        }
    }

    /// Looks at these rooms, or at all with guests.
    async fn look(&self, rooms: Option<&BTreeSet<OwnedRoomId>>) -> StoreResult<()> {
        let mut guests: BTreeMap<OwnedRoomId, Vec<OwnedUserId>> = BTreeMap::new();
        {
            let mut conn = self.core.store.read().await?;
            match rooms {
                None => {
                    for (room, user) in conn.guests_joined().await? {
                        guests.entry(room).or_default().push(user);
                    }
                }
                Some(rooms) => {
                    for room in rooms {
                        guests.insert(room.clone(), conn.guests_joined_to(room).await?);
                    }
                }
            }
        }
        for (room, users) in guests {
            if users.is_empty() || may_enter(&self.core, &room).await? {
                continue;
            }
            for user in users {
                let left = self.timeline.leave(&Author::new(user), &room, Some(REASON.to_owned())).await;
                match left {
                    // Another node was faster, or the guest left by itself.
                    Ok(()) | Err(TimelineError::Forbidden(_) | TimelineError::NotInRoom) => {}
                    Err(TimelineError::Store(error)) => return Err(error),
                    Err(error) => tracing::info!(%room, %error, "a guest could not be taken out of a room"),
                }
            }
        }
        Ok(())
    }
}
