//! Taking in files.

use super::objects::{WriteError, Written, hex};
use super::{Media, MediaError, REFERENCE, check_id};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use ruma::{OwnedUserId, ServerName, UserId};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use waxwing_storage::{Fact, MediaRow, NewRow, StoreError};

/// An object that no row names by then was being written by a node that crashed: longer than any upload may take.
const PROMISE: Duration = Duration::from_hours(24);

/// What comes with an upload.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Who uploads.
    pub user: OwnedUserId,
    /// The content type that the client says.
    pub content_type: Option<String>,
    /// The file name that the client says.
    pub file_name: Option<String>,
    /// Bytes that the client says there are.
    pub length: Option<u64>,
}

/// An object that is being written and that no row names yet. Dropped before it is settled, it is removed; after a
/// crash the next one to tidy up removes it.
pub(super) struct Promised {
    media: Media,
    pub name: String,
    settled: bool,
}

impl Promised {
    /// A row is about to name it: from now on it is garbage only as the database says, since whoever waits for that
    /// write may go while it is under way.
    pub fn settle(mut self) -> String {
        self.settled = true;
        std::mem::take(&mut self.name)
    }
}

impl Drop for Promised {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.settled {
            let (media, name) = (self.media.clone(), std::mem::take(&mut self.name));
            runtime.spawn(async move { media.remove_garbage(&name).await });
        }
    }
}

impl Media {
    /// Takes an upload and gives it an id.
    ///
    /// # Errors
    /// [`MediaError::TooLarge`] past the limit, [`MediaError::OverQuota`] past what the user may store; nothing stays
    /// then.
    pub async fn upload<S, E>(&self, upload: Upload, body: S) -> Result<String, MediaError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let id = waxwing_model::opaque_id(32);
        let (object, written) = self.receive(&upload, &self.core.server_name, &id, body).await?;
        let row = self.row(&upload, object.settle(), &written);
        self.insert(self.core.server_name.clone(), id.clone(), row).await?;
        Ok(id)
    }

    /// Takes an upload that was announced.
    ///
    /// # Errors
    /// [`MediaError::CannotOverwrite`], [`MediaError::Forbidden`] for another's, [`MediaError::NotFound`] for one that
    /// was never announced or has expired, and those of [`Media::upload`].
    pub async fn upload_to<S, E>(
        &self,
        upload: Upload,
        server: &ServerName,
        id: &str,
        body: S,
    ) -> Result<(), MediaError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        check_id(id)?;
        if *server != self.core.server_name {
            return Err(MediaError::NotFound);
        }
        self.may_upload(&upload.user, id).await?;
        let (object, written) = self.receive(&upload, server, id, body).await?;
        let object = object.settle();
        let input = Arc::new((id.to_owned(), self.row(&upload, object.clone(), &written)));
        let server = self.core.server_name.clone();
        let taken = self.core.store.write("media", Vec::new(), move |tx| {
            let (input, server) = (Arc::clone(&input), server.clone());
            Box::pin(async move {
                let taken = tx.media_complete(&server, &input.0, &input.1).await?;
                if taken {
                    tx.media_garbage_drop(&input.1.object).await?;
                    // Whoever waits for it may wait on another node.
                    tx.log_append(NewRow::new(Fact::Other).reference(REFERENCE));
                }
                Ok::<_, StoreError>(taken)
            })
        });
        if !taken.await? {
            self.remove_garbage(&object).await;
            return Err(MediaError::CannotOverwrite);
        }
        Ok(())
    }

    /// Keeps a page's picture, which belongs to nobody. Returns its id.
    pub(crate) async fn keep_preview(
        &self,
        picture: Bytes,
        content_type: String,
    ) -> Result<String, MediaError> {
        let id = waxwing_model::opaque_id(32);
        let object = self.promise(&self.core.server_name, &id).await?;
        let body = futures_util::stream::iter([Ok(picture)]);
        let written =
            self.shared.objects.write(&object.name, body, u64::MAX).await.map_err(|error| match error {
                WriteError::Objects(error) => MediaError::Objects(error),
                other => MediaError::Broken(other.to_string()),
            })?;
        let row = MediaRow {
            object: object.settle(),
            content_type: Some(content_type),
            size: written.size as i64,
            created_at: self.core.now() as i64,
            sha256: Some(written.sha256),
            token_only: self.shared.settings.freeze_unauthenticated,
            ..MediaRow::default()
        };
        self.insert(self.core.server_name.clone(), id.clone(), row).await?;
        Ok(id)
    }

    /// Streams an upload into an object of its own, within the limits of a file and of the user.
    async fn receive<S, E>(
        &self,
        upload: &Upload,
        server: &ServerName,
        id: &str,
        body: S,
    ) -> Result<(Promised, Written), MediaError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let most = self.max_upload_bytes();
        let (room, quota) = self.room_for(&upload.user).await?;
        let too_large = || if room < most { self.over_quota(quota) } else { MediaError::TooLarge(most) };
        let limit = room.min(most);
        if upload.length.is_some_and(|length| length > limit) {
            return Err(if upload.length > Some(most) { MediaError::TooLarge(most) } else { too_large() });
        }
        let object = self.promise(server, id).await?;
        let body = body.map(|piece| piece.map_err(|error| WriteError::Broken(error.to_string())));
        let written =
            self.shared.objects.write(&object.name, body, limit).await.map_err(|error| match error {
                WriteError::TooLarge => too_large(),
                WriteError::Broken(why) => MediaError::Broken(why),
                WriteError::Objects(error) => MediaError::Objects(error),
            })?;
        Ok((object, written))
    }

    /// Bytes that the user may still store, and in all.
    pub(super) async fn room_for(&self, user: &UserId) -> Result<(u64, u64), MediaError> {
        let Some(quota) = self.shared.settings.user_quota_bytes else { return Ok((u64::MAX, u64::MAX)) };
        let used = self.core.store.read().await?.media_used(user).await?;
        let room = quota.saturating_sub(u64::try_from(used).unwrap_or_default());
        if room == 0 { Err(self.over_quota(quota)) } else { Ok((room, quota)) }
    }

    fn over_quota(&self, bytes: u64) -> MediaError {
        MediaError::OverQuota { bytes, info: self.shared.settings.user_quota_info.clone() }
    }

    async fn may_upload(&self, user: &UserId, id: &str) -> Result<(), MediaError> {
        let row = self.core.store.read().await?.media_load(&self.core.server_name, id).await?;
        let row = row.ok_or(MediaError::NotFound)?;
        if row.uploader.as_deref() != Some(user.as_str()) {
            return Err(MediaError::Forbidden);
        }
        if !row.object.is_empty() {
            return Err(MediaError::CannotOverwrite);
        }
        if row.upload_expires_at.is_some_and(|at| at < self.core.now() as i64) {
            return Err(MediaError::NotFound);
        }
        Ok(())
    }

    fn row(&self, upload: &Upload, object: String, written: &Written) -> MediaRow {
        MediaRow {
            object,
            content_type: upload.content_type.clone(),
            // PostgreSQL stores no NUL.
            file_name: upload.file_name.clone().filter(|name| !name.contains('\0')),
            size: written.size as i64,
            uploader: Some(upload.user.to_string()),
            created_at: self.core.now() as i64,
            sha256: Some(written.sha256.clone()),
            token_only: self.shared.settings.freeze_unauthenticated,
            ..MediaRow::default()
        }
    }

    /// A new name in the object store, noted as garbage until a row names it.
    pub(super) async fn promise(&self, server: &ServerName, id: &str) -> Result<Promised, StoreError> {
        // A name is never used twice, so that what removes an old object never meets a new one.
        let name = object_name(server, &format!("{id}-{}", waxwing_model::opaque_id(16)));
        let (noted, due) = (name.clone(), self.core.now() as i64 + PROMISE.as_millis() as i64);
        let note = self.core.store.write("media promised", Vec::new(), move |tx| {
            let noted = noted.clone();
            Box::pin(async move { tx.media_garbage_add(&noted, due).await })
        });
        note.await?;
        Ok(Promised { media: self.clone(), name, settled: false })
    }
}

/// The name of a file in the object store: a hash, so that nothing of what a stranger says is part of a path.
fn object_name(server: &ServerName, id: &str) -> String {
    let digest = hex(&Sha256::digest(format!("{server}/{id}").as_bytes()));
    format!("{}/{}/{}", &digest[..2], &digest[2..4], &digest[4..])
}
