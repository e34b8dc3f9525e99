//! Uploaded files: those of our users, and those of other servers that our users look at.
//!
//! Bytes are streamed between the network and the object store; a file is held in memory only to make a thumbnail of
//! it, within [`thumbnail::MAX_SOURCE_BYTES`].

mod fetch;
mod store;
mod thumbnail;

pub use store::Upload;
pub use thumbnail::ThumbnailWish;

use crate::Core;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName, UserId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use waxwing_federation::client::Client;
use waxwing_storage::{MediaRow, StoreError};

/// An announced upload must come within this time.
const UPLOAD_WINDOW: Duration = Duration::from_hours(24);
/// Uploads that one user may have announced and not made.
const MAX_PENDING: i64 = 100;
/// The longest that a download waits for an announced upload.
const MAX_WAIT: Duration = Duration::from_mins(1);
/// Pictures that are decoded at once: each takes a core and up to [`thumbnail::MAX_PIXELS`] times four bytes.
const PARALLEL_THUMBNAILS: usize = 2;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store.
    #[error("object store: {0}")]
    Objects(#[from] object_store::Error),
    /// There is no such file, or the id is none.
    #[error("no such media")]
    NotFound,
    /// The upload was announced and has not come.
    #[error("not yet uploaded")]
    NotYetUploaded,
    /// The upload is there already.
    #[error("the media was uploaded already")]
    CannotOverwrite,
    /// Somebody else announced the upload.
    #[error("this upload is not yours")]
    Forbidden,
    /// Too many announced uploads.
    #[error("too many uploads are pending")]
    TooManyPending,
    /// Larger than this server takes.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// The file of another server is larger than this server takes.
    #[error("remote media is larger than {0} bytes")]
    RemoteTooLarge(u64),
    /// The other server could not give it.
    #[error("the other server did not give the media: {0}")]
    Remote(String),
    /// The client broke off.
    #[error("the upload broke off: {0}")]
    Broken(String),
    /// No thumbnail can be made of it.
    #[error("no thumbnail can be made of this file")]
    NoThumbnail,
}

/// A file to be sent.
pub struct MediaFile {
    /// As the uploader said: serve it safely.
    pub content_type: Option<String>,
    /// As the uploader said.
    pub file_name: Option<String>,
    /// Bytes of the whole file.
    pub size: u64,
    object: String,
}

/// Files.
#[derive(Clone)]
pub struct Media {
    pub(crate) core: Core,
    objects: Arc<dyn ObjectStore>,
    client: Option<Client>,
    /// Wakes downloads that wait for an upload.
    uploaded: Arc<Notify>,
    /// Files of other servers that are being fetched: everybody else waits for the first.
    fetching: Arc<Mutex<HashMap<(OwnedServerName, String), Arc<tokio::sync::Mutex<()>>>>>,
    drawing: Arc<Semaphore>,
}

impl Media {
    /// Files in `objects`; those of other servers are fetched with `client`.
    pub fn new(core: Core, objects: Arc<dyn ObjectStore>, client: Option<Client>) -> Media {
        Media {
            core,
            objects,
            client,
            uploaded: Arc::default(),
            fetching: Arc::default(),
            drawing: Arc::new(Semaphore::new(PARALLEL_THUMBNAILS)),
        }
    }

    /// The largest upload in bytes.
    pub fn max_upload_bytes(&self) -> u64 {
        self.core.settings.max_upload_bytes
    }

    /// Announces an upload. Returns its id and until when it may come, milliseconds since the epoch.
    pub async fn create(&self, user: &UserId) -> Result<(String, u64), MediaError> {
        let now = self.core.now();
        if self.core.store.read().await?.media_pending(user, now as i64).await? >= MAX_PENDING {
            return Err(MediaError::TooManyPending);
        }
        let until = now + UPLOAD_WINDOW.as_millis() as u64;
        let id = waxwing_model::opaque_id(32);
        let row = MediaRow {
            object: String::new(),
            content_type: None,
            file_name: None,
            size: 0,
            uploader: Some(user.to_string()),
            created_at: now as i64,
            upload_expires_at: Some(until as i64),
            quarantined: false,
        };
        self.insert(self.core.server_name.clone(), id.clone(), row).await?;
        Ok((id, until))
    }

    async fn insert(&self, server: OwnedServerName, id: String, row: MediaRow) -> Result<bool, StoreError> {
        let input = Arc::new((server, id, row));
        self.core
            .store
            .write("media", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { tx.media_insert(&input.0, &input.1, &input.2).await })
            })
            .await
    }

    /// Finds a file; one of another server is fetched first, unless `remote` is false. Waits up to `wait` for an
    /// announced upload.
    pub async fn find(
        &self,
        server: &ServerName,
        id: &str,
        wait: Duration,
        remote: bool,
    ) -> Result<MediaFile, MediaError> {
        check_id(id)?;
        let until = tokio::time::Instant::now() + wait.min(MAX_WAIT);
        loop {
            let uploaded = self.uploaded.notified();
            tokio::pin!(uploaded);
            uploaded.as_mut().enable();
            let row = self.core.store.read().await?.media_load(server, id).await?;
            match row {
                Some(row) if row.quarantined => return Err(MediaError::NotFound),
                Some(row) if !row.object.is_empty() => return Ok(file(row)),
                Some(row) if row.upload_expires_at.is_some_and(|at| at < self.core.now() as i64) => {
                    return Err(MediaError::NotFound);
                }
                Some(_) => {
                    // Another node may take the upload: look again from time to time.
                    let next = (tokio::time::Instant::now() + Duration::from_secs(1)).min(until);
                    let _ = tokio::time::timeout_at(next, uploaded).await;
                    if tokio::time::Instant::now() >= until {
                        return Err(MediaError::NotYetUploaded);
                    }
                }
                None if *server == self.core.server_name || !remote => return Err(MediaError::NotFound),
                None => {
                    self.fetch(server, id, wait).await?;
                }
            }
        }
    }

    /// The bytes of a file, or of a part of it.
    pub async fn open(
        &self,
        file: &MediaFile,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, object_store::Error>>, MediaError> {
        let path = object_store::path::Path::from(file.object.as_str());
        let options = object_store::GetOptions {
            range: range.map(object_store::GetRange::Bounded),
            ..object_store::GetOptions::default()
        };
        Ok(self.objects.get_opts(&path, options).await?.into_stream())
    }

    pub(crate) async fn read_all(&self, object: &str) -> Result<Bytes, MediaError> {
        let path = object_store::path::Path::from(object);
        Ok(self.objects.get(&path).await?.bytes().await?)
    }
}

fn file(row: MediaRow) -> MediaFile {
    MediaFile {
        content_type: row.content_type,
        file_name: row.file_name,
        size: row.size as u64,
        object: row.object,
    }
}

/// Ids are letters, digits, `_` and `-`: nothing else gets near a path.
/// <https://spec.matrix.org/v1.19/client-server-api/#security-considerations-5>
pub(crate) fn check_id(id: &str) -> Result<(), MediaError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if id.is_empty() || id.len() > 255 || !id.bytes().all(fine) {
        return Err(MediaError::NotFound);
    }
    Ok(())
}
