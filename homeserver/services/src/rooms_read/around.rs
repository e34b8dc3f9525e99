//! Around an event, and around a moment.

use super::access::Seat;
use super::messages::{Route, view_for};
use super::{EventFilter, PageToken, ReadError, RoomReader};
use crate::render::{Shown, Viewer, render, render_one};
use crate::visibility::visible_to;
use ruma::api::Direction;
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, RoomId, UInt};
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_storage::StoredEvent;

/// Events around one event at most.
const MAX_LIMIT: usize = 100;
/// Events looked at for one that the viewer may see at a moment.
const CANDIDATES: i64 = 50;
/// Other servers asked for the event nearest to a moment.
const MAX_SERVERS: usize = 3;

/// An event with what surrounds it.
#[derive(Clone, Debug)]
pub struct Context {
    /// The event.
    pub event: Box<RawValue>,
    /// Before it, newest first.
    pub before: Vec<Box<RawValue>>,
    /// After it, oldest first.
    pub after: Vec<Box<RawValue>>,
    /// The state at the newest of them.
    pub state: Vec<Box<RawValue>>,
    /// From where to read backwards.
    pub start: String,
    /// From where to read forwards.
    pub end: String,
}

/// The event nearest to a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimestampHit {
    /// The event.
    pub event_id: OwnedEventId,
    /// When it was sent, by its sender's clock.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
}

impl RoomReader {
    /// An event with about `limit` events around it.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room, [`ReadError::NotFound`] for an event that the viewer
    /// may not see.
    pub async fn context(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        event: &EventId,
        limit: usize,
        filter: &EventFilter,
    ) -> Result<Context, ReadError> {
        let seat = self.seat(&viewer.user, room).await?;
        let middle = self.visible_event(&seat, viewer, room, event).await?;
        let limit = limit.min(MAX_LIMIT);
        let earlier = limit / 2;
        let later = limit - earlier;
        let sn = middle.sn;
        let (before, start) =
            self.side(viewer, room, &seat, (false, sn.saturating_sub(1), earlier), filter).await?;
        let (after, end) = self.side(viewer, room, &seat, (true, sn, later), filter).await?;
        let state = self.state_around(viewer, &seat, &before, &middle, &after, filter).await?;
        Ok(Context {
            event: render_one(&self.core, viewer, middle, Shown::EVERYWHERE).await?,
            before: render(&self.core, viewer, &before, Shown::EVERYWHERE).await?,
            after: render(&self.core, viewer, &after, Shown::EVERYWHERE).await?,
            state,
            start: PageToken(start).to_string(),
            end: PageToken(end).to_string(),
        })
    }

    async fn side(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        seat: &Seat,
        (forward, from, limit): (bool, i64, usize),
        filter: &EventFilter,
    ) -> Result<(Vec<Arc<StoredEvent>>, i64), ReadError> {
        if limit == 0 {
            return Ok((Vec::new(), from));
        }
        let route = Route { forward, from, to: None, limit, filter };
        let walk = self.walk(&viewer.user, room, seat, &route).await?;
        Ok((walk.events, walk.cursor))
    }

    async fn state_around(
        &self,
        viewer: &Viewer,
        seat: &Seat,
        before: &[Arc<StoredEvent>],
        middle: &Arc<StoredEvent>,
        after: &[Arc<StoredEvent>],
        filter: &EventFilter,
    ) -> Result<Vec<Box<RawValue>>, ReadError> {
        let all: Vec<Arc<StoredEvent>> =
            before.iter().chain(std::iter::once(middle)).chain(after).cloned().collect();
        let view = view_for(seat, &all);
        let mut state = self.whole_state(&view).await?;
        if filter.lazy_load_members() {
            let senders: Vec<&str> = all.iter().map(|stored| stored.event.sender.as_str()).collect();
            state.retain(|stored| {
                stored.event.kind != ruma::events::TimelineEventType::RoomMember
                    || stored.event.state_key.as_deref().is_some_and(|key| senders.contains(&key))
            });
        }
        Ok(render(&self.core, viewer, &state, Shown::STATE).await?)
    }

    /// The visible event nearest to a moment: the first at or after it, or the last at or before it. Where our history
    /// has gaps, other servers are asked, too.
    ///
    /// # Errors
    /// [`ReadError::Forbidden`] for whoever may not read the room, [`ReadError::NotFound`] when there is no event on
    /// that side.
    pub async fn event_at(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        at: MilliSecondsSinceUnixEpoch,
        direction: Direction,
    ) -> Result<TimestampHit, ReadError> {
        let seat = self.seat(&viewer.user, room).await?;
        let here = self.event_at_here(viewer, room, &seat, at, direction).await?;
        let gaps = !self.core.store.read().await?.backward_extremities(room).await?.is_empty();
        let elsewhere =
            if gaps { self.event_at_elsewhere(viewer, room, &seat, at, direction).await? } else { None };
        let distance =
            |hit: &TimestampHit| u64::from(hit.origin_server_ts.get()).abs_diff(u64::from(at.get()));
        [here, elsewhere]
            .into_iter()
            .flatten()
            .min_by_key(distance)
            .ok_or(ReadError::NotFound("event on that side of the timestamp"))
    }

    async fn event_at_here(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        seat: &Seat,
        at: MilliSecondsSinceUnixEpoch,
        direction: Direction,
    ) -> Result<Option<TimestampHit>, ReadError> {
        let forward = direction == Direction::Forward;
        let found = {
            let mut conn = self.core.store.read().await?;
            let at = i64::try_from(u64::from(at.get())).unwrap_or(i64::MAX);
            conn.events_by_time(room, at, forward, CANDIDATES).await?
        };
        let found = found.into_iter().filter(|stored| stored.sn <= seat.newest).collect();
        let visible = visible_to(&self.core, &viewer.user, seat.last, found).await?;
        Ok(visible.first().map(|stored| TimestampHit {
            event_id: stored.event.event_id.clone(),
            origin_server_ts: stored.event.origin_server_ts,
        }))
    }

    async fn event_at_elsewhere(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        seat: &Seat,
        at: MilliSecondsSinceUnixEpoch,
        direction: Direction,
    ) -> Result<Option<TimestampHit>, ReadError> {
        let (Some(client), Some(history)) = (&self.client, &self.history) else { return Ok(None) };
        let servers: Vec<OwnedServerName> = {
            let mut conn = self.core.store.read().await?;
            let all = conn.servers_in(room).await?;
            all.into_iter().filter(|server| *server != self.core.server_name).take(MAX_SERVERS).collect()
        };
        for server in servers {
            let Ok((event_id, ts)) = client.timestamp_to_event(&server, room, at, direction).await else {
                continue;
            };
            if !is_on_side(ts, at, direction) || !history.fetch(room, event_id.clone(), server).await {
                continue;
            }
            let Some(stored) = self.core.store.event(&event_id).await? else { continue };
            // What the server says of the time is a claim; the event has its own.
            if stored.event.room_id != *room || !is_on_side(stored.event.origin_server_ts.0, at, direction) {
                continue;
            }
            let origin_server_ts = stored.event.origin_server_ts;
            let visible = visible_to(&self.core, &viewer.user, seat.last, vec![stored]).await?;
            if !visible.is_empty() {
                return Ok(Some(TimestampHit { event_id, origin_server_ts }));
            }
        }
        Ok(None)
    }
}

fn is_on_side(ts: UInt, at: MilliSecondsSinceUnixEpoch, direction: Direction) -> bool {
    match direction {
        Direction::Forward => ts >= at.0,
        Direction::Backward => ts <= at.0,
    }
}
