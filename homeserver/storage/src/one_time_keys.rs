//! One-time and fallback keys: what other devices begin a conversation with.
//! <https://spec.matrix.org/v1.19/client-server-api/#one-time-and-fallback-keys>

use crate::engine::{Conn, Engine, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{pieces, rows, statements};
use ruma::{OwnedUserId, UserId};
use sqlx::AssertSqlSafe;
use std::collections::{BTreeMap, HashMap, HashSet};

statements! {
    COUNTS = "SELECT algorithm, CAST(SUM(waiting) AS BIGINT) FROM (SELECT algorithm, ends - next AS waiting FROM key_batches WHERE user_id = $1 AND device_id = $2 UNION ALL SELECT algorithm, 1 FROM one_time_keys WHERE user_id = $1 AND device_id = $2) AS all_keys GROUP BY algorithm";
    UNUSED_FALLBACKS = "SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used ORDER BY algorithm";
    // Keys of before the batches are numbered -1.
    HAVE = "SELECT algorithm, batch, next, ends, ids FROM key_batches WHERE user_id = $1 AND device_id = $2 UNION ALL SELECT algorithm, -1, 2, 3, key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2";
    BATCHES = "SELECT algorithm, next, ids, keys FROM key_batches WHERE user_id = $1 AND device_id = $2 UNION ALL SELECT algorithm, 2, key_id, json FROM one_time_keys WHERE user_id = $1 AND device_id = $2";
    INSERT = "INSERT INTO key_batches (user_id, device_id, algorithm, batch, next, ends, ids, keys) VALUES $rows ON CONFLICT DO NOTHING";
    TAKE = "UPDATE key_batches SET next = next + 1 WHERE (user_id, device_id, algorithm, batch) IN (SELECT b.user_id, b.device_id, b.algorithm, MIN(b.batch) FROM (VALUES $rows) AS v JOIN key_batches b ON b.user_id = v.column1 AND b.device_id = v.column2 AND b.algorithm = v.column3 WHERE b.next < b.ends GROUP BY b.user_id, b.device_id, b.algorithm) AND next < ends RETURNING user_id, device_id, algorithm, batch, next, ends, ids, keys";
    LEFT = "SELECT b.user_id, b.device_id FROM (VALUES $rows) AS v JOIN key_batches b ON b.user_id = v.column1 AND b.device_id = v.column2 AND b.algorithm = v.column3 WHERE b.next < b.ends";
    USED_UP = "DELETE FROM key_batches WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND batch = $4 AND next >= ends";
    OLD_TAKE = "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = (SELECT key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 ORDER BY upload_order, key_id LIMIT 1) RETURNING key_id, json";
    OLD_LEFT = "SELECT 1 FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 LIMIT 1";
    OLD_MOVE = "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 RETURNING algorithm, key_id, json, upload_order";
    FALLBACK_PUT = "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, json, used) VALUES ($1, $2, $3, $4, $5, FALSE) ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET key_id = excluded.key_id, json = excluded.json, used = FALSE";
    FALLBACK_LOAD = "SELECT key_id, json, used FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3";
    FALLBACK_USE = "UPDATE fallback_keys SET used = TRUE WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4";
    DELETE_BATCHES = "DELETE FROM key_batches WHERE user_id = $1 AND device_id = $2";
    DELETE_KEYS = "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2";
    DELETE_FALLBACKS = "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2";
}

/// The algorithm that every client uses: counted even when there are none, which is what tells a client to upload.
const USUAL_ALGORITHM: &str = "signed_curve25519";
/// How often a claim tries again when another node took the key under its hands, and an upload when another node wrote
/// one for the same device.
const TRIES: usize = 16;
/// Keys of one row at most: what a client uploads at once.
const BATCH_KEYS: usize = 50;
/// Bytes of the keys of one row at most, but for a single one that is longer: a claim reads them all.
const BATCH_BYTES: usize = 32 * 1024;
/// The number of a batch's first line: see the migration.
const FIRST: i64 = 2;

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

    /// The device's keys by algorithm and id, with whether they wait: those that were handed out a short time ago are
    /// among them.
    async fn one_time_keys_same(
        &mut self,
        user: &UserId,
        device: &str,
    ) -> StoreResult<HashMap<(String, String), (String, bool)>> {
        let found: Vec<(String, i64, String, String)> = on_engine!(self, |c| sqlx::query_as(BATCHES)
            .bind(user.as_str())
            .bind(device)
            .fetch_all(c)
            .await)?;
        let mut all: HashMap<(String, String), (String, bool)> = HashMap::new();
        for (algorithm, next, ids, keys) in found {
            for (line, (id, json)) in ids.split('\n').zip(keys.split('\n')).enumerate() {
                let waits = FIRST + line as i64 >= next;
                let name = (algorithm.clone(), id.to_owned());
                if waits || !all.contains_key(&name) {
                    all.insert(name, (json.to_owned(), waits));
                }
            }
        }
        Ok(all)
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

/// What a device has before an upload.
struct Have {
    /// How many keys wait, by algorithm.
    counts: BTreeMap<String, u64>,
    /// Some of the keys of the upload are here already, or were handed out a short time ago.
    known: bool,
    /// The number of the next batch.
    next: i64,
    /// There are keys of before the batches.
    old: bool,
}

/// Cuts keys into what becomes one row each.
fn batches<'a, 'k>(keys: &'a [&'k OneTimeKeyRow]) -> Vec<&'a [&'k OneTimeKeyRow]> {
    let mut all = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, key) in keys.iter().enumerate() {
        let full = index - start == BATCH_KEYS || bytes + key.json.len() > BATCH_BYTES;
        if index > start && (full || key.algorithm != keys[start].algorithm) {
            all.push(&keys[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += key.json.len();
    }
    all.push(&keys[start..]);
    all
}

/// A line for each.
fn lines<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut lines = String::new();
    for (index, text) in texts.enumerate() {
        debug_assert!(!text.contains('\n'), "ids and canonical JSON have no line breaks");
        if index > 0 {
            lines.push('\n');
        }
        lines.push_str(text);
    }
    lines
}

/// Whose key is wanted: user, device, algorithm.
pub type KeyClaim = (OwnedUserId, String, String);

/// What is still wanted, and the place of the answer.
type WantedKeys<'a> = BTreeMap<(&'a str, &'a str, &'a str), usize>;

impl crate::Tx {
    async fn one_time_keys_have(
        &mut self,
        user: &UserId,
        device: &str,
        keys: &[OneTimeKeyRow],
    ) -> StoreResult<Have> {
        let found: Vec<(String, i64, i64, i64, String)> =
            on_engine!(&mut self.conn, |c| sqlx::query_as(HAVE)
                .bind(user.as_str())
                .bind(device)
                .fetch_all(c)
                .await)?;
        let new: HashSet<(&str, &str)> = keys.iter().map(|key| (&*key.algorithm, &*key.key_id)).collect();
        let counts = BTreeMap::from([(USUAL_ALGORITHM.to_owned(), 0)]);
        let mut have = Have { counts, known: false, next: 0, old: false };
        for (algorithm, batch, next, ends, ids) in found {
            have.old |= batch < 0;
            have.next = have.next.max(batch + 1);
            have.known |= ids.split('\n').any(|id| new.contains(&(&*algorithm, id)));
            *have.counts.entry(algorithm).or_default() += (ends - next) as u64;
        }
        Ok(have)
    }

    /// Adds the keys that the device does not have yet; they are handed out after those it has, in this order. Those that
    /// are here already, and the same, are left as they are. The device may have `most` keys.
    ///
    /// Ids and keys (JSON) have no line breaks.
    pub async fn one_time_keys_put(
        &mut self,
        user: &UserId,
        device: &str,
        keys: &[OneTimeKeyRow],
        most: u64,
    ) -> StoreResult<OneTimeKeysPut> {
        for _ in 0..TRIES {
            let mut have = self.one_time_keys_have(user, device, keys).await?;
            let mut new: Vec<&OneTimeKeyRow> = keys.iter().collect();
            if have.known {
                // Most clients never come to this.
                let here = self.conn.one_time_keys_same(user, device).await?;
                let known = |key: &OneTimeKeyRow| here.get(&(key.algorithm.clone(), key.key_id.clone()));
                let other = |key: &&OneTimeKeyRow| {
                    known(key).is_some_and(|(json, waits)| *waits && *json != key.json)
                };
                if let Some(key) = keys.iter().find(other) {
                    return Ok(OneTimeKeysPut::Taken(format!("{}:{}", key.algorithm, key.key_id)));
                }
                // The same once more: it waits, or was handed out while its device saw no answer to its upload.
                new.retain(|key| known(key).is_none_or(|(json, _)| *json != key.json));
            }
            if new.is_empty() {
                return Ok(OneTimeKeysPut::Here(have.counts, false));
            }
            for key in &new {
                *have.counts.entry(key.algorithm.clone()).or_default() += 1;
            }
            if have.counts.values().sum::<u64>() > most {
                return Ok(OneTimeKeysPut::TooMany);
            }
            let old = if have.old { self.one_time_keys_old(user, device).await? } else { Vec::new() };
            let mut all: Vec<&OneTimeKeyRow> = old.iter().chain(new).collect();
            all.sort_by(|one, other| one.algorithm.cmp(&other.algorithm));
            if self.key_batches_insert(user, device, &all, have.next).await? {
                return Ok(OneTimeKeysPut::Here(have.counts, true));
            }
            // Another node has written the batch of this number.
            if !old.is_empty() {
                break;
            }
        }
        Err(StoreError::Commit(format!("keys of {user} {device} are uploaded elsewhere")))
    }

    /// Takes out the keys of before the batches, in the order of their upload.
    async fn one_time_keys_old(&mut self, user: &UserId, device: &str) -> StoreResult<Vec<OneTimeKeyRow>> {
        let conn = self.writing().await?;
        let mut found: Vec<(String, String, String, i64)> = on_engine!(conn, |c| sqlx::query_as(OLD_MOVE)
            .bind(user.as_str())
            .bind(device)
            .fetch_all(c)
            .await)?;
        found.sort_by(|one, other| (one.3, &one.1).cmp(&(other.3, &other.1)));
        let row = |(algorithm, key_id, json, _)| OneTimeKeyRow { algorithm, key_id, json };
        Ok(found.into_iter().map(row).collect())
    }

    /// Whether all are written; else none stays, for one of the numbers is taken.
    async fn key_batches_insert(
        &mut self,
        user: &UserId,
        device: &str,
        keys: &[&OneTimeKeyRow],
        first: i64,
    ) -> StoreResult<bool> {
        let all = batches(keys);
        let conn = self.writing().await?;
        let mut number = first;
        for piece in pieces(&all) {
            let text = rows(INSERT, 8, piece.len());
            let done = on_engine!(&mut *conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for batch in piece {
                    query = query
                        .bind(user.as_str())
                        .bind(device)
                        .bind(&batch[0].algorithm)
                        .bind(number)
                        .bind(FIRST)
                        .bind(FIRST + batch.len() as i64)
                        .bind(lines(batch.iter().map(|key| &*key.key_id)))
                        .bind(lines(batch.iter().map(|key| &*key.json)));
                    number += 1;
                }
                query.execute(c).await.map(|done| done.rows_affected() as usize)
            })?;
            if done == 0 && piece.len() == all.len() {
                return Ok(false);
            }
            if done < piece.len() {
                return Err(StoreError::Commit(format!("keys of {user} {device} were uploaded elsewhere")));
            }
        }
        Ok(true)
    }

    /// Takes the oldest one-time key of each of these, which no one gets again; where there is none, the fallback key,
    /// which is marked as used. The answers are in the order of `claims`, which name a device and algorithm once.
    pub async fn one_time_keys_claim(&mut self, claims: &[KeyClaim]) -> StoreResult<Vec<Option<ClaimedKey>>> {
        let mut claimed: Vec<Option<ClaimedKey>> = vec![None; claims.len()];
        let parts = claims.iter().map(|(user, device, algorithm)| (user.as_str(), &**device, &**algorithm));
        let mut wanted: WantedKeys<'_> = parts.enumerate().map(|(index, parts)| (parts, index)).collect();
        for _ in 0..TRIES {
            let asked: Vec<(&str, &str, &str)> = wanted.keys().copied().collect();
            for piece in pieces(&asked) {
                for (index, key) in self.key_batches_take(piece, &wanted).await? {
                    claimed[index] = Some(key);
                }
            }
            wanted.retain(|_, index| claimed[*index].is_none());
            // On PostgreSQL another node may have used a batch up meanwhile, and there is another.
            if wanted.is_empty() || !self.key_batches_left(&wanted).await? {
                break;
            }
        }
        for index in wanted.into_values() {
            claimed[index] = self.old_or_fallback_claim(&claims[index]).await?;
        }
        Ok(claimed)
    }

    /// One statement for all: the keys that were taken, with the places of the answers.
    async fn key_batches_take(
        &mut self,
        piece: &[(&str, &str, &str)],
        wanted: &WantedKeys<'_>,
    ) -> StoreResult<Vec<(usize, ClaimedKey)>> {
        let text = rows(TAKE, 3, piece.len());
        let conn = self.writing().await?;
        let taken: Vec<(String, String, String, i64, i64, i64, String, String)> =
            on_engine!(&mut *conn, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for (user, device, algorithm) in piece {
                    query = query.bind(*user).bind(*device).bind(*algorithm);
                }
                query.fetch_all(c).await
            })?;
        let mut keys = Vec::with_capacity(taken.len());
        for (user, device, algorithm, batch, next, ends, ids, jsons) in taken {
            let corrupt =
                |why: &str| StoreError::corrupt("key_batches", format!("{user} {device} {batch}"), why);
            let line =
                usize::try_from(next - 1 - FIRST).map_err(|_| corrupt("the number of the next key"))?;
            let (id, json) = (ids.split('\n').nth(line), jsons.split('\n').nth(line));
            let (Some(id), Some(json)) = (id, json) else { return Err(corrupt("fewer keys than it says")) };
            let place = wanted.get(&(&*user, &*device, &*algorithm)).copied();
            let place = place.ok_or_else(|| corrupt("it was not asked for"))?;
            keys.push((place, ClaimedKey { key_id: id.to_owned(), json: json.to_owned(), changed: true }));
            if next >= ends {
                on_engine!(&mut *conn, |c| sqlx::query(USED_UP)
                    .bind(&user)
                    .bind(&device)
                    .bind(&algorithm)
                    .bind(batch)
                    .execute(c)
                    .await
                    .map(|_| ()))?;
            }
        }
        Ok(keys)
    }

    /// Whether any of these has keys in batches.
    async fn key_batches_left(&mut self, wanted: &WantedKeys<'_>) -> StoreResult<bool> {
        if self.conn.engine() == Engine::Sqlite {
            return Ok(false);
        }
        let asked: Vec<(&str, &str, &str)> = wanted.keys().copied().collect();
        for piece in pieces(&asked) {
            let text = rows(LEFT, 3, piece.len());
            let left: Option<(String, String)> = on_engine!(&mut self.conn, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for (user, device, algorithm) in piece {
                    query = query.bind(*user).bind(*device).bind(*algorithm);
                }
                query.fetch_optional(c).await
            })?;
            if left.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn old_or_fallback_claim(
        &mut self,
        (user, device, algorithm): &KeyClaim,
    ) -> StoreResult<Option<ClaimedKey>> {
        let conn = self.writing().await?;
        for _ in 0..TRIES {
            let taken: Option<(String, String)> = on_engine!(&mut *conn, |c| sqlx::query_as(OLD_TAKE)
                .bind(user.as_str())
                .bind(device)
                .bind(algorithm)
                .fetch_optional(c)
                .await)?;
            if let Some((key_id, json)) = taken {
                return Ok(Some(ClaimedKey { key_id, json, changed: true }));
            }
            let left: Option<(i32,)> = on_engine!(&mut *conn, |c| sqlx::query_as(OLD_LEFT)
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
        for text in [DELETE_BATCHES, DELETE_KEYS, DELETE_FALLBACKS] {
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
