//! Which threads users follow (MSC4306).

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use crate::tx::Slot;
use crate::{Fact, NewRow};
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};

statements! {
    LOAD = "SELECT room_id, root_id, subscribed, automatic, unsubscribed_at, position FROM thread_subscriptions WHERE user_id = $1 AND room_id = $2 AND root_id = $3";
    CHANGES = "SELECT room_id, root_id, subscribed, automatic, unsubscribed_at, position FROM thread_subscriptions WHERE user_id = $1 AND position > $2 AND position <= $3 ORDER BY position DESC LIMIT $4";
    SET = "INSERT INTO thread_subscriptions (user_id, room_id, root_id, subscribed, automatic, unsubscribed_at, position) VALUES ($1, $2, $3, $4, $5, $6, 0) ON CONFLICT (user_id, room_id, root_id) DO UPDATE SET subscribed = excluded.subscribed, automatic = excluded.automatic, unsubscribed_at = excluded.unsubscribed_at";
    PLACE = "UPDATE thread_subscriptions SET position = $4 WHERE user_id = $1 AND room_id = $2 AND root_id = $3";
}

/// The reference of the log rows ([`Fact::Other`]) that announce a change.
pub const THREAD_SUBSCRIPTION: &str = "thread_subscription";

/// A user's relation to one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadSubscriptionRow {
    /// The room of the thread.
    pub room: OwnedRoomId,
    /// The event that it starts from.
    pub root: OwnedEventId,
    /// Whether the user follows it.
    pub subscribed: bool,
    /// Whether it began by itself: by a mention or a message of the user's.
    pub automatic: bool,
    /// The number of the room's newest event when the user ceased to follow it.
    pub unsubscribed_at: Option<i64>,
    /// The position in the log of the last change.
    pub position: i64,
}

/// A change that waits for its position.
pub(crate) struct ThreadSubscriptionMark {
    pub user: OwnedUserId,
    pub room: OwnedRoomId,
    pub root: OwnedEventId,
    pub slot: Slot,
}

type Columns = (String, String, bool, bool, Option<i64>, i64);

fn decode(columns: Columns) -> StoreResult<ThreadSubscriptionRow> {
    let (room, root, subscribed, automatic, unsubscribed_at, position) = columns;
    let corrupt = |error: ruma::IdParseError| StoreError::corrupt("thread_subscriptions", &*root, error);
    Ok(ThreadSubscriptionRow {
        room: room.try_into().map_err(corrupt)?,
        root: root.as_str().try_into().map_err(corrupt)?,
        subscribed,
        automatic,
        unsubscribed_at,
        position,
    })
}

impl Conn {
    /// A user's relation to one thread, if there ever was one.
    pub async fn thread_subscription(
        &mut self,
        user: &UserId,
        room: &RoomId,
        root: &EventId,
    ) -> StoreResult<Option<ThreadSubscriptionRow>> {
        let found: Option<Columns> = on_engine!(self, |c| sqlx::query_as(LOAD)
            .bind(user.as_str())
            .bind(room.as_str())
            .bind(root.as_str())
            .fetch_optional(c)
            .await)?;
        found.map(decode).transpose()
    }

    /// The threads whose relation to the user changed last after `after` and not after `upto` (positions in the log),
    /// the newest change first, at most `limit`.
    pub async fn thread_subscriptions_changed(
        &mut self,
        user: &UserId,
        after: i64,
        upto: i64,
        limit: i64,
    ) -> StoreResult<Vec<ThreadSubscriptionRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(CHANGES)
            .bind(user.as_str())
            .bind(after)
            .bind(upto)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(decode).collect()
    }

    pub(crate) async fn thread_subscriptions_place(
        &mut self,
        all: &[ThreadSubscriptionMark],
        position: impl Fn(Slot) -> i64,
    ) -> StoreResult<()> {
        for mark in all {
            on_engine!(self, |c| sqlx::query(PLACE)
                .bind(mark.user.as_str())
                .bind(mark.room.as_str())
                .bind(mark.root.as_str())
                .bind(position(mark.slot))
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }
}

impl crate::Tx {
    /// Sets a user's relation to a thread and announces it; `row.position` is not looked at.
    pub async fn thread_subscription_set(
        &mut self,
        user: &UserId,
        row: &ThreadSubscriptionRow,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SET)
            .bind(user.as_str())
            .bind(row.room.as_str())
            .bind(row.root.as_str())
            .bind(row.subscribed)
            .bind(row.automatic)
            .bind(row.unsubscribed_at)
            .execute(c)
            .await
            .map(|_| ()))?;
        let fact = NewRow::new(Fact::Other)
            .user(user.to_owned())
            .reference(THREAD_SUBSCRIPTION)
            .data(serde_json::json!([row.room, row.root]).to_string());
        let slot = self.log_append(fact);
        self.buffers.thread_subscriptions.push(ThreadSubscriptionMark {
            user: user.to_owned(),
            room: row.room.clone(),
            root: row.root.clone(),
            slot,
        });
        Ok(())
    }
}
