use ruma::OwnedEventId;
use waxwing_model::Event;

use super::Trouble;
use super::event::RoomWork;
use crate::ports::StateRoot;

/// `prev_events` at a gap whose state is fetched; each may cost a large request.
const MAX_GAPS: usize = 5;

impl RoomWork<'_> {
    /// The state before `event`, and the states fetched to find it. `missing` are those of its `prev_events` that are
    /// not part of our graph.
    pub(super) async fn state_before(
        &self,
        event: &Event,
        missing: &[OwnedEventId],
    ) -> Result<(StateRoot, Vec<StateRoot>), Trouble> {
        let timeline = &self.context.timeline;
        if missing.is_empty() {
            let root = timeline.state_before(self.room, &event.prev_events).await?;
            let root = root.ok_or_else(|| Trouble::dropped("no state is known at prev_events"))?;
            return Ok((root, Vec::new()));
        }
        if missing.len() > MAX_GAPS {
            return Err(Trouble::dropped("too many prev_events are unknown"));
        }
        let mut fetched = Vec::new();
        for id in missing {
            let Some(state) = self.fetch_state_after(id).await? else {
                // The origin may itself have entered the room here: then it does not have what is before, but it knows
                // the state.
                fetched = vec![self.fetch_state_at(&event.event_id).await?];
                break;
            };
            fetched.push(state);
        }
        let known: Vec<OwnedEventId> =
            event.prev_events.iter().filter(|id| !missing.contains(id)).cloned().collect();
        let root = timeline.state_join(self.room, &known, &fetched).await?;
        Ok((root, fetched))
    }
}
