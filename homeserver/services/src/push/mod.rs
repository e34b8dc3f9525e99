//! Push notifications: what reaches people's devices while their apps are closed.
//!
//! One node at a time does this, by a lease. It reads the log with a cursor that survives restarts, asks the push
//! rules of the users who have pushers, and marks those to whom there is something to tell: nothing is written for
//! users without pushers, or for each message. What exactly is told is worked out when a pusher's turn comes, from
//! the same counting as the unread counts of a sync: so nothing is told that was read, redacted or left meanwhile,
//! and after a crash, or an outage of the gateway, the database knows from where to go on.
//! <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>

mod deliver;
mod fleet;
mod gateway;
mod inbox;
mod invitation;
mod lease;
mod notification;
mod owed;
mod reader;
pub(crate) mod rules;
mod term;

pub use gateway::{GatewaySettings, Gateways};

use crate::Core;
use crate::notifier::Notifier;
use crate::sync::{IgnoredUsers, Unread};
use inbox::Inboxes;
use lease::Lease;
use std::sync::Arc;
use std::time::Duration;
use term::Term;
use tokio_util::sync::CancellationToken;
use waxwing_storage::StoreResult;

/// How often a node that does not do this asks whether it shall.
const ASK_EVERY: Duration = waxwing_storage::LEASE_RENEW;
/// After a failure to read the database.
const RETRY: Duration = Duration::from_secs(1);

/// What delivering needs.
pub(crate) struct Parts {
    core: Core,
    notifier: Arc<Notifier>,
    unread: Arc<Unread>,
    ignored: IgnoredUsers,
    inboxes: Inboxes,
    gateways: Gateways,
}

/// Delivers push notifications.
pub struct Push {
    parts: Arc<Parts>,
}

impl Push {
    /// `unread` counts for syncs too.
    pub fn new(core: Core, notifier: Arc<Notifier>, unread: Arc<Unread>, gateways: Gateways) -> Push {
        let (ignored, inboxes) = (IgnoredUsers::default(), Inboxes::default());
        Push { parts: Arc::new(Parts { core, notifier, unread, ignored, inboxes, gateways }) }
    }

    /// Delivers whenever it is this node's turn, until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        let lease = Arc::new(Lease::new(self.parts.core.clone()));
        while !stop.is_cancelled() {
            let wait = match self.term(&lease, &stop).await {
                Ok(()) => ASK_EVERY,
                Err(error) => {
                    tracing::warn!(%error, "push notifications are interrupted");
                    RETRY
                }
            };
            let _ = tokio::time::timeout(wait, stop.cancelled()).await;
        }
        if let Err(error) = lease.give_back().await {
            tracing::warn!(%error, "the lease of push notifications could not be given back");
        }
    }

    /// Serves one term, if this node gets the lease.
    async fn term(&self, lease: &Arc<Lease>, stop: &CancellationToken) -> StoreResult<()> {
        if !lease.take().await? {
            return Ok(());
        }
        let ends = stop.child_token();
        let keeping = tokio::spawn({
            let (lease, ends) = (Arc::clone(lease), ends.clone());
            async move { lease.keep(ends).await }
        });
        let result = match Term::start(Arc::clone(&self.parts), Arc::clone(lease)).await {
            Ok(term) => term.serve(&ends).await,
            Err(error) => Err(error),
        };
        ends.cancel();
        let _ = keeping.await;
        result
    }
}
