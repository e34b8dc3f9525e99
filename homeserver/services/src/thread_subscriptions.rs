//! Threads that people follow, by their own wish or because they were mentioned in them (MSC4306, MSC4308).
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/4306>

use crate::Core;
use crate::render::Viewer;
use crate::rooms_read::{PageToken, ReadError, RoomReader};
use crate::timeline::relation;
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId};
use std::sync::Arc;
pub use waxwing_storage::ThreadSubscriptionRow;
use waxwing_storage::{Fact, LogRow, StoreError, StoredEvent, THREAD_SUBSCRIPTION};

/// Threads of one page at most.
pub const MAX_LIMIT: usize = 500;
/// Threads of a page unless the client says otherwise.
pub const DEFAULT_LIMIT: usize = 100;

/// Why a subscription was not changed or found.
#[derive(Debug, thiserror::Error)]
pub enum SubscriptionError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The room or the thread cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The user does not follow the thread.
    #[error("you are not subscribed to this thread")]
    NotSubscribed,
    /// The event that is said to be the cause is not in the thread.
    #[error("the event is not in the thread")]
    NotInThread,
    /// The user ceased to follow the thread after the event that is said to be the cause.
    #[error("you unsubscribed from the thread after that event")]
    Unsubscribed,
}

type Answer<T> = Result<T, SubscriptionError>;

/// A page of a user's threads.
#[derive(Debug, Default)]
pub struct SubscriptionPage {
    /// The newest change first.
    pub rows: Vec<ThreadSubscriptionRow>,
    /// Where to go on towards older changes; none when there are no more.
    pub end: Option<String>,
}

/// Keeps subscriptions.
#[derive(Clone)]
pub struct ThreadSubscriptions {
    core: Core,
    reader: RoomReader,
}

impl ThreadSubscriptions {
    /// Over the database of `core`; `reader` knows who sees which events.
    pub fn new(core: Core, reader: RoomReader) -> ThreadSubscriptions {
        ThreadSubscriptions { core, reader }
    }

    /// Whether the user follows the thread by something that happened in it; an error if not at all.
    ///
    /// # Errors
    /// [`SubscriptionError::NotSubscribed`], [`SubscriptionError::Read`] for a thread that the viewer may not see.
    pub async fn get(&self, viewer: &Viewer, room: &RoomId, root: &EventId) -> Answer<bool> {
        self.reader.visible(viewer, room, root).await?;
        let row = self.core.store.read().await?.thread_subscription(&viewer.user, room, root).await?;
        row.filter(|row| row.subscribed).map(|row| row.automatic).ok_or(SubscriptionError::NotSubscribed)
    }

    /// Follows a thread from now on. `cause`: the event in the thread because of which a client does so by itself.
    ///
    /// # Errors
    /// [`SubscriptionError::NotInThread`], [`SubscriptionError::Unsubscribed`]; [`SubscriptionError::Read`] for a
    /// thread that the viewer may not see.
    pub async fn subscribe(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        root: &EventId,
        cause: Option<&EventId>,
    ) -> Answer<()> {
        self.reader.visible(viewer, room, root).await?;
        let cause = match cause {
            Some(cause) => Some(self.cause(viewer, room, root, cause).await?.sn),
            None => None,
        };
        let input = Arc::new((viewer.user.clone(), room.to_owned(), root.to_owned()));
        self.core
            .store
            .write("subscribe to thread", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (user, room, root) = &*input;
                    let before = tx.thread_subscription(user, room, root).await?;
                    let mut row = before.clone().unwrap_or_else(|| ThreadSubscriptionRow {
                        room: room.clone(),
                        root: root.clone(),
                        subscribed: false,
                        automatic: true,
                        unsubscribed_at: None,
                        position: 0,
                    });
                    if let Some(cause) = cause
                        && !row.subscribed
                        && row.unsubscribed_at.is_some_and(|at| cause <= at)
                    {
                        return Err(SubscriptionError::Unsubscribed);
                    }
                    // What was wished for stays so, whatever happens in the thread.
                    row.automatic = cause.is_some() && (!row.subscribed || row.automatic);
                    row.subscribed = true;
                    row.unsubscribed_at = None;
                    if before.as_ref() != Some(&row) {
                        tx.thread_subscription_set(user, &row).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// The event in the thread that is said to be the cause.
    async fn cause(
        &self,
        viewer: &Viewer,
        room: &RoomId,
        root: &EventId,
        cause: &EventId,
    ) -> Answer<Arc<StoredEvent>> {
        let stored = match self.reader.visible(viewer, room, cause).await {
            Err(ReadError::NotFound(_) | ReadError::Forbidden) => return Err(SubscriptionError::NotInThread),
            other => other?,
        };
        match relation(&stored.event) {
            Some((parent, rel_type)) if parent == *root && rel_type == "m.thread" => Ok(stored),
            _ => Err(SubscriptionError::NotInThread),
        }
    }

    /// Follows a thread no longer. One that the user does not follow stays as it is.
    ///
    /// # Errors
    /// [`SubscriptionError::Read`] for a thread that the viewer may not see.
    pub async fn unsubscribe(&self, viewer: &Viewer, room: &RoomId, root: &EventId) -> Answer<()> {
        self.reader.visible(viewer, room, root).await?;
        let input = Arc::new((viewer.user.clone(), room.to_owned(), root.to_owned()));
        self.core
            .store
            .write("unsubscribe from thread", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let (user, room, root) = &*input;
                    let before = tx.thread_subscription(user, room, root).await?;
                    let Some(mut row) = before.filter(|row| row.subscribed) else { return Ok(()) };
                    row.subscribed = false;
                    row.automatic = false;
                    let newest = tx.events_backward(room, i64::MAX, 1).await?.pop();
                    row.unsubscribed_at = Some(newest.map_or(0, |newest| newest.sn));
                    tx.thread_subscription_set(user, &row).await?;
                    Ok(())
                })
            })
            .await
    }

    /// A page towards older changes: from `from` (none: the newest) down to `to`.
    ///
    /// # Errors
    /// [`SubscriptionError::Read`] for foreign tokens.
    pub async fn page(
        &self,
        user: &UserId,
        from: Option<&str>,
        to: Option<&str>,
        limit: Option<usize>,
    ) -> Answer<SubscriptionPage> {
        let upto = from.map(PageToken::parse).transpose()?.map_or(i64::MAX, |token| token.0);
        let after = to.map(PageToken::parse).transpose()?.map_or(0, |token| token.0);
        Ok(changes(&self.core, user, after, upto, limit).await?)
    }
}

/// Changes of a user's subscriptions after `after` and up to `upto` (positions in the log), the newest first; with a place
/// to go on from where there are more than `limit`. What a sync shows, and pages after it.
pub(crate) async fn changes(
    core: &Core,
    user: &UserId,
    after: i64,
    upto: i64,
    limit: Option<usize>,
) -> Result<SubscriptionPage, StoreError> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let mut conn = core.store.read().await?;
    let mut rows = conn.thread_subscriptions_changed(user, after, upto, limit as i64 + 1).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let end = rows.last().filter(|_| more).map(|last| PageToken(last.position - 1).to_string());
    Ok(SubscriptionPage { rows, end })
}

/// Whether a row of the log announces a change of a subscription of the user it names.
pub(crate) fn is_change(row: &LogRow) -> bool {
    row.fact == Fact::Other && row.reference.as_deref() == Some(THREAD_SUBSCRIPTION)
}

/// The room in whose threads such a row says that something changed.
pub(crate) fn changed_room(row: &LogRow) -> Option<OwnedRoomId> {
    let (room, _root): (OwnedRoomId, OwnedEventId) =
        serde_json::from_str(row.data.as_deref().filter(|_| is_change(row))?).ok()?;
    Some(room)
}
