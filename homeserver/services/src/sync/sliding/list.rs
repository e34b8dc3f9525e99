//! The user's rooms in order of activity, the lists over them, and which rooms a request is about.

use super::super::build::Build;
use super::config::RequiredState;
use super::connection::State;
use super::facts::{Outside, RoomFacts};
use super::request::{Filters, ListRule, RoomRule, SlidingRequest};
use crate::folds::Membership;
use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_storage::StoreResult;

/// A room of the user's list.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub room: OwnedRoomId,
    pub membership: &'static str,
    /// When something last happened in it, as far as it concerns the user.
    pub at: i64,
}

/// A room that a request is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Relevant {
    pub membership: &'static str,
    pub at: i64,
    pub timeline_limit: usize,
    pub state: Arc<RequiredState>,
    /// The name of that set.
    pub config: i64,
    pub lists: Vec<String>,
    pub subscribed: bool,
}

/// What a request is about.
#[derive(Debug, Default)]
pub(super) struct Matched {
    pub counts: BTreeMap<String, usize>,
    pub rooms: BTreeMap<OwnedRoomId, Relevant>,
}

impl Relevant {
    fn add(&mut self, rule: &RoomRule) {
        self.timeline_limit = self.timeline_limit.max(rule.timeline_limit);
        Arc::make_mut(&mut self.state).add(&rule.state);
    }
}

/// The word for a membership outside of joined rooms.
fn word(membership: &str) -> &'static str {
    match membership {
        "invite" => "invite",
        "knock" => "knock",
        "ban" => "ban",
        _ => "leave",
    }
}

fn in_ranges(ranges: Option<&[(usize, usize)]>, index: usize) -> bool {
    ranges.is_none_or(|ranges| ranges.iter().any(|(first, last)| (*first..=*last).contains(&index)))
}

impl Build<'_> {
    /// What the request is about, by its lists and subscriptions.
    pub(super) async fn matched(&self, request: &SlidingRequest, state: &State) -> StoreResult<Matched> {
        let mut matched = Matched::default();
        if request.lists.is_empty() && request.subscriptions.is_empty() {
            return Ok(matched);
        }
        let outside = self.outside_rooms().await?;
        if !request.lists.is_empty() {
            let places = self.places(&outside, state).await?;
            // Rules that are alike share the set of required state.
            for (name, list) in &request.lists {
                self.match_list(name, list, &places, &outside, &mut matched).await?;
            }
        }
        for (room, rule) in &request.subscriptions {
            let Some(place) = self.place_of(room, &outside).await? else { continue };
            let relevant = matched.rooms.entry(room.clone()).or_insert_with(|| Relevant {
                membership: place.membership,
                at: place.at,
                ..Relevant::default()
            });
            relevant.subscribed = true;
            relevant.add(rule);
        }
        // Where all members are wanted and they are still being fetched, the room comes when they are here.
        matched
            .rooms
            .retain(|room, relevant| !self.partial.contains(room) || !relevant.state.reach().members);
        share(&mut matched);
        Ok(matched)
    }

    /// All rooms that lists are about, those with the newest activity first.
    async fn places(
        &self,
        outside: &BTreeMap<OwnedRoomId, Outside>,
        state: &State,
    ) -> StoreResult<Vec<Place>> {
        let joined: Vec<&OwnedRoomId> = self.joined().collect();
        let newest = self.newest_events(&joined).await?;
        let mut places: Vec<Place> = joined
            .into_iter()
            .zip(newest)
            .map(|(room, at)| Place { room: room.clone(), membership: "join", at })
            .collect();
        for (room, outside) in outside {
            let listed = match self.rooms.get(room) {
                Some(Membership::Join) => false,
                Some(Membership::Invite | Membership::Knock) => {
                    !self.ignored.contains(&outside.row.sender) || outside.row.membership == "knock"
                }
                None => outside.was_removed() || state.rooms.contains_key(room),
            };
            if listed {
                places.push(place_outside(room, outside));
            }
        }
        places.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.room.cmp(&b.room)));
        Ok(places)
    }

    /// A room that the client names: only one that the user may know something of.
    async fn place_of(
        &self,
        room: &OwnedRoomId,
        outside: &BTreeMap<OwnedRoomId, Outside>,
    ) -> StoreResult<Option<Place>> {
        if self.rooms.get(room) == Some(&Membership::Join) {
            let at = self.newest_events(&[room]).await?.pop().unwrap_or_default();
            return Ok(Some(Place { room: room.clone(), membership: "join", at }));
        }
        Ok(outside.get(room).map(|outside| place_outside(room, outside)))
    }

    async fn match_list(
        &self,
        name: &str,
        list: &ListRule,
        places: &[Place],
        outside: &BTreeMap<OwnedRoomId, Outside>,
        matched: &mut Matched,
    ) -> StoreResult<()> {
        let sieve = self.sieve(&list.filters, places, outside).await?;
        let mut count = 0;
        for (index, place) in places.iter().enumerate() {
            if !sieve.lets_through(index, place) {
                continue;
            }
            if in_ranges(list.ranges.as_deref(), count) {
                let relevant = matched.rooms.entry(place.room.clone()).or_insert_with(|| Relevant {
                    membership: place.membership,
                    at: place.at,
                    ..Relevant::default()
                });
                relevant.lists.push(name.to_owned());
                relevant.add(&list.room);
            }
            count += 1;
        }
        matched.counts.insert(name.to_owned(), count);
        Ok(())
    }

    /// Gathers what the filters ask about.
    async fn sieve<'f>(
        &self,
        filters: &'f Filters,
        places: &[Place],
        outside: &BTreeMap<OwnedRoomId, Outside>,
    ) -> StoreResult<Sieve<'f>> {
        let mut sieve = Sieve { filters, direct: None, facts: None, tags: None, children: None };
        if filters.is_dm.is_some() {
            sieve.direct = Some(self.direct_rooms().await?);
        }
        if filters.tags.is_some() || !filters.not_tags.is_empty() {
            sieve.tags = Some(self.room_tags().await?);
        }
        if let Some(spaces) = &filters.spaces {
            let mut children = BTreeSet::new();
            for space in spaces.iter().filter(|space| self.rooms.get(*space) == Some(&Membership::Join)) {
                children.extend(self.space_children(space).await?.iter().cloned());
            }
            sieve.children = Some(children);
        }
        let types = filters.room_types.is_some() || !filters.not_room_types.is_empty();
        if types || filters.is_encrypted.is_some() {
            let rooms: Vec<OwnedRoomId> = places.iter().map(|place| place.room.clone()).collect();
            let mut facts = self.room_facts(&rooms).await?;
            for (facts, place) in facts.iter_mut().zip(places) {
                // Of a room that this server is not in, what came with the invitation is all that is known.
                let stripped = outside.get(&place.room).and_then(|outside| outside.row.stripped.as_deref());
                if let (Some(stripped), true) = (stripped, place.membership != "join") {
                    *facts = Arc::new(facts_of_stripped(stripped));
                }
            }
            sieve.facts = Some(facts);
        }
        Ok(sieve)
    }
}

fn place_outside(room: &OwnedRoomId, outside: &Outside) -> Place {
    Place { room: room.clone(), membership: word(&outside.row.membership), at: outside.end }
}

/// Rooms that ask for the same state share one set.
fn share(matched: &mut Matched) {
    let mut sets: Vec<(Arc<RequiredState>, i64)> = Vec::new();
    for relevant in matched.rooms.values_mut() {
        if let Some((set, name)) = sets.iter().find(|(set, _)| *set == relevant.state) {
            relevant.state = Arc::clone(set);
            relevant.config = *name;
        } else {
            relevant.config = relevant.state.name();
            sets.push((Arc::clone(&relevant.state), relevant.config));
        }
    }
}

/// Filters with what they ask about.
struct Sieve<'f> {
    filters: &'f Filters,
    direct: Option<Arc<BTreeSet<OwnedRoomId>>>,
    facts: Option<Vec<Arc<RoomFacts>>>,
    tags: Option<Arc<super::facts::Tags>>,
    children: Option<BTreeSet<OwnedRoomId>>,
}

impl Sieve<'_> {
    fn lets_through(&self, index: usize, place: &Place) -> bool {
        let filters = self.filters;
        let direct = self.direct.as_ref().is_some_and(|direct| direct.contains(&place.room));
        if filters.is_dm.is_some_and(|wanted| wanted != direct)
            || filters.is_invited.is_some_and(|wanted| wanted != (place.membership == "invite"))
            || self.children.as_ref().is_some_and(|children| !children.contains(&place.room))
        {
            return false;
        }
        if let Some(facts) = self.facts.as_ref().and_then(|facts| facts.get(index)) {
            let of_type = |types: &BTreeSet<Option<String>>| types.contains(&facts.room_type);
            if filters.is_encrypted.is_some_and(|wanted| wanted != facts.encrypted)
                || of_type(&filters.not_room_types)
                || filters.room_types.as_ref().is_some_and(|types| !of_type(types))
            {
                return false;
            }
        }
        let tags = self.tags.as_ref().and_then(|tags| tags.get(&place.room));
        let tagged = |wanted: &BTreeSet<String>| tags.is_some_and(|tags| !tags.is_disjoint(wanted));
        !tagged(&filters.not_tags) && filters.tags.as_ref().is_none_or(tagged)
    }
}

#[derive(Deserialize)]
struct Stripped<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

fn facts_of_stripped(stripped: &str) -> RoomFacts {
    #[derive(Deserialize)]
    struct Create {
        #[serde(rename = "type", default)]
        room_type: Option<String>,
    }
    let events: Vec<Stripped<'_>> = serde_json::from_str(stripped).unwrap_or_default();
    let mut facts = RoomFacts::default();
    for event in events {
        match event.kind.as_str() {
            "m.room.create" => {
                let create: Option<Create> = serde_json::from_str(event.content.get()).ok();
                facts.room_type = create.and_then(|create| create.room_type);
            }
            "m.room.encryption" => facts.encrypted = true,
            _ => {}
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive() {
        let ranges = [(0, 1), (4, 4)];
        let inside: Vec<usize> = (0..6).filter(|index| in_ranges(Some(&ranges), *index)).collect();
        assert_eq!(inside, [0, 1, 4]);
        assert!(in_ranges(None, 1000) && !in_ranges(Some(&[]), 0));
    }

    #[test]
    fn an_invitation_says_what_the_room_is() {
        let facts = facts_of_stripped(
            r#"[{"type":"m.room.create","content":{"type":"m.space"}},{"type":"m.room.encryption","content":{}}]"#,
        );
        assert_eq!((facts.room_type.as_deref(), facts.encrypted), (Some("m.space"), true));
        assert_eq!(facts_of_stripped("no"), RoomFacts::default());
    }
}
