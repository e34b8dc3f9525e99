//! What is true now and not in the log: who types, who is there. It is told once, or not at all.
//! <https://spec.matrix.org/v1.19/application-service-api/#pushing-ephemeral-data>

use super::Shared;
use super::interest::Interest;
use crate::appservices::Appservice;
use crate::sync::presence_event;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use waxwing_storage::StoreResult;

/// Rooms of which one transaction tells who types.
const MAX_ROOMS: usize = 100;
/// Users of whom one transaction tells how they are; what is left out is told when it changes again.
const MAX_USERS: usize = 200;
/// Transactions with nothing else are sent at most this often.
const EVERY: Duration = Duration::from_millis(250);

/// Follows what is not in the log.
pub(super) struct Volatile {
    wanted: bool,
    typing: watch::Receiver<u64>,
    presence: watch::Receiver<u64>,
    /// The clocks at what was told last.
    told: (u64, u64),
    /// When the next transaction of its own may go.
    next: Instant,
}

impl Volatile {
    /// From now on.
    pub fn new(shared: &Shared, appservice: &Appservice) -> Volatile {
        let (typing, presence) = (shared.typing.subscribe(), shared.presence.subscribe());
        let told = (*typing.borrow(), *presence.borrow());
        Volatile { wanted: appservice.ephemeral, typing, presence, told, next: Instant::now() }
    }

    /// Returns when there may be news that may be sent.
    pub async fn changed(&mut self) {
        if !self.wanted {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.next).await;
        tokio::select! {
            _ = self.typing.changed() => {}
            _ = self.presence.changed() => {}
        }
    }

    /// A transaction of nothing else was sent.
    pub fn sent(&mut self) {
        self.next = Instant::now() + EVERY;
    }

    /// What changed since the last call, as events.
    pub async fn take(&mut self, shared: &Shared, interest: &Interest) -> StoreResult<Vec<Box<RawValue>>> {
        if !self.wanted {
            return Ok(Vec::new());
        }
        let now = (*self.typing.borrow_and_update(), *self.presence.borrow_and_update());
        let before = std::mem::replace(&mut self.told, now);
        let mut events = Vec::new();
        if now.0 > before.0 {
            for room in shared.typing.rooms_changed_since(before.0).into_iter().take(MAX_ROOMS) {
                if interest.has_room(&room).await? {
                    let typists = shared.typing.typists(&room);
                    let content = json!({ "user_ids": typists });
                    let event = json!({ "type": "m.typing", "room_id": room, "content": content });
                    events.extend(to_raw_value(&event));
                }
            }
        }
        if now.1 > before.1 {
            for (user, presence) in shared.presence.changed_since(before.1).into_iter().take(MAX_USERS) {
                if interest.knows(&user).await? {
                    events.extend(presence_event(&user, &presence));
                }
            }
        }
        Ok(events)
    }
}
