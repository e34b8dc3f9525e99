//! Reads the log and marks those to whom there is something to tell.

use super::lease::Written;
use super::rules::flattened;
use super::term::{CURSOR, Term};
use crate::thread_subscriptions::is_change;
use ruma::push::{Action, FlattenedJson};
use ruma::{OwnedUserId, UserId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, LogRow, StoreResult, StoredEvent};

/// Log rows read at once.
const BATCH_ROWS: usize = 500;
/// How long the folds get to take in what was read: they follow the same log.
const PATIENCE: Duration = Duration::from_secs(5);

impl Term {
    /// Reads up to the head of the log.
    pub(super) async fn read_on(&self) -> Result<(), Written> {
        let store = &self.parts.core.store;
        loop {
            let (after, head) = (self.cursor(), store.tail().head());
            if after >= head {
                return Ok(());
            }
            let upto = LogPosition((after.0 + BATCH_ROWS as i64).min(head.0));
            let rows = store.log_rows(after, upto, BATCH_ROWS as i64).await?;
            // Positions of rolled-back transactions do not exist: an empty stretch is read as well.
            let last = rows.last().map_or(upto, |row| row.position);
            if !self.parts.notifier.reach(last, Instant::now() + PATIENCE).await {
                // Who is in which room is not known yet: these rows are read when it is.
                tracing::warn!(
                    lag_rows = head.0 - after.0,
                    "push notifications wait for the log to be taken in"
                );
                return Ok(());
            }
            let mut marked = BTreeSet::new();
            for row in &rows {
                self.look_at(row, last, &mut marked).await?;
            }
            self.mark(marked, last).await?;
        }
    }

    async fn mark(&self, users: BTreeSet<OwnedUserId>, upto: LogPosition) -> Result<(), Written> {
        if users.is_empty() {
            self.set_cursor(upto);
            return Ok(());
        }
        let users: Arc<[OwnedUserId]> = users.into_iter().collect();
        let input = Arc::clone(&users);
        self.write("push marks", move |tx| {
            let users = Arc::clone(&input);
            Box::pin(async move {
                tx.pushers_mark(&users, upto.0).await?;
                tx.cursor_save(CURSOR, upto).await
            })
        })
        .await?;
        self.set_cursor(upto);
        self.fleet.mark(&users, upto.0);
        Ok(())
    }

    async fn look_at(
        &self,
        row: &Arc<LogRow>,
        upto: LogPosition,
        marked: &mut BTreeSet<OwnedUserId>,
    ) -> StoreResult<()> {
        let named = row.user.as_ref();
        match row.fact {
            Fact::Other if row.reference.as_deref() == Some("pushers") => {
                if let Some(user) = named {
                    let rows = self.parts.core.store.read().await?.pushers_of(user).await?;
                    self.fleet.reload(user, rows);
                }
            }
            Fact::Other if is_change(row) => {
                marked.extend(named.filter(|user| self.fleet.shows_badge(user)).cloned());
            }
            Fact::Event => {
                let stored = match (&row.event, row.event_id()) {
                    (Some(stored), _) => Some(Arc::clone(stored)),
                    (None, Some(id)) => self.parts.core.store.event(&id).await?,
                    (None, None) => None,
                };
                if let Some(stored) = stored {
                    self.look_at_event(&stored, named, upto, marked).await?;
                }
            }
            Fact::Outside if row.data.as_deref() == Some("invite") => {
                marked.extend(named.filter(|user| self.fleet.has(user)).cloned());
            }
            // Less may be unread now than the devices show.
            Fact::Receipt | Fact::Outside | Fact::State | Fact::AccountData => {
                marked.extend(named.filter(|user| self.fleet.shows_badge(user)).cloned());
            }
            Fact::EventChanged => {
                if let Some(room) = &row.room {
                    let folds = self.parts.notifier.folds();
                    marked.extend(folds.joined_locals_among(room, |user| self.fleet.shows_badge(user)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// `member`: whose membership the event changes.
    async fn look_at_event(
        &self,
        stored: &StoredEvent,
        member: Option<&OwnedUserId>,
        upto: LogPosition,
        marked: &mut BTreeSet<OwnedUserId>,
    ) -> StoreResult<()> {
        let event = &stored.event;
        if let Some(member) = member {
            let invited = event.content_str("membership").as_deref() == Some("invite");
            if invited && self.fleet.has(member) || self.fleet.shows_badge(member) {
                marked.insert(member.clone());
            }
        }
        // Who writes has read what was there.
        if self.fleet.shows_badge(&event.sender) {
            marked.insert(event.sender.clone());
        }
        if !stored.flags.visible() || stored.redacted_by.is_some() {
            return Ok(());
        }
        let wanted = |user: &UserId| *user != event.sender && self.fleet.has(user);
        let users = self.parts.notifier.folds().joined_locals_among(&event.room_id, wanted);
        if users.is_empty() {
            return Ok(());
        }
        let flat = flattened(event);
        for user in users {
            if !marked.contains(&user) && self.notifies(&user, stored, &flat, upto).await? {
                marked.insert(user);
            }
        }
        Ok(())
    }

    async fn notifies(
        &self,
        user: &UserId,
        stored: &StoredEvent,
        event: &FlattenedJson,
        upto: LogPosition,
    ) -> StoreResult<bool> {
        let parts = &self.parts;
        if parts.ignored.of(&parts.core, user, upto).await?.contains(&stored.event.sender) {
            return Ok(false);
        }
        let rules = parts.unread.rules().of(user, upto).await?;
        let context = parts.unread.rules().context_for(user, &stored.event.room_id, event, upto).await?;
        Ok(context.actions(&rules, event).await.iter().any(Action::should_notify))
    }
}
