//! Bundled aggregations: what later events say of an event.
//! <https://spec.matrix.org/v1.19/client-server-api/#aggregations-of-child-events>

use super::{Viewer, bare};
use crate::Core;
use crate::visibility::{LastJoined, ignored_users, last_joined, visible_to};
use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::client_json::{ClientEvent, Unsigned, age};
use waxwing_storage::{EditRow, StoreResult, StoredEvent, ThreadRow};

/// References shown with one event: more are read from `/relations`.
const MAX_REFERENCES: usize = 100;

/// The aggregations of many events.
#[derive(Default)]
pub(super) struct Bundles(HashMap<OwnedEventId, Box<RawValue>>);

#[derive(Serialize)]
struct Bundle {
    #[serde(rename = "m.replace", skip_serializing_if = "Option::is_none")]
    replace: Option<Box<RawValue>>,
    #[serde(rename = "m.thread", skip_serializing_if = "Option::is_none")]
    thread: Option<Thread>,
    #[serde(rename = "m.reference", skip_serializing_if = "Option::is_none")]
    reference: Option<Chunk>,
}

#[derive(Serialize)]
struct Thread {
    latest_event: Box<RawValue>,
    count: i64,
    current_user_participated: bool,
}

#[derive(Serialize)]
struct Chunk {
    chunk: Vec<Reference>,
}

#[derive(Serialize)]
struct Reference {
    event_id: OwnedEventId,
}

#[derive(Serialize)]
struct OnlyReplace<'a> {
    #[serde(rename = "m.replace")]
    replace: &'a RawValue,
}

/// What relates to a set of events, as far as the viewer sees it.
#[derive(Default)]
struct Found {
    threads: Vec<(ThreadRow, Option<OwnedEventId>)>,
    edits: Vec<EditRow>,
    /// The edits of the threads' newest events.
    edits_of_latest: Vec<EditRow>,
    events: HashMap<OwnedEventId, Arc<StoredEvent>>,
}

impl Bundles {
    /// What later events say of `events`.
    pub(super) async fn load(
        core: &Core,
        viewer: &Viewer,
        events: &[Arc<StoredEvent>],
    ) -> StoreResult<Bundles> {
        let found = Found::load(core, &viewer.user, events).await?;
        if found.threads.is_empty() && found.edits.is_empty() {
            return Ok(Bundles::default());
        }
        let mut bundles = HashMap::new();
        for stored in events {
            let id = &stored.event.event_id;
            let bundle = Bundle {
                replace: replacement(&found.edits, stored, &found.events)
                    .map(|edit| bare(edit, core.clock.now(), true)),
                thread: found.thread(core, viewer, stored),
                reference: found.references(id),
            };
            if bundle.replace.is_none() && bundle.thread.is_none() && bundle.reference.is_none() {
                continue;
            }
            if let Ok(json) = serde_json::value::to_raw_value(&bundle) {
                bundles.insert(id.clone(), json);
            }
        }
        Ok(Bundles(bundles))
    }

    /// The aggregations of one event, if it has any.
    pub(super) fn of(&self, id: &OwnedEventId) -> Option<&RawValue> {
        self.0.get(id).map(|json| &**json)
    }
}

/// What a viewer sees of the rooms that the events are in.
struct Sight<'a> {
    core: &'a Core,
    viewer: &'a UserId,
    ignored: BTreeSet<OwnedUserId>,
    last: BTreeMap<OwnedRoomId, LastJoined>,
}

impl Sight<'_> {
    async fn of<'a>(
        core: &'a Core,
        viewer: &'a UserId,
        events: &[Arc<StoredEvent>],
    ) -> StoreResult<Sight<'a>> {
        let rooms: BTreeSet<&RoomId> = events.iter().map(|stored| &*stored.event.room_id).collect();
        let mut last = BTreeMap::new();
        for room in rooms {
            last.insert(room.to_owned(), last_joined(core, viewer, room).await?);
        }
        let mut ignored = ignored_users(core, viewer).await?;
        ignored.remove(viewer);
        Ok(Sight { core, viewer, ignored, last })
    }

    fn last(&self, room: &RoomId) -> LastJoined {
        self.last.get(room).copied().unwrap_or(LastJoined::Never)
    }

    fn all_joined(&self) -> bool {
        self.last.values().all(|last| *last == LastJoined::Now)
    }

    /// The threads that start at `roots`. Of a room that the viewer has left, only what was there by then.
    async fn threads(&self, roots: &[&Arc<StoredEvent>]) -> StoreResult<Vec<ThreadRow>> {
        let mut by_end: BTreeMap<i64, Vec<OwnedEventId>> = BTreeMap::new();
        for root in roots {
            let end = match self.last(&root.event.room_id) {
                LastJoined::Until(end) => end,
                LastJoined::Now | LastJoined::Never => i64::MAX,
            };
            by_end.entry(end).or_default().push(root.event.event_id.clone());
        }
        let mut threads = Vec::new();
        let mut conn = self.core.store.read().await?;
        for (end, roots) in by_end {
            threads.extend(conn.threads_of(&roots, self.viewer, &self.ignored, end).await?);
        }
        Ok(threads)
    }

    /// Those of these events that the viewer may see and does not ignore.
    async fn seen(&self, ids: Vec<OwnedEventId>) -> StoreResult<HashMap<OwnedEventId, Arc<StoredEvent>>> {
        let loaded = self.core.store.events(&ids).await?;
        let mut by_room: BTreeMap<OwnedRoomId, Vec<Arc<StoredEvent>>> = BTreeMap::new();
        for stored in loaded.into_values().filter(|stored| !self.ignored.contains(&stored.event.sender)) {
            by_room.entry(stored.event.room_id.clone()).or_default().push(stored);
        }
        let mut seen = HashMap::new();
        for (room, events) in by_room {
            let visible = visible_to(self.core, self.viewer, self.last(&room), events).await?;
            seen.extend(visible.into_iter().map(|stored| (stored.event.event_id.clone(), stored)));
        }
        Ok(seen)
    }
}

impl Found {
    async fn load(core: &Core, viewer: &UserId, all: &[Arc<StoredEvent>]) -> StoreResult<Found> {
        let ids: Vec<OwnedEventId> = all.iter().map(|stored| stored.event.event_id.clone()).collect();
        let Some(room) = all.first().map(|stored| &stored.event.room_id) else { return Ok(Found::default()) };
        if all.iter().all(|stored| stored.event.room_id == *room) && core.store.unrelated(room, &ids).await? {
            return Ok(Found::default());
        }
        let (mut edits, rooted) = {
            let mut conn = core.store.read().await?;
            let rooted = conn.threads_of(&ids, viewer, &BTreeSet::new(), i64::MAX).await?;
            (conn.edits_and_references(&ids).await?, rooted)
        };
        if edits.is_empty() && rooted.is_empty() {
            return Ok(Found::default());
        }
        let sight = Sight::of(core, viewer, all).await?;
        let rooted: BTreeSet<OwnedEventId> = rooted.into_iter().map(|thread| thread.root).collect();
        let roots: Vec<_> = all.iter().filter(|stored| rooted.contains(&stored.event.event_id)).collect();
        let found = if roots.is_empty() { Vec::new() } else { sight.threads(&roots).await? };
        let mut threads = Vec::with_capacity(found.len());
        let mut conn = core.store.read().await?;
        for thread in found {
            let latest = conn.thread_event_at(&thread.root, thread.latest).await?;
            threads.push((thread, latest));
        }
        let latest: Vec<OwnedEventId> = threads.iter().filter_map(|(_, latest)| latest.clone()).collect();
        let edits_of_latest =
            if latest.is_empty() { Vec::new() } else { conn.edits_and_references(&latest).await? };
        drop(conn);
        let everything = !sight.all_joined();
        let wanted: HashSet<OwnedEventId> = edits
            .iter()
            .chain(&edits_of_latest)
            .filter(|edit| edit.rel_type == "m.replace" || everything)
            .map(|edit| edit.child.clone())
            .chain(latest)
            .collect();
        let events = sight.seen(wanted.into_iter().collect()).await?;
        edits.retain(|edit| {
            !sight.ignored.iter().any(|user| *user == *edit.sender)
                && (!everything || events.contains_key(&edit.child))
        });
        Ok(Found { threads, edits, edits_of_latest, events })
    }

    fn thread(&self, core: &Core, viewer: &Viewer, root: &StoredEvent) -> Option<Thread> {
        let (row, latest) = self.threads.iter().find(|(row, _)| row.root == root.event.event_id)?;
        let latest = self.events.get(latest.as_ref()?)?;
        let now = core.clock.now();
        let edit = replacement(&self.edits_of_latest, latest, &self.events)
            .map(|edit| bare(edit, now, true))
            .and_then(|edit| serde_json::value::to_raw_value(&OnlyReplace { replace: &edit }).ok());
        let unsigned = Unsigned {
            age: Some(age(&latest.event, now)),
            relations: edit.as_deref(),
            ..Unsigned::default()
        };
        Some(Thread {
            latest_event: ClientEvent::new(&latest.event).with_room(&unsigned),
            count: row.count,
            current_user_participated: row.participated || root.event.sender == viewer.user,
        })
    }

    fn references(&self, parent: &OwnedEventId) -> Option<Chunk> {
        let chunk: Vec<Reference> = self
            .edits
            .iter()
            .filter(|edit| edit.rel_type == "m.reference" && edit.parent == *parent)
            .take(MAX_REFERENCES)
            .map(|edit| Reference { event_id: edit.child.clone() })
            .collect();
        (!chunk.is_empty()).then_some(Chunk { chunk })
    }
}

/// The newest valid edit of an event: of the same type, by the same sender, neither of them state, and the event no
/// edit itself. <https://spec.matrix.org/v1.19/client-server-api/#validity-of-replacement-events>
fn replacement<'a>(
    edits: &[EditRow],
    of: &StoredEvent,
    events: &'a HashMap<OwnedEventId, Arc<StoredEvent>>,
) -> Option<&'a StoredEvent> {
    if of.event.is_state() || of.redacted_by.is_some() {
        return None;
    }
    if crate::timeline::relation(&of.event).is_some_and(|(_, rel_type)| rel_type == "m.replace") {
        return None;
    }
    edits
        .iter()
        .filter(|edit| edit.rel_type == "m.replace" && edit.parent == of.event.event_id)
        .filter_map(|edit| events.get(&edit.child))
        .filter(|edit| {
            edit.flags.visible()
                && edit.event.sender == of.event.sender
                && edit.event.kind == of.event.kind
                && edit.event.room_id == of.event.room_id
                && edit.event.state_key.is_none()
                && has_new_content(&edit.event)
        })
        .max_by_key(|edit| (edit.event.origin_server_ts, edit.event.event_id.clone()))
        .map(|edit| &**edit)
}

/// Whether an edit says what it makes of the event; what is encrypted says so inside.
fn has_new_content(edit: &Event) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.new_content")]
        _new: serde_json::Map<String, serde_json::Value>,
    }
    // What the reader gets in its redacted form says nothing new.
    edit.content.get() != "{}"
        && (edit.kind == TimelineEventType::RoomEncrypted || edit.content_as::<Content>().is_ok())
}
