//! Who does purges, and when: one node at a time, one purge after the other, a slice at a time.

use super::{Progress, PurgeError, Purges};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_storage::{Engine, PurgeKind, PurgePhase, PurgeRow, StoreError, Tx};

/// How often it is looked for purges that another process asked for.
const POLL: Duration = Duration::from_secs(3);
/// How long a purge is left alone after trouble.
const AFTER_TROUBLE: Duration = Duration::from_secs(30);
/// How long the lease of the node that purges lasts; it is renewed with each slice.
const LEASE: Duration = Duration::from_secs(30);
const LEASE_NAME: &str = "purge";
/// Purges done one after the other before it is looked again.
const AT_ONCE: i64 = 10;
/// How long it is remembered that a purge took place.
const REMEMBERED: Duration = Duration::from_hours(24 * 14);

/// A purge being done.
pub(super) struct Job {
    pub(super) row: PurgeRow,
    pub(super) progress: Progress,
}

/// How a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slice {
    /// There may be more to do in this phase.
    More,
    /// The phase is over; this one follows.
    Next(PurgePhase),
    /// Nothing can be done at the moment.
    Wait,
}

impl Job {
    fn of(row: PurgeRow) -> Result<Job, PurgeError> {
        let progress =
            serde_json::from_str(&row.progress).map_err(|error| PurgeError::Corrupt(error.to_string()))?;
        Ok(Job { row, progress })
    }

    pub(super) fn parameters<T: serde::de::DeserializeOwned>(&self) -> Result<T, PurgeError> {
        serde_json::from_str(&self.row.parameters).map_err(|error| PurgeError::Corrupt(error.to_string()))
    }

    /// The row as it is written after a slice.
    pub(super) fn saved(&self, now: u64, slice: Slice) -> Result<PurgeRow, PurgeError> {
        let mut row = self.row.clone();
        row.progress =
            serde_json::to_string(&self.progress).map_err(|error| PurgeError::Corrupt(error.to_string()))?;
        row.updated_at = now as i64;
        row.error = None;
        if let Slice::Next(phase) = slice {
            row.phase = phase;
        }
        Ok(row)
    }
}

impl Purges {
    /// Does what is asked for, and forgets what is too old, until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(self.turn()).await.is_some() {
            let wait = async {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                break;
            }
        }
        if self.core.store.engine() == Engine::Postgres
            && let Err(error) = self.give_back().await
        {
            tracing::warn!(%error, "the lease of purges could not be given back");
        }
    }

    /// Does all purges that wait.
    pub async fn turn(&self) {
        if let Err(error) = self.try_turn().await {
            tracing::warn!(%error, "purges cannot be done now");
        }
    }

    async fn try_turn(&self) -> Result<(), PurgeError> {
        self.apply_retention().await?;
        let waiting = self.core.store.read().await?.purges_under_way(AT_ONCE).await?;
        metrics::gauge!("waxwing_purges_waiting").set(waiting.len() as f64);
        if waiting.is_empty() || !self.lease().await? {
            return Ok(());
        }
        let now = self.core.now();
        for row in waiting {
            let rests = row.error.is_some() && row.updated_at as u64 + AFTER_TROUBLE.as_millis() as u64 > now;
            if rests {
                continue;
            }
            let id = row.purge_id.clone();
            if let Err(error) = self.go_on(Job::of(row)?).await {
                tracing::warn!(purge = id, %error, "a purge does not get on");
                self.note_trouble(&id, &error).await?;
            }
        }
        Ok(())
    }

    /// Does slices of a purge until it is over or has to wait.
    async fn go_on(&self, mut job: Job) -> Result<(), PurgeError> {
        let started = job.row.phase;
        loop {
            if !self.lease().await? {
                return Ok(());
            }
            let phase = job.row.phase;
            let slice = match phase {
                PurgePhase::Leaving => self.leave_slice(&mut job).await?,
                PurgePhase::Telling => self.tell_slice(&mut job).await?,
                PurgePhase::Events if job.row.kind == PurgeKind::Room => self.room_slice(&mut job).await?,
                PurgePhase::Events => self.history_slice(&mut job).await?,
                PurgePhase::Rest if job.row.kind == PurgeKind::Room => self.rest_slice(&mut job).await?,
                PurgePhase::Rest => self.ends_slice(&mut job).await?,
                PurgePhase::Nodes => self.nodes_slice(&mut job).await?,
                PurgePhase::Shrinking => self.shrink_slice(&mut job).await?,
                PurgePhase::Media => self.media_slice(&mut job).await?,
                PurgePhase::Complete | PurgePhase::Failed => return Ok(()),
            };
            metrics::counter!("waxwing_purge_slices_total").increment(1);
            match slice {
                Slice::Wait => return Ok(()),
                Slice::More => {}
                Slice::Next(next) => {
                    let Progress { events, kept, rows, nodes, media, .. } = &job.progress;
                    let (id, room) = (&job.row.purge_id, &job.row.room_id);
                    tracing::info!(purge = id, %room, phase = ?next, events, kept, rows, nodes, media, "purging");
                    job.row.phase = next;
                }
            }
            debug_assert!(job.row.phase >= started, "a purge never goes back");
            tokio::time::sleep(self.settings.pause).await;
        }
    }

    /// One transaction with what a slice does and how far the purge has come with it.
    pub(super) async fn commit<F>(&self, job: &mut Job, slice: Slice, work: F) -> Result<(), PurgeError>
    where
        F: for<'t> Fn(&'t mut Tx) -> futures_util::future::BoxFuture<'t, Result<(), PurgeError>>
            + Send
            + Sync
            + 'static,
    {
        let row = Arc::new(job.saved(self.core.now(), slice)?);
        let rooms = vec![row.room_id.clone()];
        let work = Arc::new(work);
        let written = Arc::clone(&row);
        self.core
            .store
            .write("purge", rooms, move |tx| {
                let (row, work) = (Arc::clone(&row), Arc::clone(&work));
                Box::pin(async move {
                    work(tx).await?;
                    tx.purge_save(&row).await?;
                    Ok::<_, PurgeError>(())
                })
            })
            .await?;
        // The phase is moved on by the caller, who says so in the log.
        let phase = job.row.phase;
        job.row = (*written).clone();
        job.row.phase = phase;
        Ok(())
    }

    async fn note_trouble(&self, id: &str, error: &PurgeError) -> Result<(), PurgeError> {
        let Some(mut row) = self.core.store.read().await?.purge_load(id).await? else { return Ok(()) };
        row.error = Some(error.to_string());
        row.updated_at = self.core.now() as i64;
        let row = Arc::new(row);
        self.core
            .store
            .write("purge trouble", Vec::new(), move |tx| {
                let row = Arc::clone(&row);
                Box::pin(async move { tx.purge_save(&row).await })
            })
            .await
            .map_err(PurgeError::Store)
    }

    /// Whether this node may purge. Where there is one node, it may.
    pub(super) async fn lease(&self) -> Result<bool, StoreError> {
        if self.core.store.engine() == Engine::Sqlite {
            return Ok(true);
        }
        let (owner, now) = (Arc::clone(&self.owner), self.core.now());
        self.core
            .store
            .write("purge lease", Vec::new(), move |tx| {
                let owner = Arc::clone(&owner);
                Box::pin(async move {
                    let until = now + LEASE.as_millis() as u64;
                    Ok(tx.lease_take(LEASE_NAME, &owner, now, until).await?.is_some())
                })
            })
            .await
    }

    async fn give_back(&self) -> Result<(), StoreError> {
        let owner = Arc::clone(&self.owner);
        self.core
            .store
            .write("purge lease", Vec::new(), move |tx| {
                let owner = Arc::clone(&owner);
                Box::pin(async move { tx.lease_give_back(LEASE_NAME, &owner).await })
            })
            .await
    }

    /// Forgets that purges took place long ago.
    pub(super) async fn forget_old(&self) -> Result<(), StoreError> {
        let before = self.core.now().saturating_sub(REMEMBERED.as_millis() as u64) as i64;
        self.core
            .store
            .write("forget purges", Vec::new(), move |tx| {
                Box::pin(async move { tx.purges_forget(before).await })
            })
            .await
    }
}
