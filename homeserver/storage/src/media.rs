//! What is known of uploaded files; the bytes are in the object store.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{ServerName, UserId};

statements! {
    LOAD = "SELECT object, content_type, file_name, size, uploader, created_at, upload_expires_at, quarantined, sha256, token_only, last_access_at FROM media WHERE server_name = $1 AND media_id = $2";
    INSERT = "INSERT INTO media (server_name, media_id, object, content_type, file_name, size, uploader, created_at, last_access_at, upload_expires_at, sha256, token_only, quarantined) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9, $10, $11, EXISTS (SELECT 1 FROM media AS known WHERE known.sha256 = $10 AND known.quarantined)) ON CONFLICT (server_name, media_id) DO NOTHING";
    COMPLETE = "UPDATE media SET object = $3, content_type = $4, file_name = $5, size = $6, sha256 = $7, token_only = $8, upload_expires_at = NULL, quarantined = EXISTS (SELECT 1 FROM media AS known WHERE known.sha256 = $7 AND known.quarantined) WHERE server_name = $1 AND media_id = $2 AND object = ''";
    PENDING = "SELECT COUNT(*) FROM media WHERE uploader = $1 AND object = '' AND upload_expires_at > $2";
    USED = "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM media WHERE uploader = $1";
    TOUCH = "UPDATE media SET last_access_at = $3 WHERE server_name = $1 AND media_id = $2";
    THUMBNAIL = "SELECT object, content_type, size FROM thumbnails WHERE server_name = $1 AND media_id = $2 AND width = $3 AND height = $4 AND method = $5 AND animated = $6";
    THUMBNAIL_INSERT = "INSERT INTO thumbnails (server_name, media_id, width, height, method, animated, object, content_type, size) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
    SCAN = "SELECT server_name, media_id, content_type, file_name, size FROM media WHERE (server_name > $1 OR server_name = $1 AND media_id > $2) ORDER BY server_name, media_id LIMIT $3";
    OF_USER = "SELECT server_name, media_id, content_type, size, created_at, quarantined FROM media WHERE uploader = $1 AND media_id > $2 ORDER BY media_id LIMIT $3";
    QUARANTINE = "UPDATE media SET quarantined = $3 WHERE (server_name = $1 AND media_id = $2) OR sha256 = (SELECT known.sha256 FROM media AS known WHERE known.server_name = $1 AND known.media_id = $2)";
    QUARANTINE_USER = "UPDATE media SET quarantined = $2 WHERE uploader = $1 AND object <> '' AND NOT (protected AND $2)";
    PROTECT = "UPDATE media SET protected = $3 WHERE server_name = $1 AND media_id = $2";
}

/// What is known of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// Not to be served. What is inserted with bytes of which others are, is too.
    pub quarantined: bool,
    /// SHA-256 of the bytes, hexadecimal; none for files of before it was noted.
    pub sha256: Option<String>,
    /// Never served without a token.
    pub token_only: bool,
    /// When it was last served, to within an hour; milliseconds since the epoch.
    pub last_access_at: i64,
}

/// A file of a user, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaOfUser {
    /// The server's name.
    pub server_name: String,
    /// The id.
    pub media_id: String,
    /// As the uploader said.
    pub content_type: Option<String>,
    /// Bytes.
    pub size: i64,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Not served.
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

type Columns = (
    String,
    Option<String>,
    Option<String>,
    i64,
    Option<String>,
    i64,
    Option<i64>,
    bool,
    Option<String>,
    bool,
    i64,
);
type OfUser = (String, String, Option<String>, i64, i64, bool);

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
        Ok(found.map(row))
    }

    /// Uploads that the user has announced and not made.
    pub async fn media_pending(&mut self, user: &UserId, now: i64) -> StoreResult<i64> {
        let (count,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(PENDING).bind(user.as_str()).bind(now).fetch_one(c).await)?;
        Ok(count)
    }

    /// Bytes of all that the user has uploaded and that is still there.
    pub async fn media_used(&mut self, user: &UserId) -> StoreResult<i64> {
        let (bytes,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(USED).bind(user.as_str()).fetch_one(c).await)?;
        Ok(bytes)
    }

    /// Files of a user, awaited ones too, after the id `after`, in the order of their ids.
    pub async fn media_of_user(
        &mut self,
        user: &UserId,
        after: &str,
        limit: i64,
    ) -> StoreResult<Vec<MediaOfUser>> {
        let found: Vec<OfUser> = on_engine!(self, |c| sqlx::query_as(OF_USER)
            .bind(user.as_str())
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        Ok(found
            .into_iter()
            .map(|(server_name, media_id, content_type, size, created_at, quarantined)| MediaOfUser {
                server_name,
                media_id,
                content_type,
                size,
                created_at,
                quarantined,
            })
            .collect())
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
            .bind(row.sha256.as_deref())
            .bind(row.token_only)
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
            .bind(row.sha256.as_deref())
            .bind(row.token_only)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(done > 0)
    }

    /// The file was served at `now`.
    pub async fn media_touch(&mut self, server: &str, id: &str, now: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(TOUCH)
            .bind(server)
            .bind(id)
            .bind(now)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Puts a file, and every other with the same bytes, under quarantine, or ends that. Returns how many there were.
    pub async fn media_quarantine(&mut self, server: &ServerName, id: &str, on: bool) -> StoreResult<u64> {
        let conn = self.writing().await?;
        Ok(on_engine!(conn, |c| sqlx::query(QUARANTINE)
            .bind(server.as_str())
            .bind(id)
            .bind(on)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?)
    }

    /// The same for everything that a user has uploaded; what is protected is left alone.
    pub async fn media_quarantine_user(&mut self, user: &UserId, on: bool) -> StoreResult<u64> {
        let conn = self.writing().await?;
        Ok(on_engine!(conn, |c| sqlx::query(QUARANTINE_USER)
            .bind(user.as_str())
            .bind(on)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?)
    }

    /// Protects a file from rules that would remove it and from a quarantine of everything of its uploader, or ends
    /// that. Returns whether there is such a file.
    pub async fn media_protect(&mut self, server: &ServerName, id: &str, on: bool) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let changed = on_engine!(conn, |c| sqlx::query(PROTECT)
            .bind(server.as_str())
            .bind(id)
            .bind(on)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(changed > 0)
    }

    /// Adds a thumbnail. Returns whether it was new.
    pub async fn thumbnail_insert(
        &mut self,
        server: &ServerName,
        id: &str,
        key: ThumbnailKey,
        object: &str,
        content_type: &str,
        size: i64,
    ) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let made = on_engine!(conn, |c| sqlx::query(THUMBNAIL_INSERT)
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
            .map(|done| done.rows_affected()))?;
        Ok(made > 0)
    }
}

fn row(columns: Columns) -> MediaRow {
    MediaRow {
        object: columns.0,
        content_type: columns.1,
        file_name: columns.2,
        size: columns.3,
        uploader: columns.4,
        created_at: columns.5,
        upload_expires_at: columns.6,
        quarantined: columns.7,
        sha256: columns.8,
        token_only: columns.9,
        last_access_at: columns.10,
    }
}
