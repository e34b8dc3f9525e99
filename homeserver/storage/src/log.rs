//! The one log: what its rows say, and reading it from the database.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::events::StoredEvent;
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use sqlx::AssertSqlSafe;
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_model::LogPosition;

statements! {
    HEAD = "SELECT position FROM log_head WHERE id = 1";
    HEAD_LOCKED = "UPDATE log_head SET position = position WHERE id = 1 RETURNING position";
    ADVANCE = "UPDATE log_head SET position = position + $1, lowest = lowest - $2, auth_numbers = auth_numbers + $3 WHERE id = 1 RETURNING position, lowest, auth_numbers";
    INSERT = "INSERT INTO log (position, kind, room_id, user_id, reference, data) VALUES $rows";
    RANGE = "SELECT position, kind, room_id, user_id, reference, data FROM log WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3";
    RANGE_OF_USER = "SELECT position, kind, room_id, user_id, reference, data FROM log WHERE user_id = $1 AND kind <> 6 AND position > $2 AND position <= $3 ORDER BY position LIMIT $4";
    RANGE_OF_ROOM = "SELECT * FROM (SELECT position, kind, room_id, user_id, reference, data FROM log WHERE room_id = $1 AND kind <> 1 AND position > $2 AND position <= $3 ORDER BY position LIMIT $4) AS other UNION ALL SELECT * FROM (SELECT e.sn AS position, CAST(1 AS SMALLINT) AS kind, e.room_id, l.user_id, e.event_id AS reference, l.data FROM events e LEFT JOIN log l ON l.position = e.sn WHERE e.room_id = $1 AND e.sn > $2 AND e.sn <= $3 AND (l.position IS NULL OR l.kind = 1) ORDER BY e.sn LIMIT $4) AS events ORDER BY 1 LIMIT $4";
    NOTES = "SELECT position, data FROM log WHERE kind = 1 AND data IS NOT NULL AND position IN ($list)";
    RANGE_OF_KIND = "SELECT position, kind, room_id, user_id, reference, data FROM log WHERE kind = $1 AND position > $2 AND position <= $3 ORDER BY position LIMIT $4";
}

/// What a row of the log says happened. The numbers are on disk: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Fact {
    /// A live event of a room: `room`, `reference` = its id, `user` = whose membership it changes, if it does.
    Event = 1,
    /// Current state changed without a new timeline event (state resolution): `room`, `reference` = the event that
    /// holds now (absent: none), `data` = JSON `[type, state key]`.
    State = 2,
    /// A user's membership of a room that this server is not in changed (invited, knocked, rejected): `room`, `user`.
    Outside = 3,
    /// A receipt: `room`, `user`, `reference` = kind, `data` = thread.
    Receipt = 4,
    /// Account data: `user`, `room` if it is a room's, `reference` = type.
    AccountData = 5,
    /// A to-device message waits: `user`, `reference` = device.
    ToDevice = 6,
    /// The device list, a device's keys or the cross-signing keys of `user` changed. With `reference` (another user):
    /// what `user` sees of that one's keys changed, for example by a signature. With `room`: `user` began to be in the
    /// room (`data` = `join`) or ceased to be (`leave`).
    DeviceList = 7,
    /// One-time or fallback keys of `user`'s device `reference` were added or claimed.
    OneTimeKeys = 8,
    /// The flags of event `reference` in `room` changed (`data` says what): caches drop it.
    EventChanged = 9,
    /// The profile of `user` changed.
    Profile = 10,
    /// `user` forgot `room`.
    Forgotten = 11,
    /// A room's row changed beside its state (published, purged): `room`. With `data` = `partial`: its members are
    /// missing from now on; `complete`: they are here.
    Room = 12,
    /// Something waits for destination `reference`.
    Outbox = 13,
    /// Tokens, devices or standing of `user` changed: caches drop them. `reference` = device, if one.
    Account = 14,
    /// Anything else a service announces to the other nodes; `reference` names it.
    Other = 15,
}

impl Fact {
    fn from_number(number: i16) -> Option<Fact> {
        [
            Fact::Event,
            Fact::State,
            Fact::Outside,
            Fact::Receipt,
            Fact::AccountData,
            Fact::ToDevice,
            Fact::DeviceList,
            Fact::OneTimeKeys,
            Fact::EventChanged,
            Fact::Profile,
            Fact::Forgotten,
            Fact::Room,
            Fact::Outbox,
            Fact::Account,
            Fact::Other,
        ]
        .into_iter()
        .find(|fact| *fact as i16 == number)
    }
}

/// A row that a transaction appends. It gets its position when the group is committed.
#[derive(Clone, Debug)]
pub struct NewRow {
    /// What happened.
    pub fact: Fact,
    /// In which room.
    pub room: Option<OwnedRoomId>,
    /// To or by which user.
    pub user: Option<OwnedUserId>,
    /// See [`Fact`].
    pub reference: Option<String>,
    /// See [`Fact`].
    pub data: Option<String>,
}

impl NewRow {
    /// A row with nothing but its fact.
    pub fn new(fact: Fact) -> NewRow {
        NewRow { fact, room: None, user: None, reference: None, data: None }
    }
    /// Names the room.
    pub fn room(mut self, room: impl Into<OwnedRoomId>) -> NewRow {
        self.room = Some(room.into());
        self
    }
    /// Names the user.
    pub fn user(mut self, user: impl Into<OwnedUserId>) -> NewRow {
        self.user = Some(user.into());
        self
    }
    /// Sets the reference.
    pub fn reference(mut self, reference: impl Into<String>) -> NewRow {
        self.reference = Some(reference.into());
        self
    }
    /// Sets the data.
    pub fn data(mut self, data: impl Into<String>) -> NewRow {
        self.data = Some(data.into());
        self
    }
}

/// A row of the log with its position.
#[derive(Clone, Debug)]
pub struct LogRow {
    /// Where it stands.
    pub position: LogPosition,
    /// What happened.
    pub fact: Fact,
    /// In which room.
    pub room: Option<OwnedRoomId>,
    /// To or by which user.
    pub user: Option<OwnedUserId>,
    /// See [`Fact`].
    pub reference: Option<String>,
    /// See [`Fact`].
    pub data: Option<String>,
    /// The event of a [`Fact::Event`] row, decoded, where the tail has it.
    pub event: Option<Arc<StoredEvent>>,
}

impl LogRow {
    /// The event id of a [`Fact::Event`], [`Fact::State`] or [`Fact::EventChanged`] row.
    pub fn event_id(&self) -> Option<OwnedEventId> {
        self.reference.as_deref().and_then(|id| id.try_into().ok())
    }

    /// Whether the row says that the members of its room, which were missing, are here.
    pub fn completes_room(&self) -> bool {
        self.fact == Fact::Room && self.data.as_deref() == Some("complete")
    }

    /// Whether both are the same row.
    pub(crate) fn says_the_same_as(&self, other: &LogRow) -> bool {
        self.position == other.position
            && self.fact == other.fact
            && self.room == other.room
            && self.user == other.user
            && self.reference == other.reference
            && self.data == other.data
    }

    /// Bytes that the row takes in the tail, roughly.
    pub(crate) fn weight(&self) -> usize {
        let texts = [&self.reference, &self.data].into_iter().flatten().map(String::len).sum::<usize>();
        200 + texts + self.event.as_ref().map_or(0, |stored| 600 + 2 * stored.event.json.get().len())
    }
}

type Columns = (i64, i16, Option<String>, Option<String>, Option<String>, Option<String>);

fn decode(columns: Columns) -> StoreResult<LogRow> {
    let (position, kind, room, user, reference, data) = columns;
    let corrupt = |why: String| StoreError::corrupt("log", position.to_string(), why);
    Ok(LogRow {
        position: LogPosition(position),
        fact: Fact::from_number(kind).ok_or_else(|| corrupt(format!("kind {kind}")))?,
        room: room.map(OwnedRoomId::try_from).transpose().map_err(|error| corrupt(error.to_string()))?,
        user: user.map(OwnedUserId::try_from).transpose().map_err(|error| corrupt(error.to_string()))?,
        reference,
        data,
        event: None,
    })
}

impl Conn {
    /// The position of the newest committed row.
    pub async fn log_head(&mut self) -> StoreResult<LogPosition> {
        let (position,): (i64,) = on_engine!(self, |c| sqlx::query_as(HEAD).fetch_one(c).await)?;
        Ok(LogPosition(position))
    }

    /// Whether these rows, which a transaction wrote whose end was not seen, are there. Inside a transaction: waits for
    /// whoever holds the head of the log, that other transaction perhaps.
    pub(crate) async fn log_has(&mut self, rows: &[LogRow]) -> StoreResult<bool> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(false) };
        let _: (i64,) = on_engine!(self, |c| sqlx::query_as(HEAD_LOCKED).fetch_one(c).await)?;
        let after = LogPosition(first.position.0 - 1);
        let found = self.log_range(after, last.position, rows.len() as i64).await?;
        Ok(found.len() == rows.len()
            && found.iter().zip(rows).all(|(found, row)| found.says_the_same_as(row)))
    }

    /// The rows after `after` up to and including `upto`, at most `limit`, oldest first, without events.
    pub async fn log_range(
        &mut self,
        after: LogPosition,
        upto: LogPosition,
        limit: i64,
    ) -> StoreResult<Vec<LogRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(RANGE)
            .bind(after.0)
            .bind(upto.0)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(decode).collect()
    }

    /// Like [`Conn::log_range`], the rows that name `user`, but for the to-device messages that wait for them: those
    /// are found by their devices.
    pub async fn log_range_of_user(
        &mut self,
        user: &ruma::UserId,
        after: LogPosition,
        upto: LogPosition,
        limit: i64,
    ) -> StoreResult<Vec<LogRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(RANGE_OF_USER)
            .bind(user.as_str())
            .bind(after.0)
            .bind(upto.0)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(decode).collect()
    }

    /// Like [`Conn::log_range`], the rows that name `room`. Those of events are found through the events: old ones are not in the
    /// log any more.
    pub async fn log_range_of_room(
        &mut self,
        room: &ruma::RoomId,
        after: LogPosition,
        upto: LogPosition,
        limit: i64,
    ) -> StoreResult<Vec<LogRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(RANGE_OF_ROOM)
            .bind(room.as_str())
            .bind(after.0)
            .bind(upto.0)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(decode).collect()
    }

    /// Like [`Conn::log_range`], the rows of one kind.
    pub async fn log_range_of_kind(
        &mut self,
        fact: Fact,
        after: LogPosition,
        upto: LogPosition,
        limit: i64,
    ) -> StoreResult<Vec<LogRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(RANGE_OF_KIND)
            .bind(fact as i16)
            .bind(after.0)
            .bind(upto.0)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(decode).collect()
    }

    /// What is noted beside those of the events with these numbers that were announced: see [`crate::request_note`].
    pub async fn log_notes(&mut self, numbers: &[i64]) -> StoreResult<HashMap<i64, String>> {
        let mut notes = HashMap::new();
        for chunk in numbers.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(NOTES, 1, chunk.len());
            let found: Vec<(i64, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for number in &chunk {
                    query = query.bind(*number);
                }
                query.fetch_all(c).await
            })?;
            notes.extend(found);
        }
        Ok(notes)
    }

    /// Takes `count` positions, `below` numbers below zero and `graph` numbers in the auth graph: the last thing before
    /// the rows that carry them. Returns the last position, the lowest number and the last number in the graph.
    pub(crate) async fn log_advance(
        &mut self,
        count: i64,
        below: i64,
        graph: i64,
    ) -> StoreResult<(i64, i64, i64)> {
        Ok(on_engine!(self, |c| sqlx::query_as(ADVANCE)
            .bind(count)
            .bind(below)
            .bind(graph)
            .fetch_one(c)
            .await)?)
    }

    pub(crate) async fn log_insert(&mut self, all: &[LogRow]) -> StoreResult<()> {
        for chunk in pieces(all) {
            let text = rows(INSERT, 6, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for row in chunk {
                    query = query
                        .bind(row.position.0)
                        .bind(row.fact as i16)
                        .bind(row.room.as_ref().map(|room| room.as_str()))
                        .bind(row.user.as_ref().map(|user| user.as_str()))
                        .bind(row.reference.as_deref())
                        .bind(row.data.as_deref());
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}
