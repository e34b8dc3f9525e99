//! What a user was notified of, newest first: `GET /notifications`. Nothing is stored for it: the push rules are asked
//! again. <https://spec.matrix.org/v1.19/client-server-api/#listing-notifications>

use crate::Core;
use crate::render::{Shown, Viewer, render_one};
use crate::sync::unread::{Unread, thread_of};
use crate::visibility::visible_events;
use ruma::events::AnySyncTimelineEvent;
use ruma::push::{Action, PushConditionRoomCtx, Ruleset};
use ruma::serde::Raw;
use ruma::{OwnedRoomId, RoomId};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_storage::{ReceiptRow, StoreResult, StoredEvent};

/// Notifications in one answer.
const MAX_LIMIT: usize = 100;
/// Events of each room looked at in one round, and rounds of one answer.
const PER_ROOM: i64 = 20;
const ROUNDS: usize = 5;
/// Rooms looked at: those with the smallest ids, of who is in more.
const MAX_ROOMS: usize = 1000;

/// Something that a user was notified of.
#[derive(Debug)]
pub struct Notified {
    /// What the rules say to do.
    pub actions: Vec<Action>,
    /// As the user sees it.
    pub event: Box<RawValue>,
    /// A receipt covers it.
    pub read: bool,
    /// Where.
    pub room: OwnedRoomId,
    /// When, milliseconds since the Unix epoch.
    pub ts: u64,
}

/// One page.
#[derive(Debug, Default)]
pub struct NotifiedPage {
    /// Newest first.
    pub list: Vec<Notified>,
    /// The next page is of what is older than this.
    pub next: Option<i64>,
}

/// Lists what users were notified of.
#[derive(Clone)]
pub struct Notifications {
    core: Core,
    unread: Arc<Unread>,
}

struct Room {
    context: PushConditionRoomCtx,
    receipts: Vec<ReceiptRow>,
}

impl Notifications {
    /// `unread` knows the push rules.
    pub fn new(core: Core, unread: Arc<Unread>) -> Notifications {
        Notifications { core, unread }
    }

    /// A page of at most `limit`, of what is older than `before`; with `highlights`, only those.
    pub async fn list(
        &self,
        viewer: &Viewer,
        before: Option<i64>,
        limit: usize,
        highlights: bool,
    ) -> StoreResult<NotifiedPage> {
        let rules = self.unread.rules(&viewer.user, self.core.store.tail().head()).await?;
        let rows = self.core.store.read().await?.memberships_of(&viewer.user).await?;
        let rooms = rows.into_iter().filter(|row| row.membership == "join").take(MAX_ROOMS);
        let rooms: Vec<OwnedRoomId> = rooms.map(|row| row.room_id).collect();
        let limit = limit.clamp(1, MAX_LIMIT);
        let mut known = HashMap::new();
        let mut page = NotifiedPage { list: Vec::new(), next: Some(before.unwrap_or(i64::MAX)) };
        for _ in 0..ROUNDS {
            let Some(at) = page.next else { break };
            let (events, floor) = self.round(viewer, &rooms, at).await?;
            page.next = floor;
            for stored in events {
                if let Some(notified) = self.one(viewer, &rules, &mut known, &stored).await?
                    && (!highlights || notified.actions.iter().any(Action::is_highlight))
                {
                    page.list.push(notified);
                    if page.list.len() >= limit {
                        page.next = Some(stored.sn);
                        return Ok(page);
                    }
                }
            }
        }
        Ok(page)
    }

    /// The newest events of the rooms before `at`, newest first, down to the floor, below which some are missing.
    async fn round(
        &self,
        viewer: &Viewer,
        rooms: &[OwnedRoomId],
        at: i64,
    ) -> StoreResult<(Vec<Arc<StoredEvent>>, Option<i64>)> {
        let (mut all, mut floor) = (Vec::new(), None);
        for room in rooms {
            let events = self.core.store.read().await?.events_backward(room, at, PER_ROOM).await?;
            if events.len() as i64 == PER_ROOM {
                floor = floor.max(events.last().map(|last| last.sn));
            }
            all.extend(visible_events(&self.core, &viewer.user, room, events).await?);
        }
        all.retain(|stored| floor.is_none_or(|floor| stored.sn >= floor));
        all.sort_by_key(|stored| std::cmp::Reverse(stored.sn));
        Ok((all, floor))
    }

    async fn one(
        &self,
        viewer: &Viewer,
        rules: &Ruleset,
        known: &mut HashMap<OwnedRoomId, Room>,
        stored: &Arc<StoredEvent>,
    ) -> StoreResult<Option<Notified>> {
        let event = &stored.event;
        if event.sender == viewer.user || stored.redacted_by.is_some() {
            return Ok(None);
        }
        if !known.contains_key(&event.room_id) {
            known.insert(event.room_id.clone(), self.room(viewer, &event.room_id).await?);
        }
        let Some(room) = known.get(&event.room_id) else { return Ok(None) };
        let shown = render_one(&self.core, viewer, Arc::clone(stored), Shown::TIMELINE).await?;
        let raw: Raw<AnySyncTimelineEvent> = Raw::from_json(shown);
        let actions = rules.get_actions(&raw, &room.context).await;
        if !actions.iter().any(Action::should_notify) {
            return Ok(None);
        }
        Ok(Some(Notified {
            actions: actions.to_vec(),
            event: raw.into_json(),
            read: is_read(stored, &room.receipts),
            room: event.room_id.clone(),
            ts: event.origin_server_ts.0.into(),
        }))
    }

    async fn room(&self, viewer: &Viewer, room: &RoomId) -> StoreResult<Room> {
        let context = self.unread.room_context(&viewer.user, room, self.core.store.tail().head()).await?;
        let receipts = self.core.store.read().await?.receipts_of_user_in_room(&viewer.user, room).await?;
        Ok(Room { context, receipts })
    }
}

/// Whether a receipt for the whole room, or for the event's thread, stands at it or later.
fn is_read(stored: &StoredEvent, receipts: &[ReceiptRow]) -> bool {
    let thread = thread_of(&stored.event);
    let thread = thread.as_ref().map_or("main", |root| root.as_str());
    receipts.iter().any(|receipt| {
        (receipt.thread.is_empty() || receipt.thread == thread)
            && receipt.event_sn.is_some_and(|sn| sn >= stored.sn)
    })
}
