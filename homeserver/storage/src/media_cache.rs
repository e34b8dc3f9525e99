//! What becomes of files that go: the cache of other servers' files, awaited uploads that never came, erased users, and
//! the objects that no row names any more.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{ServerName, UserId};

statements! {
    REMOTE_BYTES = "SELECT CAST(COALESCE((SELECT SUM(size) FROM media WHERE server_name <> $1), 0) + COALESCE((SELECT SUM(size) FROM thumbnails WHERE server_name <> $1), 0) AS BIGINT)";
    OLDEST = "SELECT server_name, media_id, size, last_access_at FROM media WHERE server_name <> $1 AND last_access_at < $2 AND NOT quarantined AND NOT protected ORDER BY last_access_at LIMIT $3";
    REMOVE = "DELETE FROM media WHERE server_name = $1 AND media_id = $2 RETURNING object";
    REMOVE_THUMBNAILS = "DELETE FROM thumbnails WHERE server_name = $1 AND media_id = $2 RETURNING object";
    EXPIRE = "DELETE FROM media WHERE object = '' AND upload_expires_at < $1";
    UNBLOCK = "DELETE FROM media WHERE server_name = $1 AND media_id = $2 AND object = '' AND upload_expires_at IS NULL";
    GARBAGE_ADD = "INSERT INTO media_garbage (object, due_at) VALUES ($1, $2) ON CONFLICT (object) DO UPDATE SET due_at = excluded.due_at";
    GARBAGE_DUE = "SELECT object FROM media_garbage WHERE due_at <= $1 ORDER BY due_at LIMIT $2";
    GARBAGE_DROP = "DELETE FROM media_garbage WHERE object = $1";
    ERASURE_ADD = "INSERT INTO media_erasures (user_id) VALUES ($1) ON CONFLICT (user_id) DO NOTHING";
    ERASURES = "SELECT user_id FROM media_erasures ORDER BY user_id LIMIT $1";
    ERASURE_DROP = "DELETE FROM media_erasures WHERE user_id = $1";
}

/// A file in the cache: server, id, bytes, when it was last served.
pub type CachedMedia = (String, String, i64, i64);

impl Conn {
    /// Bytes of all files and thumbnails of servers other than `own`.
    pub async fn media_remote_bytes(&mut self, own: &ServerName) -> StoreResult<i64> {
        let (bytes,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(REMOTE_BYTES).bind(own.as_str()).fetch_one(c).await)?;
        Ok(bytes)
    }

    /// Files of servers other than `own` that were last served before `before`, the least recent first. Those under
    /// quarantine stay, for their hashes are known by them, and so do those that are protected.
    pub async fn media_oldest(
        &mut self,
        own: &ServerName,
        before: i64,
        limit: i64,
    ) -> StoreResult<Vec<CachedMedia>> {
        Ok(on_engine!(self, |c| sqlx::query_as(OLDEST)
            .bind(own.as_str())
            .bind(before)
            .bind(limit)
            .fetch_all(c)
            .await)?)
    }

    /// Objects to be removed by now.
    pub async fn media_garbage_due(&mut self, now: i64, limit: i64) -> StoreResult<Vec<String>> {
        let rows: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(GARBAGE_DUE).bind(now).bind(limit).fetch_all(c).await)?;
        Ok(rows.into_iter().map(|(object,)| object).collect())
    }

    /// Users whose files are being removed.
    pub async fn media_erasures(&mut self, limit: i64) -> StoreResult<Vec<String>> {
        let rows: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(ERASURES).bind(limit).fetch_all(c).await)?;
        Ok(rows.into_iter().map(|(user,)| user).collect())
    }
}

impl crate::Tx {
    /// Forgets a file and its thumbnails; their objects become garbage, due at `due`. Returns whether it was there.
    pub async fn media_remove(&mut self, server: &str, id: &str, due: i64) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let removed: Vec<(String,)> =
            on_engine!(conn, |c| sqlx::query_as(REMOVE).bind(server).bind(id).fetch_all(c).await)?;
        let thumbnails: Vec<(String,)> =
            on_engine!(conn, |c| sqlx::query_as(REMOVE_THUMBNAILS).bind(server).bind(id).fetch_all(c).await)?;
        for (object,) in removed.iter().chain(&thumbnails).filter(|(object,)| !object.is_empty()) {
            self.media_garbage_add(object, due).await?;
        }
        Ok(!removed.is_empty())
    }

    /// Forgets awaited uploads that can no longer come. Returns how many there were.
    pub async fn media_expire(&mut self, now: i64) -> StoreResult<u64> {
        let conn = self.writing().await?;
        Ok(on_engine!(conn, |c| sqlx::query(EXPIRE)
            .bind(now)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?)
    }

    /// Forgets a row that only kept a file of another server from being fetched.
    pub async fn media_unblock(&mut self, server: &ServerName, id: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(UNBLOCK)
            .bind(server.as_str())
            .bind(id)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Notes an object that is to be removed at `due` unless a row names it by then.
    pub async fn media_garbage_add(&mut self, object: &str, due: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(GARBAGE_ADD).bind(object).bind(due).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// An object is no garbage: a row names it, or it is gone.
    pub async fn media_garbage_drop(&mut self, object: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(GARBAGE_DROP).bind(object).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// Notes that the files of a user are to be removed.
    pub async fn media_erasure_add(&mut self, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(ERASURE_ADD).bind(user.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// The files of a user are removed.
    pub async fn media_erasure_drop(&mut self, user: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(ERASURE_DROP).bind(user).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
