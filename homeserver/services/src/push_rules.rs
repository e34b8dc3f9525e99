//! Push rules: a user's account data `m.push_rules`, with the server's default rules always among them.
//! <https://spec.matrix.org/v1.19/client-server-api/#push-rules>

mod defaults;

use crate::{Core, PushSettings};
use ruma::push::{
    Action, AnyPushRule, AnyPushRuleRef, InsertPushRuleError, NewPushRule, PushCondition,
    RemovePushRuleError, RuleKind, Ruleset,
};
use ruma::{RoomId, UserId};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_storage::StoreError;

/// The type of the account data.
pub(crate) const KIND: &str = "m.push_rules";
/// Rules of one user: each is tried for each event of each room.
const MAX_RULES: usize = 2000;
/// All rules of one user, as JSON: each sync that says they changed carries them all.
const MAX_BYTES: usize = 1 << 20;
/// A pattern of a rule, in bytes: each is matched against every event, whoever sent it.
const MAX_PATTERN: usize = 1024;
/// Conditions and actions of one rule.
const MAX_PARTS: usize = 64;
/// The kinds that clients expect to find, empty or not.
const KINDS: [&str; 5] = ["override", "content", "room", "sender", "underride"];

/// Why push rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum PushRuleError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such rule.
    #[error("push rule not found")]
    NotFound,
    /// The rule named by `before` or `after` is not there.
    #[error("the rule that the new one is to stand beside was not found")]
    NoNeighbour,
    /// The rule cannot be made or removed; why.
    #[error("{0}")]
    Invalid(&'static str),
    /// There are as many rules as there may be.
    #[error("too many push rules")]
    TooMany,
}

/// Reads and changes push rules.
#[derive(Clone)]
pub struct PushRules {
    core: Core,
}

impl PushRules {
    /// Over the database of `core`.
    pub fn new(core: Core) -> PushRules {
        PushRules { core }
    }

    /// A user's rules, the defaults among them.
    pub async fn rules(&self, user: &UserId) -> Result<Ruleset, PushRuleError> {
        let content = self.core.store.read().await?.account_data_load(user, None, KIND).await?;
        Ok(parse(&self.core, user, content.as_deref()))
    }

    /// The content of `m.push_rules` as clients see it: `{"global": {…}}`.
    pub async fn content(&self, user: &UserId) -> Result<Box<RawValue>, PushRuleError> {
        let content = self.core.store.read().await?.account_data_load(user, None, KIND).await?;
        Ok(self::content(&self.core, user, content.as_deref()))
    }

    /// One rule.
    ///
    /// # Errors
    /// [`PushRuleError::NotFound`].
    pub async fn rule(&self, user: &UserId, kind: RuleKind, id: &str) -> Result<AnyPushRule, PushRuleError> {
        let rules = self.rules(user).await?;
        rules.get(kind, id).map(AnyPushRuleRef::to_owned).ok_or(PushRuleError::NotFound)
    }

    /// Makes or replaces a rule of the user's own, next to another if `before` or `after` names one.
    ///
    /// # Errors
    /// [`PushRuleError::Invalid`] for ids that start with a dot or hold slashes, and for sizes;
    /// [`PushRuleError::NoNeighbour`].
    pub async fn put(
        &self,
        user: &UserId,
        rule: NewPushRule,
        before: Option<String>,
        after: Option<String>,
    ) -> Result<(), PushRuleError> {
        check(&rule)?;
        self.change(user, move |rules| {
            rules.insert(rule.clone(), after.as_deref(), before.as_deref()).map_err(|error| match error {
                InsertPushRuleError::UnknownRuleId => PushRuleError::NoNeighbour,
                InsertPushRuleError::ServerDefaultRuleId => {
                    PushRuleError::Invalid("the id of a rule of your own must not start with a dot")
                }
                InsertPushRuleError::InvalidRuleId => {
                    PushRuleError::Invalid("the id of a rule must not hold slashes or backslashes")
                }
                InsertPushRuleError::RelativeToServerDefaultRule => {
                    PushRuleError::Invalid("rules cannot stand beside one of the server's")
                }
                InsertPushRuleError::BeforeHigherThanAfter => {
                    PushRuleError::Invalid("`before` stands above `after`")
                }
                _ => PushRuleError::Invalid("the rule cannot be made"),
            })?;
            if rules.iter().count() > MAX_RULES { Err(PushRuleError::TooMany) } else { Ok(()) }
        })
        .await
    }

    /// Removes a rule of the user's own.
    ///
    /// # Errors
    /// [`PushRuleError::NotFound`]; [`PushRuleError::Invalid`] for one of the server's.
    pub async fn remove(&self, user: &UserId, kind: RuleKind, id: String) -> Result<(), PushRuleError> {
        self.change(user, move |rules| {
            rules.remove(kind.clone(), &id).map_err(|error| match error {
                RemovePushRuleError::NotFound => PushRuleError::NotFound,
                _ => PushRuleError::Invalid("rules of the server cannot be removed"),
            })
        })
        .await
    }

    /// Switches a rule on or off.
    ///
    /// # Errors
    /// [`PushRuleError::NotFound`].
    pub async fn set_enabled(
        &self,
        user: &UserId,
        kind: RuleKind,
        id: String,
        enabled: bool,
    ) -> Result<(), PushRuleError> {
        self.change(user, move |rules| {
            rules.set_enabled(kind.clone(), &id, enabled).map_err(|_| PushRuleError::NotFound)
        })
        .await
    }

    /// Changes what a rule does.
    ///
    /// # Errors
    /// [`PushRuleError::NotFound`].
    pub async fn set_actions(
        &self,
        user: &UserId,
        kind: RuleKind,
        id: String,
        actions: Vec<Action>,
    ) -> Result<(), PushRuleError> {
        check_actions(&actions)?;
        self.change(user, move |rules| {
            rules.set_actions(kind.clone(), &id, actions.clone()).map_err(|_| PushRuleError::NotFound)
        })
        .await
    }

    async fn change<F>(&self, user: &UserId, change: F) -> Result<(), PushRuleError>
    where
        F: Fn(&mut Ruleset) -> Result<(), PushRuleError> + Send + Sync + 'static,
    {
        let (core, user, change) = (self.core.clone(), user.to_owned(), Arc::new(change));
        self.core
            .store
            .write("change push rules", Vec::new(), move |tx| {
                let (core, user, change) = (core.clone(), user.clone(), Arc::clone(&change));
                Box::pin(async move {
                    let before = tx.account_data_load(&user, None, KIND).await?;
                    let mut rules = parse(&core, &user, before.as_deref());
                    change(&mut rules)?;
                    let content = write(&rules);
                    if content.len() > MAX_BYTES {
                        return Err(PushRuleError::TooMany);
                    }
                    Ok(tx.account_data_set(&user, None, KIND, &content).await?)
                })
            })
            .await
    }
}

/// A kind of rules by the name that a path has. The kind of MSC4306 has two.
pub fn kind(name: &str) -> RuleKind {
    if name == "postcontent" { RuleKind::PostContent } else { RuleKind::from(name) }
}

fn check(rule: &NewPushRule) -> Result<(), PushRuleError> {
    let (conditions, actions): (&[PushCondition], &[Action]) = match rule {
        // MSC4306: these are the server's alone.
        NewPushRule::PostContent(_) => {
            return Err(PushRuleError::Invalid("this kind takes no rules of your own"));
        }
        NewPushRule::Override(rule) | NewPushRule::Underride(rule) => (&rule.conditions, &rule.actions),
        NewPushRule::Content(rule) => {
            if rule.pattern.len() > MAX_PATTERN {
                return Err(PushRuleError::Invalid("the pattern is too long"));
            }
            (&[], &rule.actions)
        }
        NewPushRule::Room(rule) => (&[], &rule.actions),
        NewPushRule::Sender(rule) => (&[], &rule.actions),
        _ => return Err(PushRuleError::Invalid("there is no such kind of push rule")),
    };
    check_actions(actions)?;
    if rule.rule_id().len() > MAX_PATTERN {
        return Err(PushRuleError::Invalid("the id is too long"));
    }
    if conditions.len() > MAX_PARTS {
        return Err(PushRuleError::Invalid("the rule has too many conditions"));
    }
    let too_long = |condition: &PushCondition| matches!(condition, PushCondition::EventMatch(data) if data.pattern.len() > MAX_PATTERN);
    if conditions.iter().any(too_long) {
        return Err(PushRuleError::Invalid("a pattern is too long"));
    }
    Ok(())
}

fn check_actions(actions: &[Action]) -> Result<(), PushRuleError> {
    if actions.len() > MAX_PARTS {
        return Err(PushRuleError::Invalid("the rule has too many actions"));
    }
    Ok(())
}

/// The rules in this content, those of the server brought up to date: their actions and switches are the user's.
pub fn parse(core: &Core, user: &UserId, content: Option<&str>) -> Ruleset {
    parse_with(core.settings.push, user, content)
}

fn parse_with(settings: PushSettings, user: &UserId, content: Option<&str>) -> Ruleset {
    #[derive(Deserialize)]
    struct Content {
        global: Ruleset,
    }
    let mut defaults = defaults::defaults(user, settings);
    match content.map(serde_json::from_str::<Content>) {
        Some(Ok(mut content)) => {
            // ruma leaves this kind out, which has rules of the server alone.
            let stored = std::mem::take(&mut content.global.postcontent);
            let postcontent = std::mem::take(&mut defaults.postcontent);
            content.global.update_with_server_default(defaults);
            content.global.postcontent = postcontent
                .into_iter()
                .map(|mut rule| {
                    if let Some(stored) = stored.get(rule.rule_id.as_str()) {
                        rule.enabled = stored.enabled;
                        rule.actions.clone_from(&stored.actions);
                    }
                    rule
                })
                .collect();
            content.global
        }
        Some(Err(error)) => {
            tracing::error!(%user, %error, "stored push rules cannot be read; the defaults hold");
            defaults
        }
        None => defaults,
    }
}

/// The content as clients see it.
pub(crate) fn content(core: &Core, user: &UserId, stored: Option<&str>) -> Box<RawValue> {
    shown(&parse(core, user, stored))
}

fn shown(rules: &Ruleset) -> Box<RawValue> {
    RawValue::from_string(write(rules)).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn write(rules: &Ruleset) -> String {
    let mut global = serde_json::to_value(rules).unwrap_or_default();
    if let Some(global) = global.as_object_mut() {
        for kind in KINDS {
            global.entry(kind).or_insert_with(|| Value::Array(Vec::new()));
        }
    }
    serde_json::json!({ "global": global }).to_string()
}

/// Stored rules with a copy for `new` of each that names the room `old`; `None` when nothing changes.
pub(crate) fn with_successor(stored: &str, old: &RoomId, new: &RoomId) -> Option<String> {
    let mut content: Value = serde_json::from_str(stored).ok()?;
    let global = content.get_mut("global")?.as_object_mut()?;
    let mut changed = false;
    for kind in ["override", "room", "underride"] {
        let Some(rules) = global.get_mut(kind).and_then(Value::as_array_mut) else { continue };
        let mut at = 0;
        while at < rules.len() && rules.len() < MAX_RULES {
            let copy = successor_of(kind, &rules[at], old, new);
            at += 1;
            let Some(copy) = copy else { continue };
            if rules.iter().all(|other| other.get("rule_id") != copy.get("rule_id")) {
                rules.insert(at, copy);
                at += 1;
                changed = true;
            }
        }
    }
    changed.then(|| content.to_string())
}

/// The rule for the new room, of one that names the old one.
fn successor_of(kind: &str, rule: &Value, old: &RoomId, new: &RoomId) -> Option<Value> {
    let id = rule.get("rule_id")?.as_str()?;
    let mut copy = rule.clone();
    if kind == "room" {
        if id != old.as_str() {
            return None;
        }
        copy["rule_id"] = new.as_str().into();
        return Some(copy);
    }
    let mut named = false;
    for condition in copy.get_mut("conditions")?.as_array_mut()? {
        let is = |field: &str, value: &str| condition.get(field).and_then(Value::as_str) == Some(value);
        if is("kind", "event_match") && is("key", "room_id") && is("pattern", old.as_str()) {
            condition["pattern"] = new.as_str().into();
            named = true;
        }
    }
    if !named || rule.get("default").and_then(Value::as_bool) == Some(true) {
        return None;
    }
    let id = if id.contains(old.as_str()) {
        id.replace(old.as_str(), new.as_str())
    } else {
        format!("{id}_{new}")
    };
    copy["rule_id"] = id.into();
    Some(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::push::{NewConditionalPushRule, NewPatternedPushRule, NewSimplePushRule};

    fn alice() -> ruma::OwnedUserId {
        "@alice:a.b".try_into().unwrap()
    }

    fn rules(stored: Option<&str>) -> Ruleset {
        parse_with(PushSettings::default(), &alice(), stored)
    }

    fn as_json(rules: &Ruleset) -> Value {
        serde_json::from_str(shown(rules).get()).unwrap()
    }

    #[test]
    fn all_kinds_are_there_and_old_actions_stay() {
        let mut changed = rules(None);
        let actions: Vec<Action> = serde_json::from_str(r#"["dont_notify"]"#).unwrap();
        let rule = NewSimplePushRule::new(alice(), actions);
        changed.insert(NewPushRule::Sender(rule), None, None).unwrap();
        let shown = as_json(&rules(Some(&write(&changed))));
        assert_eq!(shown["global"]["sender"][0]["actions"][0], "dont_notify");
        for kind in KINDS {
            assert!(shown["global"][kind].is_array(), "{kind}");
        }
        assert_eq!(shown["global"]["override"][0]["rule_id"], ".m.rule.master");
        assert_eq!(shown["global"]["content"][0]["pattern"], "alice");
        let before = shown["global"]["override"].as_array().unwrap();
        assert!(before.iter().any(|rule| rule["rule_id"] == ".m.rule.roomnotif"));
    }

    #[test]
    fn rules_of_a_room_are_copied_for_its_successor() {
        let (old, new) = (RoomId::parse("!old:a.b").unwrap(), RoomId::parse("!new").unwrap());
        let stored = serde_json::json!({ "global": {
            "room": [{ "rule_id": "!old:a.b", "actions": [] }, { "rule_id": "!other:a.b", "actions": [] }],
            "override": [{ "rule_id": "x", "actions": [],
                           "conditions": [{ "kind": "event_match", "key": "room_id", "pattern": "!old:a.b" }] }],
        } });
        let copied = with_successor(&stored.to_string(), &old, &new).unwrap();
        let shown: Value = serde_json::from_str(&copied).unwrap();
        assert_eq!(shown["global"]["room"][1]["rule_id"], "!new");
        assert_eq!(shown["global"]["room"].as_array().unwrap().len(), 3);
        assert_eq!(shown["global"]["override"][1]["conditions"][0]["pattern"], "!new");
        assert_eq!(with_successor(&copied, &old, &new), None);
    }

    #[test]
    fn the_switch_of_a_default_rule_survives() {
        let mut changed = rules(None);
        changed.set_enabled(RuleKind::Override, ".m.rule.master", true).unwrap();
        let again = rules(Some(&write(&changed)));
        assert!(again.get(RuleKind::Override, ".m.rule.master").unwrap().enabled());
        assert_eq!(rules(Some("nonsense")).iter().count(), rules(None).iter().count());
    }

    #[test]
    fn the_rules_that_settings_ask_for_come_and_go() {
        let all =
            PushSettings { encrypted_events: true, thread_subscriptions: true, ..PushSettings::default() };
        let mut with = parse_with(all, &alice(), None);
        let rule = NewConditionalPushRule::new("mine".to_owned(), Vec::new(), Vec::new());
        with.insert(NewPushRule::Override(rule), None, None).unwrap();
        with.set_enabled(kind("postcontent"), ".io.element.msc4306.rule.unsubscribed_thread", false).unwrap();
        let stored = write(&with);
        let shown = as_json(&parse_with(all, &alice(), Some(&stored)))["global"].take();
        let first: Vec<&Value> = (0..3).map(|at| &shown["override"][at]["rule_id"]).collect();
        assert_eq!(first, [".m.rule.master", "mine", ".org.matrix.msc4028.encrypted_event"]);
        assert_eq!(shown["postcontent"][0]["enabled"], false);
        assert_eq!(shown["postcontent"][1]["enabled"], true);
        let without = as_json(&rules(Some(&stored)))["global"].take();
        assert_eq!(without["override"][2]["rule_id"], ".m.rule.suppress_notices");
        assert!(without.get("postcontent").is_none());
    }

    #[test]
    fn rules_are_bounded() {
        let long = NewPatternedPushRule::new("id".to_owned(), "x".repeat(MAX_PATTERN + 1), Vec::new());
        assert!(check(&NewPushRule::Content(long)).is_err());
        let postcontent = NewConditionalPushRule::new("id".to_owned(), Vec::new(), Vec::new());
        assert!(check(&NewPushRule::PostContent(postcontent)).is_err());
        let many = NewSimplePushRule::new(alice(), vec![Action::Notify; MAX_PARTS + 1]);
        assert!(check(&NewPushRule::Sender(many)).is_err());
    }
}
