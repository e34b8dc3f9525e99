use futures_util::{FutureExt, StreamExt};
use ruma::OwnedEventId;
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::Judged;

use super::Trouble;
use super::event::{RoomWork, Source, oldest_first};
use super::judge::{authorisers, judge};
use crate::ports::{PortError, PortResult};

/// Events of a gap that are asked for. Servers give 20 at most; a longer gap is crossed with a state.
const GAP_LIMIT: usize = 20;
/// Events fetched one by one at the same time.
const PARALLEL: usize = 8;
/// Steps back along an auth chain that are fetched one by one.
const AUTH_STEPS: usize = 10;
/// Events fetched one by one for the auth chain of one event.
const AUTH_EVENTS: usize = 100;
/// Events of an auth chain that are looked at.
const MAX_AUTH_CHAIN: usize = 50_000;

impl RoomWork<'_> {
    /// Fetches the events between what we have and `event`, and takes them in, oldest first. Trouble with one of them
    /// is no error here: what is still missing afterwards, the caller finds out.
    pub(super) async fn fill_gap(&self, event: &Event) -> PortResult<()> {
        let ours = self.context.timeline.extremities(self.room).await?;
        let latest = std::slice::from_ref(&event.event_id);
        let answer = self
            .context
            .client
            // No least depth: depth is the claim of whoever sent an event, and one that claims the deepest of all would
            // keep everything out of reach that is not as deep.
            .get_missing_events(self.origin, self.room, &ours.events, latest, GAP_LIMIT, 0)
            .await;
        metrics::counter!("waxwing_federation_gaps_total").increment(1);
        let events = match answer {
            Ok(events) => self.parse_and_verify(events, Source::Pulled).await?,
            Err(error) => {
                tracing::info!(room = %self.room, origin = %self.origin, %error, "a gap could not be filled");
                return Ok(());
            }
        };
        self.take_all(oldest_first(events), Source::Pulled).await.map(drop)
    }

    /// Takes in history, oldest first; gives how many events are part of the graph that were not before.
    pub(super) async fn take_history(&self, events: Vec<Box<RawValue>>) -> Result<usize, Trouble> {
        let mut events = self.parse_and_verify(events, Source::Pulled).await?;
        let ids: Vec<OwnedEventId> = events.iter().map(|event| event.event_id.clone()).collect();
        let known = self.context.timeline.events_flags(self.room, &ids).await?;
        // A server that tells what we have has not helped: another may.
        events.retain(|event| known.get(&event.event_id).is_none_or(|flags| flags.outlier));
        let first = self.context.timeline.history_reserve(self.room, events.len()).await?;
        Ok(self.take_all(oldest_first(events), Source::History(first)).await?)
    }

    async fn take_all(&self, events: Vec<Arc<Event>>, source: Source) -> PortResult<usize> {
        let mut taken = 0;
        // The first hole that cannot be crossed makes the rest unreachable too: do not ask for its state 20 times.
        let mut lost: BTreeSet<OwnedEventId> = BTreeSet::new();
        for (index, event) in events.into_iter().enumerate() {
            let id = event.event_id.clone();
            if event.prev_events.iter().any(|prev| lost.contains(prev)) {
                lost.insert(id);
                continue;
            }
            let source = source.nth(index);
            match Box::pin(self.receive(event, source)).await {
                Ok(()) => taken += 1,
                Err(Trouble::Port(error)) => return Err(error),
                Err(trouble @ (Trouble::Dropped(_) | Trouble::Stranded(_))) => {
                    tracing::info!(room = %self.room, event = %id, %trouble, "a fetched event is dropped");
                    lost.insert(id);
                }
            }
        }
        Ok(taken)
    }

    /// Makes sure that everything that authorises `event` is known: first by its whole auth chain, then one by one.
    pub(super) async fn fetch_missing_auth(&self, event: &Event) -> Result<(), Trouble> {
        let wanted = authorisers(event, self.version);
        if self.unknown(wanted.clone()).await?.is_empty() {
            return Ok(());
        }
        match self.context.client.event_auth(self.origin, self.room, &event.event_id).await {
            Ok(chain) => {
                let chain = chain.into_iter().take(MAX_AUTH_CHAIN).collect();
                let events = self.parse_and_verify(chain, Source::Pulled).await?;
                self.store_outliers(events).await?;
            }
            Err(error) => tracing::debug!(room = %self.room, origin = %self.origin, %error, "no auth chain"),
        }
        let missing = self.unknown(wanted.clone()).await?;
        if !missing.is_empty() {
            let found = self.fetch_with_authorisers(missing).await?;
            self.store_outliers(found).await?;
        }
        if self.unknown(wanted).await?.is_empty() {
            Ok(())
        } else {
            Err(Trouble::dropped("auth_events are unknown and could not be fetched"))
        }
    }

    /// Fetches events one by one, and what authorises them, and so on for some steps.
    async fn fetch_with_authorisers(&self, mut wanted: Vec<OwnedEventId>) -> PortResult<Vec<Arc<Event>>> {
        let mut found: Vec<Arc<Event>> = Vec::new();
        let mut asked: BTreeSet<OwnedEventId> = BTreeSet::new();
        for _ in 0..AUTH_STEPS {
            wanted.retain(|id| asked.len() < AUTH_EVENTS && asked.insert(id.clone()));
            if wanted.is_empty() {
                break;
            }
            let events = self.fetch_each(&wanted).await?;
            let next =
                events.iter().flat_map(|event| authorisers(event, self.version)).collect::<BTreeSet<_>>();
            let next = next.into_iter().filter(|id| !asked.contains(id)).collect();
            found.extend(events);
            wanted = self.unknown(next).await?;
        }
        Ok(found)
    }

    /// `GET /event` for each id; gives those that came, verified, and really are what was asked for.
    pub(super) async fn fetch_each(&self, ids: &[OwnedEventId]) -> PortResult<Vec<Arc<Event>>> {
        let mut requests = Vec::with_capacity(ids.len());
        for id in ids {
            requests.push(self.context.client.event(self.origin, id).boxed());
        }
        let mut answers = futures_util::stream::iter(requests).buffer_unordered(PARALLEL);
        let mut events = Vec::new();
        while let Some(answer) = answers.next().await {
            events.extend(answer.ok());
        }
        let mut events = self.parse_and_verify(events, Source::Pulled).await?;
        events.retain(|event| ids.contains(&event.event_id));
        Ok(events)
    }

    /// Check 4 for events that come from elsewhere, and into the database with them as outliers.
    pub(super) async fn store_outliers(&self, events: Vec<Arc<Event>>) -> PortResult<()> {
        let ids = events.iter().map(|event| event.event_id.clone()).collect();
        let new: BTreeSet<OwnedEventId> = self.unknown(ids).await?.into_iter().collect();
        let events: Vec<Arc<Event>> =
            events.into_iter().filter(|event| new.contains(&event.event_id)).collect();
        if events.is_empty() {
            return Ok(());
        }
        let outside: BTreeSet<OwnedEventId> = events
            .iter()
            .flat_map(|event| authorisers(event, self.version))
            .filter(|id| !new.contains(id))
            .collect();
        let known = self.load(&outside.into_iter().collect::<Vec<_>>()).await?;
        let version = self.version.clone();
        let judging = tokio::task::spawn_blocking(move || {
            judge(events, &version, |id| {
                let known = known.get(id)?;
                Some(Judged { event: Arc::clone(&known.event), rejected: known.flags.rejected })
            })
        });
        let outliers = judging.await.map_err(PortError::new)?;
        self.context.timeline.persist_outliers(self.room, outliers).await
    }
}
