//! Invitations to rooms that this server is not in: all it has is what came with them.

use ruma::MilliSecondsSinceUnixEpoch;
use ruma::events::TimelineEventType;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_storage::MemberRow;

/// The invitation as an event, as far as it is known.
pub(super) fn invitation(row: &MemberRow) -> Event {
    let content = serde_json::value::to_raw_value(&serde_json::json!({ "membership": row.membership }));
    let content = content.unwrap_or_else(|_| RawValue::NULL.to_owned());
    Event {
        event_id: row.event_id.clone(),
        room_id: row.room_id.clone(),
        sender: row.sender.clone(),
        kind: TimelineEventType::RoomMember,
        state_key: Some(row.user_id.to_string()),
        origin_server_ts: MilliSecondsSinceUnixEpoch(ruma::UInt::MIN),
        depth: ruma::UInt::MIN,
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        redacts: None,
        json: Arc::from(content.clone()),
        content,
    }
}

/// What the stripped state of an invitation says about the room.
#[derive(Debug, Default)]
pub(super) struct Stripped {
    pub name: Option<String>,
    pub alias: Option<String>,
    pub encrypted: bool,
    /// Display names by user id.
    pub names: HashMap<String, String>,
}

#[derive(Deserialize)]
struct StateEvent {
    #[serde(rename = "type")]
    kind: String,
    state_key: String,
    content: Value,
}

impl Stripped {
    /// Reads it; what cannot be read is left out.
    pub fn read(json: Option<&str>) -> Stripped {
        let mut state = Stripped::default();
        let events: Vec<Value> = json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        for event in events.into_iter().filter_map(|event| serde_json::from_value::<StateEvent>(event).ok()) {
            let text = |field: &str| {
                event
                    .content
                    .get(field)
                    .and_then(Value::as_str)
                    .filter(|it| !it.is_empty())
                    .map(str::to_owned)
            };
            match event.kind.as_str() {
                "m.room.name" => state.name = text("name"),
                "m.room.canonical_alias" => state.alias = text("alias"),
                "m.room.encryption" => state.encrypted = true,
                "m.room.member" => {
                    if let Some(name) = text("displayname") {
                        state.names.insert(event.state_key, name);
                    }
                }
                _ => {}
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripped_state_may_hold_anything() {
        let state = Stripped::read(Some(
            r#"[{"type":"m.room.name","state_key":"","content":{"name":"Aviary"}}, 7,
                {"type":"m.room.encryption","state_key":"","content":[]},
                {"type":"m.room.member","state_key":"@a:x","content":{"displayname":"Alice"}}]"#,
        ));
        assert_eq!((state.name.as_deref(), state.encrypted), (Some("Aviary"), true));
        assert_eq!(state.names["@a:x"], "Alice");
        assert!(Stripped::read(Some("{")).name.is_none());
    }
}
