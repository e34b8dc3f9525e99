//! Stripped state: what someone outside a room gets to see of it with an invite or a knock.
//! <https://spec.matrix.org/v1.19/client-server-api/#stripped-state>

use ruma::UserId;
use ruma::events::StateEventType;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use waxwing_model::{Event, StateKey, state_key};

/// The state entries that stripped state is made of: what identifies the room, and the member who invites.
pub fn keys(inviter: Option<&UserId>) -> Vec<StateKey> {
    let mut keys: Vec<StateKey> = [
        StateEventType::RoomCreate,
        StateEventType::RoomJoinRules,
        StateEventType::RoomName,
        StateEventType::RoomAvatar,
        StateEventType::RoomTopic,
        StateEventType::RoomCanonicalAlias,
        StateEventType::RoomEncryption,
    ]
    .into_iter()
    .map(|kind| state_key(kind, ""))
    .collect();
    keys.extend(inviter.map(|user| state_key(StateEventType::RoomMember, user.as_str())));
    keys
}

#[derive(Serialize, Deserialize)]
struct Stripped<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
    sender: std::borrow::Cow<'a, str>,
    state_key: std::borrow::Cow<'a, str>,
    #[serde(rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin_server_ts: Option<u64>,
}

impl Stripped<'_> {
    /// Only the create event keeps its time (MSC4311): it tells how old a room is that somebody invites into.
    fn trimmed(mut self) -> Self {
        if self.kind != "m.room.create" {
            self.origin_server_ts = None;
        }
        self
    }
}

/// A state event as clients see it in stripped state; `None` when it is not a state event.
pub fn strip(event: &Event) -> Option<Box<RawValue>> {
    let stripped = Stripped {
        content: &event.content,
        sender: event.sender.as_str().into(),
        state_key: event.state_key.as_deref()?.into(),
        kind: event.kind.to_string().into(),
        origin_server_ts: Some(event.origin_server_ts.get().into()),
    };
    serde_json::value::to_raw_value(&stripped.trimmed()).ok()
}

/// The same for a PDU, or an event that is stripped already, that another server sent with an invite or as the
/// answer to a knock: keeps only the four fields; `None` when one of them is missing.
pub fn strip_raw(raw: &RawValue) -> Option<Box<RawValue>> {
    let stripped: Stripped<'_> = serde_json::from_str(raw.get()).ok()?;
    serde_json::value::to_raw_value(&stripped.trimmed()).ok()
}

/// Stripped state with the create event first: whoever reads it must know what kind of room it is.
pub fn stripped_state<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<Box<RawValue>> {
    let mut events: Vec<&Event> = events.into_iter().collect();
    events.sort_by_key(|event| !event.is_state_of(&StateEventType::RoomCreate, ""));
    events.into_iter().filter_map(strip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_four_fields_only() {
        let raw = r#"{"type":"m.room.name","state_key":"","sender":"@a:x","content":{"name":"\u0041"},
            "auth_events":[],"signatures":{},"unsigned":{"x":1}}"#;
        let raw = RawValue::from_string(raw.to_owned()).unwrap();
        assert_eq!(
            strip_raw(&raw).unwrap().get(),
            r#"{"content":{"name":"\u0041"},"sender":"@a:x","state_key":"","type":"m.room.name"}"#
        );
        let message =
            RawValue::from_string(r#"{"type":"m","sender":"@a:x","content":{}}"#.to_owned()).unwrap();
        assert!(strip_raw(&message).is_none());
        assert_eq!(keys(Some(ruma::user_id!("@a:x"))).len(), 8);
    }
}
