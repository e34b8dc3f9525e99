//! The rules that every user has. <https://spec.matrix.org/v1.19/client-server-api/#predefined-rules>

use crate::PushSettings;
use ruma::UserId;
use ruma::push::{ConditionalPushRule, PatternedPushRule, Ruleset};
use serde_json::{Value, json};

/// The rules of the specification and, with them:
///
/// - those by which people were mentioned before events said whom they mention. Many clients still leave that to the
///   words of a message; where `m.mentions` is there, these are passed over.
///   <https://github.com/matrix-org/matrix-spec-proposals/pull/4210> took them out of the specification;
/// - those of polls, <https://github.com/matrix-org/matrix-spec-proposals/pull/3930>;
/// - those that the settings ask for.
pub(super) fn defaults(user: &UserId, settings: PushSettings) -> Ruleset {
    let mut rules = Ruleset::server_default(user);
    if !settings.thread_subscriptions {
        rules.postcontent.clear();
    }
    let at = |rules: &Ruleset, id: &str| rules.override_.iter().position(|rule| rule.rule_id == id);
    let before_tombstone = at(&rules, ".m.rule.tombstone").unwrap_or_default();
    insert(&mut rules, before_tombstone, legacy_mentions());
    let after_acl = at(&rules, ".m.rule.room.server_acl").map_or(rules.override_.len(), |at| at + 1);
    insert(&mut rules, after_acl, json!([poll("response", false, &json!([]))]));
    if settings.encrypted_events {
        // Next to `.m.rule.master`: what users make themselves stands between the two.
        insert(&mut rules, 1, encrypted_events());
    }
    let name = json!({ "rule_id": ".m.rule.contains_user_name", "default": true, "enabled": true,
                       "actions": highlight(), "pattern": user.localpart() });
    if let Ok(rule) = serde_json::from_value::<PatternedPushRule>(name) {
        rules.content.insert(rule);
    }
    let (loud, quiet) = (json!(["notify", { "set_tweak": "sound", "value": "default" }]), json!(["notify"]));
    let polls = json!([
        poll("start", true, &loud),
        poll("start", false, &quiet),
        poll("end", true, &loud),
        poll("end", false, &quiet),
    ]);
    rules.underride.extend(conditional(polls));
    rules
}

fn insert(rules: &mut Ruleset, at: usize, more: Value) {
    for rule in conditional(more).into_iter().rev() {
        rules.override_.shift_insert(at, rule);
    }
}

fn conditional(rules: Value) -> Vec<ConditionalPushRule> {
    serde_json::from_value(rules).unwrap_or_default()
}

fn highlight() -> Value {
    json!(["notify", { "set_tweak": "sound", "value": "default" }, { "set_tweak": "highlight" }])
}

fn legacy_mentions() -> Value {
    json!([
        { "rule_id": ".m.rule.contains_display_name", "default": true, "enabled": true,
          "actions": highlight(), "conditions": [{ "kind": "contains_display_name" }] },
        { "rule_id": ".m.rule.roomnotif", "default": true, "enabled": true,
          "actions": ["notify", { "set_tweak": "highlight" }],
          "conditions": [
              { "kind": "event_match", "key": "content.body", "pattern": "@room" },
              { "kind": "sender_notification_permission", "key": "room" },
          ] },
    ])
}

/// <https://github.com/matrix-org/matrix-spec-proposals/pull/4028>
fn encrypted_events() -> Value {
    json!([{ "rule_id": ".org.matrix.msc4028.encrypted_event", "default": true, "enabled": true,
             "actions": ["notify"],
             "conditions": [{ "kind": "event_match", "key": "type", "pattern": "m.room.encrypted" }] }])
}

/// A rule about one kind of poll event.
fn poll(kind: &str, one_to_one: bool, actions: &Value) -> Value {
    let of_kind =
        json!({ "kind": "event_match", "key": "type", "pattern": format!("org.matrix.msc3381.poll.{kind}") });
    let (suffix, conditions) = if one_to_one {
        ("_one_to_one", json!([{ "kind": "room_member_count", "is": "2" }, of_kind]))
    } else {
        ("", json!([of_kind]))
    };
    json!({ "rule_id": format!(".org.matrix.msc3930.rule.poll_{kind}{suffix}"), "default": true,
            "enabled": true, "conditions": conditions, "actions": actions })
}
