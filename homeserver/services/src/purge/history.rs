//! Events of a room before a place or a time.

use super::run::{Job, Slice};
use super::{Before, HistoryPurge, PurgeError, Purges};
use ruma::OwnedEventId;
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{Fact, NewRow, PURGED, PurgePhase, StoredEvent};

/// Events after the purged ones that are looked at for what they follow: behind that, our history ends.
const LOOK_BEHIND: i64 = 1000;

impl Purges {
    /// The next events: messages go, state events stay without a place.
    pub(super) async fn history_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let wanted: HistoryPurge = job.parameters()?;
        let room = job.row.room_id.clone();
        let limit = i64::from(self.settings.slice);
        let Some(row) = self.core.store.read().await?.room_load(&room).await? else {
            return Err(PurgeError::NoRoom);
        };
        if row.partial {
            // States that are not complete are kept elsewhere, too, and judged again when they are.
            return Ok(Slice::Wait);
        }
        let batch = match &wanted.before {
            Before::Time(before) => {
                let after = job.progress.cursor.unwrap_or((-1, i64::MIN));
                let before = i64::try_from(*before).unwrap_or(i64::MAX);
                self.core.store.read().await?.events_sent_before(&room, after, before, limit).await?
            }
            Before::Event(id) => {
                let upto = match job.progress.upto {
                    Some(upto) => upto,
                    None => self.core.store.event(id).await?.ok_or(PurgeError::NoEvent)?.sn,
                };
                job.progress.upto = Some(upto);
                let after = job.progress.cursor.map_or(i64::MIN, |cursor| cursor.1);
                self.core.store.read().await?.events_between(&room, after, upto, limit).await?
            }
        };
        let Some(last) = batch.last() else {
            return self.turn_page(job, PurgePhase::Rest).await;
        };
        job.progress.cursor = Some((last.event.sent_at(), last.sn));
        let ends: BTreeSet<&OwnedEventId> = row.extremities.iter().map(|(id, _)| id).collect();
        let in_graph =
            batch.iter().filter(|stored| !stored.flags.outlier && !ends.contains(&stored.event.event_id));
        let (kept, gone): (Vec<Arc<StoredEvent>>, Vec<_>) = in_graph.cloned().partition(|stored| {
            stored.event.is_state() || !wanted.local && self.core.is_local(&stored.event.sender)
        });
        job.progress.events += gone.len() as u64;
        job.progress.kept += kept.len() as u64;
        metrics::counter!("waxwing_purged_events_total").increment(gone.len() as u64);
        let roots: Vec<NodeId> = kept.iter().chain(&gone).filter_map(|stored| stored.state_before).collect();
        let before: Vec<OwnedEventId> =
            kept.iter().chain(&gone).flat_map(|stored| stored.event.prev_events.iter().cloned()).collect();
        let named = self.named(&gone);
        let own = self.core.server_name.clone();
        let input = Arc::new((job.row.purge_id.clone(), room, own, gone, kept, roots, before, named));
        self.commit(job, Slice::More, move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let (purge, room, own, gone, kept, roots, before, named) = &*input;
                if gone.is_empty() && kept.is_empty() {
                    return Ok(());
                }
                named.note(tx, purge, own).await?;
                tx.purge_events(gone, kept).await?;
                tx.purge_nodes_add(purge, roots.iter().copied()).await?;
                tx.backward_extremities_drop(room, before).await?;
                tx.log_append(NewRow::new(Fact::Room).room(room.clone()).data(PURGED));
                Ok(())
            })
        })
        .await?;
        Ok(Slice::More)
    }

    /// Notes where history ends now: before the first events that are left.
    pub(super) async fn ends_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let room = job.row.room_id.clone();
        let mut conn = self.core.store.read().await?;
        let first = conn.events_forward(&room, i64::MIN, LOOK_BEHIND).await?;
        drop(conn);
        let named: BTreeSet<OwnedEventId> =
            first.iter().flat_map(|stored| stored.event.prev_events.iter().cloned()).collect();
        let named: Vec<OwnedEventId> = named.into_iter().collect();
        let input = Arc::new((room, named));
        let next = PurgePhase::Nodes;
        self.commit(job, Slice::Next(next), move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let (room, named) = &*input;
                let here: BTreeSet<OwnedEventId> = tx
                    .events_known(named)
                    .await?
                    .into_iter()
                    .filter(|stored| !stored.flags.outlier)
                    .map(|stored| stored.event.event_id.clone())
                    .collect();
                for missing in named.iter().filter(|id| !here.contains(*id)) {
                    tx.backward_extremity_add(room, missing).await?;
                }
                Ok(())
            })
        })
        .await?;
        Ok(Slice::Next(next))
    }

    /// The phase is over without anything more to do in it.
    pub(super) async fn turn_page(&self, job: &mut Job, next: PurgePhase) -> Result<Slice, PurgeError> {
        self.commit(job, Slice::Next(next), |_| Box::pin(async { Ok(()) })).await?;
        Ok(Slice::Next(next))
    }
}
