use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::auth::{check_state_dependent, state_to_load_for};
use waxwing_rooms::{AuthMap, Judged};

use super::Trouble;
use super::event::RoomWork;
use super::judge::{authorisers, by_auth_events};
use crate::ports::StateRoot;

impl RoomWork<'_> {
    /// Checks 4 and 5: the reason why the event is rejected, if it is. Its auth events are known.
    pub(super) async fn authorise(
        &self,
        event: &Event,
        state_before: StateRoot,
    ) -> Result<Option<String>, Trouble> {
        let known = self.load(&authorisers(event, self.version)).await?;
        let by_auth = by_auth_events(event, self.version, |id| {
            let known = known.get(id)?;
            Some(Judged { event: Arc::clone(&known.event), rejected: known.flags.rejected })
        });
        match by_auth {
            Some(reason) => Ok(Some(reason)),
            None => self.forbidden_by(event, state_before).await,
        }
    }

    /// Why a state forbids the event, if it does: check 5 with the state before it, check 6 with the current one.
    pub(super) async fn forbidden_by(
        &self,
        event: &Event,
        state: StateRoot,
    ) -> Result<Option<String>, Trouble> {
        let keys = match state_to_load_for(event, self.version) {
            Ok(keys) => keys,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let timeline = &self.context.timeline;
        let entries = timeline.state_to_judge_by(self.room, state, &keys, &event.auth_events).await?;
        let ids: Vec<_> = entries.values().cloned().collect();
        let events = self.load(&ids).await?;
        let mut map = AuthMap::new();
        for (key, id) in entries {
            if let Some(known) = events.get(&id) {
                map.insert(key, Arc::clone(&known.event));
            }
        }
        Ok(check_state_dependent(event, self.version, &map).err().map(|error| error.to_string()))
    }
}
