//! `/sync`: what happened for a user since a token, or everything there is to know without one.
//!
//! An answer is built from the tail of the log: only rooms in which something happened are looked at. The position in
//! the token is where the [folds](crate::folds) stand; what lies in tables beside the log (account data, receipts)
//! may be newer than it and is then sent again, which changes nothing for the client.
//! <https://spec.matrix.org/v1.19/client-server-api/#syncing>

mod account_data;
mod ahead;
mod build;
mod devices;
mod ephemeral;
pub mod filter;
mod filters;
mod invites;
mod joined;
mod lazy;
mod left;
pub mod response;
mod rooms;
pub mod sliding;
mod state;
mod sticky;
mod summary;
mod timeline;
pub mod token;
pub mod unread;
mod window;

pub(crate) use account_data::IgnoredUsers;
pub(crate) use ephemeral::{presence_event, receipt_event};
pub use filter::SyncFilter;
pub use response::{StateWanted, SyncResponse};
pub use token::{BadToken, SyncToken};
pub use unread::{RoomUnread, Unread};

use crate::Core;
use crate::notifier::Notifier;
use crate::presence::PresenceService;
use crate::render::Viewer;
use crate::typing::Typing;
use build::Build;
use ruma::UserId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use waxwing_model::LogPosition;
use waxwing_storage::StoreError;

/// A poll waits no longer than this, whatever the client asks: connections are cut by others after about that time.
pub const MAX_TIMEOUT: Duration = Duration::from_mins(1);
/// A sync with a token of another node waits so long for this one to reach it.
const CATCH_UP: Duration = Duration::from_secs(5);

/// What a client asks.
#[derive(Clone, Debug)]
pub struct SyncRequest {
    /// Who, on which device.
    pub viewer: Viewer,
    /// Where the last answer ended; none: from the beginning.
    pub since: Option<SyncToken>,
    /// What is wanted.
    pub filter: Arc<SyncFilter>,
    /// All state of all joined rooms, changed or not.
    pub full_state: bool,
    /// How long to wait for news.
    pub timeout: Duration,
    /// Where in the timeline the state shall stand.
    pub state: StateWanted,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The filter is neither JSON of a filter nor the id of one.
    #[error("no such filter: {0}")]
    BadFilter(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Answers syncs.
pub struct Sync {
    core: Core,
    notifier: Arc<Notifier>,
    typing: Typing,
    presence: PresenceService,
    unread: Arc<Unread>,
    filters: filters::Filters,
    ignored: IgnoredUsers,
    lazy: lazy::SentMembers,
    summaries: summary::Summaries,
    devices: devices::Devices,
    facts: sliding::Facts,
    states: sliding::States,
    stop: CancellationToken,
}

impl Sync {
    /// Over the log that `notifier` follows. Starts the tasks that wake syncs for typing and presence; they end with
    /// the notifier. When `stop` is cancelled, polls are answered at once.
    pub fn new(
        core: Core,
        notifier: Arc<Notifier>,
        typing: Typing,
        presence: PresenceService,
        stop: CancellationToken,
    ) -> Sync {
        ephemeral::wake(&core, &notifier, &typing, &presence);
        Sync {
            unread: Arc::new(Unread::new(core.clone())),
            filters: filters::Filters::default(),
            ignored: IgnoredUsers::default(),
            lazy: lazy::SentMembers::default(),
            summaries: summary::Summaries::default(),
            devices: devices::Devices::default(),
            facts: sliding::Facts::default(),
            states: sliding::States::default(),
            core,
            notifier,
            typing,
            presence,
            stop,
        }
    }

    /// Unread counts, which others (push) share.
    pub fn unread(&self) -> &Arc<Unread> {
        &self.unread
    }

    /// The filter that a request names: JSON, or the id of a stored one.
    ///
    /// # Errors
    /// [`SyncError::BadFilter`].
    pub async fn filter(&self, user: &UserId, named: &str) -> Result<Arc<SyncFilter>, SyncError> {
        self.filters.named(&self.core, user, named).await
    }

    /// The filter of a request that names none.
    pub fn no_filter(&self) -> Arc<SyncFilter> {
        self.filters.none()
    }

    /// Answers at once when there is news, or when the client has nothing yet; else when there is, or in time.
    pub async fn sync(&self, request: &SyncRequest) -> Result<SyncResponse, SyncError> {
        let started = Instant::now();
        let deadline = started + request.timeout.min(MAX_TIMEOUT);
        let follower = self.notifier.follow(&request.viewer.user);
        let since = request.since.as_ref();
        Box::pin(self.take_in(since.map(|since| since.position), started + CATCH_UP)).await?;
        if let Some(since) = since {
            Box::pin(self.acknowledge_to_device(&request.viewer, since.to_device)).await?;
        }
        loop {
            let wakes = follower.wakes();
            // On the heap, and gone while the client waits: thousands wait at a time.
            let built = Box::pin(async { Build::new(self, request, &follower).await?.run().await });
            let answer = built.await?;
            let now = request.since.is_none() || request.full_state || !answer.is_empty();
            if now || deadline <= started {
                return Ok(answer);
            }
            let woken = tokio::select! {
                woken = follower.wait(wakes, deadline) => woken,
                () = self.stop.cancelled() => false,
            };
            if !woken {
                return Ok(answer);
            }
        }
    }

    /// What was written before a request came, at this node or another, shows in its answer; and what lies before the
    /// position that the client brings is here. Asked once for each request: one that waits hears of what comes later.
    async fn take_in(&self, since: Option<LogPosition>, deadline: Instant) -> Result<(), StoreError> {
        let store = &self.core.store;
        match since {
            None => store.catch_up().await?,
            // A position beyond the end of the log is of no log of this server's: it is not waited for.
            Some(since) if store.level(deadline).await.is_none() => {
                self.notifier.reach(since, deadline).await;
            }
            Some(_) => {}
        }
        self.notifier.reach(store.tail().head(), deadline).await;
        Ok(())
    }
}
