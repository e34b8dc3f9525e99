//! Leases: work that one node at a time does. A lease that is not renewed runs out and falls to whoever asks next.

use crate::engine::{Conn, Engine, on_engine};
use crate::error::StoreResult;
use crate::sharing::Plan;
use crate::sql::statements;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a lease lasts without being renewed, milliseconds: what a crashed node delays its work by, together with the
/// time until another node asks. Long enough for a renewal to wait behind a slow commit.
pub const LEASE_LASTS: u64 = 3_500;
/// How often a lease is renewed, and asked for where another node has it.
pub const LEASE_RENEW: Duration = Duration::from_secs(1);
/// The rows of nodes that crashed are kept so long, milliseconds; whoever joins removes older ones.
const NODE_REMEMBERED: u64 = 60 * 60 * 1000;

statements! {
    TAKE = "INSERT INTO leases (name, owner, epoch, expires_at) VALUES ($1, $2, 1, $3) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, epoch = leases.epoch + CASE WHEN leases.owner = excluded.owner THEN 0 ELSE 1 END, expires_at = excluded.expires_at WHERE leases.owner = excluded.owner OR leases.expires_at < $4 RETURNING epoch";
    STANDING = "SELECT name, owner FROM leases WHERE expires_at >= $1";
    FORGET_NODES = "DELETE FROM leases WHERE name LIKE 'node/%' AND expires_at < $1";
    FORGET_NODE = "DELETE FROM leases WHERE name = $1";
    HOLD = "UPDATE leases SET epoch = epoch WHERE name = $1 AND owner = $2 AND epoch = $3 RETURNING epoch";
    GIVE_BACK = "UPDATE leases SET expires_at = 0 WHERE name = $1 AND owner = $2";
}

impl Conn {
    /// The leases that somebody holds at `now`, with their owners.
    async fn leases_standing(&mut self, now: u64) -> StoreResult<BTreeMap<String, String>> {
        let found: Vec<(String, String)> =
            on_engine!(self, |c| sqlx::query_as(STANDING).bind(now as i64).fetch_all(c).await)?;
        Ok(found.into_iter().collect())
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
        let standing = self.inner.pools.follower().await?.leases_standing(now).await?;
        let free = |name: &String| standing.get(name).is_none_or(|holder| **holder == *owner);
        let take: Vec<String> = names.into_iter().filter(free).collect();
        if take.is_empty() {
            return Ok(Vec::new());
        }
        self.leases_write(Plan { take, let_go: Vec::new() }, owner, now, lasts).await
    }

    /// The same for work that the nodes share out among themselves: takes what is this node's to do, and lets go of what
    /// is another's. To be asked every [`LEASE_RENEW`], which also shows the others that this node is there.
    pub async fn leases_share(
        &self,
        names: Vec<String>,
        owner: Arc<str>,
        now: u64,
        lasts: u64,
    ) -> StoreResult<Vec<(String, i64)>> {
        if self.engine() == Engine::Sqlite {
            return self.leases_take(names, owner, now, lasts).await;
        }
        let standing = self.inner.pools.follower().await?.leases_standing(now).await?;
        let sharing = &self.inner.sharing;
        let plan = sharing.plan(names, &owner, &standing, now);
        if sharing.renews(now) {
            let (row, node) = (sharing.row(), Arc::<str>::from(sharing.node()));
            let first = !standing.contains_key(&row);
            self.write("node", Vec::new(), move |tx| {
                let (row, node) = (row.clone(), Arc::clone(&node));
                Box::pin(async move {
                    if first {
                        tx.nodes_forget(now.saturating_sub(NODE_REMEMBERED)).await?;
                    }
                    tx.lease_take(&row, &node, now, now + lasts).await.map(|_| ())
                })
            })
            .await?;
        }
        if plan == Plan::default() {
            return Ok(Vec::new());
        }
        self.leases_write(plan, owner, now, lasts).await
    }

    /// From now on nothing is this node's to do, where others are there: what it asks for by [`Store::leases_share`] it
    /// gets no more, what it has it is told to let go.
    ///
    /// # Errors
    /// The database failed: the others see that this node has gone when its row runs out.
    pub async fn leave_cluster(&self) -> StoreResult<()> {
        self.inner.sharing.leave();
        if self.engine() == Engine::Sqlite {
            return Ok(());
        }
        let row = self.inner.sharing.row();
        self.write("node", Vec::new(), move |tx| {
            let row = row.clone();
            Box::pin(async move { tx.node_forget(&row).await })
        })
        .await
    }

    async fn leases_write(
        &self,
        plan: Plan,
        owner: Arc<str>,
        now: u64,
        lasts: u64,
    ) -> StoreResult<Vec<(String, i64)>> {
        let plan = Arc::new(plan);
        self.write("leases", Vec::new(), move |tx| {
            let (plan, owner) = (Arc::clone(&plan), Arc::clone(&owner));
            Box::pin(async move {
                for name in &plan.let_go {
                    tx.lease_give_back(name, &owner).await?;
                }
                let mut taken = Vec::with_capacity(plan.take.len());
                for name in &plan.take {
                    let epoch = tx.lease_take(name, &owner, now, now + lasts).await?;
                    taken.extend(epoch.map(|epoch| (name.clone(), epoch)));
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

    /// [`Store::leases_share`] for one lease.
    pub async fn lease_share(
        &self,
        name: &str,
        owner: &Arc<str>,
        now: u64,
        lasts: u64,
    ) -> StoreResult<Option<i64>> {
        let taken = self.leases_share(vec![name.to_owned()], Arc::clone(owner), now, lasts).await?;
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

    /// Forgets a node.
    async fn node_forget(&mut self, row: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FORGET_NODE).bind(row).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// Forgets nodes that have not been there since `before`.
    async fn nodes_forget(&mut self, before: u64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FORGET_NODES).bind(before as i64).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// Lets another owner have the lease at once.
    pub async fn lease_give_back(&mut self, name: &str, owner: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(GIVE_BACK).bind(name).bind(owner).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
