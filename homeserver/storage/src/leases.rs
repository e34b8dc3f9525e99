//! Leases: work that one node at a time does. A lease that is not renewed runs out and falls to whoever asks next.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long a lease lasts without being renewed, milliseconds: what a crashed node delays its work by, together with the
/// time until another node asks. Long enough for a renewal to wait behind a slow commit.
pub const LEASE_LASTS: u64 = 3_500;
/// How often a lease is renewed, and asked for where another node has it.
pub const LEASE_RENEW: Duration = Duration::from_secs(1);

statements! {
    TAKE = "INSERT INTO leases (name, owner, epoch, expires_at) VALUES ($1, $2, 1, $3) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, epoch = leases.epoch + CASE WHEN leases.owner = excluded.owner THEN 0 ELSE 1 END, expires_at = excluded.expires_at WHERE leases.owner = excluded.owner OR leases.expires_at < $4 RETURNING epoch";
    OF_OTHERS = "SELECT name FROM leases WHERE owner <> $1 AND expires_at >= $2";
    HOLD = "UPDATE leases SET epoch = epoch WHERE name = $1 AND owner = $2 AND epoch = $3 RETURNING epoch";
    GIVE_BACK = "UPDATE leases SET expires_at = 0 WHERE name = $1 AND owner = $2";
}

impl Conn {
    /// The leases that others than `owner` hold at `now`.
    async fn leases_of_others(&mut self, owner: &str, now: u64) -> StoreResult<BTreeSet<String>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(OF_OTHERS).bind(owner).bind(now as i64).fetch_all(c).await)?;
        Ok(found.into_iter().map(|(name,)| name).collect())
    }
}

impl crate::Store {
    /// Takes or renews those of the leases `names` that nobody else has, for `lasts` milliseconds after `now`. Gives
    /// the epochs of those that are `owner`'s now. Writes nothing where all are another's, so that asking is cheap.
    pub async fn leases_take(
        &self,
        names: Vec<String>,
        owner: Arc<str>,
        now: u64,
        lasts: u64,
    ) -> StoreResult<Vec<(String, i64)>> {
        let others = self.inner.pools.follower().await?.leases_of_others(&owner, now).await?;
        let free: Vec<String> = names.into_iter().filter(|name| !others.contains(name)).collect();
        if free.is_empty() {
            return Ok(Vec::new());
        }
        self.write("leases", Vec::new(), move |tx| {
            let (free, owner) = (free.clone(), Arc::clone(&owner));
            Box::pin(async move {
                let mut taken = Vec::with_capacity(free.len());
                for name in free {
                    let epoch = tx.lease_take(&name, &owner, now, now + lasts).await?;
                    taken.extend(epoch.map(|epoch| (name, epoch)));
                }
                Ok(taken)
            })
        })
        .await
    }

    /// The same for one lease: its epoch, if it is `owner`'s now.
    pub async fn lease_take(
        &self,
        name: &str,
        owner: &Arc<str>,
        now: u64,
        lasts: u64,
    ) -> StoreResult<Option<i64>> {
        let taken = self.leases_take(vec![name.to_owned()], Arc::clone(owner), now, lasts).await?;
        Ok(taken.into_iter().next().map(|(_, epoch)| epoch))
    }
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
