use std::sync::Arc;
use waxwing_model::Event;

use super::Trouble;
use super::event::{RoomWork, Source};
use crate::ports::{Persisted, PortError, Received, StateRoot, Verdict};

/// How often the room may move on under us before we give up. Only another node's writes do that: this one holds the
/// room's lock.
const MAX_RACES: usize = 8;

impl RoomWork<'_> {
    /// Checks 6 and 7, and into the room: again when the current state it was made against is no longer the current one.
    pub(super) async fn persist(
        &self,
        mut event: Arc<Event>,
        state_before: StateRoot,
        rejected: Option<String>,
        source: Source,
        fetched: Vec<StateRoot>,
    ) -> Result<(), Trouble> {
        for _ in 0..MAX_RACES {
            let current_state = self.context.timeline.state_current(self.room).await?;
            let verdict = match (&rejected, current_state) {
                (Some(reason), _) => Verdict::Rejected(reason.clone()),
                (None, Some(current)) if !source.is_history() && current != state_before => {
                    let forbidden = self.forbidden_by(&event, current).await?;
                    forbidden.map_or(Verdict::Accepted, Verdict::SoftFailed)
                }
                (None, _) => Verdict::Accepted,
            };
            let verdict = match (verdict, current_state) {
                (Verdict::Accepted, Some(current)) if !source.is_history() => {
                    match self.approved(&event, current).await? {
                        Ok(approved) => {
                            event = approved;
                            Verdict::Accepted
                        }
                        Err(reason) => Verdict::SoftFailed(reason),
                    }
                }
                (verdict, _) => verdict,
            };
            self.report(&event, &verdict);
            let received = Received {
                event: Arc::clone(&event),
                origin: self.origin.to_owned(),
                state_before,
                verdict,
                current_state,
                fetched: fetched.clone(),
                history: source.history(),
            };
            if self.context.timeline.persist(received).await? == Persisted::Stored {
                return Ok(());
            }
        }
        Err(Trouble::Port(PortError::new("the room changes faster than events can be added to it")))
    }

    fn report(&self, event: &Event, verdict: &Verdict) {
        let (name, reason) = match verdict {
            Verdict::Accepted => ("accepted", None),
            Verdict::SoftFailed(reason) => ("soft_failed", Some(reason)),
            Verdict::Rejected(reason) => ("rejected", Some(reason)),
        };
        metrics::counter!("waxwing_federation_events_received_total", "verdict" => name).increment(1);
        if let Some(reason) = reason {
            tracing::info!(room = %self.room, event = %event.event_id, verdict = name, reason, "an event is not allowed");
        }
    }
}
