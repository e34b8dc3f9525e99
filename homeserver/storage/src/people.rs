//! Finding people: the user directory's questions.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{OwnedUserId, UserId};

statements! {
    // Other servers' users have no profile here: their names are those in the rooms shared with the one who searches.
    SHARING_LIKE = "SELECT DISTINCT b.user_id, b.local, b.display_name, b.avatar_url FROM members a JOIN members b ON a.room_id = b.room_id WHERE a.user_id = $1 AND a.membership = 'join' AND b.membership = 'join' AND (LOWER(b.user_id) LIKE $2 ESCAPE '!' OR (NOT b.local AND LOWER(b.display_name) LIKE $2 ESCAPE '!')) ORDER BY b.user_id LIMIT $3";
    PUBLISHED_LIKE = "SELECT DISTINCT b.user_id, b.local, b.display_name, b.avatar_url FROM rooms a JOIN members b ON a.room_id = b.room_id WHERE a.published AND b.membership = 'join' AND (LOWER(b.user_id) LIKE $1 ESCAPE '!' OR (NOT b.local AND LOWER(b.display_name) LIKE $1 ESCAPE '!')) ORDER BY b.user_id LIMIT $2";
    LOCAL_LIKE = "SELECT user_id FROM users WHERE NOT deactivated AND LOWER(user_id) LIKE $1 ESCAPE '!' ORDER BY user_id LIMIT $2";
}

/// Somebody found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Who.
    pub user_id: OwnedUserId,
    /// Of this server: look up the profile; the names below are private to a room.
    pub local: bool,
    /// The display name in a room.
    pub display_name: Option<String>,
    /// The avatar in a room.
    pub avatar_url: Option<String>,
}

type Columns = (String, bool, Option<String>, Option<String>);

fn decode(found: Vec<Columns>) -> Vec<Person> {
    let people = found.into_iter().filter_map(|(user, local, display_name, avatar_url)| {
        Some(Person { user_id: user.try_into().ok()?, local, display_name, avatar_url })
    });
    people.collect()
}

impl Conn {
    /// People who share a room with `user` and are like `pattern` (small letters, `!` escapes): this server's by their
    /// id, others' by their id or name.
    pub async fn people_sharing_like(
        &mut self,
        user: &UserId,
        pattern: &str,
        limit: i64,
    ) -> StoreResult<Vec<Person>> {
        Ok(decode(on_engine!(self, |c| sqlx::query_as(SHARING_LIKE)
            .bind(user.as_str())
            .bind(pattern)
            .bind(limit)
            .fetch_all(c)
            .await)?))
    }

    /// The same for people in rooms of the public directory.
    pub async fn people_published_like(&mut self, pattern: &str, limit: i64) -> StoreResult<Vec<Person>> {
        Ok(decode(on_engine!(self, |c| sqlx::query_as(PUBLISHED_LIKE)
            .bind(pattern)
            .bind(limit)
            .fetch_all(c)
            .await)?))
    }

    /// Users of this server whose id is like `pattern`.
    pub async fn users_like(&mut self, pattern: &str, limit: i64) -> StoreResult<Vec<OwnedUserId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(LOCAL_LIKE).bind(pattern).bind(limit).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(user,)| user.try_into().ok()).collect())
    }
}
