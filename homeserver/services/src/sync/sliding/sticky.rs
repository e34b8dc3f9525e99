//! Sticky events over sliding sync (MSC4480): those of all joined rooms, whichever rooms the lists show.
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/4480>

use super::super::window::RoomRows;
use super::answer::StickyNews;
use super::request::StickyRule;
use super::slide::Slide;
use crate::render::Shown;
use ruma::{OwnedEventId, OwnedRoomId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_rooms::client_json::sticky_duration;
use waxwing_storage::{StoreResult, StoredEvent};

/// Sticky events of one answer at most, whatever the client asks; and those of rooms that the user has just joined.
const MAX_STICKY: usize = 500;

impl Slide<'_> {
    /// The sticky events that the client lacks.
    pub(super) async fn sticky_events(&self, rule: StickyRule) -> StoreResult<StickyNews> {
        let build = self.build;
        let upto = build.upto.0;
        let nothing = StickyNews { next_batch: upto.to_string(), ..StickyNews::default() };
        let newly: Vec<OwnedRoomId> = self.shown.newly_joined.iter().cloned().collect();
        if self.has_all_sticky(rule) && newly.is_empty() {
            return Ok(nothing);
        }
        let limit = rule.limit.clamp(1, MAX_STICKY);
        let after = rule.since.map_or(i64::MIN, |since| since.0);
        let joined: Vec<OwnedRoomId> = build.joined().cloned().collect();
        let now = build.core().now();
        let (mut found, entered) = {
            let mut conn = build.core().store.read().await?;
            let found = conn.sticky_events_after(&joined, now, after, limit as i64).await?;
            // Whoever comes into a room lacks what was sticky there before.
            (found, conn.sticky_events_after(&newly, now, i64::MIN, MAX_STICKY as i64).await?)
        };
        found.retain(|(sn, _)| *sn <= upto);
        let next = found.last().filter(|_| found.len() >= limit).map_or(upto, |(sn, _)| *sn);
        let ids: BTreeSet<OwnedEventId> = found.into_iter().chain(entered).map(|(_, id)| id).collect();
        if ids.is_empty() {
            return Ok(nothing);
        }
        let ids: Vec<OwnedEventId> = ids.into_iter().collect();
        let mut events: Vec<Arc<StoredEvent>> =
            build.core().store.events(&ids).await?.into_values().collect();
        events.retain(|stored| {
            stored.redacted_by.is_none() && stored.sn <= upto && !build.is_ignored(&stored.event)
        });
        events.sort_by_key(|stored| stored.sn);
        let shown = build.show(&events, Shown::TIMELINE).await?;
        let mut rooms: BTreeMap<OwnedRoomId, Vec<_>> = BTreeMap::new();
        for (stored, event) in events.iter().zip(shown) {
            rooms.entry(stored.event.room_id.clone()).or_default().push(event);
        }
        Ok(StickyNews { rooms, next_batch: next.to_string() })
    }

    /// Whether nothing sticky happened since the client last got all there was.
    fn has_all_sticky(&self, rule: StickyRule) -> bool {
        let (Some(since), Some(base)) = (rule.since, self.build.since) else { return false };
        let sticky = |rows: &RoomRows| match rows {
            RoomRows::Many => true,
            RoomRows::All(rows) => rows
                .iter()
                .filter(|row| row.position > since)
                .filter_map(|row| row.event.as_ref())
                .any(|stored| sticky_duration(&stored.event).is_some()),
        };
        since >= base && !self.window.rooms.values().any(sticky)
    }
}
