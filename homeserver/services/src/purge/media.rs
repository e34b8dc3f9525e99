//! Files go with the events that named them.
//!
//! A purge notes the files that the events which it forgets named, in the transaction that forgets them. At its end it
//! looks at each: one that something else names stays, and so does one that is protected or under quarantine. Of files of
//! this server's users only those are noted that the event's sender had uploaded, since anybody can name any file.
//! What is in encrypted messages, this server cannot see: see `media/uses.rs`.

use super::run::{Job, Slice};
use super::{PurgeError, Purges};
use crate::media::uses;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use waxwing_model::{MediaKey, media_named};
use waxwing_storage::{PurgePhase, StoredEvent, Tx};

/// Files looked at in one transaction.
const FILES: i64 = 100;
/// For how long it counts which files profiles and account data name: they are read as a whole, and purges often come many
/// at a time. The profile of whoever uploaded a file is read each time.
const HELD_FOR: Duration = Duration::from_mins(5);

/// The files that profiles and account data name, and when that was read.
pub(super) type Held = tokio::sync::Mutex<Option<(u64, Arc<HashSet<MediaKey>>)>>;

/// The files that events name which are about to be forgotten: worked out before the transaction.
pub(super) struct Named(Vec<(Arc<StoredEvent>, Vec<MediaKey>)>);

impl Purges {
    pub(super) fn named(&self, gone: &[Arc<StoredEvent>]) -> Named {
        let of = |stored: &Arc<StoredEvent>| {
            let named = media_named(stored.event.content.get());
            let all: Vec<MediaKey> =
                named.iter().flat_map(|key| uses::with_thumbnails(&self.core, key)).collect();
            (!all.is_empty()).then(|| (Arc::clone(stored), all))
        };
        Named(gone.iter().filter_map(of).collect())
    }

    /// Looks at the next files that went out of use. The last phase.
    pub(super) async fn media_slice(&self, job: &mut Job) -> Result<Slice, PurgeError> {
        let files = self.core.store.read().await?.purge_media(&job.row.purge_id, FILES).await?;
        if files.is_empty() {
            let room = job.row.room_id.clone();
            let next = PurgePhase::Complete;
            self.commit(job, Slice::Next(next), move |tx| {
                let room = room.clone();
                Box::pin(async move { Ok(tx.room_unblock(&room, true).await?) })
            })
            .await?;
            return Ok(Slice::Next(next));
        }
        if !uses::note_older(&self.core).await? {
            return Ok(Slice::More);
        }
        let held = self.held().await?;
        let row = job.saved(self.core.now(), Slice::More)?;
        let input = Arc::new((self.core.clone(), row, files, held));
        let gone = self.core.store.write("purge files", Vec::new(), move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let (core, row, files, held) = &*input;
                let gone = uses::forget_unnamed(core, tx, files, held).await?;
                tx.purge_media_done(&row.purge_id, files).await?;
                tx.purge_save(row).await?;
                Ok::<_, PurgeError>(gone)
            })
        });
        let gone = gone.await?;
        job.progress.media += gone;
        metrics::counter!("waxwing_purged_media_total").increment(gone);
        Ok(Slice::More)
    }

    async fn held(&self) -> Result<Arc<HashSet<MediaKey>>, PurgeError> {
        let mut held = self.held.lock().await;
        let now = self.core.now();
        match &*held {
            Some((at, files)) if now < at + HELD_FOR.as_millis() as u64 => Ok(Arc::clone(files)),
            _ => {
                let files = Arc::new(uses::held(&self.core).await?);
                *held = Some((now, Arc::clone(&files)));
                Ok(files)
            }
        }
    }
}

impl Named {
    /// Notes them, in the transaction that forgets the events.
    pub(super) async fn note(
        &self,
        tx: &mut Tx,
        purge: &str,
        own: &ruma::ServerName,
    ) -> Result<(), PurgeError> {
        for (stored, files) in &self.0 {
            tx.purge_media_add(purge, own, &stored.event, files).await?;
        }
        Ok(())
    }
}
