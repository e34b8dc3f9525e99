//! One-time and fallback keys: what other devices begin a conversation with.
//! <https://spec.matrix.org/v1.19/client-server-api/#one-time-and-fallback-keys>

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{pieces, rows, statements};
use ruma::UserId;
use sqlx::AssertSqlSafe;
use std::collections::BTreeMap;

statements! {
    COUNTS = "SELECT algorithm, COUNT(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm";
    UNUSED_FALLBACKS = "SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used ORDER BY algorithm";
    LOAD = "SELECT algorithm, key_id, json FROM one_time_keys WHERE user_id = $1 AND device_id = $2";
    LAST = "SELECT MAX(upload_order) FROM one_time_keys WHERE user_id = $1 AND device_id = $2";
    INSERT = "INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, upload_order, json) VALUES $rows";
    NEXT = "SELECT key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 ORDER BY upload_order, key_id LIMIT 1";
    TAKE = "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4 RETURNING json";
    FALLBACK_PUT = "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, json, used) VALUES ($1, $2, $3, $4, $5, FALSE) ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET key_id = excluded.key_id, json = excluded.json, used = FALSE";
    FALLBACK_LOAD = "SELECT key_id, json, used FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3";
    FALLBACK_USE = "UPDATE fallback_keys SET used = TRUE WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4";
    DELETE_KEYS = "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2";
    DELETE_FALLBACKS = "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2";
}

/// The algorithm that every client uses: counted even when there are none, which is what tells a client to upload.
const USUAL_ALGORITHM: &str = "signed_curve25519";
/// How often a claim tries again when another node took the key under its hands.
const CLAIM_TRIES: usize = 16;

/// A one-time or fallback key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimeKeyRow {
    /// The algorithm, for example `signed_curve25519`.
    pub algorithm: String,
    /// What follows the algorithm in the key's id.
    pub key_id: String,
    /// The key as it was uploaded.
    pub json: String,
}

/// A claimed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedKey {
    /// What follows the algorithm in the key's id.
    pub key_id: String,
    /// The key as it was uploaded.
    pub json: String,
    /// Whether something changed that the device is told of: a one-time key went, or the fallback key was used first.
    pub changed: bool,
}

impl Conn {
    /// How many one-time keys of each algorithm the device has that no one has claimed.
    pub async fn one_time_key_counts(
        &mut self,
        user: &UserId,
        device: &str,
    ) -> StoreResult<BTreeMap<String, u64>> {
        let found: Vec<(String, i64)> =
            on_engine!(self, |c| sqlx::query_as(COUNTS).bind(user.as_str()).bind(device).fetch_all(c).await)?;
        let mut counts = BTreeMap::from([(USUAL_ALGORITHM.to_owned(), 0)]);
        counts.extend(found.into_iter().map(|(algorithm, count)| (algorithm, count as u64)));
        Ok(counts)
    }

    /// The algorithms for which the device has a fallback key that was not handed out yet.
    pub async fn fallback_types_unused(&mut self, user: &UserId, device: &str) -> StoreResult<Vec<String>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(UNUSED_FALLBACKS)
            .bind(user.as_str())
            .bind(device)
            .fetch_all(c)
            .await)?;
        Ok(found.into_iter().map(|(algorithm,)| algorithm).collect())
    }

    /// All one-time keys of the device.
    pub async fn one_time_keys_load(
        &mut self,
        user: &UserId,
        device: &str,
    ) -> StoreResult<Vec<OneTimeKeyRow>> {
        let found: Vec<(String, String, String)> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(user.as_str()).bind(device).fetch_all(c).await)?;
        Ok(found
            .into_iter()
            .map(|(algorithm, key_id, json)| OneTimeKeyRow { algorithm, key_id, json })
            .collect())
    }

    async fn one_time_key_next(
        &mut self,
        user: &UserId,
        device: &str,
        algorithm: &str,
    ) -> StoreResult<Option<String>> {
        let found: Option<(String,)> = on_engine!(self, |c| sqlx::query_as(NEXT)
            .bind(user.as_str())
            .bind(device)
            .bind(algorithm)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(|(id,)| id))
    }
}

impl crate::Tx {
    /// Adds keys that the device does not have yet; they are handed out after those it has, in this order.
    pub async fn one_time_keys_insert(
        &mut self,
        user: &UserId,
        device: &str,
        new: &[OneTimeKeyRow],
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        let (last,): (Option<i64>,) = on_engine!(&mut *conn, |c| sqlx::query_as(LAST)
            .bind(user.as_str())
            .bind(device)
            .fetch_one(c)
            .await)?;
        let mut order = last.unwrap_or(0);
        for chunk in pieces(new) {
            let text = rows(INSERT, 6, chunk.len());
            on_engine!(&mut *conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for key in chunk {
                    order += 1;
                    query = query
                        .bind(user.as_str())
                        .bind(device)
                        .bind(&key.algorithm)
                        .bind(&key.key_id)
                        .bind(order)
                        .bind(&key.json);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// Takes the oldest one-time key of this algorithm, which no one gets again; when there is none, the fallback key,
    /// which is marked as used.
    pub async fn one_time_key_claim(
        &mut self,
        user: &UserId,
        device: &str,
        algorithm: &str,
    ) -> StoreResult<Option<ClaimedKey>> {
        let conn = self.writing().await?;
        for _ in 0..CLAIM_TRIES {
            let Some(key_id) = conn.one_time_key_next(user, device, algorithm).await? else { break };
            let taken: Option<(String,)> = on_engine!(&mut *conn, |c| sqlx::query_as(TAKE)
                .bind(user.as_str())
                .bind(device)
                .bind(algorithm)
                .bind(&key_id)
                .fetch_optional(c)
                .await)?;
            if let Some((json,)) = taken {
                return Ok(Some(ClaimedKey { key_id, json, changed: true }));
            }
        }
        let found: Option<(String, String, bool)> =
            on_engine!(&mut *conn, |c| sqlx::query_as(FALLBACK_LOAD)
                .bind(user.as_str())
                .bind(device)
                .bind(algorithm)
                .fetch_optional(c)
                .await)?;
        let Some((key_id, json, used)) = found else { return Ok(None) };
        if !used {
            on_engine!(&mut *conn, |c| sqlx::query(FALLBACK_USE)
                .bind(user.as_str())
                .bind(device)
                .bind(algorithm)
                .bind(&key_id)
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(Some(ClaimedKey { key_id, json, changed: !used }))
    }

    /// Replaces the fallback key of its algorithm, unless it is the same: then it stays used if it was. Answers
    /// whether anything changed.
    pub async fn fallback_key_put(
        &mut self,
        user: &UserId,
        device: &str,
        key: &OneTimeKeyRow,
    ) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let found: Option<(String, String, bool)> =
            on_engine!(&mut *conn, |c| sqlx::query_as(FALLBACK_LOAD)
                .bind(user.as_str())
                .bind(device)
                .bind(&key.algorithm)
                .fetch_optional(c)
                .await)?;
        if found.is_some_and(|(id, json, _)| id == key.key_id && json == key.json) {
            return Ok(false);
        }
        let put = on_engine!(&mut *conn, |c| sqlx::query(FALLBACK_PUT)
            .bind(user.as_str())
            .bind(device)
            .bind(&key.algorithm)
            .bind(&key.key_id)
            .bind(&key.json)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        if put == 0 {
            return Err(StoreError::corrupt("fallback_keys", format!("{user} {device}"), "not written"));
        }
        Ok(true)
    }

    /// The device has no one-time and fallback keys any more.
    pub async fn one_time_keys_delete(&mut self, user: &UserId, device: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        for text in [DELETE_KEYS, DELETE_FALLBACKS] {
            on_engine!(&mut *conn, |c| sqlx::query(text)
                .bind(user.as_str())
                .bind(device)
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }
}
