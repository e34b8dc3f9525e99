//! The order of a space's children.
//! <https://spec.matrix.org/v1.19/client-server-api/#ordering-of-children-within-a-space>

use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Characters of an `order` at most.
const MAX_ORDER: usize = 50;
/// Servers of one child that are considered.
const MAX_VIA: usize = 10;

/// A child that a space names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub room: OwnedRoomId,
    pub via: Vec<OwnedServerName>,
    pub suggested: bool,
    order: Option<String>,
    since: u64,
}

impl Child {
    /// Reads a stripped `m.space.child` event; `None` for one that names no child (any more).
    pub fn read(event: &RawValue) -> Option<Child> {
        #[derive(Deserialize)]
        struct Stripped {
            state_key: String,
            content: Content,
            #[serde(default)]
            origin_server_ts: u64,
        }
        #[derive(Deserialize)]
        struct Content {
            #[serde(default)]
            via: Value,
            #[serde(default)]
            order: Value,
            #[serde(default)]
            suggested: Value,
        }
        let event: Stripped = serde_json::from_str(event.get()).ok()?;
        let via: Vec<OwnedServerName> = event
            .content
            .via
            .as_array()?
            .iter()
            .filter_map(|server| ServerName::parse(server.as_str()?).ok())
            .take(MAX_VIA)
            .collect();
        if via.is_empty() {
            return None;
        }
        let order = event.content.order.as_str().filter(|order| is_order(order)).map(str::to_owned);
        Some(Child {
            room: RoomId::parse(event.state_key).ok()?,
            via,
            suggested: event.content.suggested == Value::Bool(true),
            order,
            since: event.origin_server_ts,
        })
    }
}

impl Child {
    /// What children are sorted by: <https://spec.matrix.org/v1.19/client-server-api/#ordering-of-children-within-a-space>
    pub(super) fn place(&self) -> (bool, Option<&str>, u64, &RoomId) {
        (self.order.is_none(), self.order.as_deref(), self.since, &self.room)
    }
}

fn is_order(order: &str) -> bool {
    order.len() <= MAX_ORDER && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

/// Sorts children: those with an order first, by it; then by the age of the event, then by id.
pub(super) fn sort(children: &mut [Child]) {
    children.sort_by(|one, other| one.place().cmp(&other.place()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(json: &str) -> Option<Child> {
        Child::read(&RawValue::from_string(json.to_owned()).unwrap())
    }

    #[test]
    fn children_are_ordered() {
        let event = |room: &str, order: &str, at: u64| {
            child(&format!(
                r#"{{"state_key":"{room}","content":{{"via":["x"],"order":{order}}},"origin_server_ts":{at}}}"#
            ))
            .unwrap()
        };
        let mut children = [
            event("!d", "null", 5),
            event("!c", "\"\u{e9}\"", 4),
            event("!b", "\"b\"", 9),
            event("!a", "\"a\"", 10),
        ];
        sort(&mut children);
        let rooms: Vec<&str> = children.iter().map(|child| child.room.as_str()).collect();
        assert_eq!(rooms, ["!a", "!b", "!c", "!d"]);
    }

    #[test]
    fn a_child_without_servers_is_none() {
        assert!(child(r#"{"state_key":"!a","content":{}}"#).is_none());
        assert!(child(r#"{"state_key":"!a","content":{"via":[]}}"#).is_none());
        assert!(child(r#"{"state_key":"!a","content":{"via":["x"],"suggested":true}}"#).unwrap().suggested);
    }
}
