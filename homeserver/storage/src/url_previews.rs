//! What pages on the web say of themselves, kept for a while.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;

statements! {
    LOAD = "SELECT answer FROM url_previews WHERE url_hash = $1 AND expires_at > $2 ORDER BY fetched_at DESC LIMIT 1";
    INSERT = "INSERT INTO url_previews (url_hash, fetched_at, expires_at, answer, image) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (url_hash, fetched_at) DO NOTHING";
    OLD = "SELECT url_hash, fetched_at, image FROM url_previews WHERE fetched_at < $1 ORDER BY fetched_at LIMIT $2";
    REMOVE = "DELETE FROM url_previews WHERE url_hash = $1 AND fetched_at = $2";
}

/// A page's row: the hash of its address, when it was read, the media id of its picture.
pub type OldPreview = (String, i64, Option<String>);

impl Conn {
    /// The answer for a page, if one is kept that has not expired.
    pub async fn url_preview_load(&mut self, url_hash: &str, now: i64) -> StoreResult<Option<String>> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(url_hash).bind(now).fetch_optional(c).await)?;
        Ok(found.map(|(answer,)| answer))
    }

    /// Pages that were read before `before`, oldest first.
    pub async fn url_previews_old(&mut self, before: i64, limit: i64) -> StoreResult<Vec<OldPreview>> {
        Ok(on_engine!(self, |c| sqlx::query_as(OLD).bind(before).bind(limit).fetch_all(c).await)?)
    }
}

impl crate::Tx {
    /// Keeps the answer for a page.
    pub async fn url_preview_insert(
        &mut self,
        url_hash: &str,
        now: i64,
        expires_at: i64,
        answer: &str,
        image: Option<&str>,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(INSERT)
            .bind(url_hash)
            .bind(now)
            .bind(expires_at)
            .bind(answer)
            .bind(image)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Forgets one reading of a page.
    pub async fn url_preview_remove(&mut self, url_hash: &str, fetched_at: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REMOVE)
            .bind(url_hash)
            .bind(fetched_at)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
