//! Rooms that take the place of others: what our users keep for the old room follows them into the new one. Both rooms
//! must name each other, so that nobody can make a room that passes for the successor of somebody else's.
//! <https://spec.matrix.org/v1.19/client-server-api/#room-upgrades>

use super::append::state_events;
use super::error::TimelineError;
use crate::account_data::copy_to_successor;
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, RoomId, UserId};
use serde::Deserialize;
use waxwing_model::{Event, state_key};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::Tx;

#[derive(Deserialize)]
struct Create {
    predecessor: Predecessor,
}

#[derive(Deserialize)]
struct Predecessor {
    room_id: OwnedRoomId,
}

#[derive(Deserialize)]
struct Tombstone {
    replacement_room: OwnedRoomId,
}

async fn content_at<T: serde::de::DeserializeOwned>(
    tx: &mut Tx,
    root: NodeId,
    kind: StateEventType,
) -> Result<Option<T>, TimelineError> {
    let key = state_key(kind, "");
    let state = state_events(tx, root, std::slice::from_ref(&key)).await?;
    Ok(state.get(&key).and_then(|event| event.content_as().ok()))
}

/// A room was closed by this tombstone: for those of our users who are in its successor already.
pub(super) async fn replaced(tx: &mut Tx, tombstone: &Event) -> Result<(), TimelineError> {
    let old = &tombstone.room_id;
    let Ok(Tombstone { replacement_room: new }) = tombstone.content_as() else { return Ok(()) };
    let Some(row) = tx.room_peek(&new).await? else { return Ok(()) };
    let create: Option<Create> = content_at(tx, row.state_root, StateEventType::RoomCreate).await?;
    if create.is_none_or(|create| create.predecessor.room_id != *old) {
        return Ok(());
    }
    for user in tx.local_members_of(&new, "join").await? {
        move_along(tx, &user, old, &new).await?;
    }
    Ok(())
}

/// A user of ours entered a room whose state is at `root`: it may be the successor of one that the user knew.
pub(super) async fn entered(
    tx: &mut Tx,
    user: &UserId,
    room: &RoomId,
    root: NodeId,
) -> Result<(), TimelineError> {
    let create: Option<Create> = content_at(tx, root, StateEventType::RoomCreate).await?;
    let Some(old) = create.map(|create| create.predecessor.room_id) else { return Ok(()) };
    let Some(row) = tx.room_peek(&old).await? else { return Ok(()) };
    let tombstone: Option<Tombstone> = content_at(tx, row.state_root, StateEventType::RoomTombstone).await?;
    if tombstone.is_some_and(|tombstone| tombstone.replacement_room == *room) {
        move_along(tx, user, &old, room).await?;
    }
    Ok(())
}

async fn move_along(tx: &mut Tx, user: &UserId, old: &RoomId, new: &RoomId) -> Result<(), TimelineError> {
    if tx.member_load(old, user).await?.is_some_and(|row| !row.forgotten) {
        copy_to_successor(tx, user, old, new).await?;
    }
    Ok(())
}
