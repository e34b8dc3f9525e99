//! Which events a user of this server may see: the rules of [`waxwing_rooms::visibility`] over the states at the
//! events. <https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility>

use crate::Core;
use crate::before::{Holders, holders_before};
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedUserId, RoomId, UserId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::state_key;
use waxwing_rooms::visibility::{View, membership_of, user_may_see, visibility_of};
use waxwing_storage::{MemberRow, StoreResult, StoredEvent};

/// Member events looked at to find out when someone was last in a room: invitations rejected, bans, unbans.
const MAX_MEMBER_STEPS: usize = 20;

/// When a user was last joined to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastJoined {
    /// Is joined now.
    Now,
    /// Until the event with this number.
    Until(i64),
    /// Never, as far as this server knows.
    Never,
}

impl LastJoined {
    /// Whether the user was joined at some time after the event with this number.
    pub fn after(self, sn: i64) -> bool {
        match self {
            LastJoined::Now => true,
            LastJoined::Until(end) => sn < end,
            LastJoined::Never => false,
        }
    }
}

/// When `user` was last joined to `room`, by the current membership and what it replaced.
pub async fn last_joined(core: &Core, user: &UserId, room: &RoomId) -> StoreResult<LastJoined> {
    Ok(last_stay(core, user, room).await?.0)
}

/// The same, with the event that ended the stay.
pub(crate) async fn last_stay(
    core: &Core,
    user: &UserId,
    room: &RoomId,
) -> StoreResult<(LastJoined, Option<Arc<StoredEvent>>)> {
    match core.store.now().await?.member(room, user).await? {
        Some(row) => stay_of(core, &row).await,
        None => Ok((LastJoined::Never, None)),
    }
}

/// The same, of one whose membership is known.
pub(crate) async fn stay_of(
    core: &Core,
    row: &MemberRow,
) -> StoreResult<(LastJoined, Option<Arc<StoredEvent>>)> {
    if row.membership == "join" {
        return Ok((LastJoined::Now, None));
    }
    let mut id = row.event_id.clone();
    for _ in 0..MAX_MEMBER_STEPS {
        let Some(stored) = core.store.event(&id).await? else { break };
        let Some(root) = stored.state_before else { break };
        let user = row.user_id.as_str();
        let Some(before) = core.store.state_get(root, StateEventType::RoomMember, user).await? else { break };
        let Some(previous) = core.store.event(&before).await? else { break };
        if membership_of(Some(&previous.event)).as_str() == "join" {
            return Ok((LastJoined::Until(stored.sn), Some(stored)));
        }
        id = before;
    }
    Ok((LastJoined::Never, None))
}

/// Those of `events`, all of one room, that `user` may see, in their order. Looks up each different state once.
/// Events without a state (outliers) are not visible. Those of erased accounts may come in their redacted form.
pub async fn visible_events(
    core: &Core,
    user: &UserId,
    room: &RoomId,
    events: Vec<Arc<StoredEvent>>,
) -> StoreResult<Vec<Arc<StoredEvent>>> {
    if events.is_empty() {
        return Ok(events);
    }
    let last = last_joined(core, user, room).await?;
    visible_to(core, user, last, events).await
}

/// Like [`visible_events`], when it is known when the user was last joined.
pub async fn visible_to(
    core: &Core,
    user: &UserId,
    last: LastJoined,
    events: Vec<Arc<StoredEvent>>,
) -> StoreResult<Vec<Arc<StoredEvent>>> {
    let keys = [
        state_key(StateEventType::RoomHistoryVisibility, ""),
        state_key(StateEventType::RoomMember, user.as_str()),
    ];
    let before = holders_before(core, &events, &keys).await?;
    let ids: BTreeSet<&OwnedEventId> = before.iter().flatten().flatten().flatten().collect();
    let ids: Vec<OwnedEventId> = ids.into_iter().cloned().collect();
    let loaded = core.store.events(&ids).await?;
    let seen = events.into_iter().zip(&before);
    let seen = seen.filter(|(stored, before)| may_see(stored, user, last, before.as_ref(), &loaded));
    let visible = seen.map(|(stored, _)| stored).collect();
    crate::erasure::conceal(core, user, visible).await
}

fn may_see(
    stored: &StoredEvent,
    user: &UserId,
    last: LastJoined,
    before: Option<&Holders>,
    loaded: &HashMap<OwnedEventId, Arc<StoredEvent>>,
) -> bool {
    let Some(before) = before else { return false };
    if !stored.flags.visible() {
        return false;
    }
    let event_at = |index: usize| {
        let id = before.get(index)?.as_ref()?;
        loaded.get(id).map(|stored| &*stored.event)
    };
    let mut view =
        View::steady(visibility_of(event_at(0)), membership_of(event_at(1)), last.after(stored.sn));
    if stored.event.is_state_of(&StateEventType::RoomHistoryVisibility, "") {
        view.visibility_after = visibility_of(Some(&stored.event));
    }
    if stored.event.is_state_of(&StateEventType::RoomMember, user.as_str()) {
        view.membership_after = membership_of(Some(&stored.event));
    }
    user_may_see(&view)
}

/// The users whom `user` ignores. <https://spec.matrix.org/v1.19/client-server-api/#mignored_user_list>
pub async fn ignored_users(core: &Core, user: &UserId) -> StoreResult<BTreeSet<OwnedUserId>> {
    #[derive(serde::Deserialize)]
    struct Content {
        ignored_users: serde_json::Map<String, serde_json::Value>,
    }
    let content = core.store.now().await?.account_data(user, "m.ignored_user_list").await?;
    let content: Option<Content> = content.and_then(|content| serde_json::from_str(&content).ok());
    Ok(content
        .map(|content| content.ignored_users.keys().filter_map(|id| UserId::parse(id).ok()).collect())
        .unwrap_or_default())
}
