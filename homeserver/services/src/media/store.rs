//! Taking in files.

use super::{Media, MediaError, check_id};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use object_store::{ObjectStoreExt, WriteMultipart};
use ruma::{OwnedUserId, ServerName, UserId};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use waxwing_storage::MediaRow;

/// What comes with an upload.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Who uploads.
    pub user: OwnedUserId,
    /// The content type that the client says.
    pub content_type: Option<String>,
    /// The file name that the client says.
    pub file_name: Option<String>,
}

/// Parts in flight to the object store: bounds the memory of one upload.
const PARTS_IN_FLIGHT: usize = 2;
/// Bytes of a part.
const PART: usize = 512 * 1024;
/// A sender that pauses longer has gone.
const PATIENCE: Duration = Duration::from_secs(30);

impl Media {
    /// Takes an upload and gives it an id.
    ///
    /// # Errors
    /// [`MediaError::TooLarge`] past the limit; nothing stays then.
    pub async fn upload<S, E>(&self, upload: Upload, body: S) -> Result<String, MediaError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let id = waxwing_model::opaque_id(32);
        let object = object_name(&self.core.server_name, &id);
        let limit = self.max_upload_bytes();
        let size = self.write(&object, body, limit).await?;
        let row = self.row(&upload, object, size);
        self.insert(self.core.server_name.clone(), id.clone(), row).await?;
        Ok(id)
    }

    /// Takes an upload that was announced.
    ///
    /// # Errors
    /// [`MediaError::CannotOverwrite`], [`MediaError::Forbidden`] for another's, [`MediaError::NotFound`] for one that
    /// was never announced or has expired.
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
        // Two uploads of one id must not write one object.
        let object = object_name(server, &format!("{id}-{}", waxwing_model::opaque_id(8)));
        let size = self.write(&object, body, self.max_upload_bytes()).await?;
        let input = Arc::new((id.to_owned(), self.row(&upload, object.clone(), size)));
        let server = self.core.server_name.clone();
        let taken = self
            .core
            .store
            .write("media", Vec::new(), move |tx| {
                let (input, server) = (Arc::clone(&input), server.clone());
                Box::pin(async move { tx.media_complete(&server, &input.0, &input.1).await })
            })
            .await?;
        if !taken {
            self.remove(&object).await;
            return Err(MediaError::CannotOverwrite);
        }
        self.uploaded.notify_waiters();
        Ok(())
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

    fn row(&self, upload: &Upload, object: String, size: u64) -> MediaRow {
        MediaRow {
            object,
            content_type: upload.content_type.clone(),
            // PostgreSQL stores no NUL.
            file_name: upload.file_name.clone().filter(|name| !name.contains('\0')),
            size: size as i64,
            uploader: Some(upload.user.to_string()),
            created_at: self.core.now() as i64,
            upload_expires_at: None,
            quarantined: false,
        }
    }

    /// Streams bytes into an object; one that breaks off or grows too large leaves nothing. Returns its size.
    pub(crate) async fn write<S, E>(&self, object: &str, body: S, limit: u64) -> Result<u64, MediaError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let path = object_store::path::Path::from(object);
        let parts = self.objects.put_multipart(&path).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(parts, PART);
        let mut body = pin!(body);
        let mut size = 0_u64;
        loop {
            let failed = match timeout(PATIENCE, body.next()).await {
                Ok(None) => break,
                Err(_) => MediaError::Broken("the sender stalled".to_owned()),
                Ok(Some(Ok(bytes))) => {
                    size += bytes.len() as u64;
                    if size <= limit {
                        writer.wait_for_capacity(PARTS_IN_FLIGHT).await?;
                        writer.put(bytes);
                        continue;
                    }
                    MediaError::TooLarge(limit)
                }
                Ok(Some(Err(error))) => MediaError::Broken(error.to_string()),
            };
            writer.abort().await?;
            return Err(failed);
        }
        writer.finish().await?;
        Ok(size)
    }

    pub(crate) async fn remove(&self, object: &str) {
        let path = object_store::path::Path::from(object);
        if let Err(error) = self.objects.delete(&path).await {
            tracing::warn!(%error, "an object that nobody needs could not be removed");
        }
    }
}

/// The name of a file in the object store: a hash, so that nothing of what a stranger says is part of a path.
pub(crate) fn object_name(server: &ServerName, id: &str) -> String {
    let digest = Sha256::digest(format!("{server}/{id}").as_bytes());
    let mut name = String::with_capacity(68);
    for (index, byte) in digest.iter().enumerate() {
        if index == 1 || index == 2 {
            name.push('/');
        }
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}
