//! What differs between versions beside who may do what: event ids, and what a redaction leaves.

use crate::case::{ALICE, ALL};
use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedUserId, server_name, uint};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use waxwing_rooms::build::build_event;
use waxwing_rooms::redact::redact_object;
use waxwing_rooms::version::SUPPORTED;
use waxwing_rooms::{AuthMap, EventDraft, KeyPair, RoomContext, canonical_object};

/// Names of servers until version 2, the hash since, in an alphabet that suits URLs from version 4 on.
#[test]
fn event_ids() {
    let key = KeyPair::from_seed([3; 32], "0").unwrap();
    for (version, number) in SUPPORTED.iter().zip(ALL) {
        let mut alphabet = String::new();
        for body in 0..40 {
            let draft = EventDraft {
                kind: "m.room.message".into(),
                content: to_raw_value(&json!({ "body": body })).unwrap(),
                state_key: None,
                sender: OwnedUserId::try_from(ALICE).unwrap(),
                redacts: None,
                origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(1)),
                sticky_ms: None,
            };
            let context = RoomContext {
                version: version.clone(),
                room_id: Some(OwnedRoomId::try_from("!room:x").unwrap()),
                prev_events: Vec::new(),
                state: AuthMap::new(),
            };
            let event = build_event(draft, &context, server_name!("x"), &key).unwrap();
            let named = event.event_id.server_name() == Some(server_name!("x"));
            assert_eq!(named, number <= 2, "{number}");
            assert_eq!(
                event.event_id.as_str().len() == 44,
                number >= 3,
                "{number}: 43 letters and the sigil"
            );
            alphabet.push_str(event.event_id.as_str());
        }
        let has = |letters: &[char]| alphabet.contains(letters);
        // Until version 2 a server calls its events what it likes.
        assert!(number < 3 || has(&['/', '+']) == (number == 3), "{number}: {alphabet}");
        assert!(number < 3 || has(&['-', '_']) == (number >= 4), "{number}: {alphabet}");
    }
}

/// Fields of a content that a redaction leaves, and in which versions.
fn kept() -> Vec<(&'static str, &'static str, RangeInclusive<u8>)> {
    let never = 13..=13;
    vec![
        ("m.room.create", "creator", ALL),
        ("m.room.create", "room_version", 11..=12),
        ("m.room.create", "additional_creators", 11..=12),
        ("m.room.create", "m.federate", 11..=12),
        ("m.room.join_rules", "join_rule", ALL),
        ("m.room.join_rules", "allow", 8..=12),
        ("m.room.member", "membership", ALL),
        ("m.room.member", "join_authorised_via_users_server", 9..=12),
        ("m.room.member", "displayname", never.clone()),
        ("m.room.power_levels", "ban", ALL),
        ("m.room.power_levels", "events", ALL),
        ("m.room.power_levels", "events_default", ALL),
        ("m.room.power_levels", "kick", ALL),
        ("m.room.power_levels", "redact", ALL),
        ("m.room.power_levels", "state_default", ALL),
        ("m.room.power_levels", "users", ALL),
        ("m.room.power_levels", "users_default", ALL),
        ("m.room.power_levels", "invite", 11..=12),
        ("m.room.power_levels", "notifications", never.clone()),
        ("m.room.history_visibility", "history_visibility", ALL),
        ("m.room.aliases", "aliases", 1..=5),
        ("m.room.redaction", "redacts", 11..=12),
        ("m.room.redaction", "reason", never.clone()),
        ("m.room.message", "body", never),
    ]
}

fn redacted(number: u8, event: &Value) -> CanonicalJsonObject {
    let version = &SUPPORTED[usize::from(number) - 1];
    redact_object(canonical_object(&event.to_string()).unwrap(), version).unwrap()
}

#[test]
fn what_a_redaction_leaves_of_the_content() {
    for (kind, field, versions) in kept() {
        for number in ALL {
            let event = json!({ "type": kind, "content": { field: "value", "org.example.other": 1 } });
            let left = redacted(number, &event);
            let content = left.get("content").and_then(CanonicalJsonValue::as_object).unwrap();
            assert_eq!(content.contains_key(field), versions.contains(&number), "{number}: {kind}, {field}");
            let all = kind == "m.room.create" && number >= 11;
            assert_eq!(content.contains_key("org.example.other"), all, "{number}: {kind}");
        }
    }
}

/// Of an invitation by address the signed part is left since version 11, and no name.
#[test]
fn what_a_redaction_leaves_of_third_party_invitations() {
    for number in ALL {
        let invite = json!({ "display_name": "a", "signed": { "token": "t" } });
        let content = json!({ "membership": "invite", "third_party_invite": invite });
        let left = redacted(number, &json!({ "type": "m.room.member", "content": content }));
        let content = left.get("content").and_then(CanonicalJsonValue::as_object).unwrap();
        let found = content.get("third_party_invite").and_then(CanonicalJsonValue::as_object);
        assert_eq!(found.is_some(), number >= 11, "{number}");
        assert!(
            found.is_none_or(|found| found.contains_key("signed") && !found.contains_key("display_name"))
        );
    }
}

#[test]
fn what_a_redaction_leaves_of_the_rest() {
    let always = [
        "event_id",
        "type",
        "room_id",
        "sender",
        "state_key",
        "content",
        "hashes",
        "signatures",
        "depth",
        "prev_events",
        "auth_events",
        "origin_server_ts",
    ];
    let old = ["prev_state", "origin", "membership"];
    let never = ["unsigned", "redacts", "age_ts", "org.example.other"];
    for number in ALL {
        let all = always.iter().chain(&old).chain(&never);
        let mut event: Value =
            all.map(|field| ((*field).to_owned(), json!("value"))).collect::<serde_json::Map<_, _>>().into();
        event["type"] = "m.room.message".into();
        event["content"] = json!({});
        let left = redacted(number, &event);
        for field in always {
            assert!(left.contains_key(field), "{number}: {field}");
        }
        for field in old {
            assert_eq!(left.contains_key(field), number <= 10, "{number}: {field}");
        }
        for field in never {
            assert!(!left.contains_key(field), "{number}: {field}");
        }
    }
}
