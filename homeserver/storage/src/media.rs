//! What is known of uploaded files; the bytes are in the object store.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{ServerName, UserId};

statements! {
    LOAD = "SELECT object, content_type, file_name, size, uploader, created_at, upload_expires_at, quarantined FROM media WHERE server_name = $1 AND media_id = $2";
    INSERT = "INSERT INTO media (server_name, media_id, object, content_type, file_name, size, uploader, created_at, last_access_at, upload_expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9) ON CONFLICT (server_name, media_id) DO NOTHING";
    COMPLETE = "UPDATE media SET object = $3, content_type = $4, file_name = $5, size = $6, upload_expires_at = NULL WHERE server_name = $1 AND media_id = $2 AND object = ''";
    PENDING = "SELECT COUNT(*) FROM media WHERE uploader = $1 AND object = '' AND upload_expires_at > $2";
    THUMBNAIL = "SELECT object, content_type, size FROM thumbnails WHERE server_name = $1 AND media_id = $2 AND width = $3 AND height = $4 AND method = $5 AND animated = $6";
    THUMBNAIL_INSERT = "INSERT INTO thumbnails (server_name, media_id, width, height, method, animated, object, content_type, size) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
    SCAN = "SELECT server_name, media_id, content_type, file_name, size FROM media WHERE (server_name > $1 OR server_name = $1 AND media_id > $2) ORDER BY server_name, media_id LIMIT $3";
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaRow {
    /// Its name in the object store; empty while the upload is awaited.
    pub object: String,
    /// As the uploader said.
    pub content_type: Option<String>,
    /// As the uploader said.
    pub file_name: Option<String>,
    /// Bytes.
    pub size: i64,
    /// The user of this server who uploaded it.
    pub uploader: Option<String>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Until when an awaited upload may come.
    pub upload_expires_at: Option<i64>,
    /// Not to be served.
    pub quarantined: bool,
}

/// A thumbnail's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThumbnailKey {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `crop` rather than `scale`.
    pub crop: bool,
    /// It moves.
    pub animated: bool,
}

impl ThumbnailKey {
    fn method(self) -> &'static str {
        if self.crop { "crop" } else { "scale" }
    }
}

type Columns = (String, Option<String>, Option<String>, i64, Option<String>, i64, Option<i64>, bool);

/// Server, id, content type, file name, size of a file: for audits.
pub type MediaEntry = (String, String, Option<String>, Option<String>, i64);

impl Conn {
    /// What is known of a file.
    pub async fn media_load(&mut self, server: &ServerName, id: &str) -> StoreResult<Option<MediaRow>> {
        let found: Option<Columns> = on_engine!(self, |c| sqlx::query_as(LOAD)
            .bind(server.as_str())
            .bind(id)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(
            |(
                object,
                content_type,
                file_name,
                size,
                uploader,
                created_at,
                upload_expires_at,
                quarantined,
            )| MediaRow {
                object,
                content_type,
                file_name,
                size,
                uploader,
                created_at,
                upload_expires_at,
                quarantined,
            },
        ))
    }

    /// Uploads that the user has announced and not made.
    pub async fn media_pending(&mut self, user: &UserId, now: i64) -> StoreResult<i64> {
        let (count,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(PENDING).bind(user.as_str()).bind(now).fetch_one(c).await)?;
        Ok(count)
    }

    /// Object, content type and size of a thumbnail that was made before.
    pub async fn thumbnail_load(
        &mut self,
        server: &ServerName,
        id: &str,
        key: ThumbnailKey,
    ) -> StoreResult<Option<(String, String, i64)>> {
        Ok(on_engine!(self, |c| sqlx::query_as(THUMBNAIL)
            .bind(server.as_str())
            .bind(id)
            .bind(i64::from(key.width))
            .bind(i64::from(key.height))
            .bind(key.method())
            .bind(key.animated)
            .fetch_optional(c)
            .await)?)
    }

    /// The files after (server, id), in their order.
    pub async fn media_scan(&mut self, server: &str, id: &str, limit: i64) -> StoreResult<Vec<MediaEntry>> {
        Ok(on_engine!(self, |c| sqlx::query_as(SCAN).bind(server).bind(id).bind(limit).fetch_all(c).await)?)
    }
}

impl crate::Tx {
    /// Adds a file. Returns whether it was new.
    pub async fn media_insert(&mut self, server: &ServerName, id: &str, row: &MediaRow) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let made = on_engine!(conn, |c| sqlx::query(INSERT)
            .bind(server.as_str())
            .bind(id)
            .bind(&row.object)
            .bind(row.content_type.as_deref())
            .bind(row.file_name.as_deref())
            .bind(row.size)
            .bind(row.uploader.as_deref())
            .bind(row.created_at)
            .bind(row.upload_expires_at)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(made > 0)
    }

    /// An awaited upload has come. Returns whether it was still awaited.
    pub async fn media_complete(
        &mut self,
        server: &ServerName,
        id: &str,
        row: &MediaRow,
    ) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let done = on_engine!(conn, |c| sqlx::query(COMPLETE)
            .bind(server.as_str())
            .bind(id)
            .bind(&row.object)
            .bind(row.content_type.as_deref())
            .bind(row.file_name.as_deref())
            .bind(row.size)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(done > 0)
    }

    /// Adds a thumbnail.
    pub async fn thumbnail_insert(
        &mut self,
        server: &ServerName,
        id: &str,
        key: ThumbnailKey,
        object: &str,
        content_type: &str,
        size: i64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(THUMBNAIL_INSERT)
            .bind(server.as_str())
            .bind(id)
            .bind(i64::from(key.width))
            .bind(i64::from(key.height))
            .bind(key.method())
            .bind(key.animated)
            .bind(object)
            .bind(content_type)
            .bind(size)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
