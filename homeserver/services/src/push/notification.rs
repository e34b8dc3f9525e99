//! What a gateway is told. Of events in encrypted rooms that is which event it was and nothing else: no sender, no
//! content, no names, whatever the app asks for.
//! <https://spec.matrix.org/v1.19/push-gateway-api/#post_matrixpushv1notify>

use ruma::push::{Action, Tweak};
use ruma::{OwnedEventId, OwnedRoomId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use url::Url;
use waxwing_storage::PusherRow;

/// An app that counts by itself asks not to be told a number.
/// <https://github.com/matrix-org/matrix-spec-proposals/pull/4076>
const NO_BADGE: &str = "org.matrix.msc4076.disable_badge_count";
/// The format that tells no more than which event it was.
const EVENT_ID_ONLY: &str = "event_id_only";

/// An event that a user is notified of.
#[derive(Debug)]
pub(super) struct Told {
    pub event_id: OwnedEventId,
    pub room: OwnedRoomId,
    /// What the user's rules say.
    pub actions: Vec<Action>,
    /// The event is worth waking a device for.
    pub urgent: bool,
    /// Everything else; none in encrypted rooms.
    pub details: Option<Details>,
}

/// What is told of an event in a room that is not encrypted.
#[derive(Debug)]
pub(super) struct Details {
    pub kind: String,
    pub sender: String,
    pub sender_name: Option<String>,
    pub room_name: Option<String>,
    pub room_alias: Option<String>,
    pub user_is_target: bool,
    pub content: Box<RawValue>,
}

/// The part of a pusher that matters for sending.
#[derive(Debug)]
pub(super) struct Target {
    pub url: Url,
    app_id: String,
    pushkey: String,
    updated_at: u64,
    data: Map<String, Value>,
}

impl Target {
    /// `None` for a pusher that cannot be sent to.
    pub fn of(row: &PusherRow) -> Option<Target> {
        let pusher: Value = serde_json::from_str(&row.json).ok()?;
        let mut data = pusher.get("data")?.as_object()?.clone();
        let url = data.remove("url")?;
        Some(Target {
            url: Url::parse(url.as_str()?).ok()?,
            app_id: row.key.app_id.clone(),
            pushkey: row.key.pushkey.clone(),
            updated_at: row.updated_at,
            data,
        })
    }

    /// Whether the app wants to know how much is unread.
    pub fn wants_badge(&self) -> bool {
        self.data.get(NO_BADGE).and_then(Value::as_bool) != Some(true)
    }

    fn id_only(&self) -> bool {
        self.data.get("format").and_then(Value::as_str) == Some(EVENT_ID_ONLY)
    }

    /// The body of a request about an event.
    pub fn about(&self, told: &Told, badge: u64) -> Value {
        let details = told.details.as_ref().filter(|_| !self.id_only());
        let loud = told
            .actions
            .iter()
            .any(|action| action.is_highlight() || matches!(action, Action::SetTweak(Tweak::Sound(_))));
        let mut body = Map::new();
        body.insert("event_id".to_owned(), told.event_id.as_str().into());
        body.insert("room_id".to_owned(), told.room.as_str().into());
        let prio = if told.urgent || loud { "high" } else { "low" };
        body.insert("prio".to_owned(), prio.into());
        if let Some(details) = details {
            details.put(&mut body);
        }
        let tweaks = details.map(|_| tweaks(&told.actions)).unwrap_or_default();
        if self.wants_badge() && badge > 0 {
            body.insert("counts".to_owned(), json!({ "unread": badge }));
        }
        body.insert("devices".to_owned(), json!([self.device(tweaks)]));
        json!({ "notification": body })
    }

    /// The body of a request that tells how much is unread, and of no event. Zero is said too: apps take the number
    /// off their icon by it.
    pub fn count(&self, badge: u64) -> Value {
        json!({ "notification": {
            "counts": { "unread": badge },
            "devices": [self.device(Map::new())],
            "prio": "low",
        } })
    }

    fn device(&self, tweaks: Map<String, Value>) -> Value {
        let mut device = Map::new();
        device.insert("app_id".to_owned(), self.app_id.as_str().into());
        device.insert("pushkey".to_owned(), self.pushkey.as_str().into());
        device.insert("pushkey_ts".to_owned(), (self.updated_at / 1000).into());
        device.insert("data".to_owned(), Value::Object(self.data.clone()));
        if !tweaks.is_empty() {
            device.insert("tweaks".to_owned(), Value::Object(tweaks));
        }
        Value::Object(device)
    }
}

impl Details {
    fn put(&self, body: &mut Map<String, Value>) {
        let texts = [
            ("type", Some(&self.kind)),
            ("sender", Some(&self.sender)),
            ("sender_display_name", self.sender_name.as_ref()),
            ("room_name", self.room_name.as_ref()),
            ("room_alias", self.room_alias.as_ref()),
        ];
        for (field, text) in texts {
            if let Some(text) = text {
                body.insert(field.to_owned(), text.as_str().into());
            }
        }
        if self.user_is_target {
            body.insert("user_is_target".to_owned(), true.into());
        }
        if let Ok(content) = serde_json::from_str::<Value>(self.content.get()) {
            body.insert("content".to_owned(), content);
        }
    }
}

fn tweaks(actions: &[Action]) -> Map<String, Value> {
    // As rules write them; ruma's own types hide the value of tweaks that it does not know.
    #[derive(serde::Deserialize)]
    struct Set {
        set_tweak: String,
        value: Option<Value>,
    }
    let mut tweaks = Map::new();
    for action in actions {
        let set = serde_json::to_value(action).and_then(serde_json::from_value::<Set>);
        if let Ok(Set { set_tweak, value }) = set {
            // A highlight without a value is one.
            let value = value.unwrap_or_else(|| (set_tweak == "highlight").into());
            tweaks.insert(set_tweak, value);
        }
    }
    tweaks
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxwing_storage::PusherKey;

    fn target(data: &Value) -> Target {
        let key =
            PusherKey { user_id: "@a:x".try_into().unwrap(), app_id: "app".into(), pushkey: "key".into() };
        let json = json!({ "kind": "http", "data": data }).to_string();
        Target::of(&PusherRow {
            key,
            device_id: None,
            json,
            enabled: true,
            updated_at: 5_000,
            position: 0,
            marked: 0,
            badge: None,
            failing: None,
        })
        .unwrap()
    }

    fn told(details: bool) -> Told {
        let actions = json!(["notify", { "set_tweak": "highlight" }, { "set_tweak": "glow", "value": 3 }]);
        let details = details.then(|| Details {
            kind: "m.room.message".into(),
            sender: "@b:x".into(),
            sender_name: Some("Bob".into()),
            room_name: None,
            room_alias: None,
            user_is_target: false,
            content: RawValue::from_string(r#"{"body":"hi"}"#.into()).unwrap(),
        });
        Told {
            event_id: "$e".try_into().unwrap(),
            room: "!r:x".try_into().unwrap(),
            actions: serde_json::from_value(actions).unwrap(),
            urgent: false,
            details,
        }
    }

    const URL: &str = "https://gate.example/_matrix/push/v1/notify";

    #[test]
    fn everything_is_told_of_rooms_in_the_clear() {
        let body = target(&json!({ "url": URL, "mine": "x" })).about(&told(true), 2);
        assert_eq!(
            body,
            json!({ "notification": {
                "event_id": "$e", "room_id": "!r:x", "prio": "high", "type": "m.room.message", "sender": "@b:x",
                "sender_display_name": "Bob", "content": { "body": "hi" }, "counts": { "unread": 2 },
                "devices": [{ "app_id": "app", "pushkey": "key", "pushkey_ts": 5, "data": { "mine": "x" },
                              "tweaks": { "highlight": true, "glow": 3 } }],
            } })
        );
    }

    #[test]
    fn only_the_id_is_told_of_encrypted_rooms_and_to_who_wants_no_more() {
        let ask = json!({ "url": URL, "format": "event_id_only" });
        for body in
            [target(&ask).about(&told(true), 1), target(&json!({ "url": URL })).about(&told(false), 1)]
        {
            let fields: Vec<&String> = body["notification"].as_object().unwrap().keys().collect();
            assert_eq!(fields, ["counts", "devices", "event_id", "prio", "room_id"]);
            assert!(body["notification"]["devices"][0].get("tweaks").is_none());
        }
        let quiet = target(&json!({ "url": URL, NO_BADGE: true })).about(&told(false), 1);
        assert!(quiet["notification"].get("counts").is_none());
    }
}
