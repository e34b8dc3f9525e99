//! Which files are named by something that this server can read: by events (a table beside them), profiles, account
//! data and events that are still to be sent. Files in encrypted messages are named by nothing.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::events::StoredEvent;
use crate::sql::{pieces, rows, statements};
use ruma::{EventId, ServerName};
use sqlx::AssertSqlSafe;
use std::collections::HashSet;
use std::sync::Arc;
use waxwing_model::{Event, MediaKey, media_named};

statements! {
    ADD = "INSERT INTO media_uses (server_name, media_id, event_id) VALUES $rows ON CONFLICT DO NOTHING";
    DROP = "DELETE FROM media_uses WHERE server_name = $1 AND media_id = $2 AND event_id = $3";
    OF_FILE = "SELECT event_id FROM media_uses WHERE server_name = $1 AND media_id = $2 ORDER BY event_id LIMIT $3";
    STORED = "SELECT json FROM events WHERE event_id = $1";
    CANDIDATE = "INSERT INTO purge_media (purge_id, server_name, media_id) SELECT $1, m.server_name, m.media_id FROM media m WHERE m.server_name = $2 AND m.media_id = $3 AND (m.uploader = $4 OR m.server_name <> $5) ON CONFLICT DO NOTHING";
    CANDIDATES = "SELECT server_name, media_id FROM purge_media WHERE purge_id = $1 ORDER BY server_name, media_id LIMIT $2";
    CANDIDATE_DONE = "DELETE FROM purge_media WHERE purge_id = $1 AND server_name = $2 AND media_id = $3";
    UNNAMED = "SELECT m.uploader FROM media m WHERE m.server_name = $1 AND m.media_id = $2 AND NOT m.quarantined AND NOT m.protected AND NOT EXISTS (SELECT 1 FROM media_uses u WHERE u.server_name = m.server_name AND u.media_id = m.media_id)";
    UNUSED = "SELECT m.last_access_at, m.media_id FROM media m WHERE m.server_name = $1 AND m.last_access_at < $2 AND m.created_at < $2 AND (m.last_access_at, m.media_id) > ($3, $4) AND m.uploader IS NOT NULL AND m.object <> '' AND NOT m.quarantined AND NOT m.protected AND NOT EXISTS (SELECT 1 FROM media_uses u WHERE u.server_name = m.server_name AND u.media_id = m.media_id) ORDER BY m.last_access_at, m.media_id LIMIT $5";
    PROFILES = "SELECT user_id, field, CASE WHEN value LIKE '%mxc:%' THEN value ELSE '' END FROM profiles WHERE (user_id, field) > ($1, $2) ORDER BY user_id, field LIMIT $3";
    PROFILE = "SELECT value FROM profiles WHERE user_id = $1 AND value LIKE '%mxc:%'";
    ACCOUNT_DATA = "SELECT user_id, room_id, kind, CASE WHEN content LIKE '%mxc:%' THEN content ELSE '' END FROM account_data WHERE (user_id, room_id, kind) > ($1, $2, $3) ORDER BY user_id, room_id, kind LIMIT $4";
    DELAYED = "SELECT delay_id, CASE WHEN content LIKE '%mxc:%' THEN content ELSE '' END FROM delayed_events WHERE delay_id > $1 ORDER BY delay_id LIMIT $2";
}

/// Rows looked at in one read: with the longest texts some megabytes.
const ROWS: i64 = 500;

/// Where a search for files that nobody uses stands: when the last one was served, and its id.
pub type UnusedPlace = (i64, String);

impl Conn {
    /// Notes which files new events name.
    pub(crate) async fn media_uses_note(&mut self, events: &[Arc<StoredEvent>]) -> StoreResult<()> {
        let all: Vec<(MediaKey, &EventId)> = events
            .iter()
            .flat_map(|stored| {
                let named = media_named(stored.event.content.get());
                named.into_iter().map(move |key| (key, &*stored.event.event_id))
            })
            .collect();
        for piece in pieces(&all) {
            let text = rows(ADD, 3, piece.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for ((server, id), event) in piece {
                    query = query.bind(server).bind(id).bind(event.as_str());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// Of what an event names, some is named by it no more.
    pub(crate) async fn media_uses_drop(
        &mut self,
        event: &EventId,
        named: impl IntoIterator<Item = MediaKey>,
    ) -> StoreResult<()> {
        for (server, id) in named {
            on_engine!(self, |c| sqlx::query(DROP)
                .bind(&server)
                .bind(&id)
                .bind(event.as_str())
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }

    /// An event is replaced by this form of it: what that form does not name, the event names no more.
    pub(crate) async fn media_uses_redact(&mut self, redacted: &Event) -> StoreResult<()> {
        let id = &redacted.event_id;
        let stored: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(STORED).bind(id.as_str()).fetch_optional(c).await)?;
        let Some((json,)) = stored else { return Ok(()) };
        let left = media_named(redacted.content.get());
        self.media_uses_drop(id, media_named(&json).into_iter().filter(|key| !left.contains(key))).await
    }

    /// Events that name a file, at most `limit`.
    pub async fn media_uses_of(
        &mut self,
        server: &ServerName,
        id: &str,
        limit: i64,
    ) -> StoreResult<Vec<String>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(OF_FILE)
            .bind(server.as_str())
            .bind(id)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        Ok(found.into_iter().map(|(event,)| event).collect())
    }

    /// Files that a purge has not looked at, at most `limit`.
    pub async fn purge_media(&mut self, purge: &str, limit: i64) -> StoreResult<Vec<MediaKey>> {
        Ok(on_engine!(self, |c| sqlx::query_as(CANDIDATES).bind(purge).bind(limit).fetch_all(c).await)?)
    }

    /// Files of `own` users that no event names, and that were neither uploaded nor served since `before` (milliseconds
    /// since the epoch): after a place in their order, at most `limit`. Those that are protected or under quarantine
    /// are left out.
    pub async fn media_unused(
        &mut self,
        own: &ServerName,
        before: i64,
        after: &UnusedPlace,
        limit: i64,
    ) -> StoreResult<Vec<UnusedPlace>> {
        Ok(on_engine!(self, |c| sqlx::query_as(UNUSED)
            .bind(own.as_str())
            .bind(before)
            .bind(after.0)
            .bind(&after.1)
            .bind(limit)
            .fetch_all(c)
            .await)?)
    }

    /// The files of `own` that profiles, account data and events still to be sent name.
    pub async fn media_held(&mut self, own: &ServerName) -> StoreResult<HashSet<MediaKey>> {
        let mut held = HashSet::new();
        let mut note = |text: &str| {
            held.extend(media_named(text).into_iter().filter(|(server, _)| server == own.as_str()));
        };
        let mut after = (String::new(), String::new());
        loop {
            let (user, field) = &after;
            let found: Vec<(String, String, String)> = on_engine!(self, |c| sqlx::query_as(PROFILES)
                .bind(user)
                .bind(field)
                .bind(ROWS)
                .fetch_all(c)
                .await)?;
            for (_, _, value) in &found {
                note(value);
            }
            let Some((user, field, _)) = found.into_iter().last() else { break };
            after = (user, field);
        }
        let mut after = (String::new(), String::new(), String::new());
        loop {
            let (user, room, kind) = &after;
            let found: Vec<(String, String, String, String)> =
                on_engine!(self, |c| sqlx::query_as(ACCOUNT_DATA)
                    .bind(user)
                    .bind(room)
                    .bind(kind)
                    .bind(ROWS)
                    .fetch_all(c)
                    .await)?;
            for (_, _, _, content) in &found {
                note(content);
            }
            let Some((user, room, kind, _)) = found.into_iter().last() else { break };
            after = (user, room, kind);
        }
        let mut after = String::new();
        loop {
            let found: Vec<(String, String)> =
                on_engine!(self, |c| sqlx::query_as(DELAYED).bind(&after).bind(ROWS).fetch_all(c).await)?;
            for (_, content) in &found {
                note(content);
            }
            let Some((id, _)) = found.into_iter().last() else { break };
            after = id;
        }
        Ok(held)
    }

    async fn profile_names(&mut self, user: &str, key: &MediaKey) -> StoreResult<bool> {
        let values: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(PROFILE).bind(user).fetch_all(c).await)?;
        Ok(values.iter().any(|(value,)| media_named(value).contains(key)))
    }
}

impl crate::Tx {
    /// Notes which files older events name.
    pub async fn media_uses_add(&mut self, events: &[Arc<StoredEvent>]) -> StoreResult<()> {
        self.writing().await?.media_uses_note(events).await
    }

    /// Notes for a purge the files that an event names, which is about to be forgotten: those that are here, and of
    /// `own` users' files those alone that the event's sender has uploaded, for anybody can name any file.
    pub async fn purge_media_add(
        &mut self,
        purge: &str,
        own: &ServerName,
        event: &Event,
        named: &[MediaKey],
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        for (server, id) in named {
            on_engine!(conn, |c| sqlx::query(CANDIDATE)
                .bind(purge)
                .bind(server)
                .bind(id)
                .bind(event.sender.as_str())
                .bind(own.as_str())
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }

    /// A purge has looked at these files.
    pub async fn purge_media_done(&mut self, purge: &str, files: &[MediaKey]) -> StoreResult<()> {
        let conn = self.writing().await?;
        for (server, id) in files {
            on_engine!(conn, |c| sqlx::query(CANDIDATE_DONE)
                .bind(purge)
                .bind(server)
                .bind(id)
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }

    /// Forgets those of these files that no event names, nor the profile of whoever uploaded them, nor `held`; their
    /// objects become garbage, due at `due`. Those that are protected or under quarantine stay. Gives how many went.
    pub async fn media_remove_unnamed(
        &mut self,
        files: &[MediaKey],
        held: &HashSet<MediaKey>,
        due: i64,
    ) -> StoreResult<u64> {
        let mut gone = 0;
        for key in files.iter().filter(|key| !held.contains(*key)) {
            let (server, id) = key;
            let conn = self.writing().await?;
            let found: Option<(Option<String>,)> =
                on_engine!(conn, |c| sqlx::query_as(UNNAMED).bind(server).bind(id).fetch_optional(c).await)?;
            let Some((uploader,)) = found else { continue };
            if let Some(user) = uploader
                && conn.profile_names(&user, key).await?
            {
                continue;
            }
            gone += u64::from(self.media_remove(server, id, due).await?);
        }
        Ok(gone)
    }
}
