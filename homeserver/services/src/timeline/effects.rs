//! What follows from an event that became part of a room: memberships, redactions, who must be told.

use super::append::state_events;
use super::error::TimelineError;
use super::successor;
use crate::{Core, guests, keys};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde::Deserialize;
use std::sync::Arc;
use waxwing_model::{Event, StateKey, state_key};
use waxwing_rooms::client_json::sticky_duration;
use waxwing_rooms::state_tree::NodeId;
use waxwing_rooms::{PowerLevels, parse, redact};
use waxwing_storage::{Fact, MemberRow, NewRow, RoomRow, ServerSet, StoredEvent, Tx};

/// The row that announces an event: `user` is whose membership it changes.
pub(crate) fn log_row(event: &Event) -> NewRow {
    let row = NewRow::new(Fact::Event).room(event.room_id.clone()).reference(event.event_id.as_str());
    match member_target(event) {
        Some(user) => row.user(user),
        None => row,
    }
}

/// Whose membership the event changes.
pub(crate) fn member_target(event: &Event) -> Option<OwnedUserId> {
    if event.kind != TimelineEventType::RoomMember {
        return None;
    }
    event.state_key.as_deref().and_then(|key| UserId::parse(key).ok())
}

#[derive(Deserialize)]
struct RelatesTo {
    #[serde(rename = "m.relates_to")]
    relates_to: Option<Relation>,
    /// The name that MSC2836 gave it.
    #[serde(rename = "m.relationship")]
    relationship: Option<Relation>,
}

#[derive(Deserialize)]
struct Relation {
    rel_type: Option<String>,
    event_id: Option<OwnedEventId>,
}

/// The event that this one relates to, and how.
pub(crate) fn relation(event: &Event) -> Option<(OwnedEventId, String)> {
    if event.is_state() {
        return None;
    }
    let content = event.content_as::<RelatesTo>().ok()?;
    let relation = content.relates_to.or(content.relationship)?;
    Some((relation.event_id?, relation.rel_type?))
}

/// Facts of the room's row that follow from an event of its state.
pub(crate) fn room_flags(row: &mut RoomRow, event: &Event) {
    if event.is_state_of(&StateEventType::RoomEncryption, "") && event.content_str("algorithm").is_some() {
        row.encrypted = true;
    }
}

#[derive(Deserialize, Default)]
struct MemberContent {
    #[serde(default)]
    membership: Option<String>,
    #[serde(default)]
    displayname: Option<serde_json::Value>,
    #[serde(default)]
    avatar_url: Option<serde_json::Value>,
}

/// The membership row that a member event says.
pub(crate) fn member_row(event: &Event) -> Option<MemberRow> {
    let user_id = member_target(event)?;
    let content: MemberContent = event.content_as().unwrap_or_default();
    let text = |value: Option<serde_json::Value>| value.and_then(|value| value.as_str().map(str::to_owned));
    Some(MemberRow {
        room_id: event.room_id.clone(),
        user_id,
        membership: content.membership?,
        event_id: event.event_id.clone(),
        sender: event.sender.clone(),
        sn: 0,
        display_name: text(content.displayname),
        avatar_url: text(content.avatar_url),
        stripped: None,
        forgotten: false,
    })
}

/// Keeps the tables that are derived from events in step with an accepted event at the end of the room.
pub(crate) async fn apply(
    core: &Core,
    tx: &mut Tx,
    version: &RoomVersionId,
    state_after: NodeId,
    event: &Arc<Event>,
) -> Result<(), TimelineError> {
    if let Some(row) = member_row(event) {
        let enters = row.membership == "join"
            && core.is_local(&row.user_id)
            && tx.member_load(&row.room_id, &row.user_id).await?.is_none_or(|row| row.membership != "join");
        member_save(core, tx, &row).await?;
        if enters {
            successor::entered(tx, &row.user_id, &row.room_id, state_after).await?;
        }
    }
    if let Some(key) = &event.state_key {
        tx.delayed_events_overtaken(&event.room_id, &event.kind.to_string(), key, &event.sender).await?;
    }
    if let Some(row) = guests::log_row(event) {
        tx.log_append(row);
    }
    if event.is_state_of(&StateEventType::RoomTombstone, "") {
        successor::replaced(tx, event).await?;
    }
    if event.kind == TimelineEventType::RoomRedaction && !event.is_state() {
        redaction(tx, version, state_after, event).await?;
    }
    if let Some(until) = sticky_until(event, core.now()) {
        tx.sticky_event_add(&event.room_id, &event.event_id, core.now(), until).await?;
    }
    Ok(())
}

/// Until when an event is sticky, if it is one, by the sender's clock and ours, whichever is earlier (MSC4354).
fn sticky_until(event: &Event, now: u64) -> Option<u64> {
    let duration = sticky_duration(event)?;
    let until = u64::from(event.origin_server_ts.get()).min(now).saturating_add(duration);
    (until > now).then_some(until)
}

/// Saves a membership; who began or ceased to be in the room is told to those who follow device lists.
pub(crate) async fn member_save(core: &Core, tx: &mut Tx, row: &MemberRow) -> Result<(), TimelineError> {
    let before = tx.member_load(&row.room_id, &row.user_id).await?;
    if before.as_ref().is_some_and(|before| before.membership == row.membership) {
        tx.member_change(row).await?;
    } else {
        tx.member_save(row, core.is_local(&row.user_id)).await?;
    }
    let (was, is) = (before.is_some_and(|row| row.membership == "join"), row.membership == "join");
    if was != is {
        keys::sharing_changed(core, tx, &row.room_id, &row.user_id, is).await?;
    }
    Ok(())
}

/// The same for a membership that state resolution took away.
pub(crate) async fn member_remove(
    core: &Core,
    tx: &mut Tx,
    room: &RoomId,
    user: &UserId,
) -> Result<(), TimelineError> {
    let before = tx.member_load(room, user).await?;
    tx.member_remove(room, user).await?;
    if before.is_some_and(|row| row.membership == "join") {
        keys::sharing_changed(core, tx, room, user, false).await?;
    }
    Ok(())
}

/// Applies a redaction to its target, or keeps it until the target is here.
pub(crate) async fn redaction(
    tx: &mut Tx,
    version: &RoomVersionId,
    root: NodeId,
    redaction: &Event,
) -> Result<(), TimelineError> {
    let Some(target_id) = parse::redaction_target(redaction, version) else { return Ok(()) };
    let Some(target) = tx.events_known(std::slice::from_ref(&target_id)).await?.pop() else {
        tx.pending_redaction_add(&redaction.room_id, &target_id, &redaction.event_id).await?;
        return Ok(());
    };
    redact_target(tx, version, root, redaction, &target).await
}

/// Applies a redaction to a target that is here, if it may.
pub(crate) async fn redact_target(
    tx: &mut Tx,
    version: &RoomVersionId,
    root: NodeId,
    redaction: &Event,
    target: &StoredEvent,
) -> Result<(), TimelineError> {
    if target.redacted_by.is_some()
        || target.event.kind == TimelineEventType::RoomRedaction && target.flags.outlier
    {
        return Ok(());
    }
    let Some(power) = power_at(tx, version, root).await? else { return Ok(()) };
    if !redact::may_apply(redaction, &target.event, &power, version) {
        return Ok(());
    }
    let redacted = redact::redact_event(&target.event, version, None)
        .map_err(|error| TimelineError::Internal(error.to_string()))?;
    tx.event_redact(&redacted, &redaction.event_id).await?;
    if let Some(row) = guests::log_row(&redacted) {
        tx.log_append(row);
    }
    let row = NewRow::new(Fact::EventChanged)
        .room(redacted.room_id.clone())
        .reference(redacted.event_id.as_str())
        .data("redacted");
    tx.log_append(row);
    Ok(())
}

/// The power levels in the state at `root`.
pub(crate) async fn power_at(
    tx: &mut Tx,
    version: &RoomVersionId,
    root: NodeId,
) -> Result<Option<PowerLevels>, TimelineError> {
    let create = state_key(StateEventType::RoomCreate, "");
    let levels = state_key(StateEventType::RoomPowerLevels, "");
    let state = state_events(tx, root, &[create.clone(), levels.clone()]).await?;
    let Some(create) = state.get(&create) else { return Ok(None) };
    let levels = state.get(&levels).map(|event| &**event);
    Ok(Some(PowerLevels::new(create, levels, version)?))
}

/// The other servers that must get an event of ours: those in the room before it.
pub(crate) async fn destinations(
    core: &Core,
    tx: &mut Tx,
    event: &Event,
    before: NodeId,
) -> Result<Option<ServerSet>, TimelineError> {
    if !core.settings.federation {
        return Ok(None);
    }
    Ok(Some(tx.servers_in_state(&event.room_id, before, &core.server_name).await?))
}

/// After an event, which the table of members knows, the servers in the room are those from before, with the one of a user who
/// came, without the one whose last user went. `changed`: the entries in which the state after it, at
/// `after`, differs from the one at `before`.
pub(crate) async fn servers_follow<'a>(
    core: &Core,
    tx: &mut Tx,
    (before, after): (NodeId, NodeId),
    event: &Event,
    changed: impl IntoIterator<Item = &'a StateKey>,
) -> Result<(), TimelineError> {
    let mut members = changed.into_iter().filter(|key| key.0 == StateEventType::RoomMember);
    let (first, more) = (members.next(), members.next());
    match (first, member_row(event)) {
        (None, _) => tx.servers_carry(before, after, None),
        (Some(key), Some(row)) if more.is_none() && row.user_id.as_str() == key.1 => {
            if core.is_local(&row.user_id) {
                tx.servers_carry(before, after, None);
            } else if row.membership == "join" {
                tx.servers_carry(before, after, Some(row.user_id.server_name()));
            } else {
                let server = row.user_id.server_name();
                tx.servers_carry_less(&row.room_id, (before, after), server).await?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// And the one that it brings in or puts out: the server of the user whose membership changes, except when the change
/// has another way to it (an invitation). It gets a row of its own, for it may not be in the room by the time it is back.
pub(crate) fn destination_of_member(core: &Core, event: &Event) -> Option<OwnedServerName> {
    let row = member_row(event)?;
    let tell = core.settings.federation && !core.is_local(&row.user_id) && row.membership != "invite";
    tell.then(|| row.user_id.server_name().to_owned())
}
