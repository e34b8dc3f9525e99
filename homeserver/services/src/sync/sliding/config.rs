//! Which state a client wants of a room.
//! <https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/4186-simplified-sliding-sync.md>

use ruma::events::StateEventType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use waxwing_model::StateKey;

const MEMBER: &str = "m.room.member";

/// State events by type and state key; what is absent matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pattern {
    /// The event type.
    #[serde(rename = "t", skip_serializing_if = "Option::is_none", default)]
    pub kind: Option<String>,
    /// The state key.
    #[serde(rename = "k", skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
}

impl Pattern {
    /// Of these; a type under any of its names.
    pub fn new(kind: Option<String>, key: Option<String>) -> Pattern {
        Pattern { kind: kind.map(|kind| StateEventType::from(kind).to_string()), key }
    }

    fn matches(&self, kind: &str, key: &str) -> bool {
        self.kind.as_deref().is_none_or(|own| own == kind) && self.key.as_deref().is_none_or(|own| own == key)
    }
}

/// The state that one rule of a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StateConfig {
    /// What is wanted.
    #[serde(rename = "i", skip_serializing_if = "BTreeSet::is_empty", default)]
    pub include: BTreeSet<Pattern>,
    /// What is not wanted all the same.
    #[serde(rename = "x", skip_serializing_if = "BTreeSet::is_empty", default)]
    pub exclude: BTreeSet<Pattern>,
    /// Of members, only those who matter to the events that are shown, and those that are named.
    #[serde(rename = "l", skip_serializing_if = "std::ops::Not::not", default)]
    pub lazy_members: bool,
}

impl StateConfig {
    fn matches(&self, kind: &str, key: &str) -> bool {
        let named = |pattern: &Pattern| !self.lazy_members || kind != MEMBER || pattern.key.is_some();
        self.include.iter().any(|pattern| named(pattern) && pattern.matches(kind, key))
            && !self.exclude.iter().any(|pattern| pattern.matches(kind, key))
    }
}

/// The state that all rules which match a room ask for together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequiredState(BTreeSet<StateConfig>);

impl RequiredState {
    /// One rule more.
    pub fn add(&mut self, config: &StateConfig) {
        if !self.0.contains(config) {
            self.0.insert(config.clone());
        }
    }

    /// Whether this entry is wanted.
    pub fn wants(&self, (kind, key): &StateKey) -> bool {
        let kind = kind.to_string();
        self.0.iter().any(|config| config.matches(&kind, key))
    }

    /// Whether members are sent as they come to matter.
    pub fn lazy_members(&self) -> bool {
        self.0.iter().any(|config| config.lazy_members)
    }

    /// Names the set: equal sets have equal names.
    pub fn name(&self) -> i64 {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let hash = Sha256::digest(&json);
        hash.iter().take(8).fold(0_i64, |name, byte| (name << 8) | i64::from(*byte))
    }

    /// How to find it in a state.
    pub fn reach(&self) -> Reach {
        let mut reach = Reach::default();
        for config in &self.0 {
            for Pattern { kind, key } in &config.include {
                match (kind, key) {
                    (Some(kind), Some(key)) => {
                        reach.keys.insert((kind.as_str().into(), key.clone()));
                    }
                    (Some(kind), None) if kind == MEMBER && config.lazy_members => {}
                    (Some(kind), None) => {
                        reach.types.insert(kind.as_str().into());
                    }
                    (None, Some(key)) => {
                        // No index serves that; members by the key are looked up, the rest is walked through.
                        reach.keys.insert((StateEventType::RoomMember, key.clone()));
                        reach.besides_members = true;
                    }
                    (None, None) => {
                        reach.besides_members = true;
                        reach.members |= !config.lazy_members;
                    }
                }
            }
        }
        reach
    }
}

/// What has to be read of a state to find what is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// These entries.
    pub keys: BTreeSet<StateKey>,
    /// All entries of these types.
    pub types: BTreeSet<StateEventType>,
    /// Everything but members.
    pub besides_members: bool,
    /// All members.
    pub members: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxwing_model::state_key;

    fn pattern(kind: Option<&str>, key: Option<&str>) -> Pattern {
        Pattern::new(kind.map(str::to_owned), key.map(str::to_owned))
    }

    fn wants(state: &RequiredState, kind: &str, key: &str) -> bool {
        state.wants(&state_key(kind.into(), key))
    }

    #[test]
    fn lazy_members_are_only_those_named() {
        let mut state = RequiredState::default();
        let config = StateConfig {
            include: [pattern(None, None), pattern(Some(MEMBER), Some("@me:x"))].into(),
            exclude: [pattern(Some("m.room.create"), None)].into(),
            lazy_members: true,
        };
        state.add(&config);
        assert!(wants(&state, "m.room.name", "") && wants(&state, MEMBER, "@me:x"));
        assert!(!wants(&state, MEMBER, "@you:x") && !wants(&state, "m.room.create", ""));
        assert!(state.reach().besides_members && !state.reach().members);
        let before = state.name();
        state.add(&StateConfig { include: [pattern(None, None)].into(), ..StateConfig::default() });
        assert!(wants(&state, MEMBER, "@you:x") && wants(&state, "m.room.create", ""));
        assert!(state.reach().members && state.name() != before);
        let read: RequiredState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!((&read, read.name()), (&state, state.name()));
    }
}
