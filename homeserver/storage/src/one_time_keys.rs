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
    HAVE = "SELECT algorithm, COUNT(*), MAX(upload_order) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm";
    SAME = "SELECT t.algorithm, t.key_id, t.json FROM (VALUES $rows) AS v JOIN one_time_keys t ON t.user_id = v.column1 AND t.device_id = v.column2 AND t.algorithm = v.column3 AND t.key_id = v.column4";
    INSERT = "INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, upload_order, json) VALUES $rows ON CONFLICT (user_id, device_id, algorithm, key_id) DO NOTHING";
    ANY_LEFT = "SELECT 1 FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 LIMIT 1";
    TAKE = "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = (SELECT key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 ORDER BY upload_order, key_id LIMIT 1) RETURNING key_id, json";
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

    async fn one_time_keys_same(
        &mut self,
        user: &UserId,
        device: &str,
        keys: &[OneTimeKeyRow],
    ) -> StoreResult<Vec<OneTimeKeyRow>> {
        let mut same = Vec::new();
        for piece in pieces(keys) {
            let text = rows(SAME, 4, piece.len());
            let found: Vec<(String, String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for key in piece {
                    query = query.bind(user.as_str()).bind(device).bind(&key.algorithm).bind(&key.key_id);
                }
                query.fetch_all(c).await
            })?;
            same.extend(found.into_iter().map(|(algorithm, key_id, json)| OneTimeKeyRow {
                algorithm,
                key_id,
                json,
            }));
        }
        Ok(same)
    }
}

/// What became of keys that a device uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OneTimeKeysPut {
    /// They are here: how many there are of each algorithm now, and whether any of them is new.
    Here(BTreeMap<String, u64>, bool),
    /// Nothing may stay of what the member wrote: `algorithm:id` is here already, and is another key.
    Taken(String),
    /// Nothing may stay of what the member wrote: the device would have more keys than it may.
    TooMany,
}

impl crate::Tx {
    /// Adds the keys that the device does not have yet; they are handed out after those it has, in this order. Those that
    /// are here already, and the same, are left as they are. The device may have `most` keys.
    pub async fn one_time_keys_put(
        &mut self,
        user: &UserId,
        device: &str,
        keys: &[OneTimeKeyRow],
        most: u64,
    ) -> StoreResult<OneTimeKeysPut> {
        let conn = self.writing().await?;
        let have: Vec<(String, i64, i64)> = on_engine!(&mut *conn, |c| sqlx::query_as(HAVE)
            .bind(user.as_str())
            .bind(device)
            .fetch_all(c)
            .await)?;
        let mut order = have.iter().map(|(_, _, last)| *last).max().unwrap_or(0);
        let mut counts = BTreeMap::from([(USUAL_ALGORITHM.to_owned(), 0)]);
        counts.extend(have.into_iter().map(|(algorithm, count, _)| (algorithm, count as u64)));
        let mut added = 0;
        for chunk in pieces(keys) {
            let text = rows(INSERT, 6, chunk.len());
            added += on_engine!(&mut *conn, |c| {
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
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        if added < keys.len() as u64 {
            // Some were here before: most clients never come to this.
            let here: BTreeMap<(String, String), String> = conn
                .one_time_keys_same(user, device, keys)
                .await?
                .into_iter()
                .map(|key| ((key.algorithm, key.key_id), key.json))
                .collect();
            let other = |key: &&OneTimeKeyRow| {
                here.get(&(key.algorithm.clone(), key.key_id.clone())) != Some(&key.json)
            };
            if let Some(key) = keys.iter().find(other) {
                return Ok(OneTimeKeysPut::Taken(format!("{}:{}", key.algorithm, key.key_id)));
            }
            counts = conn.one_time_key_counts(user, device).await?;
        } else {
            for key in keys {
                *counts.entry(key.algorithm.clone()).or_default() += 1;
            }
        }
        if added > 0 && counts.values().sum::<u64>() > most {
            return Ok(OneTimeKeysPut::TooMany);
        }
        Ok(OneTimeKeysPut::Here(counts, added > 0))
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
            let taken: Option<(String, String)> = on_engine!(&mut *conn, |c| sqlx::query_as(TAKE)
                .bind(user.as_str())
                .bind(device)
                .bind(algorithm)
                .fetch_optional(c)
                .await)?;
            if let Some((key_id, json)) = taken {
                return Ok(Some(ClaimedKey { key_id, json, changed: true }));
            }
            // On PostgreSQL another node may have taken it meanwhile.
            let left: Option<(i32,)> = on_engine!(&mut *conn, |c| sqlx::query_as(ANY_LEFT)
                .bind(user.as_str())
                .bind(device)
                .bind(algorithm)
                .fetch_optional(c)
                .await)?;
            if left.is_none() {
                break;
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
