//! Leases: work that one node at a time does. A lease that is not renewed runs out and falls to whoever asks next.

use crate::engine::on_engine;
use crate::error::StoreResult;
use crate::sql::statements;

statements! {
    TAKE = "INSERT INTO leases (name, owner, epoch, expires_at) VALUES ($1, $2, 1, $3) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, epoch = leases.epoch + CASE WHEN leases.owner = excluded.owner THEN 0 ELSE 1 END, expires_at = excluded.expires_at WHERE leases.owner = excluded.owner OR leases.expires_at < $4 RETURNING epoch";
    HOLD = "UPDATE leases SET epoch = epoch WHERE name = $1 AND owner = $2 AND epoch = $3 RETURNING epoch";
    GIVE_BACK = "UPDATE leases SET expires_at = 0 WHERE name = $1 AND owner = $2";
}

impl crate::Tx {
    /// Takes or renews the lease `name` for `owner` until `until` (milliseconds since the epoch, as `now`). Gives its
    /// epoch, which grows with each change of owner; `None` when another owner holds it.
    pub async fn lease_take(
        &mut self,
        name: &str,
        owner: &str,
        now: u64,
        until: u64,
    ) -> StoreResult<Option<i64>> {
        let conn = self.writing().await?;
        let found: Option<(i64,)> = on_engine!(conn, |c| sqlx::query_as(TAKE)
            .bind(name)
            .bind(owner)
            .bind(until as i64)
            .bind(now as i64)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(|(epoch,)| epoch))
    }

    /// Whether the lease is still the owner's, in the same epoch. Nobody takes it before the transaction ends, so what
    /// the transaction writes is the work of one owner.
    pub async fn lease_hold(&mut self, name: &str, owner: &str, epoch: i64) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let found: Option<(i64,)> = on_engine!(conn, |c| sqlx::query_as(HOLD)
            .bind(name)
            .bind(owner)
            .bind(epoch)
            .fetch_optional(c)
            .await)?;
        Ok(found.is_some())
    }

    /// Lets another owner have the lease at once.
    pub async fn lease_give_back(&mut self, name: &str, owner: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(GIVE_BACK).bind(name).bind(owner).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
