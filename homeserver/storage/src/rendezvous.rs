//! What two devices pass to each other while one signs the other in.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;

statements! {
    LOAD = "SELECT id, content_type, body, revision, created_at, changed_at, expires_at FROM rendezvous WHERE id = $1 AND expires_at > $2";
    COUNT = "SELECT COUNT(*) FROM rendezvous WHERE expires_at > $1";
    INSERT = "INSERT INTO rendezvous (id, content_type, body, revision, created_at, changed_at, expires_at) VALUES ($1, $2, $3, 1, $4, $4, $5)";
    REPLACE = "UPDATE rendezvous SET content_type = $3, body = $4, revision = revision + 1, changed_at = $5 WHERE id = $1 AND revision = $2 AND expires_at > $5";
    DELETE = "DELETE FROM rendezvous WHERE id = $1";
    PRUNE = "DELETE FROM rendezvous WHERE expires_at <= $1";
}

/// What is left for the other device at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RendezvousRow {
    /// Names the session.
    pub id: String,
    /// What the body is, as its writer said.
    pub content_type: String,
    /// What was written last; encrypted by the devices.
    pub body: Vec<u8>,
    /// Grows with each write.
    pub revision: i64,
    /// When it began, in milliseconds since the Unix epoch.
    pub created_at: u64,
    /// When the body was written.
    pub changed_at: u64,
    /// When it ends.
    pub expires_at: u64,
}

type Columns = (String, String, Vec<u8>, i64, i64, i64, i64);

impl Conn {
    /// A session that has not ended.
    pub async fn rendezvous_load(&mut self, id: &str, now: u64) -> StoreResult<Option<RendezvousRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(id).bind(now as i64).fetch_optional(c).await)?;
        Ok(found.map(|(id, content_type, body, revision, created_at, changed_at, expires_at)| {
            RendezvousRow {
                id,
                content_type,
                body,
                revision,
                created_at: created_at as u64,
                changed_at: changed_at as u64,
                expires_at: expires_at as u64,
            }
        }))
    }

    /// How many sessions there are.
    pub async fn rendezvous_count(&mut self, now: u64) -> StoreResult<i64> {
        let (count,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(COUNT).bind(now as i64).fetch_one(c).await)?;
        Ok(count)
    }
}

impl crate::Tx {
    /// Begins a session.
    pub async fn rendezvous_insert(&mut self, row: &RendezvousRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(INSERT)
            .bind(&row.id)
            .bind(&row.content_type)
            .bind(&row.body)
            .bind(row.created_at as i64)
            .bind(row.expires_at as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Writes over what `revision` left; false: somebody else did, or the session has ended.
    pub async fn rendezvous_replace(
        &mut self,
        id: &str,
        revision: i64,
        content_type: &str,
        body: &[u8],
        now: u64,
    ) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let written = on_engine!(conn, |c| sqlx::query(REPLACE)
            .bind(id)
            .bind(revision)
            .bind(content_type)
            .bind(body)
            .bind(now as i64)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(written > 0)
    }

    /// Ends a session; false: there was none.
    pub async fn rendezvous_delete(&mut self, id: &str) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let gone = on_engine!(conn, |c| sqlx::query(DELETE)
            .bind(id)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(gone > 0)
    }

    /// Drops the sessions that have ended.
    pub async fn rendezvous_prune(&mut self, now: u64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PRUNE).bind(now as i64).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
