//! What a client wants to see of a sync. <https://spec.matrix.org/v1.19/client-server-api/#filtering>

use crate::rooms_read::{EventFilter, wildcard};
use ruma::RoomId;
use ruma::api::client::filter::{EventFormat, Filter, FilterDefinition, LazyLoadOptions};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use waxwing_model::Event;

/// Timeline events of a room when the filter names no limit.
const DEFAULT_TIMELINE: usize = 10;
/// Timeline events of a room at most, whatever the filter says: it bounds a response.
const MAX_TIMELINE: usize = 100;

/// A filter, ready for use.
#[derive(Clone, Debug, Default)]
pub struct SyncFilter {
    definition: FilterDefinition,
    /// Filters of events, with the fields by relation that ruma's type lacks.
    events: OfEvents,
    fields: Option<Vec<Vec<String>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct OfEvents {
    #[serde(default)]
    timeline: EventFilter,
    #[serde(default)]
    state: EventFilter,
}

#[derive(Default, Deserialize)]
struct OfRooms {
    #[serde(default)]
    room: OfEvents,
}

impl SyncFilter {
    /// From its JSON, as `POST …/filter` or the parameter of `/sync` has it.
    pub fn parse(json: &str) -> Result<SyncFilter, serde_json::Error> {
        let definition: FilterDefinition = serde_json::from_str(json)?;
        let fields = definition.event_fields.as_ref();
        let fields = fields.map(|fields| fields.iter().map(|field| split_field(field)).collect());
        let OfRooms { room: events } = serde_json::from_str(json)?;
        Ok(SyncFilter { definition, events, fields })
    }

    /// Events of a room's timeline at most.
    pub fn timeline_limit(&self) -> usize {
        let limit = self.definition.room.timeline.limit;
        limit
            .map_or(DEFAULT_TIMELINE, |limit| usize::try_from(u64::from(limit)).unwrap_or(MAX_TIMELINE))
            .min(MAX_TIMELINE)
    }

    /// Whether rooms that the user has left are shown beyond the moment of leaving.
    pub fn include_leave(&self) -> bool {
        self.definition.room.include_leave
    }

    /// Whether the room is shown at all.
    pub fn room(&self, room: &RoomId) -> bool {
        let filter = &self.definition.room;
        listed(filter.rooms.as_deref(), &filter.not_rooms, room)
    }

    /// Whether the event belongs in the timeline.
    pub fn timeline(&self, event: &Event) -> bool {
        self.events.timeline.passes(event)
    }

    /// The filter of the timeline, if it asks what relates to events: the database knows that.
    pub fn timeline_by_children(&self) -> Option<&EventFilter> {
        Some(&self.events.timeline).filter(|filter| filter.by_children())
    }

    /// Whether the event belongs in the state.
    pub fn state(&self, event: &Event) -> bool {
        self.events.state.passes(event)
    }

    /// Whether no state is wanted whatever it is, so that none needs to be looked up.
    pub fn no_state(&self) -> bool {
        self.definition.room.state.types.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether ephemeral events of this type are wanted in this room.
    pub fn ephemeral(&self, room: &RoomId, kind: &str) -> bool {
        let filter = &self.definition.room.ephemeral;
        listed(filter.rooms.as_deref(), &filter.not_rooms, room)
            && kind_matches(filter.types.as_deref(), &filter.not_types, kind)
    }

    /// Whether account data of this type is wanted of this room.
    pub fn room_account_data(&self, room: &RoomId, kind: &str) -> bool {
        let filter = &self.definition.room.account_data;
        listed(filter.rooms.as_deref(), &filter.not_rooms, room)
            && kind_matches(filter.types.as_deref(), &filter.not_types, kind)
    }

    /// Whether account data of this type is wanted.
    pub fn account_data(&self, kind: &str) -> bool {
        let filter = &self.definition.account_data;
        kind_matches(filter.types.as_deref(), &filter.not_types, kind)
    }

    /// Whether presence of this user is wanted.
    pub fn presence(&self, sender: &str) -> bool {
        let filter: &Filter = &self.definition.presence;
        kind_matches(filter.types.as_deref(), &filter.not_types, "m.presence")
            && !filter.not_senders.iter().any(|other| other.as_str() == sender)
            && filter.senders.as_ref().is_none_or(|all| all.iter().any(|other| other.as_str() == sender))
    }

    /// Whether member events of others than the senders of shown events are left out; and if so, whether those that
    /// were sent before are sent again.
    pub fn lazy_load(&self) -> Option<bool> {
        match &self.definition.room.state.lazy_load_options {
            LazyLoadOptions::Enabled { include_redundant_members } => Some(*include_redundant_members),
            LazyLoadOptions::Disabled => match &self.definition.room.timeline.lazy_load_options {
                LazyLoadOptions::Enabled { include_redundant_members } => Some(*include_redundant_members),
                LazyLoadOptions::Disabled => None,
            },
        }
    }

    /// Whether unread counts are given for each thread.
    pub fn thread_counts(&self) -> bool {
        self.definition.room.timeline.unread_thread_notifications
    }

    /// Whether events are wanted as servers send them to each other.
    pub fn federation_format(&self) -> bool {
        self.definition.event_format == EventFormat::Federation
    }

    /// Keeps only the wanted fields of an event.
    pub fn shape(&self, event: Box<RawValue>) -> Box<RawValue> {
        let Some(fields) = &self.fields else { return event };
        let Ok(Value::Object(object)) = serde_json::from_str(event.get()) else { return event };
        let mut kept = Map::new();
        for path in fields {
            copy_field(&object, path, &mut kept);
        }
        serde_json::value::to_raw_value(&kept).unwrap_or(event)
    }
}

/// A dotted path in parts; a backslash escapes a dot or itself.
fn split_field(field: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        let next = match c {
            '\\' => chars.next(),
            '.' => {
                parts.push(String::new());
                continue;
            }
            c => Some(c),
        };
        if let (Some(c), Some(part)) = (next, parts.last_mut()) {
            part.push(c);
        }
    }
    parts
}

fn copy_field(from: &Map<String, Value>, path: &[String], to: &mut Map<String, Value>) {
    let Some((first, rest)) = path.split_first() else { return };
    let Some(value) = from.get(first) else { return };
    if rest.is_empty() {
        to.insert(first.clone(), value.clone());
        return;
    }
    let Value::Object(inner) = value else { return };
    let mut part = Map::new();
    copy_field(inner, rest, &mut part);
    if part.is_empty() {
        return;
    }
    if let Value::Object(there) = to.entry(first.clone()).or_insert_with(|| Value::Object(Map::new())) {
        merge(there, part);
    }
}

fn merge(there: &mut Map<String, Value>, part: Map<String, Value>) {
    for (key, value) in part {
        match (there.get_mut(&key), value) {
            (Some(Value::Object(there)), Value::Object(value)) => merge(there, value),
            (Some(_), _) => {}
            (None, value) => drop(there.insert(key, value)),
        }
    }
}

fn listed(rooms: Option<&[ruma::OwnedRoomId]>, not_rooms: &[ruma::OwnedRoomId], room: &RoomId) -> bool {
    !not_rooms.iter().any(|other| other == room)
        && rooms.is_none_or(|rooms| rooms.iter().any(|other| other == room))
}

fn kind_matches(types: Option<&[String]>, not_types: &[String], kind: &str) -> bool {
    !not_types.iter().any(|pattern| wildcard(pattern, kind))
        && types.is_none_or(|types| types.iter().any(|pattern| wildcard(pattern, kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, content: &str) -> Event {
        let json = format!(
            r#"{{"type":"{kind}","sender":"@a:x","origin_server_ts":1,"depth":1,"prev_events":[],"auth_events":[],"content":{content}}}"#
        );
        let raw = RawValue::from_string(json).unwrap();
        Event::parse("$e".try_into().unwrap(), "!r:x".try_into().unwrap(), raw).unwrap()
    }

    #[test]
    fn what_is_excluded_wins() {
        let filter = SyncFilter::parse(
            r#"{"room":{"timeline":{"types":["m.*"],"not_types":["m.room.name"],"contains_url":false},"rooms":["!r:x"]}}"#,
        )
        .unwrap();
        assert!(filter.timeline(&event("m.room.topic", "{}")));
        assert!(!filter.timeline(&event("m.room.name", "{}")));
        assert!(!filter.timeline(&event("m.room.topic", r#"{"url":"mxc://x/y"}"#)));
        assert!(!filter.timeline(&event("org.x", "{}")));
        assert!(filter.room(ruma::room_id!("!r:x")) && !filter.room(ruma::room_id!("!s:x")));
        assert_eq!(SyncFilter::default().timeline_limit(), 10);
        let filter =
            SyncFilter::parse(r#"{"room":{"timeline":{"org.matrix.msc3874.not_rel_types":["m.thread"]}}}"#)
                .unwrap();
        let threaded = r#"{"m.relates_to":{"rel_type":"m.thread","event_id":"$t"}}"#;
        assert!(!filter.timeline(&event("m.room.message", threaded)));
        assert!(filter.timeline(&event("m.room.message", "{}")) && filter.timeline_by_children().is_none());
    }

    #[test]
    fn keeps_the_named_fields() {
        let filter = SyncFilter::parse(
            r#"{"event_fields":["type","content.a.b","content.a.c","content.m\\.x","content.none.y"]}"#,
        )
        .unwrap();
        let raw = r#"{"type":"t","sender":"@a:x","content":{"a":{"b":1,"c":2,"d":3},"m.x":4,"z":5}}"#;
        let shaped = filter.shape(RawValue::from_string(raw.to_owned()).unwrap());
        let shaped: Value = serde_json::from_str(shaped.get()).unwrap();
        assert_eq!(shaped, serde_json::json!({"type":"t","content":{"a":{"b":1,"c":2},"m.x":4}}));
    }
}
