//! Keeps the store of files within bounds: the cache of other servers' files by bytes and age, awaited uploads by their
//! time, erased users, old previews of pages, and objects that no row names. A slice at a time, so that nothing else
//! waits; whatever breaks off is taken up by the next turn, on whichever node.

use super::Media;
use ruma::UserId;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use waxwing_storage::{CachedMedia, StoreError, StoreResult};

/// Files that are forgotten in one transaction.
pub(super) const SLICE: i64 = 100;
/// Slices of one kind in one turn: an hour's work that is bounded, and ten thousand files.
pub(super) const SLICES: usize = 100;
/// Between slices, so that requests come in between.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// A download that has begun may read an object for so long after it was forgotten.
pub(super) const READ_OUT: Duration = Duration::from_mins(10);
/// What the object store does not remove is tried again after so long.
const RETRY: Duration = Duration::from_hours(1);
/// How long what a page said of itself, and its picture, are kept: clients show it for so long without asking again.
const PREVIEWS_KEPT: Duration = Duration::from_hours(48);
/// The cache is looked at when a node has fetched this part of what it may hold.
const LOOK_AFTER: u64 = 32;
/// It is emptied to a bit less than it may hold, so that not every fetch finds it full.
const ROOM: u64 = 20;

/// What went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Awaited uploads that never came.
    pub expired: u64,
    /// Files of other servers that nobody looked at for long.
    pub aged: u64,
    /// Files of other servers for which there was no room.
    pub crowded: u64,
    /// Files of erased users.
    pub erased: u64,
    /// Files of this server's users that nothing names and nobody looked at for long.
    pub unused: u64,
    /// Pages.
    pub previews: u64,
    /// Objects.
    pub objects: u64,
}

impl Media {
    /// Tidies up once.
    ///
    /// # Errors
    /// The database's. What the object store does not remove is tried again by the next turn.
    pub async fn tidy(&self) -> StoreResult<Tidied> {
        let _alone = self.shared.tidying.lock().await;
        let now = self.core.now() as i64;
        let expired = self.expire(now).await?;
        let previews = self.forget_previews(now).await?;
        let aged = self.forget_aged(now).await?;
        let crowded = self.forget_crowded().await?;
        let erased = self.forget_erased().await?;
        let unused = self.forget_unused(now).await?;
        // What went a moment ago is due now.
        let objects = self.remove_due(self.core.now() as i64).await?;
        Ok(Tidied { expired, aged, crowded, erased, unused, previews, objects })
    }

    /// Another file of another server is here. Now and then looks whether there is room for more.
    pub(super) fn fetched(&self, bytes: u64) {
        let limit = self.shared.settings.remote_cache_bytes;
        let fetched = self.shared.fetched_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if fetched < limit / LOOK_AFTER {
            return;
        }
        self.shared.fetched_bytes.store(0, Ordering::Relaxed);
        let media = self.clone();
        tokio::spawn(async move {
            // Who tidies up already will see it.
            let Ok(_alone) = media.shared.tidying.try_lock() else { return };
            if let Err(error) = media.forget_crowded().await {
                tracing::warn!(%error, "cannot make room for files of other servers; trying again later");
            }
        });
    }

    async fn expire(&self, now: i64) -> StoreResult<u64> {
        let expire = self.core.store.write("media expired", Vec::new(), move |tx| {
            Box::pin(async move { tx.media_expire(now).await })
        });
        expire.await
    }

    async fn forget_aged(&self, now: i64) -> StoreResult<u64> {
        self.forget_cached(now - self.shared.settings.remote_cache_age.as_millis() as i64).await
    }

    /// Forgets files of other servers that were last looked at before `before` (milliseconds since the epoch), ten
    /// thousand at most. Gives how many went.
    ///
    /// # Errors
    /// The database's.
    pub async fn forget_cached(&self, before: i64) -> StoreResult<u64> {
        let mut forgotten = 0;
        for _ in 0..SLICES {
            let own = &self.core.server_name;
            let slice = self.core.store.read().await?.media_oldest(own, before, SLICE).await?;
            if slice.is_empty() {
                break;
            }
            forgotten += self.forget(slice).await?;
        }
        Ok(forgotten)
    }

    async fn forget_crowded(&self) -> StoreResult<u64> {
        let limit = self.shared.settings.remote_cache_bytes;
        let own = &self.core.server_name;
        let held = self.core.store.read().await?.media_remote_bytes(own).await?;
        let held = u64::try_from(held).unwrap_or_default();
        if held <= limit {
            return Ok(0);
        }
        let mut excess = held - (limit - limit / ROOM);
        let mut forgotten = 0;
        for _ in 0..SLICES {
            let mut slice = self.core.store.read().await?.media_oldest(own, i64::MAX, SLICE).await?;
            let mut going = 0;
            slice.retain(|(_, _, size, _)| {
                let goes = going < excess;
                if goes {
                    going += u64::try_from(*size).unwrap_or_default();
                }
                goes
            });
            if slice.is_empty() {
                break;
            }
            excess = excess.saturating_sub(going);
            forgotten += self.forget(slice).await?;
            if excess == 0 {
                break;
            }
        }
        Ok(forgotten)
    }

    /// Forgets files; their objects go a little later.
    async fn forget(&self, slice: Vec<CachedMedia>) -> StoreResult<u64> {
        let keys = slice.into_iter().map(|(server, id, _, _)| (server, id)).collect();
        self.forget_keys(keys, READ_OUT).await
    }

    /// Forgets files by server and id; their objects go after `delay`.
    pub(super) async fn forget_keys(&self, keys: Vec<(String, String)>, delay: Duration) -> StoreResult<u64> {
        let (keys, due) = (Arc::new(keys), self.core.now() as i64 + delay.as_millis() as i64);
        let forget = self.core.store.write("media forgotten", Vec::new(), move |tx| {
            let keys = Arc::clone(&keys);
            Box::pin(async move {
                let mut forgotten = 0;
                for (server, id) in &*keys {
                    forgotten += u64::from(tx.media_remove(server, id, due).await?);
                }
                Ok::<_, StoreError>(forgotten)
            })
        });
        let forgotten = forget.await?;
        tokio::time::sleep(PAUSE).await;
        Ok(forgotten)
    }

    async fn forget_erased(&self) -> StoreResult<u64> {
        let mut forgotten = 0;
        let users = self.core.store.read().await?.media_erasures(SLICE).await?;
        for user in users {
            let Ok(id) = UserId::parse(&*user) else { continue };
            for _ in 0..SLICES {
                let files = self.core.store.read().await?.media_of_user(&id, "", SLICE).await?;
                if files.is_empty() {
                    let user = user.clone();
                    let done = self.core.store.write("media erased", Vec::new(), move |tx| {
                        let user = user.clone();
                        Box::pin(async move { tx.media_erasure_drop(&user).await })
                    });
                    done.await?;
                    break;
                }
                let keys = files.into_iter().map(|file| (file.server_name, file.media_id)).collect();
                forgotten += self.forget_keys(keys, Duration::ZERO).await?;
            }
        }
        Ok(forgotten)
    }

    async fn forget_previews(&self, now: i64) -> StoreResult<u64> {
        let before = now - PREVIEWS_KEPT.as_millis() as i64;
        let mut forgotten = 0;
        for _ in 0..SLICES {
            let old = self.core.store.read().await?.url_previews_old(before, SLICE).await?;
            if old.is_empty() {
                break;
            }
            forgotten += old.len() as u64;
            let (old, server, due) = (Arc::new(old), self.core.server_name.to_string(), now);
            let forget = self.core.store.write("previews forgotten", Vec::new(), move |tx| {
                let (old, server) = (Arc::clone(&old), server.clone());
                Box::pin(async move {
                    for (hash, fetched_at, image) in &*old {
                        tx.url_preview_remove(hash, *fetched_at).await?;
                        if let Some(image) = image {
                            tx.media_remove(&server, image, due).await?;
                        }
                    }
                    Ok::<_, StoreError>(())
                })
            });
            forget.await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(forgotten)
    }

    async fn remove_due(&self, now: i64) -> StoreResult<u64> {
        let mut removed = 0;
        for _ in 0..SLICES {
            let due = self.core.store.read().await?.media_garbage_due(now, SLICE).await?;
            if due.is_empty() {
                break;
            }
            for object in due {
                if self.remove_garbage(&object).await {
                    removed += 1;
                } else {
                    let again = now + RETRY.as_millis() as i64;
                    let later = self.core.store.write("media garbage", Vec::new(), move |tx| {
                        let object = object.clone();
                        Box::pin(async move { tx.media_garbage_add(&object, again).await })
                    });
                    later.await?;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(removed)
    }

    /// Removes an object, then forgets that it is garbage. Returns whether it is gone.
    pub(super) async fn remove_garbage(&self, object: &str) -> bool {
        if let Err(error) = self.shared.objects.remove(object).await {
            tracing::warn!(%error, "an object that nobody needs could not be removed; trying again later");
            return false;
        }
        let name = object.to_owned();
        let dropped = self.core.store.write("media garbage", Vec::new(), move |tx| {
            let name = name.clone();
            Box::pin(async move { tx.media_garbage_drop(&name).await })
        });
        match dropped.await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot write down that an object is gone");
                false
            }
        }
    }
}
