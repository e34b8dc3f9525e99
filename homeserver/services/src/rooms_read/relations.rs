//! What relates to an event, and the threads of a room.

use super::{PageToken, ReadError, RoomReader};
use crate::render::{Shown, Viewer, render};
use crate::visibility::{ignored_users, visible_to};
use ruma::{EventId, OwnedEventId, RoomId};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::sync::Arc;
use waxwing_rooms::redact::redact_event;
use waxwing_storage::{RelationChild, RelationQuery, StoreError, StoreResult, StoredEvent};

/// Events of one page at most.
const MAX_LIMIT: usize = 100;
/// Events of a page unless the client says otherwise.
const DEFAULT_LIMIT: usize = 20;
/// How far indirect relations are followed: an event, its thread, their reactions.
const MAX_DEPTH: usize = 3;
/// Events collected for indirect relations.
const MAX_RECURSED: usize = 5000;
/// Pages looked through for one page of visible events.
const MAX_ROUNDS: usize = 10;

/// Which children of an event.
#[derive(Clone, Debug, Default)]
pub struct RelationsQuery {
    /// Only this relation type.
    pub rel_type: Option<String>,
    /// Only this event type.
    pub kind: Option<String>,
    /// From where.
    pub from: Option<String>,
    /// Where to stop.
    pub to: Option<String>,
    /// Oldest first.
    pub forward: bool,
    /// At most so many.
    pub limit: Option<usize>,
    /// Also what relates to them, in turn.
    pub recurse: bool,
}

/// Which threads of a room.
#[derive(Clone, Debug, Default)]
pub struct ThreadsQuery {
    /// From where.
    pub from: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
    /// Only those that the user has a part in.
    pub participated: bool,
}

/// A page of related events, or of threads.
#[derive(Clone, Debug)]
pub struct RelationPage {
    /// The events.
    pub chunk: Vec<Box<RawValue>>,
    /// Where to go on, if there is more.
    pub next: Option<String>,
    /// Where the page started, if the client said.
    pub prev: Option<String>,
    /// How far indirect relations were followed.
    pub depth: Option<usize>,
}

fn page_size(limit: Option<usize>) -> usize {
    limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT)
}

impl RoomReader {
    /// Events that relate to `parent`.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room, [`ReadError::NotFound`] for a parent that the viewer
    /// may not see.
    pub async fn relations(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        parent: &EventId,
        query: &RelationsQuery,
    ) -> Result<RelationPage, ReadError> {
        let seat = self.seat(&viewer.user, room).await?;
        self.visible_event(&seat, viewer, room, parent).await?;
        let start = if query.forward { i64::MIN } else { i64::MAX };
        let from = query.from.as_deref().map(PageToken::parse).transpose()?;
        let to = query.to.as_deref().map(PageToken::parse).transpose()?.map(|token| token.0);
        // Backwards, numbers below the token's successor; forwards, numbers above the token.
        let mut cursor =
            from.map_or(start, |from| if query.forward { from.0 } else { from.0.saturating_add(1) });
        let limit = page_size(query.limit);
        let tree = if query.recurse { Some(self.descendants(parent).await?) } else { None };
        let mut found: Vec<Arc<StoredEvent>> = Vec::new();
        let mut more = true;
        for _ in 0..MAX_ROUNDS {
            let children = match &tree {
                Some(all) => page_of(all, query, cursor, limit + 1),
                None => self.children(parent, query, cursor, limit + 1).await?,
            };
            more = children.len() > limit;
            let Some(last) = children.iter().take(limit).next_back().map(|child| child.sn) else { break };
            let within = |child: &&RelationChild| {
                to.is_none_or(|to| if query.forward { child.sn <= to } else { child.sn > to })
                    && child.sn <= seat.newest
            };
            let ids: Vec<OwnedEventId> =
                children.iter().take(limit).filter(within).map(|child| child.event_id.clone()).collect();
            let events = self.events_in_order(&ids).await?;
            let events = events.into_iter().filter(|stored| stored.event.room_id == *room).collect();
            let events = visible_to(&self.core, &viewer.user, seat.last, events).await?;
            found.extend(self.without_ignored(&viewer.user, events).await?);
            cursor = last;
            // Whoever asked up to a place is not sent on beyond it.
            more &= to.is_none_or(|to| if query.forward { last < to } else { last > to.saturating_add(1) });
            if !more || !found.is_empty() {
                break;
            }
        }
        let next = more.then(|| if query.forward { PageToken(cursor) } else { PageToken::before(cursor) });
        Ok(RelationPage {
            chunk: render(&self.core, viewer, &found, Shown::EVERYWHERE).await?,
            next: next.map(|token| token.to_string()),
            prev: query.from.clone(),
            depth: query.recurse.then_some(MAX_DEPTH),
        })
    }

    async fn children(
        &self,
        parent: &EventId,
        query: &RelationsQuery,
        beyond: i64,
        limit: usize,
    ) -> StoreResult<Vec<RelationChild>> {
        let query = RelationQuery {
            rel_type: query.rel_type.clone().unwrap_or_default(),
            kind: query.kind.clone().unwrap_or_default(),
            beyond,
            forward: query.forward,
            limit: limit as i64,
        };
        self.core.store.read().await?.relations_page(parent, &query).await
    }

    /// Everything that relates to `parent`, directly or not.
    async fn descendants(&self, parent: &EventId) -> StoreResult<Vec<RelationChild>> {
        let mut conn = self.core.store.read().await?;
        let mut seen: HashSet<OwnedEventId> = HashSet::from([parent.to_owned()]);
        let mut level = vec![parent.to_owned()];
        let mut all = Vec::new();
        for _ in 0..MAX_DEPTH {
            let mut children = conn.relations_of_all(&level).await?;
            children.retain(|child| seen.insert(child.event_id.clone()));
            level = children.iter().map(|child| child.event_id.clone()).collect();
            all.extend(children);
            if level.is_empty() || all.len() > MAX_RECURSED {
                break;
            }
        }
        all.sort_by_key(|child| child.sn);
        Ok(all)
    }

    /// An event as if it had been redacted: so the root of a thread is shown to those who ignore its sender.
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidthreads>
    async fn without_words(&self, stored: &StoredEvent) -> Result<Arc<StoredEvent>, ReadError> {
        let row = self.core.store.read().await?.room_load(&stored.event.room_id).await?;
        let version = row.ok_or(ReadError::Forbidden)?.version;
        let redacted = redact_event(&stored.event, &version, None)
            .map_err(|error| StoreError::corrupt("events", stored.event.event_id.to_string(), error))?;
        Ok(Arc::new(StoredEvent { event: Arc::new(redacted), ..stored.clone() }))
    }

    /// The roots of a room's threads, those with the newest event first.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room.
    pub async fn threads(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        query: &ThreadsQuery,
    ) -> Result<RelationPage, ReadError> {
        let seat = self.seat(&viewer.user, room).await?;
        let from = query.from.as_deref().map(PageToken::parse).transpose()?;
        let mut before = from.map_or(i64::MAX, |from| from.0.saturating_add(1));
        let limit = page_size(query.limit);
        let ignored = ignored_users(&self.core, &viewer.user).await?;
        let mut found: Vec<Arc<StoredEvent>> = Vec::new();
        let mut more = true;
        for _ in 0..MAX_ROUNDS {
            let rows = {
                let mut conn = self.core.store.read().await?;
                conn.threads_page(room, before, &viewer.user, limit as i64 + 1).await?
            };
            more = rows.len() > limit;
            for row in rows.iter().take(limit) {
                before = row.latest;
                let events = self.events_in_order(std::slice::from_ref(&row.root)).await?;
                let events = visible_to(&self.core, &viewer.user, seat.last, events).await?;
                let own = |stored: &StoredEvent| row.participated || stored.event.sender == viewer.user;
                for stored in events.into_iter().filter(|stored| !query.participated || own(stored)) {
                    let hidden = stored.event.sender != viewer.user && ignored.contains(&stored.event.sender);
                    found.push(if hidden { self.without_words(&stored).await? } else { stored });
                }
                if found.len() == limit {
                    more |= rows.last().is_some_and(|last| last.root != row.root);
                    break;
                }
            }
            if !more || found.len() == limit {
                break;
            }
        }
        Ok(RelationPage {
            chunk: render(&self.core, viewer, &found, Shown::EVERYWHERE).await?,
            next: more.then(|| PageToken::before(before).to_string()),
            prev: query.from.clone(),
            depth: None,
        })
    }
}

/// The part of all descendants, oldest first, that a page begins with.
fn page_of(all: &[RelationChild], query: &RelationsQuery, beyond: i64, limit: usize) -> Vec<RelationChild> {
    let wanted = |child: &&RelationChild| {
        query.rel_type.as_ref().is_none_or(|rel_type| *rel_type == child.rel_type)
            && query.kind.as_ref().is_none_or(|kind| *kind == child.kind)
    };
    if query.forward {
        all.iter().filter(|child| child.sn > beyond).filter(wanted).take(limit).cloned().collect()
    } else {
        all.iter().rev().filter(|child| child.sn < beyond).filter(wanted).take(limit).cloned().collect()
    }
}
