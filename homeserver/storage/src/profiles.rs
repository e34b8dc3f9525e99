//! Profiles of this server's users: one row for each field.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, statements};
use crate::{Fact, NewRow};
use ruma::{OwnedUserId, UserId};
use sqlx::AssertSqlSafe;
use std::collections::BTreeMap;

statements! {
    FIELD = "SELECT value FROM profiles WHERE user_id = $1 AND field = $2";
    WHOLE = "SELECT field, value FROM profiles WHERE user_id = $1";
    MANY = "SELECT user_id, field, value FROM profiles WHERE field IN ('displayname', 'avatar_url') AND user_id IN ($list)";
    SET = "INSERT INTO profiles (user_id, field, value) VALUES ($1, $2, $3) ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value";
    REMOVE = "DELETE FROM profiles WHERE user_id = $1 AND field = $2";
    REMOVE_ALL = "DELETE FROM profiles WHERE user_id = $1";
    OWNER = "SELECT EXISTS (SELECT 1 FROM users WHERE user_id = $1 AND NOT deactivated)";
    NAMED_LIKE = "SELECT DISTINCT user_id FROM profiles WHERE field = 'displayname' AND LOWER(value) LIKE $1 ESCAPE '!' ORDER BY user_id LIMIT $2";
}

impl Conn {
    /// The JSON of one field of a user's profile.
    pub async fn profile_field_load(&mut self, user: &UserId, field: &str) -> StoreResult<Option<String>> {
        let found: Option<(String,)> = on_engine!(self, |c| sqlx::query_as(FIELD)
            .bind(user.as_str())
            .bind(field)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(|(value,)| value))
    }

    /// Every field of a user's profile, as JSON.
    pub async fn profile_load(&mut self, user: &UserId) -> StoreResult<BTreeMap<String, String>> {
        let found: Vec<(String, String)> =
            on_engine!(self, |c| sqlx::query_as(WHOLE).bind(user.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().collect())
    }

    /// Whether this is a user of this server whose account is in use.
    pub async fn profile_owner_known(&mut self, user: &UserId) -> StoreResult<bool> {
        let (known,): (bool,) =
            on_engine!(self, |c| sqlx::query_as(OWNER).bind(user.as_str()).fetch_one(c).await)?;
        Ok(known)
    }

    /// `displayname` and `avatar_url` of several users, as JSON by user and field.
    pub async fn profiles_load(
        &mut self,
        users: &[OwnedUserId],
    ) -> StoreResult<BTreeMap<String, BTreeMap<String, String>>> {
        let mut loaded: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for chunk in users.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(MANY, 1, chunk.len());
            let found: Vec<(String, String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for user in &chunk {
                    query = query.bind(user.as_str());
                }
                query.fetch_all(c).await
            })?;
            for (user, field, value) in found {
                loaded.entry(user).or_default().insert(field, value);
            }
        }
        Ok(loaded)
    }

    /// Users of this server whose display name, in small letters, is like `pattern` (a LIKE pattern with `!` as its
    /// escape), at most `limit`.
    pub async fn profiles_named_like(&mut self, pattern: &str, limit: i64) -> StoreResult<Vec<OwnedUserId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(NAMED_LIKE).bind(pattern).bind(limit).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(user,)| user.try_into().ok()).collect())
    }
}

impl crate::Tx {
    /// Sets a field of a user's profile to this JSON and announces it.
    pub async fn profile_field_set(&mut self, user: &UserId, field: &str, value: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SET)
            .bind(user.as_str())
            .bind(field)
            .bind(value)
            .execute(c)
            .await
            .map(|_| ()))?;
        self.log_append(NewRow::new(Fact::Profile).user(user.to_owned()).reference(field));
        Ok(())
    }

    /// Removes a field of a user's profile and announces it. Returns whether it was there.
    pub async fn profile_field_remove(&mut self, user: &UserId, field: &str) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let removed = on_engine!(conn, |c| sqlx::query(REMOVE)
            .bind(user.as_str())
            .bind(field)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        if removed > 0 {
            self.log_append(NewRow::new(Fact::Profile).user(user.to_owned()).reference(field));
        }
        Ok(removed > 0)
    }

    /// Removes a user's whole profile and announces it.
    pub async fn profile_remove(&mut self, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REMOVE_ALL).bind(user.as_str()).execute(c).await.map(|_| ()))?;
        self.log_append(NewRow::new(Fact::Profile).user(user.to_owned()));
        Ok(())
    }
}
