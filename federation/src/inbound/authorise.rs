use ruma::OwnedEventId;
use ruma::events::StateEventType;
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::{Event, StateKey};
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
        let mut entries = self.context.timeline.state_entries(self.room, state, &keys).await?;
        if entries.len() < keys.len() && self.context.timeline.is_partial(self.room).await? {
            self.add_claimed_members(event, &keys, &mut entries).await?;
        }
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

    /// Where the state lacks members, those that the event names as authorising it stand in for them. What the state
    /// has is never replaced: a member whom we know to be gone cannot claim to be there.
    async fn add_claimed_members(
        &self,
        event: &Event,
        keys: &[StateKey],
        entries: &mut BTreeMap<StateKey, OwnedEventId>,
    ) -> Result<(), Trouble> {
        for (id, known) in self.load(&event.auth_events).await? {
            let Some(key) = known.event.state_entry().filter(|_| !known.flags.rejected) else { continue };
            if key.0 == StateEventType::RoomMember && keys.contains(&key) {
                entries.entry(key).or_insert(id);
            }
        }
        Ok(())
    }
}
