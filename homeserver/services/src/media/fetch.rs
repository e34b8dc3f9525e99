//! Files of other servers.

use super::objects::WriteError;
use super::{Key, Media, MediaError};
use futures_util::StreamExt;
use ruma::ServerName;
use ruma::http_headers::ContentDisposition;
use std::time::Duration;
use waxwing_federation::client::{
    Client, ClientError, MediaError as RemoteError, RemoteMedia, ThumbnailQuery,
};
use waxwing_storage::{MediaRow, ThumbnailKey};

/// The longest that one file may take to come.
const PATIENCE: Duration = Duration::from_mins(5);

/// What became of a fetch.
#[derive(Clone, Debug)]
pub(super) enum Fetched {
    /// It is here.
    Done,
    /// The other server has no such file.
    NotFound,
    /// It was announced and has not come.
    NotYetUploaded,
    /// Larger than this server takes.
    TooLarge(u64),
    /// It could not be had, for a reason that is for our log.
    Failed(String),
    /// This server's own fault.
    Ours(String),
}

impl Fetched {
    fn into_result(self) -> Result<(), MediaError> {
        Err(match self {
            Fetched::Done => return Ok(()),
            Fetched::NotFound => MediaError::NotFound,
            Fetched::NotYetUploaded => MediaError::NotYetUploaded,
            Fetched::TooLarge(limit) => MediaError::RemoteTooLarge(limit),
            Fetched::Failed(why) | Fetched::Ours(why) => MediaError::Remote(why),
        })
    }

    /// Whether it would be no better a moment later.
    fn is_remembered(&self) -> bool {
        matches!(self, Fetched::NotFound | Fetched::TooLarge(_) | Fetched::Failed(_))
    }
}

impl Media {
    /// Fetches a file of another server into the object store. Of several who want it one fetches; what failed a
    /// moment ago is not tried again.
    pub(super) async fn fetch(
        &self,
        server: &ServerName,
        id: &str,
        wait: Duration,
    ) -> Result<(), MediaError> {
        self.fetch_as(server, id, id.to_owned(), None, wait).await
    }

    /// Fetches the other server's own thumbnail of a file, and stores it under the id `stored`.
    pub(super) async fn fetch_thumbnail(
        &self,
        server: &ServerName,
        id: &str,
        stored: String,
        shape: ThumbnailKey,
        wait: Duration,
    ) -> Result<(), MediaError> {
        self.fetch_as(server, id, stored, Some(shape), wait).await
    }

    async fn fetch_as(
        &self,
        server: &ServerName,
        id: &str,
        stored: String,
        shape: Option<ThumbnailKey>,
        wait: Duration,
    ) -> Result<(), MediaError> {
        let Some(client) = &self.shared.client else { return Err(MediaError::NotFound) };
        let key = (server.to_owned(), stored);
        if let Some(failed) = self.shared.failed.get(&key) {
            return failed.into_result();
        }
        let begin = || {
            let (media, client, key, id) = (self.clone(), client.clone(), key.clone(), id.to_owned());
            async move {
                let fetching =
                    tokio::time::timeout(PATIENCE, media.fetch_alone(&client, &key, &id, shape, wait));
                let fetched =
                    fetching.await.unwrap_or_else(|_| Err(Fetched::Failed("it takes too long".to_owned())));
                let fetched = fetched.err().unwrap_or(Fetched::Done);
                if fetched.is_remembered() {
                    media.shared.failed.insert(key, fetched.clone());
                }
                fetched
            }
        };
        let fetched = self.shared.fetches.join(key.clone(), begin).await;
        fetched.unwrap_or_else(|| Fetched::Ours("a fetch ended early".to_owned())).into_result()
    }

    async fn fetch_alone(
        &self,
        client: &Client,
        key: &Key,
        id: &str,
        shape: Option<ThumbnailKey>,
        wait: Duration,
    ) -> Result<(), Fetched> {
        let ours = |error: &dyn std::fmt::Display| Fetched::Ours(error.to_string());
        let _turn = self.shared.fetching.acquire().await.map_err(|error| ours(&error))?;
        let (server, stored) = key;
        let limit = self.max_upload_bytes();
        let media = match shape {
            None => client.media_download(server, id, wait, limit).await,
            Some(shape) => {
                let query = ThumbnailQuery {
                    width: shape.width,
                    height: shape.height,
                    method: Some(if shape.crop { "crop" } else { "scale" }),
                    animated: Some(shape.animated),
                };
                client.media_thumbnail(server, id, query, wait, limit).await
            }
        };
        let RemoteMedia { content_type, content_disposition, content } = media.map_err(remote)?;
        let object = self.promise(server, stored).await.map_err(|error| ours(&error))?;
        let content = content.map(|piece| {
            piece.map_err(|error| match error {
                RemoteError::TooLarge(_) => WriteError::TooLarge,
                other => WriteError::Broken(other.to_string()),
            })
        });
        let written =
            self.shared.objects.write(&object.name, content, limit).await.map_err(|error| match error {
                WriteError::TooLarge => Fetched::TooLarge(limit),
                WriteError::Broken(why) => Fetched::Failed(why),
                WriteError::Objects(error) => ours(&error),
            })?;
        let now = self.core.now() as i64;
        let object = object.settle();
        let row = MediaRow {
            object: object.clone(),
            content_type: content_type.filter(|kind| !kind.contains('\0')),
            file_name: content_disposition.as_deref().and_then(file_name),
            size: written.size as i64,
            created_at: now,
            last_access_at: now,
            sha256: Some(written.sha256),
            token_only: self.shared.settings.freeze_unauthenticated,
            ..MediaRow::default()
        };
        // Another node may have been faster.
        if self.insert(server.clone(), stored.clone(), row).await.map_err(|error| ours(&error))? {
            self.fetched(written.size);
        } else {
            self.remove_garbage(&object).await;
        }
        Ok(())
    }
}

fn file_name(disposition: &str) -> Option<String> {
    let name = disposition.parse::<ContentDisposition>().ok()?.filename?;
    (!name.contains('\0')).then_some(name)
}

fn remote(error: RemoteError) -> Fetched {
    match error {
        RemoteError::TooLarge(limit) => Fetched::TooLarge(limit),
        RemoteError::Client(error) => match refused(&error) {
            Some((404, "M_NOT_FOUND" | "M_UNRECOGNIZED" | "")) => Fetched::NotFound,
            Some((504, "M_NOT_YET_UPLOADED")) => Fetched::NotYetUploaded,
            _ => Fetched::Failed(error.to_string()),
        },
        RemoteError::Malformed(error) => Fetched::Failed(error.to_string()),
    }
}

fn refused(error: &ClientError) -> Option<(u16, &str)> {
    error.refusal().map(|refusal| (refusal.status.as_u16(), refusal.errcode.as_str()))
}
