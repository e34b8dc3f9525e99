//! Builds, authorises and appends events of our own users inside a group's transaction.

use super::effects;
use super::error::TimelineError;
use super::policy::{self, Approvals};
use crate::Core;
use ruma::events::TimelineEventType;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UInt};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use waxwing_model::{Event, StateKey};
use waxwing_rooms::{AuthMap, EventDraft, PrevEvent, RoomContext, auth, build};
use waxwing_storage::{EventFlags, Place, RoomRow, Tx};

/// Prev events of one new event. Where there are more, they are joined before (`ends`).
pub(super) const MAX_PREV_EVENTS: usize = 20;

/// What a user of ours wants to say.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Who.
    pub sender: OwnedUserId,
    /// The event type.
    pub kind: TimelineEventType,
    /// The state key of a state event.
    pub state_key: Option<String>,
    /// The content.
    pub content: Box<RawValue>,
    /// What a redaction redacts.
    pub redacts: Option<OwnedEventId>,
    /// Another time than now (application services).
    pub timestamp: Option<MilliSecondsSinceUnixEpoch>,
    /// For how long the event is sticky, milliseconds (MSC4354).
    pub sticky_ms: Option<u32>,
    /// What the room's policy server signed.
    pub(crate) approvals: Approvals,
}

impl Draft {
    /// A message-like event.
    pub fn message(sender: impl Into<OwnedUserId>, kind: TimelineEventType, content: Box<RawValue>) -> Draft {
        Draft {
            sender: sender.into(),
            kind,
            state_key: None,
            content,
            redacts: None,
            timestamp: None,
            sticky_ms: None,
            approvals: Approvals::default(),
        }
    }

    /// A state event.
    pub fn state(
        sender: impl Into<OwnedUserId>,
        kind: TimelineEventType,
        key: impl Into<String>,
        content: Box<RawValue>,
    ) -> Draft {
        Draft {
            sender: sender.into(),
            kind,
            state_key: Some(key.into()),
            content,
            redacts: None,
            timestamp: None,
            sticky_ms: None,
            approvals: Approvals::default(),
        }
    }

    pub(crate) fn event_draft(&self, core: &Core) -> EventDraft {
        EventDraft {
            kind: self.kind.clone(),
            content: self.content.clone(),
            state_key: self.state_key.clone(),
            sender: self.sender.clone(),
            redacts: self.redacts.clone(),
            origin_server_ts: self.timestamp.unwrap_or_else(|| core.clock.now()),
            sticky_ms: self.sticky_ms,
        }
    }
}

/// Content as raw JSON.
pub(crate) fn raw(content: &impl Serialize) -> Result<Box<RawValue>, TimelineError> {
    serde_json::value::to_raw_value(content).map_err(|error| TimelineError::BadContent(error.to_string()))
}

/// The room's row.
pub(crate) async fn room_row(tx: &mut Tx, room: &RoomId) -> Result<RoomRow, TimelineError> {
    tx.room(room).await?.ok_or(TimelineError::NoRoom)
}

/// The events of these entries of the state at `root`, as far as they are set.
pub(crate) async fn state_events(
    tx: &mut Tx,
    root: waxwing_rooms::state_tree::NodeId,
    keys: &[StateKey],
) -> Result<AuthMap, TimelineError> {
    let ids = tx.state().get_many(root, keys).await?;
    let wanted: Vec<OwnedEventId> = ids.iter().flatten().cloned().collect();
    let events: BTreeMap<OwnedEventId, Arc<Event>> = tx
        .events_known(&wanted)
        .await?
        .into_iter()
        .map(|stored| (stored.event.event_id.clone(), Arc::clone(&stored.event)))
        .collect();
    Ok(keys
        .iter()
        .zip(ids)
        .filter_map(|(key, id)| Some((key.clone(), Arc::clone(events.get(&id?)?))))
        .collect())
}

/// What a new event of the room follows and is authorised by.
pub(crate) async fn context(
    tx: &mut Tx,
    row: &RoomRow,
    draft: &EventDraft,
) -> Result<RoomContext, TimelineError> {
    context_at(tx, row, draft, row.state_root).await
}

/// The same in another state than the room's: that after the deepest of its ends.
pub(super) async fn context_at(
    tx: &mut Tx,
    row: &RoomRow,
    draft: &EventDraft,
    root: waxwing_rooms::state_tree::NodeId,
) -> Result<RoomContext, TimelineError> {
    let keys = auth::state_to_load(
        &draft.kind,
        &draft.sender,
        draft.state_key.as_deref(),
        &draft.content,
        &row.version,
    )
    .map_err(|error| TimelineError::BadContent(error.to_string()))?;
    let state = state_events(tx, root, &keys).await?;
    let mut deepest = deepest_first(row);
    deepest.truncate(MAX_PREV_EVENTS);
    let prev_events = if matches!(row.version, RoomVersionId::V1 | RoomVersionId::V2) {
        let ids: Vec<OwnedEventId> = deepest.into_iter().map(|(id, _)| id).collect();
        let mut prev = Vec::new();
        for stored in tx.events_known(&ids).await? {
            prev.push(PrevEvent::of(&stored.event, &row.version)?);
        }
        prev
    } else {
        deepest
            .into_iter()
            .map(|(event_id, depth)| PrevEvent { event_id, depth: UInt::new_saturating(depth), hash: None })
            .collect()
    };
    Ok(RoomContext { version: row.version.clone(), room_id: Some(row.room_id.clone()), prev_events, state })
}

/// The ends of a room in the order in which they are joined.
pub(super) fn deepest_first(row: &RoomRow) -> Vec<(OwnedEventId, u64)> {
    let mut ends = row.extremities.clone();
    ends.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    ends
}

/// Builds and authorises an event at the end of the room, without storing it.
pub(crate) async fn prepare(
    core: &Core,
    tx: &mut Tx,
    row: &RoomRow,
    draft: EventDraft,
) -> Result<Arc<Event>, TimelineError> {
    let context = context(tx, row, &draft).await?;
    let event = build::build_event(draft, &context, &core.server_name, &core.key)?;
    auth::check_state_dependent(&event, &row.version, &context.state)?;
    Ok(Arc::new(event))
}

/// Builds, authorises and appends an event of one of our users.
pub(crate) async fn append(
    core: &Core,
    tx: &mut Tx,
    room: &RoomId,
    draft: &Draft,
) -> Result<Arc<Event>, TimelineError> {
    let row = room_row(tx, room).await?;
    let event = prepare(core, tx, &row, draft.event_draft(core)).await?;
    let event = policy::approved(core, tx, &row, &draft.approvals, event).await?;
    append_built(core, tx, row, Arc::clone(&event)).await?;
    Ok(event)
}

/// Appends an event that was built against this very row of its room.
pub(crate) async fn append_built(
    core: &Core,
    tx: &mut Tx,
    mut row: RoomRow,
    event: Arc<Event>,
) -> Result<(), TimelineError> {
    let before = row.state_root;
    if let Some(entry) = event.state_entry() {
        row.state_root = tx.state_update(before, &[(entry, Some(event.event_id.clone()))]).await?;
    }
    let (after, entry) = (row.state_root, event.state_entry());
    append_at(core, tx, row, Arc::clone(&event), before).await?;
    effects::servers_follow(core, tx, (before, after), &event, &entry).await
}

/// Appends an event to a room whose state is brought up to date already; `before` is the state before the event.
pub(super) async fn append_at(
    core: &Core,
    tx: &mut Tx,
    mut row: RoomRow,
    event: Arc<Event>,
    before: waxwing_rooms::state_tree::NodeId,
) -> Result<(), TimelineError> {
    row.extremities.retain(|(id, _)| !event.prev_events.contains(id));
    row.extremities.push((event.event_id.clone(), u64::from(event.depth)));
    effects::room_flags(&mut row, &event);
    let slot = tx.event_put(
        Arc::clone(&event),
        EventFlags::NONE,
        Some(before),
        Place::Live,
        effects::log_row(&event),
        effects::relation(&event),
    );
    let version = row.version.clone();
    let root = row.state_root;
    if row.partial {
        tx.partial_event_put(&event.room_id, &event.event_id, &[]).await?;
    }
    tx.room_put(row).await?;
    let servers = effects::destinations(core, tx, &event, before).await?;
    effects::apply(core, tx, &version, root, &event).await?;
    if let (Some(slot), Some(servers)) = (slot, servers) {
        let concerned = effects::destination_of_member(core, &event);
        let others = match &concerned {
            Some(server) if servers.contains(server) => servers.without(server),
            _ => servers,
        };
        let (room, id) = (event.room_id.clone(), event.event_id.clone());
        if let Some(server) = concerned {
            tx.outbox_put(server, slot, Some(room.clone()), Some(id.clone()), None);
        }
        if !others.names().is_empty() {
            tx.outgoing_put(slot, room, id, others);
        }
    }
    Ok(())
}

/// The first event of a room: makes the room.
pub(crate) async fn append_create(
    core: &Core,
    tx: &mut Tx,
    version: &RoomVersionId,
    room_id: Option<OwnedRoomId>,
    draft: EventDraft,
) -> Result<Arc<Event>, TimelineError> {
    let context =
        RoomContext { version: version.clone(), room_id, prev_events: Vec::new(), state: AuthMap::new() };
    let event = Arc::new(build::build_event(draft, &context, &core.server_name, &core.key)?);
    auth::check_state_independent(&event, version, |_| None)?;
    if tx.room(&event.room_id).await?.is_some() {
        return Err(TimelineError::RoomInUse);
    }
    let row = RoomRow {
        room_id: event.room_id.clone(),
        version: version.clone(),
        state_root: waxwing_rooms::state_tree::NodeId::EMPTY,
        extremities: Vec::new(),
        revision: 0,
        published: false,
        encrypted: false,
        partial: false,
        newest_ts: 0,
    };
    append_built(core, tx, row, Arc::clone(&event)).await?;
    Ok(event)
}
