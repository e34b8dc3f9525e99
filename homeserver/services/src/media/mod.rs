//! Uploaded files: those of our users, and those of other servers that our users look at.
//!
//! Bytes are streamed between the network and the object store; a file is held in memory only to make a thumbnail of
//! it, within [`thumbnail::MAX_SOURCE_BYTES`].

mod animate;
mod draw;
mod fetch;
mod objects;
mod operate;
#[cfg(test)]
mod testing;
mod thumbnail;
mod tidy;
mod upload;
pub(crate) mod uses;
mod webp;

pub use objects::{BucketSettings, Objects};
pub use thumbnail::ThumbnailWish;
pub use tidy::Tidied;
pub use upload::Upload;
pub use waxwing_storage::MediaOfUser;

pub(crate) use draw::dimensions;
pub(crate) use objects::hex;

use crate::Core;
use crate::flights::Flights;
use bytes::Bytes;
use fetch::Fetched;
use futures_util::stream::BoxStream;
use moka::sync::Cache;
use ruma::{OwnedServerName, ServerName, UserId};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Weak};
use std::time::Duration;
use thumbnail::Thumbnailed;
use tokio::sync::{Mutex, Notify, Semaphore, watch};
use waxwing_federation::client::Client;
use waxwing_storage::{Fact, LogRow, MediaRow, Store, StoreError, ThumbnailKey};

/// An announced upload must come within this time.
const UPLOAD_WINDOW: Duration = Duration::from_hours(24);
/// Uploads that one user may have announced and not made.
const MAX_PENDING: i64 = 100;
/// The longest that a download waits for an announced upload.
const MAX_WAIT: Duration = Duration::from_mins(1);
/// A hint that an upload has come may be lost: looked for at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Pictures that are decoded at once: each takes a core and up to [`draw::MAX_MEMORY`].
const PARALLEL_THUMBNAILS: usize = 2;
/// Files of other servers that are fetched at once: each takes a connection and two parts of memory.
const PARALLEL_FETCHES: usize = 32;
/// A fetch that failed is not tried again for so long: every member of a room looks at the same picture.
const FAILURE_KEPT: Duration = Duration::from_mins(1);
/// Fetches and pictures whose failure is remembered.
const FAILURES: u64 = 10_000;
/// A picture of which no thumbnail can be made stays so; forgotten at last in case that this program learnt better.
const NO_THUMBNAIL_KEPT: Duration = Duration::from_hours(1);
/// When a file was last served is written down to within this time, so that looking at a file rarely writes.
const ACCESS_NOTED_EVERY: Duration = Duration::from_hours(1);
/// The reference of log rows that say that an announced upload has come.
const REFERENCE: &str = "media";

/// What the configuration says of files.
#[derive(Clone, Debug)]
pub struct MediaSettings {
    /// Bytes that one user may have stored; none: as many as there is room for.
    pub user_quota_bytes: Option<u64>,
    /// The address of a page that says what a user without room left can do.
    pub user_quota_info: String,
    /// What is stored from now on is served to nobody without a token.
    pub freeze_unauthenticated: bool,
    /// Bytes of other servers' files that are kept.
    pub remote_cache_bytes: u64,
    /// How long a file of another server is kept that nobody looks at.
    pub remote_cache_age: Duration,
    /// How long a file of this server's users is kept that nothing names which the server can read, and that nobody looks
    /// at; none: for ever.
    pub unused_age: Option<Duration>,
    /// Such files go when they are older than any room keeps messages, too.
    pub with_retention: bool,
}

impl Default for MediaSettings {
    fn default() -> MediaSettings {
        MediaSettings {
            user_quota_bytes: None,
            user_quota_info: String::new(),
            freeze_unauthenticated: true,
            remote_cache_bytes: 10 << 30,
            remote_cache_age: Duration::from_hours(90 * 24),
            unused_age: None,
            with_retention: false,
        }
    }
}

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
    /// It does not fit into what the user may store.
    #[error("you may store {bytes} bytes")]
    OverQuota {
        /// This many bytes.
        bytes: u64,
        /// The address of a page that says what can be done.
        info: String,
    },
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
    /// Too many thumbnails are being made.
    #[error("too many thumbnails are being made")]
    Busy,
}

/// How a file is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// How long to wait for an announced upload.
    pub wait: Duration,
    /// Whether to fetch it from another server.
    pub remote: bool,
    /// Without a token: what came after the freeze is not there.
    /// <https://spec.matrix.org/v1.19/client-server-api/#content-repo-client-behaviour>
    pub without_token: bool,
}

/// A file to be sent.
#[derive(Clone, Debug)]
pub struct MediaFile {
    /// As the uploader said: serve it safely.
    pub content_type: Option<String>,
    /// As the uploader said.
    pub file_name: Option<String>,
    /// Bytes of the whole file.
    pub size: u64,
    /// What an `ETag` says between its quotes: equal for equal bytes, letters and digits.
    pub tag: String,
    object: String,
}

/// Files.
#[derive(Clone)]
pub struct Media {
    pub(crate) core: Core,
    shared: Arc<Shared>,
}

struct Shared {
    settings: MediaSettings,
    objects: Objects,
    client: Option<Client>,
    /// Wakes downloads that wait for an upload.
    uploaded: Notify,
    /// Files of other servers that are being fetched: everybody else waits for the first.
    fetches: Arc<Flights<Key, Fetched>>,
    fetching: Semaphore,
    /// Fetches that failed a moment ago.
    failed: Cache<Key, Fetched>,
    /// Thumbnails that are being made.
    drafts: Arc<Flights<(Key, ThumbnailKey), Thumbnailed>>,
    drawing: Arc<Semaphore>,
    /// Thumbnails that wait for their turn.
    queued: AtomicUsize,
    /// Pictures of which no thumbnail can be made.
    undrawable: Cache<Key, ()>,
    /// Bytes fetched since the cache was last tidied up.
    fetched_bytes: AtomicU64,
    tidying: Mutex<()>,
    /// Dropped with the last handle: ends what follows the log.
    _alive: watch::Sender<()>,
}

/// Server and id.
type Key = (OwnedServerName, String);

impl Media {
    /// Files in `objects`; those of other servers are fetched with `client`. Starts the task that hears of uploads to
    /// other nodes; it ends with the last handle.
    pub fn new(core: Core, objects: Objects, client: Option<Client>, settings: MediaSettings) -> Media {
        let alive = watch::Sender::new(());
        let gone = alive.subscribe();
        let shared = Arc::new(Shared {
            settings,
            objects,
            client,
            uploaded: Notify::new(),
            fetches: Arc::default(),
            fetching: Semaphore::new(PARALLEL_FETCHES),
            failed: Cache::builder().max_capacity(FAILURES).time_to_live(FAILURE_KEPT).build(),
            drafts: Arc::default(),
            drawing: Arc::new(Semaphore::new(PARALLEL_THUMBNAILS)),
            queued: AtomicUsize::new(0),
            undrawable: Cache::builder().max_capacity(FAILURES).time_to_live(NO_THUMBNAIL_KEPT).build(),
            fetched_bytes: AtomicU64::new(0),
            tidying: Mutex::default(),
            _alive: alive,
        });
        tokio::spawn(follow(Arc::downgrade(&shared), core.store.clone(), gone));
        Media { core, shared }
    }

    /// The largest upload in bytes.
    pub fn max_upload_bytes(&self) -> u64 {
        self.core.settings.max_upload_bytes
    }

    /// Announces an upload. Returns its id and until when it may come, milliseconds since the epoch.
    ///
    /// # Errors
    /// [`MediaError::TooManyPending`], [`MediaError::OverQuota`].
    pub async fn create(&self, user: &UserId) -> Result<(String, u64), MediaError> {
        let now = self.core.now();
        if self.core.store.read().await?.media_pending(user, now as i64).await? >= MAX_PENDING {
            return Err(MediaError::TooManyPending);
        }
        self.room_for(user).await?;
        let until = now + UPLOAD_WINDOW.as_millis() as u64;
        let id = waxwing_model::opaque_id(32);
        let row = MediaRow {
            uploader: Some(user.to_string()),
            created_at: now as i64,
            upload_expires_at: Some(until as i64),
            ..MediaRow::default()
        };
        self.insert(self.core.server_name.clone(), id.clone(), row).await?;
        Ok((id, until))
    }

    /// Adds a row; its object is no garbage any more. Returns whether it was new.
    async fn insert(&self, server: OwnedServerName, id: String, row: MediaRow) -> Result<bool, StoreError> {
        let input = Arc::new((server, id, row));
        self.core
            .store
            .write("media", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (server, id, row) = &*input;
                    let new = tx.media_insert(server, id, row).await?;
                    if new && !row.object.is_empty() {
                        tx.media_garbage_drop(&row.object).await?;
                    }
                    Ok(new)
                })
            })
            .await
    }

    /// Finds a file; one of another server is fetched first, if it may be. Waits up to `ask.wait` for an announced
    /// upload, on whichever node it is made.
    pub async fn find(&self, server: &ServerName, id: &str, ask: Ask) -> Result<MediaFile, MediaError> {
        check_id(id)?;
        self.find_stored(server, id, ask).await
    }

    /// As [`Media::find`], for ids that are ours.
    async fn find_stored(&self, server: &ServerName, id: &str, ask: Ask) -> Result<MediaFile, MediaError> {
        let until = tokio::time::Instant::now() + ask.wait.min(MAX_WAIT);
        let mut fetched = false;
        loop {
            let uploaded = self.shared.uploaded.notified();
            tokio::pin!(uploaded);
            uploaded.as_mut().enable();
            let row = self.core.store.read().await?.media_load(server, id).await?;
            match row {
                Some(row) if row.quarantined || ask.without_token && row.token_only => {
                    return Err(MediaError::NotFound);
                }
                Some(row) if !row.object.is_empty() => {
                    self.note_access(server, id, &row);
                    return Ok(file(row));
                }
                Some(row) if row.upload_expires_at.is_none_or(|at| at < self.core.now() as i64) => {
                    return Err(MediaError::NotFound);
                }
                Some(_) => {
                    if tokio::time::Instant::now() >= until {
                        return Err(MediaError::NotYetUploaded);
                    }
                    let next = (tokio::time::Instant::now() + LOOK_AGAIN).min(until);
                    let _ = tokio::time::timeout_at(next, uploaded).await;
                }
                None if *server == self.core.server_name || !ask.remote || fetched => {
                    return Err(MediaError::NotFound);
                }
                // It would not be served.
                None if ask.without_token && self.shared.settings.freeze_unauthenticated => {
                    return Err(MediaError::NotFound);
                }
                None => {
                    self.fetch(server, id, ask.wait).await?;
                    fetched = true;
                }
            }
        }
    }

    /// Writes down that a file was looked at: what nobody looks at goes first.
    fn note_access(&self, server: &ServerName, id: &str, row: &MediaRow) {
        let now = self.core.now() as i64;
        let noted = row.last_access_at + ACCESS_NOTED_EVERY.as_millis() as i64;
        if now < noted {
            return;
        }
        let (store, input) = (self.core.store.clone(), Arc::new((server.to_string(), id.to_owned())));
        tokio::spawn(async move {
            let written = store.write("media served", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { tx.media_touch(&input.0, &input.1, now).await })
            });
            if let Err(error) = written.await {
                tracing::warn!(%error, "cannot write down when a file was served");
            }
        });
    }

    /// The bytes of a file, or of a part of it.
    ///
    /// # Errors
    /// [`MediaError::NotFound`] when the object store does not have it (any more).
    pub async fn open(
        &self,
        file: &MediaFile,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, object_store::Error>>, MediaError> {
        match self.shared.objects.read(&file.object, range).await {
            Err(object_store::Error::NotFound { .. }) => {
                tracing::warn!(object = file.object, "a file is not in the object store");
                Err(MediaError::NotFound)
            }
            other => Ok(other?),
        }
    }
}

fn file(row: MediaRow) -> MediaFile {
    MediaFile {
        content_type: row.content_type,
        file_name: row.file_name,
        size: row.size as u64,
        // Without the hash of its bytes, its name in the store stands for them: no object is ever written twice.
        tag: row.sha256.unwrap_or_else(|| tag_of(&row.object)),
        object: row.object,
    }
}

fn tag_of(object: &str) -> String {
    object.chars().filter(char::is_ascii_alphanumeric).collect()
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

/// Wakes those who wait for announced uploads when one was made, here or on another node.
async fn follow(shared: Weak<Shared>, store: Store, mut gone: watch::Receiver<()>) {
    let mut head = store.tail().subscribe();
    let mut seen = store.tail().head();
    loop {
        tokio::select! {
            changed = head.changed() => if changed.is_err() { return },
            _ = gone.changed() => return,
        }
        let Some(shared) = shared.upgrade() else { return };
        let upto = store.tail().head();
        let made = |row: &Arc<LogRow>| row.fact == Fact::Other && row.reference.as_deref() == Some(REFERENCE);
        // More than the tail holds: look.
        if store.tail().range(seen, upto).is_none_or(|rows| rows.iter().any(made)) {
            shared.uploaded.notify_waiters();
        }
        seen = upto;
    }
}
