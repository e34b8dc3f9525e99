//! Searching the events that this server can read: names and topics, and messages of rooms in the clear. Messages of
//! encrypted rooms are searched by clients. <https://spec.matrix.org/v1.19/client-server-api/#server-side-search>
//!
//! The index of the database engine finds candidates by their words; whether each is shown, and how well it matches, is
//! judged here.

use crate::Core;
use crate::render::{Shown, Viewer, render};
use crate::rooms_read::EventFilter;
use crate::visibility::{ignored_users, visible_events};
use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_storage::{StoreError, StoredEvent, search_text, search_words};

/// The newest candidates looked at for one search, for each 500 rooms.
const MAX_MATCHES: i64 = 2_000;
/// Results in one answer.
const MAX_RESULTS: usize = 100;
/// Without a limit in the filter.
const DEFAULT_RESULTS: usize = 10;
/// Events of context on one side of a result.
const MAX_CONTEXT: usize = 50;
/// Words of one search.
const MAX_WORDS: usize = 20;

/// Why nothing was searched.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no word in the term.
    #[error("there is nothing to search for")]
    NoWords,
    /// The token of the page was not made here.
    #[error("the token is not valid")]
    BadToken,
}

/// Events around each result.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    /// How many before it.
    pub before: usize,
    /// How many after it.
    pub after: usize,
    /// With the profiles of their senders.
    pub profiles: bool,
}

/// What is searched for.
#[derive(Debug, Default)]
pub struct Query {
    /// Words, all of which must begin a word of the text.
    pub term: String,
    /// Of `content.body`, `content.name`, `content.topic`; empty: all of them.
    pub keys: Vec<String>,
    /// Events that may match.
    pub filter: Option<EventFilter>,
    /// Rooms to search; none: all of the user's.
    pub rooms: Option<Vec<OwnedRoomId>>,
    /// Rooms to leave out.
    pub not_rooms: Vec<OwnedRoomId>,
    /// Results in one answer.
    pub limit: Option<usize>,
    /// Newest first, rather than best first.
    pub recent: bool,
    /// With the events around each.
    pub around: Option<Around>,
    /// Where the page before ended.
    pub from: Option<String>,
}

/// Events around a result.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Before it, nearest first.
    pub before: Vec<Box<RawValue>>,
    /// After it, nearest first.
    pub after: Vec<Box<RawValue>>,
    /// The token from which `/messages` goes on backwards.
    pub start: String,
    /// And forwards.
    pub end: String,
    /// Display name and avatar of the senders.
    pub profiles: BTreeMap<OwnedUserId, (Option<String>, Option<String>)>,
}

/// A result.
#[derive(Debug)]
pub struct Hit {
    /// The event.
    pub stored: Arc<StoredEvent>,
    /// As the user sees it.
    pub shown: Box<RawValue>,
    /// How good a match it is, above zero.
    pub rank: f64,
    /// If asked for.
    pub around: Option<Surroundings>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Results {
    /// All matches, not only those of this page.
    pub count: usize,
    /// This page.
    pub hits: Vec<Hit>,
    /// The words, for highlighting.
    pub words: Vec<String>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// Searches.
#[derive(Clone)]
pub struct Search {
    core: Core,
}

impl Search {
    /// Over the database of `core`.
    pub fn new(core: Core) -> Search {
        Search { core }
    }

    /// Searches the rooms that the viewer is in or was in, each event by whether the viewer may see it.
    ///
    /// # Errors
    /// [`SearchError::NoWords`], [`SearchError::BadToken`].
    pub async fn search(&self, viewer: &Viewer, query: Query) -> Result<Results, SearchError> {
        let words: Vec<String> = search_words(&query.term).take(MAX_WORDS).collect();
        if words.is_empty() {
            return Err(SearchError::NoWords);
        }
        let offset = match &query.from {
            Some(from) => from.parse::<usize>().map_err(|_| SearchError::BadToken)?,
            None => 0,
        };
        let mut matched = self.matches(viewer, &query, &words).await?;
        if query.recent {
            matched.sort_by_key(|(_, stored)| std::cmp::Reverse(stored.sn));
        } else {
            matched.sort_by(|(rank_a, a), (rank_b, b)| rank_b.total_cmp(rank_a).then(b.sn.cmp(&a.sn)));
        }
        let count = matched.len();
        let limit = query.limit.unwrap_or(DEFAULT_RESULTS).clamp(1, MAX_RESULTS);
        let page: Vec<_> = matched.into_iter().skip(offset).take(limit).collect();
        let events: Vec<_> = page.iter().map(|(_, stored)| Arc::clone(stored)).collect();
        let shown = render(&self.core, viewer, &events, Shown::EVERYWHERE).await?;
        // A full page may be the last: clients and tests of other servers expect a token then, too.
        let next = (events.len() == limit).then(|| offset.saturating_add(limit).to_string());
        let mut hits = Vec::with_capacity(page.len());
        for ((rank, stored), shown) in page.into_iter().zip(shown) {
            let around = match query.around {
                Some(around) => Some(self.around(viewer, &stored, around).await?),
                None => None,
            };
            hits.push(Hit { stored, shown, rank, around });
        }
        Ok(Results { count, hits, words, next })
    }

    async fn matches(
        &self,
        viewer: &Viewer,
        query: &Query,
        words: &[String],
    ) -> Result<Vec<(f64, Arc<StoredEvent>)>, SearchError> {
        let rooms = self.rooms(viewer, query).await?;
        let ids = self.core.store.read().await?.search(&rooms, words, MAX_MATCHES).await?;
        let ignored = ignored_users(&self.core, &viewer.user).await?;
        let mut by_room: BTreeMap<OwnedRoomId, Vec<Arc<StoredEvent>>> = BTreeMap::new();
        for stored in self.core.store.events(&ids).await?.into_values() {
            let passes = query.filter.as_ref().is_none_or(|filter| filter.passes(&stored.event));
            let heard = stored.event.is_state() || !ignored.contains(&stored.event.sender);
            if passes && heard && rank(&stored, &query.keys, words).is_some() {
                by_room.entry(stored.event.room_id.clone()).or_default().push(stored);
            }
        }
        let mut matched = Vec::new();
        for (room, hits) in by_room {
            for stored in visible_events(&self.core, &viewer.user, &room, hits).await? {
                // What is seen may be less than what was searched.
                if let Some(rank) = rank(&stored, &query.keys, words) {
                    matched.push((rank, stored));
                }
            }
        }
        Ok(matched)
    }

    async fn rooms(&self, viewer: &Viewer, query: &Query) -> Result<Vec<OwnedRoomId>, SearchError> {
        let rows = self.core.store.read().await?.memberships_of(&viewer.user).await?;
        let rows = rows.into_iter().filter(|row| {
            matches!(row.membership.as_str(), "join" | "leave" | "ban")
                && !row.forgotten
                && query.rooms.as_ref().is_none_or(|rooms| rooms.contains(&row.room_id))
                && !query.not_rooms.contains(&row.room_id)
        });
        Ok(rows.map(|row| row.room_id).collect())
    }

    async fn around(
        &self,
        viewer: &Viewer,
        stored: &StoredEvent,
        around: Around,
    ) -> Result<Surroundings, SearchError> {
        let room = &stored.event.room_id;
        let (before, after) = {
            let mut conn = self.core.store.read().await?;
            let limit = |wanted: usize| i64::try_from(wanted.min(MAX_CONTEXT)).unwrap_or_default();
            let before = conn.events_backward(room, stored.sn, limit(around.before)).await?;
            (before, conn.events_forward(room, stored.sn, limit(around.after)).await?)
        };
        let start = before.last().map_or(stored.sn, |first| first.sn);
        let end = after.last().map_or(stored.sn, |last| last.sn);
        let ignored = ignored_users(&self.core, &viewer.user).await?;
        let heard = |events: Vec<Arc<StoredEvent>>| {
            let heard =
                |other: &Arc<StoredEvent>| other.event.is_state() || !ignored.contains(&other.event.sender);
            events.into_iter().filter(heard).collect::<Vec<_>>()
        };
        let before = visible_events(&self.core, &viewer.user, room, heard(before)).await?;
        let after = visible_events(&self.core, &viewer.user, room, heard(after)).await?;
        let profiles = if around.profiles {
            let around = before.iter().chain(&after).map(|other| other.event.sender.clone());
            self.profiles(room, around.chain([stored.event.sender.clone()]).collect()).await?
        } else {
            BTreeMap::new()
        };
        Ok(Surroundings {
            before: render(&self.core, viewer, &before, Shown::EVERYWHERE).await?,
            after: render(&self.core, viewer, &after, Shown::EVERYWHERE).await?,
            start: crate::rooms_read::PageToken::before(start).to_string(),
            end: crate::rooms_read::PageToken(end).to_string(),
            profiles,
        })
    }

    async fn profiles(
        &self,
        room: &RoomId,
        senders: BTreeSet<OwnedUserId>,
    ) -> Result<BTreeMap<OwnedUserId, (Option<String>, Option<String>)>, SearchError> {
        let mut profiles = BTreeMap::new();
        let mut conn = self.core.store.read().await?;
        for sender in senders {
            let row = conn.member_load(room, &sender).await?;
            profiles.insert(sender, row.map(|row| (row.display_name, row.avatar_url)).unwrap_or_default());
        }
        Ok(profiles)
    }
}

/// How well an event matches: the part of its words that were searched for. `None` when a word is missing.
fn rank(stored: &StoredEvent, keys: &[String], wanted: &[String]) -> Option<f64> {
    if stored.redacted_by.is_some() {
        return None;
    }
    let (key, text) = search_text(&stored.event)?;
    let asked = |asked: &String| asked.strip_prefix("content.") == Some(key);
    if !keys.is_empty() && !keys.iter().any(asked) {
        return None;
    }
    rank_text(&text, wanted)
}

fn rank_text(text: &str, wanted: &[String]) -> Option<f64> {
    let found: Vec<String> = search_words(text).collect();
    if !wanted.iter().all(|word| found.iter().any(|other| other.starts_with(word.as_str()))) {
        return None;
    }
    let hits =
        found.iter().filter(|other| wanted.iter().any(|word| other.starts_with(word.as_str()))).count();
    Some(hits as f64 / found.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(term: &str) -> Vec<String> {
        search_words(term).collect()
    }

    #[test]
    fn every_word_must_begin_one() {
        assert!(rank_text("hello, world", &wanted("HELLO")).is_some());
        assert!(rank_text("Message number 4", &wanted("message 4")).is_some());
        assert!(rank_text("Message number 5", &wanted("message 4")).is_none());
        assert!(rank_text("", &wanted("a")).is_none());
    }

    #[test]
    fn more_of_it_ranks_higher() {
        let (short, long) = (rank_text("tea", &wanted("tea")), rank_text("tea and cake", &wanted("tea")));
        assert!(short > long);
    }
}
