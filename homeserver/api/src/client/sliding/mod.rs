//! Sliding sync in its two dialects: the one that clients speak today, and the one that was accepted (MSC4186).
//! Requests are read by hand, so that what a client names in a way of its own reaches the engine as it is.
//! <https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/4186-simplified-sliding-sync.md>

mod accepted;
mod deployed;
mod extensions;

pub(super) use accepted::sync as accepted;
pub(super) use deployed::sync as deployed;

use crate::error::{ApiError, ApiResult};
use crate::extract::json;
use ruma::OwnedRoomId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use waxwing_services::sync::sliding::{
    Filters, Hero, ListRule, MAX_LISTED, MAX_NAME, MAX_RULES, MAX_TIMELINE, News, RoomRule,
};

/// A body; an empty one asks for nothing in particular.
fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    json(if body.is_empty() { b"{}" } else { body })
}

/// How long to wait. Without a word about it: not at all.
fn patience(timeout: Option<u64>) -> Duration {
    Duration::from_millis(timeout.unwrap_or_default())
}

/// The name of a connection.
fn conn_id(conn_id: Option<String>) -> ApiResult<String> {
    let conn_id = conn_id.unwrap_or_default();
    if conn_id.len() > MAX_NAME {
        return Err(ApiError::invalid_param("conn_id is too long"));
    }
    Ok(conn_id)
}

/// Events of a timeline at most.
fn timeline_limit(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(MAX_TIMELINE).min(MAX_TIMELINE)
}

/// Checks how many rules there are, and what lists are called.
fn check_rules<L, R>(lists: &BTreeMap<String, L>, rooms: &BTreeMap<String, R>) -> ApiResult<()> {
    if lists.len() > MAX_RULES || rooms.len() > MAX_RULES {
        return Err(ApiError::invalid_param(format_args!("more than {MAX_RULES} lists or subscriptions")));
    }
    if lists.keys().any(|name| name.is_empty() || name.len() > MAX_NAME) {
        return Err(ApiError::invalid_param("the name of a list is empty or too long"));
    }
    Ok(())
}

/// Rooms that a client names; what is no room id is no room.
fn subscriptions<R>(
    rooms: BTreeMap<String, R>,
    rule: impl Fn(R) -> ApiResult<RoomRule>,
) -> ApiResult<BTreeMap<OwnedRoomId, RoomRule>> {
    let rooms = rooms.into_iter().filter_map(|(room, of)| Some((OwnedRoomId::try_from(room).ok()?, of)));
    rooms.map(|(room, of)| Ok((room, rule(of)?))).collect()
}

fn lists<L>(
    lists: BTreeMap<String, L>,
    rule: impl Fn(L) -> ApiResult<ListRule>,
) -> ApiResult<BTreeMap<String, ListRule>> {
    lists.into_iter().map(|(name, list)| Ok((name, rule(list)?))).collect()
}

/// Filters in both dialects, under the names of either.
#[derive(Default, Deserialize)]
struct FiltersBody {
    is_dm: Option<bool>,
    is_encrypted: Option<bool>,
    #[serde(alias = "is_invite")]
    is_invited: Option<bool>,
    room_types: Option<BTreeSet<Option<String>>>,
    #[serde(default)]
    not_room_types: BTreeSet<Option<String>>,
    spaces: Option<BTreeSet<String>>,
    tags: Option<BTreeSet<String>>,
    #[serde(default)]
    not_tags: BTreeSet<String>,
}

impl FiltersBody {
    fn read(self) -> ApiResult<Filters> {
        let sizes = [
            self.room_types.as_ref().map_or(0, BTreeSet::len),
            self.not_room_types.len(),
            self.spaces.as_ref().map_or(0, BTreeSet::len),
            self.tags.as_ref().map_or(0, BTreeSet::len),
            self.not_tags.len(),
        ];
        if sizes.into_iter().any(|size| size > MAX_LISTED) {
            return Err(ApiError::invalid_param(format_args!(
                "a filter names more than {MAX_LISTED} things"
            )));
        }
        let spaces = self
            .spaces
            .map(|spaces| spaces.into_iter().filter_map(|space| OwnedRoomId::try_from(space).ok()).collect());
        Ok(Filters {
            is_dm: self.is_dm,
            is_encrypted: self.is_encrypted,
            is_invited: self.is_invited,
            room_types: self.room_types,
            not_room_types: self.not_room_types,
            spaces,
            tags: self.tags,
            not_tags: self.not_tags,
        })
    }
}

/// A value that may be absent, `null` or there: all three mean something.
#[derive(Serialize)]
#[serde(untagged)]
enum Field {
    Gone,
    Is(String),
}

impl Field {
    fn of(news: News<String>) -> Option<Field> {
        match news {
            News::None => None,
            News::Gone => Some(Field::Gone),
            News::Is(value) => Some(Field::Is(value)),
        }
    }
}

#[derive(Serialize)]
struct HeroBody {
    user_id: ruma::OwnedUserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    displayname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<String>,
}

fn heroes(heroes: Option<Vec<Hero>>) -> Option<Vec<HeroBody>> {
    let body = |hero: Hero| HeroBody {
        user_id: hero.user_id,
        displayname: hero.displayname,
        avatar_url: hero.avatar_url,
    };
    heroes.map(|heroes| heroes.into_iter().map(body).collect())
}

/// A list of an answer.
#[derive(Serialize)]
struct Count {
    count: usize,
}

fn counts(counts: BTreeMap<String, usize>) -> BTreeMap<String, Count> {
    counts.into_iter().map(|(name, count)| (name, Count { count })).collect()
}

type Texts = Vec<Box<RawValue>>;
