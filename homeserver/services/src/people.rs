//! Finding people: the user directory, and the rooms that two users share.
//! <https://spec.matrix.org/v1.19/client-server-api/#user-directory>

use crate::Core;
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use waxwing_model::state_key;
use waxwing_storage::StoreError;

/// People in one answer at most.
const MAX_RESULTS: usize = 50;
/// People looked at for one search, from each source.
const MAX_CANDIDATES: i64 = 300;
/// People of this server whose rooms are looked at, to find out whether one is public, and rooms of each.
const MAX_CHECKED_PEOPLE: usize = 50;
const MAX_CHECKED_ROOMS: usize = 20;
/// Words of a search: further ones are not looked at.
const MAX_WORDS: usize = 10;
/// Rooms in one answer of shared rooms.
const ROOMS_PER_PAGE: usize = 100;

/// Why people were not found.
#[derive(Debug, thiserror::Error)]
pub enum PeopleError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The two are the same.
    #[error("you share all rooms with yourself")]
    Oneself,
    /// The token of the page was not made here.
    #[error("the token is not valid")]
    BadToken,
}

/// Somebody of the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The display name.
    pub display_name: Option<String>,
    /// The avatar.
    pub avatar_url: Option<String>,
}

/// What a search of the directory found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Those first who share a room with the searcher, of them those whose name begins with what was searched for.
    pub people: Vec<(OwnedUserId, Listed)>,
    /// There are more.
    pub limited: bool,
}

/// One page of the rooms that two users share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedRooms {
    /// The rooms of this page.
    pub rooms: Vec<OwnedRoomId>,
    /// How many there are in all.
    pub count: usize,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// Finds people.
#[derive(Clone)]
pub struct People {
    core: Core,
}

impl People {
    /// Over the database of `core`.
    pub fn new(core: Core) -> People {
        People { core }
    }

    /// People whose id or display name holds every word of `term`, those nearest to `asking` first: those who share a room with `asking` or are in a
    /// public room. This server's are known by their profile, never by a name that they use in one room only.
    pub async fn search(&self, asking: &UserId, term: &str, limit: usize) -> Result<Found, PeopleError> {
        let words: Vec<String> = term.split_whitespace().take(MAX_WORDS).map(str::to_lowercase).collect();
        let Some(longest) = words.iter().max_by_key(|word| word.chars().count()) else {
            return Ok(Found::default());
        };
        let pattern = like(longest);
        let (mut people, near) = self.candidates(asking, &pattern).await?;
        people.retain(|user, listed| words.iter().all(|word| matches(user, listed, word)));
        // Whoever searches is a match for nothing but the own name.
        let own = asking.localpart().to_lowercase();
        if !words.iter().all(|word| own.contains(word.as_str())) {
            people.remove(asking);
        }
        let limit = limit.min(MAX_RESULTS);
        let limited = people.len() > limit;
        let mut people: Vec<(OwnedUserId, Listed)> = people.into_iter().collect();
        people.sort_by_cached_key(|(user, listed)| {
            (!near.contains(user), !begins(user, listed, &words[0]), user.clone())
        });
        people.truncate(limit);
        Ok(Found { people, limited })
    }

    /// Who may be meant, and those of them who share a room with `asking`.
    async fn candidates(
        &self,
        asking: &UserId,
        pattern: &str,
    ) -> Result<(BTreeMap<OwnedUserId, Listed>, BTreeSet<OwnedUserId>), PeopleError> {
        let mut people = BTreeMap::new();
        let mut local = BTreeSet::new();
        let mut conn = self.core.store.read().await?;
        let mut seen = conn.people_sharing_like(asking, pattern, MAX_CANDIDATES).await?;
        let mut near: BTreeSet<OwnedUserId> = seen.iter().map(|person| person.user_id.clone()).collect();
        seen.extend(conn.people_published_like(pattern, MAX_CANDIDATES).await?);
        for person in seen {
            if person.local {
                local.insert(person.user_id);
            } else {
                let (display_name, avatar_url) = (person.display_name, person.avatar_url);
                people.insert(person.user_id, Listed { display_name, avatar_url });
            }
        }
        let mut named = conn.profiles_named_like(pattern, MAX_CANDIDATES).await?;
        named.extend(conn.users_like(pattern, MAX_CANDIDATES).await?);
        named.retain(|user| !local.contains(user));
        let sharing = conn.users_sharing_among(asking, &named).await?;
        near.extend(sharing.iter().cloned());
        local.extend(sharing);
        drop(conn);
        named.retain(|user| !local.contains(user));
        named.sort_unstable();
        named.dedup();
        for user in named.into_iter().take(MAX_CHECKED_PEOPLE) {
            if self.is_in_public(&user).await? {
                local.insert(user);
            }
        }
        let mut local: Vec<OwnedUserId> = local.into_iter().collect();
        let hidden = self.core.store.read().await?.users_hidden(&local).await?;
        local.retain(|user| !hidden.contains(user));
        let mut profiles = self.core.store.read().await?.profiles_load(&local).await?;
        for user in local {
            let profile = profiles.remove(user.as_str()).unwrap_or_default();
            let text = |field: &str| {
                let value = serde_json::from_str::<Value>(profile.get(field)?).ok()?;
                value.as_str().map(str::to_owned)
            };
            let listed = Listed { display_name: text("displayname"), avatar_url: text("avatar_url") };
            people.insert(user, listed);
        }
        Ok((people, near))
    }

    /// Whether a user is in a room that everybody may join or read.
    async fn is_in_public(&self, user: &UserId) -> Result<bool, PeopleError> {
        let keys = [
            state_key(StateEventType::RoomJoinRules, ""),
            state_key(StateEventType::RoomHistoryVisibility, ""),
        ];
        let rows = self.core.store.read().await?.memberships_of(user).await?;
        for row in rows.iter().filter(|row| row.membership == "join").take(MAX_CHECKED_ROOMS) {
            let ids = {
                let mut conn = self.core.store.read().await?;
                let Some(room) = conn.room_load(&row.room_id).await? else { continue };
                if room.published {
                    return Ok(true);
                }
                self.core.store.state(&mut conn).get_many(room.state_root, &keys).await?
            };
            let ids: Vec<_> = ids.into_iter().flatten().collect();
            let public = self.core.store.events(&ids).await?.values().any(|stored| {
                stored.event.content_str("join_rule").as_deref() == Some("public")
                    || stored.event.content_str("history_visibility").as_deref() == Some("world_readable")
            });
            if public {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Rooms that both are joined to, a page at a time. `from` is what the page before gave.
    ///
    /// # Errors
    /// [`PeopleError::Oneself`], [`PeopleError::BadToken`].
    pub async fn shared_rooms(
        &self,
        asking: &UserId,
        other: &UserId,
        from: Option<&str>,
    ) -> Result<SharedRooms, PeopleError> {
        if asking == other {
            return Err(PeopleError::Oneself);
        }
        if from.is_some_and(|from| OwnedRoomId::try_from(from).is_err()) {
            return Err(PeopleError::BadToken);
        }
        let rooms = self.core.store.read().await?.rooms_shared(asking, other).await?;
        let count = rooms.len();
        let mut rest =
            rooms.into_iter().filter(|room| from.is_none_or(|from| room.as_str() > from)).peekable();
        let rooms: Vec<OwnedRoomId> = rest.by_ref().take(ROOMS_PER_PAGE).collect();
        let next = rest.peek().and(rooms.last()).map(ToString::to_string);
        Ok(SharedRooms { rooms, count, next })
    }
}

/// A LIKE pattern for text that holds `word`, which is in small letters. `!` escapes. SQLite knows small letters of
/// ASCII only, so other letters may be any: [`matches`] looks again.
fn like(word: &str) -> String {
    let mut pattern = String::from("%");
    for letter in word.chars() {
        match letter {
            '%' | '_' | '!' => pattern.extend(['!', letter]),
            // As JSON writes them.
            '"' | '\\' => pattern.push('%'),
            _ if letter.is_ascii() => pattern.push(letter),
            _ => pattern.push('%'),
        }
    }
    pattern.push('%');
    pattern
}

fn matches(user: &UserId, listed: &Listed, word: &str) -> bool {
    let named = listed.display_name.as_ref().is_some_and(|name| name.to_lowercase().contains(word));
    named || user.as_str().to_lowercase().contains(word)
}

/// Whether a person's name or id begins with `word`.
fn begins(user: &UserId, listed: &Listed, word: &str) -> bool {
    let named = listed.display_name.as_ref().is_some_and(|name| name.to_lowercase().starts_with(word));
    named || user.localpart().to_lowercase().starts_with(word.trim_start_matches('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_escape_what_like_knows() {
        assert_eq!(like("a_b%c!"), "%a!_b!%c!!%");
        assert_eq!(like("zoë"), "%zo%%");
    }

    #[test]
    fn names_and_ids_match_whatever_their_case() {
        let user: OwnedUserId = "@zoe:example.org".try_into().unwrap();
        let listed = Listed { display_name: Some("ZOË Fischer".to_owned()), avatar_url: None };
        assert!(matches(&user, &listed, "zoë") && matches(&user, &listed, "zoe:ex"));
        assert!(!matches(&user, &listed, "bob"));
    }
}
