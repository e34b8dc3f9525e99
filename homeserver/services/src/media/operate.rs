//! What operators do with files: look, put under quarantine, remove.

use super::{Media, MediaError, check_id};
use ruma::{ServerName, UserId};
use std::sync::Arc;
use std::time::Duration;
use waxwing_storage::{MediaOfUser, MediaRow, StoreError};

/// Files in one answer.
const PAGE: i64 = 1000;

impl Media {
    /// Puts a file under quarantine, or ends that: it is served to nobody, nor is any other with the same bytes, here
    /// already or still to come. A file of another server that is not here is kept from being fetched. Returns how many
    /// files there are of the kind.
    ///
    /// # Errors
    /// [`MediaError::NotFound`] for a file of this server that does not exist, or an id that is none.
    pub async fn quarantine(&self, server: &ServerName, id: &str, on: bool) -> Result<u64, MediaError> {
        check_id(id)?;
        let remote = *server != self.core.server_name;
        let input = Arc::new((server.to_owned(), id.to_owned(), self.core.now() as i64));
        let quarantine = self.core.store.write("media quarantine", Vec::new(), move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let (server, id, now) = &*input;
                if on && remote {
                    let blocked = MediaRow { created_at: *now, last_access_at: *now, ..MediaRow::default() };
                    tx.media_insert(server, id, &blocked).await?;
                }
                let changed = tx.media_quarantine(server, id, on).await?;
                if !on && remote {
                    tx.media_unblock(server, id).await?;
                }
                Ok::<_, StoreError>(changed)
            })
        });
        match quarantine.await? {
            0 => Err(MediaError::NotFound),
            changed => Ok(changed),
        }
    }

    /// The same for everything that a user of this server has uploaded. Returns how many files that are.
    pub async fn quarantine_user(&self, user: &UserId, on: bool) -> Result<u64, MediaError> {
        let user = user.to_owned();
        let quarantine = self.core.store.write("media quarantine", Vec::new(), move |tx| {
            let user = user.clone();
            Box::pin(async move { tx.media_quarantine_user(&user, on).await })
        });
        Ok(quarantine.await?)
    }

    /// Protects a file, or ends that: no rule removes it, nor does a quarantine of everything of its uploader meet it.
    ///
    /// # Errors
    /// [`MediaError::NotFound`] when it is not here.
    pub async fn protect(&self, server: &ServerName, id: &str, on: bool) -> Result<(), MediaError> {
        check_id(id)?;
        let input = Arc::new((server.to_owned(), id.to_owned()));
        let protect = self.core.store.write("media protect", Vec::new(), move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move { tx.media_protect(&input.0, &input.1, on).await })
        });
        if protect.await? { Ok(()) } else { Err(MediaError::NotFound) }
    }

    /// Removes a file and its thumbnails for good. One of another server may be fetched again.
    ///
    /// # Errors
    /// [`MediaError::NotFound`] when it is not here.
    pub async fn remove(&self, server: &ServerName, id: &str) -> Result<(), MediaError> {
        check_id(id)?;
        let key = (server.to_string(), id.to_owned());
        if self.forget_keys(vec![key], Duration::ZERO).await? == 0 {
            return Err(MediaError::NotFound);
        }
        self.tidy().await?;
        Ok(())
    }

    /// Removes everything that a user has uploaded: in the background, whatever crashes.
    pub async fn erase(&self, user: &UserId) -> Result<(), MediaError> {
        self.note_erasure(user).await?;
        let media = self.clone();
        tokio::spawn(async move {
            if let Err(error) = media.tidy().await {
                tracing::warn!(%error, "cannot remove the files of an erased user; trying again later");
            }
        });
        Ok(())
    }

    /// The same, now. Returns how many files went.
    pub async fn erase_now(&self, user: &UserId) -> Result<u64, MediaError> {
        self.note_erasure(user).await?;
        Ok(self.tidy().await?.erased)
    }

    async fn note_erasure(&self, user: &UserId) -> Result<(), StoreError> {
        let user = user.to_owned();
        let note = self.core.store.write("media erasure", Vec::new(), move |tx| {
            let user = user.clone();
            Box::pin(async move { tx.media_erasure_add(&user).await })
        });
        note.await
    }

    /// Files that a user has uploaded, after the id `after`, a thousand at most, and the bytes of them all.
    pub async fn of_user(&self, user: &UserId, after: &str) -> Result<(Vec<MediaOfUser>, u64), MediaError> {
        let mut conn = self.core.store.read().await?;
        let files = conn.media_of_user(user, after, PAGE).await?;
        let used = conn.media_used(user).await?;
        Ok((files, u64::try_from(used).unwrap_or_default()))
    }
}
