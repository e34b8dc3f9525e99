//! Erasure: events of a closed account whose owner wanted its content erased are shown in their redacted form to users
//! and servers that joined afterwards. <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3accountdeactivate>
//!
//! Who could see an event before is known without having been written down: whoever was in the room at the event, or
//! when the closed account left the room, which it did when it was closed.

use crate::Core;
use ruma::events::StateEventType;
use ruma::events::room::member::MembershipState;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_model::{StateKey, state_key};
use waxwing_rooms::redact::redact_event;
use waxwing_rooms::state_tree::NodeId;
use waxwing_rooms::visibility::membership_of;
use waxwing_storage::{StoreError, StoreResult, StoredEvent};

/// Shows `events` to `user`: those of erased accounts that came or are seen too late in their redacted form.
pub(crate) async fn conceal(
    core: &Core,
    user: &UserId,
    events: Vec<Arc<StoredEvent>>,
) -> StoreResult<Vec<Arc<StoredEvent>>> {
    let hidden = concealed(core, std::slice::from_ref(&user.to_owned()), &events).await?;
    if hidden.is_empty() {
        return Ok(events);
    }
    let mut versions: BTreeMap<OwnedRoomId, RoomVersionId> = BTreeMap::new();
    let mut shown = Vec::with_capacity(events.len());
    for stored in events {
        if !hidden.contains(&stored.event.event_id) {
            shown.push(stored);
            continue;
        }
        let room = &stored.event.room_id;
        if !versions.contains_key(room) {
            let row = core.store.read().await?.room_load(room).await?;
            let Some(row) = row else { continue };
            versions.insert(room.clone(), row.version);
        }
        let event = redact_event(&stored.event, &versions[room], None)
            .map_err(|error| StoreError::corrupt("events", stored.event.event_id.as_str(), error))?;
        shown.push(Arc::new(StoredEvent { event: Arc::new(event), ..(*stored).clone() }));
    }
    Ok(shown)
}

/// Those of `events` that are not to be shown whole to `viewers`, the users of one server, or one user.
pub(crate) async fn concealed(
    core: &Core,
    viewers: &[OwnedUserId],
    events: &[Arc<StoredEvent>],
) -> StoreResult<BTreeSet<OwnedEventId>> {
    let senders = events.iter().map(|stored| &*stored.event.sender);
    let erased = core.store.erased_among(senders).await?;
    if erased.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut known: BTreeMap<NodeId, bool> = BTreeMap::new();
    let mut hidden = BTreeSet::new();
    for stored in events {
        let event = &stored.event;
        if !erased.contains(&event.sender) || stored.redacted_by.is_some() {
            continue;
        }
        let end = end_of_stay(core, &event.sender, &event.room_id).await?;
        let mut present = false;
        for root in stored.state_before.into_iter().chain(end) {
            present |= match known.get(&root) {
                Some(present) => *present,
                None => {
                    let found = any_joined(core, viewers, root).await?;
                    known.insert(root, found);
                    found
                }
            };
        }
        if !present {
            hidden.insert(event.event_id.clone());
        }
    }
    Ok(hidden)
}

/// The state of the room when the user left it; while the user is in it still, its present state.
async fn end_of_stay(core: &Core, user: &UserId, room: &RoomId) -> StoreResult<Option<NodeId>> {
    let Some(row) = core.store.read().await?.member_load(room, user).await? else { return Ok(None) };
    if row.membership == "join" {
        let row = core.store.read().await?.room_load(room).await?;
        return Ok(row.map(|row| row.state_root));
    }
    Ok(core.store.event(&row.event_id).await?.and_then(|stored| stored.state_before))
}

async fn any_joined(core: &Core, users: &[OwnedUserId], root: NodeId) -> StoreResult<bool> {
    let keys: Vec<StateKey> =
        users.iter().map(|user| state_key(StateEventType::RoomMember, user.as_str())).collect();
    let ids = {
        let mut conn = core.store.read().await?;
        core.store.state(&mut conn).get_many(root, &keys).await?
    };
    let ids: Vec<OwnedEventId> = ids.into_iter().flatten().collect();
    let members = core.store.events(&ids).await?;
    Ok(members.values().any(|member| membership_of(Some(&member.event)) == MembershipState::Join))
}
