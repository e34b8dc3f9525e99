//! What a user was notified of, newest first: `GET /notifications`. Nothing is stored for it: the push rules are asked
//! again. <https://spec.matrix.org/v1.19/client-server-api/#listing-notifications>

use crate::Core;
use crate::push::rules::{RuleContext, UserRules, flattened};
use crate::render::{Shown, Viewer, render_one};
use crate::sync::unread::Unread;
use crate::visibility::{ignored_users, visible_events};
use ruma::push::Action;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{StoreResult, StoredEvent};

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

/// What holds for one answer.
struct Asked<'a> {
    viewer: &'a Viewer,
    rules: Arc<UserRules>,
    ignored: Arc<BTreeSet<OwnedUserId>>,
    upto: LogPosition,
    rooms: HashMap<OwnedRoomId, Room>,
}

struct Room {
    context: RuleContext,
    unread: HashSet<OwnedEventId>,
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
        let upto = self.core.store.tail().head();
        let mut ignored = ignored_users(&self.core, &viewer.user).await?;
        ignored.remove(&viewer.user);
        let mut asked = Asked {
            viewer,
            rules: self.unread.rules().of(&viewer.user, upto).await?,
            ignored: Arc::new(ignored),
            upto,
            rooms: HashMap::new(),
        };
        let rows = self.core.store.read().await?.memberships_of(&viewer.user).await?;
        let rooms = rows.into_iter().filter(|row| row.membership == "join").take(MAX_ROOMS);
        let rooms: Vec<OwnedRoomId> = rooms.map(|row| row.room_id).collect();
        let limit = limit.clamp(1, MAX_LIMIT);
        let mut page = NotifiedPage { list: Vec::new(), next: Some(before.unwrap_or(i64::MAX)) };
        for _ in 0..ROUNDS {
            let Some(at) = page.next else { break };
            let (events, floor) = self.round(viewer, &rooms, at).await?;
            page.next = floor;
            for stored in events {
                if let Some(notified) = self.one(&mut asked, &stored).await?
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

    async fn one(&self, asked: &mut Asked<'_>, stored: &Arc<StoredEvent>) -> StoreResult<Option<Notified>> {
        let event = &stored.event;
        let user = &asked.viewer.user;
        if event.sender == *user || asked.ignored.contains(&event.sender) || stored.redacted_by.is_some() {
            return Ok(None);
        }
        if !asked.rooms.contains_key(&event.room_id) {
            let room = self.room(asked, &event.room_id).await?;
            asked.rooms.insert(event.room_id.clone(), room);
        }
        let Some(room) = asked.rooms.get(&event.room_id) else { return Ok(None) };
        let actions = room.context.actions(&asked.rules, &flattened(event)).await;
        if !actions.iter().any(Action::should_notify) {
            return Ok(None);
        }
        let shown = render_one(&self.core, asked.viewer, Arc::clone(stored), Shown::TIMELINE).await?;
        if !was_there(&shown) {
            return Ok(None);
        }
        Ok(Some(Notified {
            actions: actions.to_vec(),
            event: shown,
            read: !room.unread.contains(&event.event_id),
            room: event.room_id.clone(),
            ts: event.origin_server_ts.0.into(),
        }))
    }

    async fn room(&self, asked: &Asked<'_>, room: &RoomId) -> StoreResult<Room> {
        let user = &asked.viewer.user;
        let context = self.unread.rules().context(user, room, None, asked.upto).await?;
        let unread = self.unread.unread_events(user, room, &asked.ignored, asked.upto).await?;
        Ok(Room { context, unread: unread.into_iter().map(|(_, id)| id).collect() })
    }
}

/// Whether the viewer was in the room at the event, or is invited by it: who reads older history was not told of it.
fn was_there(shown: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Event {
        unsigned: Unsigned,
    }
    #[derive(Deserialize)]
    struct Unsigned {
        membership: String,
    }
    serde_json::from_str::<Event>(shown.get())
        .is_ok_and(|event| matches!(event.unsigned.membership.as_str(), "join" | "invite"))
}
