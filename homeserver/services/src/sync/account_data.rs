//! Account data, and what syncs themselves need of it.

use super::build::Build;
use super::filter::SyncFilter;
use super::window::Window;
use crate::Core;
use crate::push_rules;
use crate::visibility::ignored_users;
use quick_cache::sync::Cache;
use ruma::{OwnedUserId, RoomId, UserId};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, LogRow, StoreResult};

/// Users of whom the ignored users are kept.
const USERS: usize = 20_000;

/// Whether the user's account data of this type has not changed after `read` and up to `upto`, as far as the tail
/// knows.
pub(crate) fn unchanged(
    core: &Core,
    user: &UserId,
    kind: &str,
    read: LogPosition,
    upto: LogPosition,
) -> bool {
    let Some(rows) = core.store.tail().range_of_user(user, read, upto) else { return false };
    let of_kind = |row: &Arc<LogRow>| row.fact == Fact::AccountData && row.reference.as_deref() == Some(kind);
    !rows.iter().any(of_kind)
}

/// Whom each user ignores.
pub(crate) struct IgnoredUsers(Cache<OwnedUserId, (LogPosition, Arc<BTreeSet<OwnedUserId>>)>);

impl Default for IgnoredUsers {
    fn default() -> IgnoredUsers {
        IgnoredUsers(Cache::new(USERS))
    }
}

impl IgnoredUsers {
    /// Whom the user ignores at `upto`.
    pub async fn of(
        &self,
        core: &Core,
        user: &UserId,
        upto: LogPosition,
    ) -> StoreResult<Arc<BTreeSet<OwnedUserId>>> {
        if let Some((read, ignored)) = self.0.get(user)
            && unchanged(core, user, "m.ignored_user_list", read, upto)
        {
            self.0.insert(user.to_owned(), (upto.max(read), Arc::clone(&ignored)));
            return Ok(ignored);
        }
        let mut ignored = ignored_users(core, user).await?;
        // Ignoring oneself would hide one's own messages.
        ignored.remove(user);
        let ignored = Arc::new(ignored);
        self.0.insert(user.to_owned(), (upto, Arc::clone(&ignored)));
        Ok(ignored)
    }
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    content: &'a RawValue,
}

/// An entry as clients get it.
pub(super) fn entry(kind: &str, content: &str) -> Option<Box<RawValue>> {
    let content = serde_json::from_str(content).ok()?;
    serde_json::value::to_raw_value(&Entry { kind, content }).ok()
}

impl Build<'_> {
    /// Account data of no room: all of it for a client that has nothing, else what changed.
    pub async fn account_data(&self, window: &Window) -> StoreResult<Vec<Box<RawValue>>> {
        let whole = self.since.is_none() || self.request.full_state;
        self.global_account_data(window, whole, &self.request.filter).await
    }

    /// Account data of no room: all of it (`whole`), or what changed, as far as the filter lets it through.
    pub async fn global_account_data(
        &self,
        window: &Window,
        whole: bool,
        filter: &SyncFilter,
    ) -> StoreResult<Vec<Box<RawValue>>> {
        let global = |row: &&Arc<LogRow>| row.fact == Fact::AccountData && row.room.is_none();
        let changed: BTreeSet<&str> =
            window.own.iter().filter(global).filter_map(|row| row.reference.as_deref()).collect();
        if !whole && changed.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.core().store.read().await?.account_data_of(self.user(), None).await?;
        let mut events = Vec::new();
        let mut push_rules = None;
        for (kind, content) in &entries {
            if kind == push_rules::KIND {
                push_rules = Some(content.as_str());
            } else if (whole || changed.contains(kind.as_str())) && filter.account_data(kind) {
                events.extend(entry(kind, content));
            }
        }
        for kind in &changed {
            // Removed: said with an empty content.
            let removed = *kind != push_rules::KIND && !entries.iter().any(|(other, _)| other == kind);
            if removed && filter.account_data(kind) {
                events.extend(entry(kind, "{}"));
            }
        }
        if (whole || changed.contains(push_rules::KIND)) && filter.account_data(push_rules::KIND) {
            let content = push_rules::content(self.core(), self.user(), push_rules);
            events.extend(entry(push_rules::KIND, content.get()));
        }
        Ok(events.into_iter().map(|event| filter.shape(event)).collect())
    }

    /// The user's account data of a room: all of it (`whole`), or what the rows announce.
    pub async fn room_account_data(
        &self,
        room: &RoomId,
        rows: &[Arc<LogRow>],
        whole: bool,
    ) -> StoreResult<Vec<Box<RawValue>>> {
        let own =
            |row: &&Arc<LogRow>| row.fact == Fact::AccountData && row.user.as_deref() == Some(self.user());
        let changed: BTreeSet<&str> =
            rows.iter().filter(own).filter_map(|row| row.reference.as_deref()).collect();
        if !whole && changed.is_empty() {
            return Ok(Vec::new());
        }
        let ahead = self.ahead();
        let entries = if ahead.rows.contains_key(room) {
            ahead.account_data.get(room).cloned().unwrap_or_default()
        } else {
            self.core().store.read().await?.account_data_of(self.user(), Some(room)).await?
        };
        let mut events = Vec::new();
        let wanted = |kind: &str| self.request.filter.room_account_data(room, kind);
        for (kind, content) in &entries {
            if (whole || changed.contains(kind.as_str())) && wanted(kind) {
                events.extend(entry(kind, content));
            }
        }
        for kind in changed {
            if !entries.iter().any(|(other, _)| other == kind) && wanted(kind) {
                events.extend(entry(kind, "{}"));
            }
        }
        Ok(events.into_iter().map(|event| self.request.filter.shape(event)).collect())
    }
}
