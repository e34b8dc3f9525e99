//! The lease by which one node at a time delivers. On SQLite there is one node, which always does.

use crate::Core;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use waxwing_model::opaque_id;
use waxwing_storage::{Engine, LEASE_LASTS, LEASE_RENEW, StoreError, StoreResult, Tx};

/// Its name in the database.
const NAME: &str = "push";

/// The lease, as this node has it or not.
pub(super) struct Lease {
    core: Core,
    owner: Arc<str>,
    epoch: Mutex<Option<i64>>,
}

impl Lease {
    pub fn new(core: Core) -> Lease {
        Lease { core, owner: opaque_id(16).into(), epoch: Mutex::new(None) }
    }

    fn shared(&self) -> bool {
        self.core.store.engine() == Engine::Postgres
    }

    /// Takes or renews it. Whether this node has it now.
    pub async fn take(&self) -> StoreResult<bool> {
        if !self.shared() {
            return Ok(true);
        }
        let now = self.core.now();
        let epoch = self.core.store.lease_share(NAME, &self.owner, now, LEASE_LASTS).await?;
        *self.epoch.lock() = epoch;
        Ok(epoch.is_some())
    }

    /// Renews it until `ends` is cancelled, and cancels it when the lease is lost.
    pub async fn keep(&self, ends: CancellationToken) {
        if !self.shared() {
            return;
        }
        let began = *self.epoch.lock();
        let mut until = self.core.now() + LEASE_LASTS;
        while tokio::time::timeout(LEASE_RENEW, ends.cancelled()).await.is_err() {
            let now = self.core.now();
            match self.take().await {
                Ok(true) if *self.epoch.lock() == began => until = now + LEASE_LASTS,
                // Somebody else had it in between.
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "the lease of push notifications could not be renewed");
                    if self.core.now() >= until {
                        break;
                    }
                }
            }
        }
        ends.cancel();
    }

    /// Inside a transaction: whether this node still has the lease, and has it until the transaction ends.
    pub async fn holds(&self, tx: &mut Tx) -> StoreResult<bool> {
        if !self.shared() {
            return Ok(true);
        }
        let epoch = *self.epoch.lock();
        match epoch {
            Some(epoch) => tx.lease_hold(NAME, &self.owner, epoch).await,
            None => Ok(false),
        }
    }

    /// Lets another node have it at once.
    pub async fn give_back(&self) -> StoreResult<()> {
        if self.epoch.lock().take().is_none() {
            return Ok(());
        }
        let owner = Arc::clone(&self.owner);
        self.core
            .store
            .write("push lease", Vec::new(), move |tx| {
                let owner = Arc::clone(&owner);
                Box::pin(async move { tx.lease_give_back(NAME, &owner).await })
            })
            .await
    }
}

/// What a write of this module ends with.
#[derive(Debug, thiserror::Error)]
pub(super) enum Written {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The lease is another node's: nothing was written.
    #[error("the lease is another node's")]
    Lost,
}
