//! Files of this server's users that nothing names any more.
//!
//! What names a file is known of events, profiles, account data and events still to be sent, as far as they are not
//! encrypted. A file that a forgotten event named goes with it when nothing else names it. A file in an encrypted message is
//! named by nothing: it goes when it is older than any message may be, and nobody has looked at it for as long.

use super::tidy::{PAUSE, READ_OUT, SLICE, SLICES};
use super::{Media, thumbnail};
use crate::Core;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use waxwing_model::MediaKey;
use waxwing_storage::{StoreResult, Tx, UnusedPlace};

/// The setting that says up to which event it is known which files events name; [`COMPLETE`]: of all.
const NOTED: &str = "media_uses";
const COMPLETE: &str = "complete";
/// Events looked at in one transaction.
const EVENTS: i64 = 500;
/// The setting with the longest time for which a room of this server keeps messages, milliseconds; something else when
/// one keeps them for ever.
pub(crate) const LONGEST: &str = "retention_longest";

/// Notes what older events name, those of before it was noted with each event. A slice; whether none is left.
pub(crate) async fn note_older(core: &Core) -> StoreResult<bool> {
    let mut conn = core.store.read().await?;
    let noted = conn.setting_load(NOTED).await?;
    if noted.as_deref() == Some(COMPLETE) {
        return Ok(true);
    }
    let after = noted.and_then(|noted| noted.parse().ok()).unwrap_or(i64::MIN);
    let events = conn.events_scan(after, EVENTS).await?;
    drop(conn);
    let (upto, over) = match events.last() {
        Some(last) => (last.sn.to_string(), false),
        None => (COMPLETE.to_owned(), true),
    };
    let input = Arc::new((events, upto));
    core.store
        .write("note files", Vec::new(), move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let (events, upto) = &*input;
                tx.media_uses_add(events).await?;
                tx.setting_save(NOTED, upto).await
            })
        })
        .await?;
    Ok(over)
}

/// The files of this server that profiles, account data and events still to be sent name.
pub(crate) async fn held(core: &Core) -> StoreResult<HashSet<MediaKey>> {
    core.store.read().await?.media_held(&core.server_name).await
}

/// Forgets those of these files that nothing names, as part of a transaction. Their bytes go a little later.
pub(crate) async fn forget_unnamed(
    core: &Core,
    tx: &mut Tx,
    files: &[MediaKey],
    held: &HashSet<MediaKey>,
) -> StoreResult<u64> {
    let due = core.now() as i64 + READ_OUT.as_millis() as i64;
    tx.media_remove_unnamed(files, held, due).await
}

/// The file, and where it is another server's the thumbnails that this server may have fetched of it.
pub(crate) fn with_thumbnails(core: &Core, key: &MediaKey) -> Vec<MediaKey> {
    let (server, id) = key;
    let mut all = vec![key.clone()];
    if server.as_str() != core.server_name.as_str() {
        all.extend(thumbnail::fetched_ids(id).map(|id| (server.clone(), id)));
    }
    all
}

impl Media {
    /// Forgets files of this server's users that nothing names and nobody has looked at for long. A slice at a time; the
    /// next turn goes on where this one ends.
    pub(super) async fn forget_unused(&self, now: i64) -> StoreResult<u64> {
        let Some(age) = self.unused_age().await? else { return Ok(0) };
        let before = now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let own = &self.core.server_name;
        let mut after: UnusedPlace = (i64::MIN, String::new());
        let first = self.core.store.read().await?.media_unused(own, before, &after, 1).await?;
        if first.is_empty() {
            return Ok(0);
        }
        for _ in 0..SLICES {
            if note_older(&self.core).await? {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        if !note_older(&self.core).await? {
            // The next turn goes on with it: until all is noted, nothing is known to be unnamed.
            return Ok(0);
        }
        let held = Arc::new(held(&self.core).await?);
        let mut forgotten = 0;
        for _ in 0..SLICES {
            let slice = self.core.store.read().await?.media_unused(own, before, &after, SLICE).await?;
            let Some(last) = slice.last() else { break };
            after = last.clone();
            let files: Vec<MediaKey> = slice.into_iter().map(|(_, id)| (own.to_string(), id)).collect();
            let input = Arc::new((self.core.clone(), files, Arc::clone(&held)));
            let forget = self.core.store.write("media unused", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (core, files, held) = &*input;
                    forget_unnamed(core, tx, files, held).await
                })
            });
            forgotten += forget.await?;
            tokio::time::sleep(PAUSE).await;
        }
        metrics::counter!("waxwing_media_unused_removed_total").increment(forgotten);
        Ok(forgotten)
    }

    /// For how long a file is kept that nothing names; `None`: for ever.
    async fn unused_age(&self) -> StoreResult<Option<Duration>> {
        let settings = &self.shared.settings;
        let mut age = settings.unused_age;
        if settings.with_retention {
            let longest = self.core.store.read().await?.setting_load(LONGEST).await?;
            let longest = longest.and_then(|longest| longest.parse().ok()).map(Duration::from_millis);
            age = match (age, longest) {
                (Some(age), Some(longest)) => Some(age.min(longest)),
                (age, longest) => age.or(longest),
            };
        }
        Ok(age)
    }
}
