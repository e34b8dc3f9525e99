//! The filter of room events, with the fields by relation that ruma's type lacks.
//! <https://spec.matrix.org/v1.19/client-server-api/#filtering>

use ruma::UserId;
use ruma::api::client::filter::{RoomEventFilter, UrlFilter};
use serde::Deserialize;
use waxwing_model::Event;

/// A filter of room events.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct EventFilter {
    /// By type, sender, room, URL.
    #[serde(flatten)]
    pub base: RoomEventFilter,
    /// Only events that relate in one of these ways (MSC3874).
    #[serde(default, rename = "org.matrix.msc3874.rel_types", alias = "rel_types")]
    pub rel_types: Option<Vec<String>>,
    /// No events that relate in one of these ways (MSC3874).
    #[serde(default, rename = "org.matrix.msc3874.not_rel_types", alias = "not_rel_types")]
    pub not_rel_types: Vec<String>,
    /// Only events to which one of these users' events relates.
    #[serde(default)]
    pub related_by_senders: Option<Vec<String>>,
    /// Only events to which events relate in one of these ways.
    #[serde(default)]
    pub related_by_rel_types: Option<Vec<String>>,
}

impl EventFilter {
    /// Reads the JSON of a filter parameter.
    pub fn parse(json: &str) -> Option<EventFilter> {
        serde_json::from_str(json).ok()
    }

    /// Whether member events of senders are wanted beside the events.
    pub fn lazy_load_members(&self) -> bool {
        !self.base.lazy_load_options.is_disabled()
    }

    /// Whether the event passes, but for the `related_by_…` fields, which need the database.
    pub fn passes(&self, event: &Event) -> bool {
        let base = &self.base;
        let kind = event.kind.to_string();
        let sender: &UserId = &event.sender;
        let typed = |patterns: &[String]| patterns.iter().any(|pattern| wildcard(pattern, &kind));
        if typed(&base.not_types)
            || base.types.as_ref().is_some_and(|types| !typed(types))
            || base.not_senders.iter().any(|other| other == sender)
            || base.senders.as_ref().is_some_and(|senders| !senders.iter().any(|other| other == sender))
            || base.not_rooms.contains(&event.room_id)
            || base.rooms.as_ref().is_some_and(|rooms| !rooms.contains(&event.room_id))
        {
            return false;
        }
        if let Some(url) = &base.url_filter {
            let has = event.content_str("url").is_some();
            if has != matches!(url, UrlFilter::EventsWithUrl) {
                return false;
            }
        }
        if self.rel_types.is_none() && self.not_rel_types.is_empty() {
            return true;
        }
        let relation = crate::timeline::relation(event).map(|(_, rel_type)| rel_type);
        let among = |types: &[String]| relation.as_ref().is_some_and(|relation| types.contains(relation));
        !among(&self.not_rel_types) && self.rel_types.as_ref().is_none_or(|types| among(types))
    }

    /// Whether events must be looked up by what relates to them.
    pub fn by_children(&self) -> bool {
        self.related_by_senders.is_some() || self.related_by_rel_types.is_some()
    }

    /// Whether children of this kind are what the filter asks for.
    pub fn child_passes(&self, sender: &str, rel_type: &str) -> bool {
        let among = |list: &Option<Vec<String>>, value: &str| {
            list.as_ref().is_none_or(|list| list.iter().any(|other| other == value))
        };
        among(&self.related_by_senders, sender) && among(&self.related_by_rel_types, rel_type)
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
pub(crate) fn wildcard(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        assert!(wildcard("m.room.*", "m.room.message") && wildcard("*", "x") && wildcard("m.x", "m.x"));
        assert!(wildcard("*.room.*e", "m.room.message") && wildcard("a*", "a"));
        assert!(!wildcard("m.room", "m.room.message") && !wildcard("*x", "y") && !wildcard("a*a", "a"));
    }

    #[test]
    fn reads_fields_by_relation() {
        let filter = EventFilter::parse(
            r#"{"types":["m.*"],"lazy_load_members":true,"org.matrix.msc3874.rel_types":["m.thread"]}"#,
        )
        .unwrap();
        assert!(filter.lazy_load_members());
        assert_eq!(filter.rel_types.unwrap(), ["m.thread"]);
    }
}
