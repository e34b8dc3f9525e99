//! Push rules: a user's account data `m.push_rules`, with the server's default rules always among them.
//! <https://spec.matrix.org/v1.19/client-server-api/#push-rules>

use crate::Core;
use ruma::UserId;
use ruma::push::{
    Action, AnyPushRuleRef, ConditionalPushRule, InsertPushRuleError, NewPushRule, PatternedPushRule,
    RemovePushRuleError, RuleKind, Ruleset,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;
use waxwing_storage::StoreError;

/// The type of the account data.
pub(crate) const KIND: &str = "m.push_rules";
/// Rules of one user: each is tried for each event of each room.
const MAX_RULES: usize = 2000;
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
        Ok(parse(user, content.as_deref()))
    }

    /// The content of `m.push_rules` as clients see it: `{"global": {…}}`.
    pub async fn content(&self, user: &UserId) -> Result<Box<RawValue>, PushRuleError> {
        let content = self.core.store.read().await?.account_data_load(user, None, KIND).await?;
        Ok(self::content(user, content.as_deref()))
    }

    /// One rule, as JSON.
    ///
    /// # Errors
    /// [`PushRuleError::NotFound`].
    pub async fn rule(
        &self,
        user: &UserId,
        kind: RuleKind,
        id: &str,
    ) -> Result<ruma::push::AnyPushRule, PushRuleError> {
        let rules = self.rules(user).await?;
        rules.get(kind, id).map(AnyPushRuleRef::to_owned).ok_or(PushRuleError::NotFound)
    }

    /// Makes or replaces a rule of the user's own, next to another if `before` or `after` names one.
    ///
    /// # Errors
    /// [`PushRuleError::Invalid`] for ids that start with a dot or hold slashes, [`PushRuleError::NoNeighbour`].
    pub async fn put(
        &self,
        user: &UserId,
        rule: NewPushRule,
        before: Option<String>,
        after: Option<String>,
    ) -> Result<(), PushRuleError> {
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
        self.change(user, move |rules| {
            rules.set_actions(kind.clone(), &id, actions.clone()).map_err(|_| PushRuleError::NotFound)
        })
        .await
    }

    async fn change<F>(&self, user: &UserId, change: F) -> Result<(), PushRuleError>
    where
        F: Fn(&mut Ruleset) -> Result<(), PushRuleError> + Send + Sync + 'static,
    {
        let (user, change) = (user.to_owned(), Arc::new(change));
        self.core
            .store
            .write("change push rules", Vec::new(), move |tx| {
                let (user, change) = (user.clone(), Arc::clone(&change));
                Box::pin(async move {
                    let before = tx.account_data_load(&user, None, KIND).await?;
                    let mut rules = parse(&user, before.as_deref());
                    change(&mut rules)?;
                    let content = write(&rules);
                    Ok(tx.account_data_set(&user, None, KIND, &content).await?)
                })
            })
            .await
    }
}

/// The rules that every user has: the specification's, and those by which people were mentioned before events said whom
/// they mention. Many clients still leave that to the words of a message; where `m.mentions` is there, these are passed
/// over. <https://github.com/matrix-org/matrix-spec-proposals/pull/4210> took them out of the specification.
fn defaults(user: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(user);
    let highlight =
        json!(["notify", { "set_tweak": "sound", "value": "default" }, { "set_tweak": "highlight" }]);
    let override_rules = json!([
        { "rule_id": ".m.rule.contains_display_name", "default": true, "enabled": true, "actions": highlight,
          "conditions": [{ "kind": "contains_display_name" }] },
        { "rule_id": ".m.rule.roomnotif", "default": true, "enabled": true,
          "actions": ["notify", { "set_tweak": "highlight" }],
          "conditions": [
              { "kind": "event_match", "key": "content.body", "pattern": "@room" },
              { "kind": "sender_notification_permission", "key": "room" },
          ] },
    ]);
    let name = json!({ "rule_id": ".m.rule.contains_user_name", "default": true, "enabled": true,
                       "actions": highlight, "pattern": user.localpart() });
    let at = rules.override_.iter().position(|rule| rule.rule_id == ".m.rule.tombstone").unwrap_or_default();
    let more = serde_json::from_value::<Vec<ConditionalPushRule>>(override_rules).unwrap_or_default();
    for rule in more.into_iter().rev() {
        rules.override_.shift_insert(at, rule);
    }
    if let Ok(rule) = serde_json::from_value::<PatternedPushRule>(name) {
        rules.content.insert(rule);
    }
    rules
}

/// The rules in this content, those of the server brought up to date: their actions and switches are the user's.
pub fn parse(user: &UserId, content: Option<&str>) -> Ruleset {
    #[derive(Deserialize)]
    struct Content {
        global: Ruleset,
    }
    let defaults = defaults(user);
    match content.map(serde_json::from_str::<Content>) {
        Some(Ok(mut content)) => {
            content.global.update_with_server_default(defaults);
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
pub(crate) fn content(user: &UserId, stored: Option<&str>) -> Box<RawValue> {
    RawValue::from_string(write(&parse(user, stored))).unwrap_or_else(|_| RawValue::NULL.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::push::NewSimplePushRule;

    fn alice() -> ruma::OwnedUserId {
        "@alice:a.b".try_into().unwrap()
    }

    #[test]
    fn all_kinds_are_there_and_old_actions_stay() {
        let mut rules = parse(&alice(), None);
        let actions: Vec<Action> = serde_json::from_str(r#"["dont_notify"]"#).unwrap();
        let rule = NewSimplePushRule::new(alice(), actions);
        rules.insert(NewPushRule::Sender(rule), None, None).unwrap();
        let stored = write(&rules);
        let shown: Value = serde_json::from_str(content(&alice(), Some(&stored)).get()).unwrap();
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
    fn the_switch_of_a_default_rule_survives() {
        let mut rules = parse(&alice(), None);
        rules.set_enabled(RuleKind::Override, ".m.rule.master", true).unwrap();
        let again = parse(&alice(), Some(&write(&rules)));
        assert!(again.get(RuleKind::Override, ".m.rule.master").unwrap().enabled());
        assert_eq!(parse(&alice(), Some("nonsense")).iter().count(), parse(&alice(), None).iter().count());
    }
}
