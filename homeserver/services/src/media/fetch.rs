//! Files of other servers.

use super::store::object_name;
use super::{Media, MediaError};
use ruma::ServerName;
use ruma::http_headers::ContentDisposition;
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::client::{ClientError, MediaError as RemoteError};
use waxwing_storage::MediaRow;

/// The longest that one file may take to come.
const PATIENCE: Duration = Duration::from_mins(5);

impl Media {
    /// Fetches a file of another server into the object store. Of several who want it one fetches.
    pub(crate) async fn fetch(
        &self,
        server: &ServerName,
        id: &str,
        wait: Duration,
    ) -> Result<(), MediaError> {
        let key = (server.to_owned(), id.to_owned());
        let lock = Arc::clone(self.fetching.lock().entry(key.clone()).or_default());
        let turn = lock.lock().await;
        let known = self.core.store.read().await?.media_load(server, id).await?.is_some();
        let done = if known {
            Ok(())
        } else {
            let fetching = tokio::time::timeout(PATIENCE, self.fetch_alone(server, id, wait));
            fetching.await.unwrap_or_else(|_| Err(MediaError::Remote("it takes too long".to_owned())))
        };
        drop(turn);
        let mut fetching = self.fetching.lock();
        // The map's and ours: nobody else waits.
        if fetching.get(&key).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            fetching.remove(&key);
        }
        done
    }

    async fn fetch_alone(&self, server: &ServerName, id: &str, wait: Duration) -> Result<(), MediaError> {
        let Some(client) = &self.client else { return Err(MediaError::NotFound) };
        let limit = self.max_upload_bytes();
        let media = client.media_download(server, id, wait, limit).await.map_err(remote)?;
        let object = object_name(server, &format!("{id}-{}", waxwing_model::opaque_id(8)));
        let size = self.write(&object, media.content, limit).await.map_err(|error| match error {
            MediaError::TooLarge(limit) => MediaError::RemoteTooLarge(limit),
            MediaError::Broken(why) if why.contains("larger than") => MediaError::RemoteTooLarge(limit),
            MediaError::Broken(why) => MediaError::Remote(why),
            other => other,
        })?;
        let file_name = media
            .content_disposition
            .as_deref()
            .and_then(|value| value.parse::<ContentDisposition>().ok())
            .and_then(|disposition| disposition.filename)
            .filter(|name| !name.contains('\0'));
        let row = MediaRow {
            object: object.clone(),
            content_type: media.content_type,
            file_name,
            size: size as i64,
            uploader: None,
            created_at: self.core.now() as i64,
            upload_expires_at: None,
            quarantined: false,
        };
        if !self.insert(server.to_owned(), id.to_owned(), row).await? {
            self.remove(&object).await;
        }
        Ok(())
    }
}

fn remote(error: RemoteError) -> MediaError {
    match error {
        RemoteError::TooLarge(limit) => MediaError::RemoteTooLarge(limit),
        RemoteError::Client(error) => match refused(&error) {
            Some((404, "M_NOT_FOUND" | "M_UNRECOGNIZED" | "")) => MediaError::NotFound,
            Some((504, _)) => MediaError::NotYetUploaded,
            _ => MediaError::Remote(error.to_string()),
        },
        RemoteError::Malformed(error) => MediaError::Remote(error.to_string()),
    }
}

fn refused(error: &ClientError) -> Option<(u16, &str)> {
    error.refusal().map(|refusal| (refusal.status.as_u16(), refusal.errcode.as_str()))
}
