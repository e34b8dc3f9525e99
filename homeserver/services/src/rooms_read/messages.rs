//! A room's history, page by page.
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages>

use super::access::{Seat, StateView};
use super::{EventFilter, PageToken, ReadError, RoomReader};
use crate::render::{Shown, Viewer, render};
use crate::visibility::visible_to;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::{StateKey, state_key};
use waxwing_storage::{StoreResult, StoredEvent};

/// Events of one page at most, whatever the client asks for.
const MAX_LIMIT: usize = 1000;
/// Events read from the database at once.
const BATCH: usize = 100;
/// Batches looked through for one page: a filter that nothing passes must end.
const MAX_BATCHES: usize = 50;
/// Times that other servers are asked for older events within one page.
const MAX_BACKFILLS: usize = 5;

/// Which page.
#[derive(Clone, Debug, Default)]
pub struct MessagesQuery {
    /// From where; none: from the end that the direction starts at.
    pub from: Option<String>,
    /// Where to stop.
    pub to: Option<String>,
    /// Oldest first.
    pub forward: bool,
    /// At most so many events.
    pub limit: usize,
    /// Which events.
    pub filter: EventFilter,
}

/// A page of events.
#[derive(Clone, Debug)]
pub struct Page {
    /// Where it starts.
    pub start: String,
    /// Where to go on; none when nothing was found and there is nothing more. A page that shows something has it, as
    /// clients expect.
    pub end: Option<String>,
    /// The events.
    pub chunk: Vec<Box<RawValue>>,
    /// Member events of the senders, if the filter asks for them.
    pub state: Vec<Box<RawValue>>,
}

/// What a walk through the history has found.
pub(super) struct Walk {
    pub events: Vec<Arc<StoredEvent>>,
    /// Where it started.
    pub began: i64,
    /// Where it stopped.
    pub cursor: i64,
    /// There is nothing beyond.
    pub done: bool,
}

/// How to walk.
pub(super) struct Route<'a> {
    pub forward: bool,
    pub from: i64,
    pub to: Option<i64>,
    pub limit: usize,
    pub filter: &'a EventFilter,
}

impl RoomReader {
    /// A page of the room's history.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room, [`ReadError::InvalidParam`] for foreign tokens.
    pub async fn messages(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        query: &MessagesQuery,
    ) -> Result<Page, ReadError> {
        let seat = self.seat(&viewer.user, room).await?;
        let from = match &query.from {
            Some(from) => PageToken::parse(from)?.0,
            None if query.forward => i64::MIN,
            None => self.core.store.tail().head().0,
        };
        let to = query.to.as_deref().map(PageToken::parse).transpose()?.map(|token| token.0);
        let route = Route {
            forward: query.forward,
            from,
            to,
            limit: query.limit.clamp(1, MAX_LIMIT),
            filter: &query.filter,
        };
        let walk = self.walk(&viewer.user, room, &seat, &route).await?;
        let state = if query.filter.lazy_load_members() {
            let senders = walk.events.iter().map(|stored| stored.event.sender.clone()).collect();
            let view = view_for(&seat, &walk.events);
            let members = self.members_among(&view, senders).await?;
            render(&self.core, viewer, &members, Shown::STATE).await?
        } else {
            Vec::new()
        };
        let chunk = render(&self.core, viewer, &walk.events, Shown::EVERYWHERE).await?;
        Ok(Page {
            start: query.from.clone().unwrap_or_else(|| PageToken(from).to_string()),
            end: (!walk.done || !chunk.is_empty()).then(|| PageToken(walk.cursor).to_string()),
            chunk,
            state,
        })
    }

    /// The member events of these users.
    pub(super) async fn members_among(
        &self,
        view: &StateView,
        users: BTreeSet<OwnedUserId>,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let keys: Vec<StateKey> =
            users.iter().map(|user| state_key(StateEventType::RoomMember, user.as_str())).collect();
        self.state_events(view, &keys).await
    }

    /// Collects visible events that pass the filter, fetching history from other servers where ours ends.
    pub(super) async fn walk(
        &self,
        user: &UserId,
        room: &RoomId,
        seat: &Seat,
        route: &Route<'_>,
    ) -> Result<Walk, ReadError> {
        let began = if route.forward { route.from } else { route.from.min(seat.newest) };
        let mut walk = Walk { events: Vec::new(), began, cursor: began, done: false };
        let mut backfills = 0;
        for _ in 0..MAX_BATCHES {
            let batch = self.batch(room, route, &walk).await?;
            if batch.is_empty() {
                backfills += 1;
                let more =
                    !route.forward && backfills <= MAX_BACKFILLS && self.fetch_older(room, route).await?;
                if more {
                    continue;
                }
                walk.done = true;
                break;
            }
            if self.take(user, seat, route, batch, &mut walk).await? {
                break;
            }
        }
        Ok(walk)
    }

    /// The next events: as many as the page lacks, if all of them pass.
    async fn batch(
        &self,
        room: &RoomId,
        route: &Route<'_>,
        walk: &Walk,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let missing = route.limit.saturating_sub(walk.events.len());
        let size = if walk.cursor == walk.began { missing.clamp(1, BATCH) } else { BATCH };
        if route.forward {
            self.core.store.read().await?.events_forward(room, walk.cursor, size as i64).await
        } else {
            self.core.store.timeline_backward(room, walk.cursor.saturating_add(1), size).await
        }
    }

    async fn fetch_older(&self, room: &RoomId, route: &Route<'_>) -> StoreResult<bool> {
        let Some(history) = &self.history else { return Ok(false) };
        if self.core.store.read().await?.backward_extremities(room).await?.is_empty() {
            return Ok(false);
        }
        Ok(history.backfill(room, route.limit.max(BATCH)).await)
    }

    /// Takes from a batch what belongs to the page. Returns whether the page is complete.
    async fn take(
        &self,
        user: &UserId,
        seat: &Seat,
        route: &Route<'_>,
        batch: Vec<Arc<StoredEvent>>,
        walk: &mut Walk,
    ) -> Result<bool, ReadError> {
        let beyond = |stored: &StoredEvent| {
            let sn = stored.sn;
            if route.forward {
                route.to.is_some_and(|to| sn > to) || sn > seat.newest
            } else {
                route.to.is_some_and(|to| sn <= to)
            }
        };
        let whole = batch.len();
        let batch: Vec<_> = batch.into_iter().take_while(|stored| !beyond(stored)).collect();
        let stopped = batch.len() < whole;
        let last = batch.last().map(|stored| stored.sn);
        let passing = batch.into_iter().filter(|stored| route.filter.passes(&stored.event)).collect();
        let passing = visible_to(&self.core, user, seat.last, passing).await?;
        let passing = self.without_ignored(user, passing).await?;
        for stored in self.with_children(route.filter, passing).await? {
            let sn = stored.sn;
            let first = stored.event.kind == TimelineEventType::RoomCreate;
            walk.events.push(stored);
            if walk.events.len() == route.limit {
                walk.cursor = if route.forward { sn } else { sn.saturating_sub(1) };
                walk.done = first && !route.forward || stopped && last == Some(sn);
                return Ok(true);
            }
        }
        if let Some(last) = last {
            walk.cursor = if route.forward { last } else { last.saturating_sub(1) };
        }
        walk.done = stopped;
        Ok(stopped)
    }

    /// Messages of ignored users are not shown; state is.
    /// <https://spec.matrix.org/v1.19/client-server-api/#ignoring-users>
    pub(super) async fn without_ignored(
        &self,
        user: &UserId,
        mut events: Vec<Arc<StoredEvent>>,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let ignored = crate::visibility::ignored_users(&self.core, user).await?;
        if !ignored.is_empty() {
            events.retain(|stored| stored.event.is_state() || !ignored.contains(&stored.event.sender));
        }
        Ok(events)
    }

    /// Those to which the events that the filter names relate.
    async fn with_children(
        &self,
        filter: &EventFilter,
        events: Vec<Arc<StoredEvent>>,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        if !filter.by_children() || events.is_empty() {
            return Ok(events);
        }
        let mut kept = Vec::new();
        let mut conn = self.core.store.read().await?;
        for stored in events {
            let id: OwnedEventId = stored.event.event_id.clone();
            let children = conn.relation_senders(&id).await?;
            if children.iter().any(|(sender, rel_type)| filter.child_passes(sender, rel_type)) {
                kept.push(stored);
            }
        }
        Ok(kept)
    }
}

/// The state in which the senders of a page are looked up: at its newest event.
pub(super) fn view_for(seat: &Seat, events: &[Arc<StoredEvent>]) -> StateView {
    let newest = events.iter().max_by_key(|stored| stored.sn);
    let root = newest.and_then(|stored| stored.state_before);
    match (root, newest) {
        (Some(root), Some(stored)) => StateView {
            root,
            after: stored.event.state_entry().map(|entry| (entry, stored.event.event_id.clone())),
        },
        _ => seat.state.clone(),
    }
}
