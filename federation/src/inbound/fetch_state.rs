use ruma::events::StateEventType;
use ruma::{EventId, OwnedEventId};
use std::collections::{BTreeMap, BTreeSet};
use waxwing_model::{StateKey, state_key};

use super::Trouble;
use super::event::{RoomWork, Source};
use crate::client::StateIds;
use crate::ports::{PortResult, StateRoot};

/// Up to so many missing events are fetched one by one whatever their share.
const FEW: usize = 10;
/// Beyond this share (one in so many) of missing events the whole state is fetched in one request.
const SHARE: usize = 2;
/// Events of a state that may stay missing, beside one in [`LOST_SHARE`].
const MOST_LOST: usize = 5;
/// See [`MOST_LOST`].
const LOST_SHARE: usize = 50;

impl RoomWork<'_> {
    /// The state after an event that we do not have, as the origin tells it. Everything in it is verified and
    /// authorised by its auth events; that it is the state at that place is the origin's word, which is why it is only
    /// ever resolved together with what we know. `None` when the origin does not tell it.
    pub(super) async fn fetch_state_after(&self, event: &EventId) -> Result<Option<StateRoot>, Trouble> {
        let Some(mut entries) = self.fetch_entries(event, Some(event)).await? else { return Ok(None) };
        let at = self.load(&[event.to_owned()]).await?;
        let at = at.get(event).ok_or_else(|| Trouble::dropped("prev_events could not be fetched"))?;
        if let Some(key) = at.event.state_entry().filter(|_| !at.flags.rejected) {
            entries.insert(key, event.to_owned());
        }
        if !entries.contains_key(&state_key(StateEventType::RoomCreate, "")) {
            return Err(Trouble::dropped("a state without create event"));
        }
        Ok(Some(self.context.timeline.state_build(self.room, entries.into_iter().collect()).await?))
    }

    /// The state before an event that the origin gave to us, as it tells it.
    pub(super) async fn fetch_state_at(&self, event: &EventId) -> Result<StateRoot, Trouble> {
        let unknown = || Trouble::dropped("the state at prev_events that are unknown could not be fetched");
        let entries = self.fetch_entries(event, None).await?.ok_or_else(unknown)?;
        if !entries.contains_key(&state_key(StateEventType::RoomCreate, "")) {
            return Err(Trouble::dropped("a state without create event"));
        }
        Ok(self.context.timeline.state_build(self.room, entries.into_iter().collect()).await?)
    }

    /// The entries of the state before an event, and their events; also `beside`, if that is asked for. `None` when the
    /// origin does not tell them.
    async fn fetch_entries(
        &self,
        event: &EventId,
        beside: Option<&EventId>,
    ) -> Result<Option<BTreeMap<StateKey, OwnedEventId>>, Trouble> {
        let ids = match self.context.client.state_ids(self.origin, self.room, event).await {
            Ok(ids) => ids,
            Err(error) => {
                tracing::info!(room = %self.room, origin = %self.origin, %error, "no state at a gap");
                return Ok(None);
            }
        };
        metrics::counter!("waxwing_federation_states_fetched_total").increment(1);
        self.fetch_contents(&ids, event, beside).await?;
        let known = self.load(&ids.state).await?;
        // A few events are lost for everyone, because their signatures cannot be verified any more.
        if known.len() + MOST_LOST + ids.state.len() / LOST_SHARE < ids.state.len() {
            return Err(Trouble::dropped("much of the state could not be fetched"));
        }
        let accepted = ids.state.into_iter().filter_map(|id| {
            let known = known.get(&id).filter(|known| !known.flags.rejected)?;
            Some((known.event.state_entry()?, id))
        });
        Ok(Some(accepted.collect()))
    }

    /// Gets the events of a state, its auth chain, and the event `beside` it, as far as we lack them.
    async fn fetch_contents(
        &self,
        ids: &StateIds,
        event: &EventId,
        beside: Option<&EventId>,
    ) -> PortResult<()> {
        let all: BTreeSet<OwnedEventId> = ids.state.iter().chain(&ids.auth_chain).cloned().collect();
        let total = all.len();
        let mut missing = self.unknown(all.into_iter().collect()).await?;
        let mut events = Vec::new();
        if missing.len() > FEW && missing.len() > total / SHARE {
            match self.context.client.state(self.origin, self.room, event).await {
                Ok(state) => {
                    let both = state.state.into_iter().chain(state.auth_chain).collect();
                    events = self.parse_and_verify(both, Source::Pulled).await?;
                    let here: BTreeSet<&OwnedEventId> = events.iter().map(|event| &event.event_id).collect();
                    missing.retain(|id| !here.contains(id));
                }
                Err(error) => {
                    tracing::info!(room = %self.room, origin = %self.origin, %error, "no whole state");
                }
            }
        }
        missing.extend(self.unknown(beside.map(ToOwned::to_owned).into_iter().collect()).await?);
        missing.truncate(MAX_SINGLE);
        events.extend(self.fetch_each(&missing).await?);
        self.store_outliers(events).await
    }
}

/// Events of a state that are fetched one by one at most.
const MAX_SINGLE: usize = 1000;
