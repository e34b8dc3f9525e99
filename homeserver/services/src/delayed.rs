//! Events that are sent later, unless their sender puts them off or cancels them before: how a client in a call sees to
//! it that its leaving is told when it vanishes (MSC4140).
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/4140>
//!
//! They are rows, so they outlive a restart. One node at a time sends them, by a lease; that each is sent once does not
//! hang on the lease but on its row, which the sending transaction takes out.

use crate::Core;
use crate::timeline::{Author, Draft, Repeatable, Timeline, TimelineError, must_be_joined};
use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, RoomId, UserId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use waxwing_model::{LogPosition, opaque_id};
use waxwing_rooms::sealed;
pub use waxwing_storage::DelayedRow;
use waxwing_storage::{Engine, Fact, LEASE_LASTS, LEASE_RENEW, NewRow, StoreError};

/// The longest delay: calls need minutes; what shall happen next week is no client's heart-beat.
pub const MAX_DELAY: Duration = Duration::from_hours(24);
/// Events of one user that wait at the same time: a few for each call on each device.
const MAX_WAITING: i64 = 100;
/// The largest content: that of an event.
const MAX_CONTENT_BYTES: usize = 65_536;
/// Events sent in one turn before the clock is looked at again.
const BATCH: i64 = 50;
/// The longest sleep between two looks at the table: what a lost hint costs.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// After an error of the database.
const RETRY: Duration = Duration::from_secs(2);
/// How long the lease lasts without being renewed, milliseconds: what a crashed node delays the events by.
const LEASE: u64 = LEASE_LASTS;
/// How often it is renewed, or asked for.
const RENEW: Duration = LEASE_RENEW;
/// The name of the lease.
const LEASE_NAME: &str = "delayed-events";
/// The reference of the log row that says that an event waits.
const SCHEDULED: &str = "delayed_event";

/// Why an event was not put aside, or what waits not changed.
#[derive(Debug, thiserror::Error)]
pub enum DelayedError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be sent now either.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// The delay is longer than [`MAX_DELAY`].
    #[error("the delay is too long")]
    TooLong,
    /// As many events wait as may.
    #[error("too many delayed events")]
    TooMany,
    /// Memberships change at once or not at all.
    #[error("a membership cannot be delayed")]
    Membership,
    /// Nothing with this id waits.
    #[error("delayed event not found")]
    NotFound,
}

/// What becomes of an event that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayAction {
    /// It waits anew.
    Restart,
    /// It is never sent.
    Cancel,
    /// It is sent now.
    Send,
}

impl DelayAction {
    /// The action of this name.
    pub fn parse(name: &str) -> Option<DelayAction> {
        match name {
            "restart" => Some(DelayAction::Restart),
            "cancel" => Some(DelayAction::Cancel),
            "send" => Some(DelayAction::Send),
            _ => None,
        }
    }
}

/// Keeps events for later and sends them. A handle: clones share everything.
#[derive(Clone)]
pub struct Delayed {
    core: Core,
    timeline: Timeline,
    owner: Arc<str>,
}

impl Delayed {
    /// Over the database of `core`; `timeline` sends.
    pub fn new(core: Core, timeline: Timeline) -> Delayed {
        Delayed { core, timeline, owner: opaque_id(16).into() }
    }

    /// Puts an event aside, to be sent after `delay` milliseconds. Gives the id by which it can be changed; with
    /// `repeat`, a repetition gets the first answer.
    ///
    /// # Errors
    /// [`DelayedError::TooLong`], [`DelayedError::TooMany`]; [`DelayedError::Timeline`] for one who is not in the room,
    /// and for plaintext where it is refused.
    pub async fn schedule(
        &self,
        author: &Author,
        device: &str,
        room: &RoomId,
        draft: &Draft,
        delay: u64,
        repeat: Option<Repeatable>,
    ) -> Result<String, DelayedError> {
        if u128::from(delay) > MAX_DELAY.as_millis() {
            return Err(DelayedError::TooLong);
        }
        if draft.kind == TimelineEventType::RoomMember {
            return Err(DelayedError::Membership);
        }
        let policy = self.timeline.seal_policy(room, author);
        sealed::check_local_send(&draft.kind, &draft.content, draft.state_key.as_deref(), &policy)
            .map_err(TimelineError::from)?;
        if draft.content.get().len() > MAX_CONTENT_BYTES {
            return Err(TimelineError::TooLarge.into());
        }
        let row = DelayedRow {
            delay_id: opaque_id(32),
            user: author.user.clone(),
            device: device.to_owned(),
            appservice: author.appservice.clone(),
            room: room.to_owned(),
            kind: draft.kind.to_string(),
            state_key: draft.state_key.clone(),
            content: draft.content.get().to_owned(),
            sticky_ms: draft.sticky_ms.map(i64::from),
            delay: i64::try_from(delay).unwrap_or(i64::MAX),
            running_since: i64::try_from(self.core.now()).unwrap_or(i64::MAX),
        };
        let now = self.core.now();
        let key = repeat.map(|it| (author.user.clone(), it.device, it.endpoint, it.txn_id));
        let input = Arc::new((row, key));
        self.core
            .store
            .write("schedule event", vec![room.to_owned()], move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (row, key) = &*input;
                    if let Some(key) = key
                        && let Some(done) = tx.transaction_get(key).await?
                    {
                        return Ok(done);
                    }
                    must_be_joined(tx, &row.room, &row.user).await?;
                    if tx.delayed_events_count(&row.user).await? >= MAX_WAITING {
                        return Err(DelayedError::TooMany);
                    }
                    tx.delayed_event_add(row).await?;
                    if let Some(key) = key {
                        tx.transaction_put(key.clone(), row.delay_id.clone(), now);
                    }
                    tx.log_append(NewRow::new(Fact::Other).reference(SCHEDULED));
                    Ok(row.delay_id.clone())
                })
            })
            .await
    }

    /// What waits of a user's, the next one first.
    pub async fn list(&self, user: &UserId) -> Result<Vec<DelayedRow>, DelayedError> {
        Ok(self.core.store.read().await?.delayed_events_of(user, MAX_WAITING).await?)
    }

    /// Changes what waits. Whoever knows the id may: it is as good as a password.
    ///
    /// # Errors
    /// [`DelayedError::NotFound`]; [`DelayedError::Timeline`] when it cannot be sent: it waits no longer then.
    pub async fn act(&self, id: &str, action: DelayAction) -> Result<(), DelayedError> {
        match action {
            DelayAction::Send => {
                let row = self.core.store.read().await?.delayed_event(id).await?;
                let row = row.ok_or(DelayedError::NotFound)?;
                self.send(&row, i64::MAX).await?.map(|_| ()).ok_or(DelayedError::NotFound)
            }
            DelayAction::Cancel => self.take(id, i64::MAX).await,
            DelayAction::Restart => {
                let (id, now) = (id.to_owned(), self.core.now());
                self.core
                    .store
                    .write("restart delay", Vec::new(), move |tx| {
                        let id = id.clone();
                        Box::pin(async move {
                            let there = tx.delayed_event_restart(&id, now).await?;
                            if there { Ok(()) } else { Err(DelayedError::NotFound) }
                        })
                    })
                    .await
            }
        }
    }

    async fn take(&self, id: &str, by: i64) -> Result<(), DelayedError> {
        let id = id.to_owned();
        self.core
            .store
            .write("cancel delay", Vec::new(), move |tx| {
                let id = id.clone();
                Box::pin(async move {
                    let there = tx.delayed_event_take(&id, by).await?;
                    if there { Ok(()) } else { Err(DelayedError::NotFound) }
                })
            })
            .await
    }

    /// Sends one; what cannot be sent is dropped, but for a failing database.
    async fn send(&self, row: &DelayedRow, by: i64) -> Result<Option<OwnedEventId>, DelayedError> {
        match self.timeline.send_delayed(row, by).await {
            Ok(sent) => Ok(sent),
            Err(error @ (TimelineError::Store(_) | TimelineError::Raced)) => Err(error.into()),
            Err(error) => {
                match self.take(&row.delay_id, by).await {
                    Ok(()) => {}
                    Err(DelayedError::NotFound) => return Ok(None),
                    Err(error) => return Err(error),
                }
                tracing::info!(room = %row.room, %error, "a delayed event could not be sent");
                Err(error.into())
            }
        }
    }

    /// Sends what is due until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        let mut head = self.core.store.tail().subscribe();
        let mut seen = self.core.store.tail().head();
        while !stop.is_cancelled() {
            let sleep = self.turn().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "delayed events could not be sent");
                RETRY
            });
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(sleep) => {}
                () = self.scheduled(&mut head, &mut seen) => {}
            }
        }
        if self.shared()
            && let Err(error) = self.give_back().await
        {
            tracing::warn!(%error, "the lease of delayed events could not be given back");
        }
    }

    fn shared(&self) -> bool {
        self.core.store.engine() == Engine::Postgres
    }

    /// Sends what is due, if it is this node's turn; gives for how long there is nothing to do.
    async fn turn(&self) -> Result<Duration, DelayedError> {
        let longest = if self.shared() { RENEW } else { LONGEST_SLEEP };
        let mut conn = self.core.store.read().await?;
        let Some(next) = conn.delayed_event_next().await? else { return Ok(longest) };
        drop(conn);
        if self.shared() && !self.lease().await? {
            return Ok(RENEW);
        }
        let now = self.core.now();
        let wait = u64::try_from(next).unwrap_or(0).saturating_sub(now);
        if wait > 0 {
            return Ok(Duration::from_millis(wait).min(longest));
        }
        let due = self.core.store.read().await?.delayed_events_due(now, BATCH).await?;
        for row in due {
            match self.send(&row, i64::try_from(now).unwrap_or(i64::MAX)).await {
                Err(DelayedError::Store(error)) => return Err(error.into()),
                Err(error @ DelayedError::Timeline(TimelineError::Store(_) | TimelineError::Raced)) => {
                    return Err(error);
                }
                // Sent, or dropped: the log says so.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(Duration::ZERO)
    }

    /// Waits until somebody puts an event aside.
    async fn scheduled(&self, head: &mut watch::Receiver<LogPosition>, seen: &mut LogPosition) {
        loop {
            let upto = *head.borrow_and_update();
            let rows = self.core.store.tail().range(*seen, upto);
            *seen = upto;
            // Rows that have left memory may have been of the kind.
            let found = rows.is_none_or(|rows| {
                rows.iter().any(|row| row.fact == Fact::Other && row.reference.as_deref() == Some(SCHEDULED))
            });
            if found {
                return;
            }
            if head.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn lease(&self) -> Result<bool, StoreError> {
        let epoch = self.core.store.lease_take(LEASE_NAME, &self.owner, self.core.now(), LEASE).await?;
        Ok(epoch.is_some())
    }

    async fn give_back(&self) -> Result<(), StoreError> {
        let owner = Arc::clone(&self.owner);
        self.core
            .store
            .write("delayed events lease", Vec::new(), move |tx| {
                let owner = Arc::clone(&owner);
                Box::pin(async move { tx.lease_give_back(LEASE_NAME, &owner).await })
            })
            .await
    }
}
