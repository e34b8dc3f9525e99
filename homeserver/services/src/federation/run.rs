use super::Federation;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often this node asks for rows that other nodes queued for its destinations.
const FOREIGN_POLL: Duration = Duration::from_millis(500);
/// How often leases are renewed.
const RENEW: Duration = Duration::from_secs(4);
/// Destinations woken at once when leases are gained; the sender's own poll finds the rest.
const MAX_GAINED: usize = 1000;

impl Federation {
    /// Sends what waits in the queues until `stop` is cancelled, then lets transactions in flight finish.
    pub async fn run(&self, stop: CancellationToken) {
        if let Err(error) = self.outgoing.outbox.renew().await {
            tracing::warn!(%error, "the leases of the federation sender could not be taken");
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
        self.outgoing.sender.run(stop.cancelled()).await;
        helpers.cancel();
        let _ = own.await;
        let _ = foreign.await;
        let _ = members.await;
        let _ = staged.await;
        if let Err(error) = self.outgoing.outbox.give_back().await {
            tracing::warn!(%error, "the leases of the federation sender could not be given back");
        }
    }

    /// Wakes the sender for rows that this node commits, at once.
    async fn follow_own(&self) {
        loop {
            for destination in self.core.store.outbox_changed().await {
                self.outgoing.sender.wake(&destination);
            }
        }
    }

    /// Renews leases; what waits for destinations that became ours is sent at once.
    async fn renew(&self) {
        let outbox = &self.outgoing.outbox;
        let waiting = match outbox.renew().await {
            Ok(true) => outbox.waiting(MAX_GAINED).await,
            Ok(false) => return,
            Err(error) => Err(error),
        };
        match waiting {
            Ok(waiting) => {
                for state in waiting {
                    self.outgoing.sender.wake(&state.destination);
                }
            }
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
            if renewed.elapsed() >= RENEW {
                renewed = tokio::time::Instant::now();
                self.renew().await;
            }
            let head = self.core.store.tail().head();
            if head == seen {
                continue;
            }
            let found = match self.core.store.read().await {
                Ok(mut conn) => conn.outbox_destinations(seen, head).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(destinations) => {
                    seen = head;
                    for destination in destinations {
                        self.outgoing.sender.wake(&destination);
                    }
                }
                Err(error) => tracing::warn!(%error, "the outbox could not be followed"),
            }
        }
    }
}
