//! Sticky events (MSC4354): a client that comes into a room, or comes back after much has happened, gets those that are
//! still sticky although its timeline does not reach back to them.
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/4354>

use super::build::Build;
use super::joined::View;
use super::response::Events;
use super::timeline::Stretch;
use crate::render::Shown;
use ruma::RoomId;
use waxwing_storage::StoreResult;

/// Sticky events shown of one room: everybody in a large call.
pub(super) const MAX_STICKY: i64 = 500;

impl Build<'_> {
    /// The sticky events of a joined room that the client may lack; none where the timeline has everything that is new.
    /// Whoever is joined may see them all while they are sticky, whatever the room's history visibility.
    pub(super) async fn sticky_events(
        &self,
        room: &RoomId,
        view: &View<'_>,
        stretch: &Stretch,
    ) -> StoreResult<Option<Events>> {
        if !(view.anew || view.newly || stretch.limited) {
            return Ok(None);
        }
        let ahead = self.ahead();
        let ids = if ahead.rows.contains_key(room) {
            ahead.sticky.get(room).cloned().unwrap_or_default()
        } else {
            let (rooms, now) = ([room.to_owned()], self.core().now());
            let mut found = self.core().store.read().await?.sticky_events_of(&rooms, now, MAX_STICKY).await?;
            found.remove(room).unwrap_or_default()
        };
        if ids.is_empty() {
            return Ok(None);
        }
        let since = if view.anew || view.newly { i64::MIN } else { self.since.map_or(i64::MIN, |it| it.0) };
        let known = self.core().store.events(&ids).await?;
        let mut events: Vec<_> = known
            .into_values()
            .filter(|stored| {
                stored.redacted_by.is_none()
                    && stored.sn > since
                    && stored.sn <= self.upto.0
                    && !stretch.contains(&stored.event.event_id)
                    && !self.is_ignored(&stored.event)
            })
            .collect();
        events.sort_by_key(|stored| stored.sn);
        if events.is_empty() {
            return Ok(None);
        }
        Ok(Some(Events { events: self.show(&events, Shown::TIMELINE).await? }))
    }
}
