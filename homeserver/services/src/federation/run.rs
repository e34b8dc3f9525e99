use super::Federation;
use ruma::OwnedServerName;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use waxwing_model::LogPosition;
use waxwing_storage::{LEASE_RENEW, StoreError};

/// How often this node asks for rows that other nodes queued for its destinations.
const FOREIGN_POLL: Duration = Duration::from_millis(500);
/// How often it is kept how far destinations have come: what was sent since is sent again after a crash.
const SAVE: Duration = Duration::from_secs(2);
/// After the database did not answer.
const PAUSE: Duration = Duration::from_secs(1);

impl Federation {
    /// Sends what waits in the queues until `stop` is cancelled, then lets transactions in flight finish.
    pub async fn run(&self, stop: CancellationToken) {
        let outbox = &self.outgoing.outbox;
        while let Err(error) = outbox.begin().await {
            tracing::warn!(%error, "the federation sender could not begin");
            if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
        }
        let helpers = stop.child_token();
        let own = tokio::spawn({
            let (this, stop) = (self.clone(), helpers.clone());
            async move { stop.run_until_cancelled(this.follow_own()).await }
        });
        let foreign = tokio::spawn({
            let (this, stop) = (self.clone(), helpers.clone());
            async move { stop.run_until_cancelled(this.follow_others()).await }
        });
        let members = tokio::spawn({
            let (this, stop) = (self.clone(), helpers.clone());
            async move { stop.run_until_cancelled(this.resync()).await }
        });
        let staged = tokio::spawn({
            let (inbound, stop) = (self.inbound.clone(), helpers.clone());
            async move { stop.run_until_cancelled(inbound.run_staged()).await }
        });
        let saving = tokio::spawn({
            let (this, stop) = (self.clone(), helpers.clone());
            async move { stop.run_until_cancelled(this.save_cursors()).await }
        });
        self.outgoing.sender.run(stop.cancelled()).await;
        helpers.cancel();
        for helper in [own, foreign, saving, members, staged] {
            let _ = helper.await;
        }
        if let Err(error) = outbox.save_cursors().await {
            tracing::warn!(%error, "the cursors of the federation sender could not be kept");
        }
        if let Err(error) = outbox.shards.give_back().await {
            tracing::warn!(%error, "the leases of the federation sender could not be given back");
        }
    }

    /// Wakes the sender for rows that this node commits, at once.
    async fn follow_own(&self) {
        loop {
            let own = self.core.store.outbox_changed().await;
            self.deal(own).await;
        }
    }

    /// Deals out what was committed, `own` having rows of their own, and wakes the sender for it.
    async fn deal(&self, own: BTreeSet<OwnedServerName>) {
        let outbox = &self.outgoing.outbox;
        let mut woken = loop {
            match outbox.follow().await {
                Ok(woken) => break woken,
                Err(error) => tracing::warn!(%error, "the outbox could not be followed"),
            }
            tokio::time::sleep(PAUSE).await;
        };
        woken.extend(outbox.own_rows(own));
        for destination in woken {
            self.outgoing.sender.wake(&destination);
        }
    }

    async fn save_cursors(&self) {
        loop {
            tokio::time::sleep(SAVE).await;
            if let Err(error) = self.outgoing.outbox.save_cursors().await {
                tracing::warn!(%error, "the cursors of the federation sender could not be kept");
            }
        }
    }

    /// Renews leases; what waits for destinations that became ours is sent at once.
    async fn renew(&self) {
        match self.outgoing.outbox.renew().await {
            Ok(true) => self.outgoing.sender.look_again().await,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the leases of the federation sender could not be renewed"),
        }
    }

    /// Wakes it for rows that other nodes commit, and keeps the leases.
    async fn follow_others(&self) {
        if self.core.store.engine() == waxwing_storage::Engine::Sqlite {
            return std::future::pending().await;
        }
        let mut seen = self.core.store.tail().head();
        let mut renewed = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(FOREIGN_POLL).await;
            if renewed.elapsed() >= LEASE_RENEW {
                renewed = tokio::time::Instant::now();
                self.renew().await;
            }
            let head = self.core.store.tail().head();
            if head == seen {
                continue;
            }
            match self.own_rows_between(seen, head).await {
                Ok(destinations) => {
                    seen = head;
                    self.deal(destinations).await;
                }
                Err(error) => tracing::warn!(%error, "the outbox could not be followed"),
            }
        }
    }

    async fn own_rows_between(
        &self,
        seen: LogPosition,
        head: LogPosition,
    ) -> Result<BTreeSet<OwnedServerName>, StoreError> {
        let found = self.core.store.read().await?.outbox_destinations(seen, head).await?;
        Ok(found.into_iter().collect())
    }
}
