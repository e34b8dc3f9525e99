//! What application services are told: for each a reader of the log with a cursor of its own.
//! <https://spec.matrix.org/v1.19/application-service-api/#pushing-events>
//!
//! One node at a time serves an application service, by a lease. What it is to be told becomes a transaction that is
//! stored, with the cursor, before it is sent, and is sent until it is accepted, always the same bytes under the same
//! id; then comes the next. While an application service is away nothing piles up but the log, which is kept anyway.

mod body;
mod collect;
mod interest;
mod volatile;
mod worker;

use super::{Appservices, PingError, Queries};
use crate::Core;
use crate::presence::PresenceService;
use crate::typing::Typing;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use waxwing_model::opaque_id;
use waxwing_storage::{Engine, Fact, LogRow, NewRow, StoreError, StoreResult};
use worker::Worker;

/// The reference of rows that tell whoever serves an application service that it is there again.
const REFERENCE: &str = "appservice";
/// The owner of the leases where there is one node: after a crash it goes on at once.
const ONLY_NODE: &str = "the only node";

/// What every worker needs.
struct Shared {
    core: Core,
    queries: Queries,
    typing: Typing,
    presence: PresenceService,
    /// Of the leases that this node takes.
    owner: Arc<str>,
}

/// Tells application services what concerns them. A handle: clones share everything.
#[derive(Clone)]
pub struct Feeds {
    shared: Arc<Shared>,
}

impl Feeds {
    /// Tells nothing before [`Feeds::run`].
    pub fn new(core: Core, queries: Queries, typing: Typing, presence: PresenceService) -> Feeds {
        let owner = match core.store.engine() {
            Engine::Sqlite => ONLY_NODE.into(),
            Engine::Postgres => opaque_id(16).into(),
        };
        Feeds { shared: Arc::new(Shared { core, queries, typing, presence, owner }) }
    }

    fn appservices(&self) -> &Appservices {
        self.shared.queries.appservices()
    }

    /// Makes the cursors of application services that are new: they are told what happens from now on. To be called
    /// before requests are served.
    pub async fn prepare(&self) -> StoreResult<()> {
        let told = self.appservices().all().iter().filter(|one| one.url.is_some());
        let ids: Vec<String> = told.map(|one| one.id.to_string()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let core = &self.shared.core;
        let (head, first) = (core.store.tail().head(), core.now());
        core.store
            .write("application services", Vec::new(), move |tx| {
                let ids = ids.clone();
                Box::pin(async move {
                    for id in &ids {
                        // Numbered from the time on: with a new database old numbers do not come again.
                        tx.appservice_cursor_make(id, head, first).await?;
                    }
                    Ok::<(), StoreError>(())
                })
            })
            .await
    }

    /// Serves the application services until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        let mut workers = JoinSet::new();
        for appservice in self.appservices().all().iter().filter(|one| one.url.is_some()) {
            let worker = Worker::new(Arc::clone(&self.shared), Arc::clone(appservice));
            workers.spawn(worker.run(stop.clone()));
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "an application service is no longer served");
            }
        }
    }

    /// Asks an application service to answer, and gives how long it took. One that waits after failures is told at once
    /// what it missed.
    ///
    /// # Errors
    /// [`PingError`].
    pub async fn ping(&self, id: &str, transaction: Option<&str>) -> Result<Duration, PingError> {
        let Some(appservice) = self.appservices().by_id(id) else {
            return Err(PingError::Link(super::LinkError::NoUrl));
        };
        let duration = self.shared.queries.link().ping(appservice, transaction).await?;
        if let Err(error) = self.wake(id).await {
            tracing::warn!(%error, "whoever serves an application service could not be woken");
        }
        Ok(duration)
    }

    /// Tells the node that serves it that the application service is there, if something waits for it.
    async fn wake(&self, id: &str) -> StoreResult<()> {
        let store = &self.shared.core.store;
        if store.read().await?.appservice_transaction_open(id).await?.is_none() {
            return Ok(());
        }
        let row = NewRow::new(Fact::Other).reference(REFERENCE).data(id);
        store
            .write("application service woken", Vec::new(), move |tx| {
                tx.log_append(row.clone());
                Box::pin(async { Ok::<(), StoreError>(()) })
            })
            .await
    }
}

/// Whether the row says that the application service is there again.
fn wakes(row: &LogRow, id: &str) -> bool {
    row.fact == Fact::Other && row.reference.as_deref() == Some(REFERENCE) && row.data.as_deref() == Some(id)
}
