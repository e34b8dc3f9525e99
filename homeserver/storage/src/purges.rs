//! Purges: what is being forgotten and how far that has come, so that whoever goes on after a crash knows.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use ruma::{OwnedRoomId, RoomId};

statements! {
    INSERT = "INSERT INTO purges (purge_id, kind, room_id, phase, parameters, progress, error, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    LOAD = "SELECT purge_id, kind, room_id, phase, parameters, progress, error, created_at, updated_at FROM purges WHERE purge_id = $1";
    OF_ROOM = "SELECT purge_id, kind, room_id, phase, parameters, progress, error, created_at, updated_at FROM purges WHERE room_id = $1 ORDER BY created_at, purge_id LIMIT $2";
    UNDER_WAY = "SELECT purge_id, kind, room_id, phase, parameters, progress, error, created_at, updated_at FROM purges WHERE phase < 10 ORDER BY created_at, purge_id LIMIT $1";
    NEWEST = "SELECT purge_id, kind, room_id, phase, parameters, progress, error, created_at, updated_at FROM purges ORDER BY created_at DESC, purge_id LIMIT $1";
    SAVE = "UPDATE purges SET phase = $2, progress = $3, error = $4, updated_at = $5 WHERE purge_id = $1";
    FORGET = "DELETE FROM purges WHERE phase >= 10 AND updated_at < $1";
    BLOCK = "INSERT INTO blocked_rooms (room_id, blocked_by, blocked_at) VALUES ($1, $2, $3) ON CONFLICT (room_id) DO UPDATE SET blocked_by = CASE WHEN blocked_rooms.blocked_by = '' THEN excluded.blocked_by ELSE blocked_rooms.blocked_by END";
    UNBLOCK = "DELETE FROM blocked_rooms WHERE room_id = $1";
    END_BLOCK = "DELETE FROM blocked_rooms WHERE room_id = $1 AND blocked_by = ''";
    SETTING = "SELECT value FROM settings WHERE name = $1";
    SETTING_SAVE = "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    BLOCKED_BY = "SELECT blocked_by FROM blocked_rooms WHERE room_id = $1";
}

/// What is forgotten. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum PurgeKind {
    /// A room with all that belongs to it.
    Room = 1,
    /// Events of a room before a place or a time.
    History = 2,
}

/// Where a purge stands. The numbers are on disk; from 10 on it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i16)]
pub enum PurgePhase {
    /// Users of this server leave the room.
    Leaving = 0,
    /// What waits for other servers goes out first.
    Telling = 1,
    /// Events go.
    Events = 2,
    /// Everything else that names the room goes.
    Rest = 3,
    /// Nodes of states that nothing needs any more go.
    Nodes = 4,
    /// The file of the database shrinks.
    Shrinking = 5,
    /// Files go that only forgotten events named.
    Media = 6,
    /// Done.
    Complete = 10,
    /// Given up; the row says why.
    Failed = 11,
}

impl PurgePhase {
    fn from_number(number: i16) -> Option<PurgePhase> {
        use PurgePhase::{Complete, Events, Failed, Leaving, Media, Nodes, Rest, Shrinking, Telling};
        [Leaving, Telling, Events, Rest, Nodes, Shrinking, Media, Complete, Failed]
            .into_iter()
            .find(|phase| *phase as i16 == number)
    }

    /// Whether nothing more will happen.
    pub fn is_over(self) -> bool {
        self >= PurgePhase::Complete
    }
}

/// A purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeRow {
    /// Names it.
    pub purge_id: String,
    /// What is forgotten.
    pub kind: PurgeKind,
    /// Of which room.
    pub room_id: OwnedRoomId,
    /// Where it stands.
    pub phase: PurgePhase,
    /// What was asked for, JSON.
    pub parameters: String,
    /// What has been done, JSON.
    pub progress: String,
    /// Why it does not get on, or was given up.
    pub error: Option<String>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Milliseconds since the epoch.
    pub updated_at: i64,
}

type Columns = (String, i16, String, i16, String, String, Option<String>, i64, i64);

fn decode(columns: Columns) -> StoreResult<PurgeRow> {
    let (purge_id, kind, room_id, phase, parameters, progress, error, created_at, updated_at) = columns;
    let corrupt = |why: String| StoreError::corrupt("purges", purge_id.clone(), why);
    Ok(PurgeRow {
        kind: match kind {
            1 => PurgeKind::Room,
            2 => PurgeKind::History,
            other => return Err(corrupt(format!("kind {other}"))),
        },
        room_id: room_id.try_into().map_err(|error: ruma::IdParseError| corrupt(error.to_string()))?,
        phase: PurgePhase::from_number(phase).ok_or_else(|| corrupt(format!("phase {phase}")))?,
        purge_id,
        parameters,
        progress,
        error,
        created_at,
        updated_at,
    })
}

impl Conn {
    /// One purge.
    pub async fn purge_load(&mut self, id: &str) -> StoreResult<Option<PurgeRow>> {
        let found: Option<Columns> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(id).fetch_optional(c).await)?;
        found.map(decode).transpose()
    }

    /// The purges of a room, the oldest first, at most `limit`.
    pub async fn purges_of_room(&mut self, room: &RoomId, limit: i64) -> StoreResult<Vec<PurgeRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(OF_ROOM).bind(room.as_str()).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// Purges that are not over, the oldest first, at most `limit`.
    pub async fn purges_under_way(&mut self, limit: i64) -> StoreResult<Vec<PurgeRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(UNDER_WAY).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// All purges, the newest first, at most `limit`.
    pub async fn purges_newest(&mut self, limit: i64) -> StoreResult<Vec<PurgeRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(NEWEST).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// A small fact about the server.
    pub async fn setting_load(&mut self, name: &str) -> StoreResult<Option<String>> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(SETTING).bind(name).fetch_optional(c).await)?;
        Ok(found.map(|(value,)| value))
    }

    /// By whom the room is blocked, if it is; an empty name is a purge under way.
    pub async fn room_blocked_by(&mut self, room: &RoomId) -> StoreResult<Option<String>> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(BLOCKED_BY).bind(room.as_str()).fetch_optional(c).await)?;
        Ok(found.map(|(by,)| by))
    }
}

impl crate::Tx {
    /// Adds a purge.
    pub async fn purge_insert(&mut self, row: &PurgeRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(INSERT)
            .bind(&row.purge_id)
            .bind(row.kind as i16)
            .bind(row.room_id.as_str())
            .bind(row.phase as i16)
            .bind(&row.parameters)
            .bind(&row.progress)
            .bind(row.error.as_deref())
            .bind(row.created_at)
            .bind(row.updated_at)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Writes down how far a purge has come.
    pub async fn purge_save(&mut self, row: &PurgeRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SAVE)
            .bind(&row.purge_id)
            .bind(row.phase as i16)
            .bind(&row.progress)
            .bind(row.error.as_deref())
            .bind(row.updated_at)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Forgets purges that were over before `before` (milliseconds since the epoch).
    pub async fn purges_forget(&mut self, before: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FORGET).bind(before).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// Keeps a small fact about the server.
    pub async fn setting_save(&mut self, name: &str, value: &str) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SETTING_SAVE).bind(name).bind(value).execute(c).await.map(|_| ()))?;
        Ok(())
    }

    /// Nobody may enter the room from now on. `by`: who says so; empty for a purge.
    pub async fn room_block(&mut self, room: &RoomId, by: &str, now: i64) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(BLOCK)
            .bind(room.as_str())
            .bind(by)
            .bind(now)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The room may be entered again; with `purge`, only if nothing but a purge blocked it.
    pub async fn room_unblock(&mut self, room: &RoomId, purge: bool) -> StoreResult<()> {
        let text = if purge { END_BLOCK } else { UNBLOCK };
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(text).bind(room.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
