//! Events: immutable, with a few flags beside them.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use serde_json::value::RawValue;
use sqlx::AssertSqlSafe;
use std::collections::HashMap;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::state_tree::NodeId;

statements! {
    LOAD = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE event_id IN ($list)";
    BACKWARD = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND sn < $2 AND flags = 0 ORDER BY sn DESC LIMIT $3";
    BACKWARD_OF = "SELECT * FROM (SELECT sn, event_id, room_id FROM events WHERE room_id = $3 AND sn < $1 AND flags = 0 ORDER BY sn DESC LIMIT $2) AS newest";
    EXTREMITIES_OF = "SELECT room_id, event_id FROM backward_extremities WHERE room_id IN ($list)";
    FORWARD = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND sn > $2 AND flags = 0 ORDER BY sn LIMIT $3";
    INSERT = "INSERT INTO events (sn, event_id, room_id, flags, state_before, redacted_by, ts, json, out_of_time, auth_number) VALUES $rows ON CONFLICT (event_id) DO UPDATE SET sn = excluded.sn, flags = excluded.flags, state_before = excluded.state_before, out_of_time = excluded.out_of_time, auth_number = COALESCE(events.auth_number, excluded.auth_number) WHERE events.flags % 2 = 1";
    SET_FLAGS = "UPDATE events SET flags = $2 WHERE event_id = $1";
    EXTREMITY_ADD = "INSERT INTO backward_extremities (room_id, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    EXTREMITY_REMOVE = "DELETE FROM backward_extremities WHERE room_id = $1 AND event_id = $2";
    EXTREMITIES = "SELECT event_id FROM backward_extremities WHERE room_id = $1 ORDER BY event_id LIMIT 100";
    IS_EXTREMITY = "SELECT event_id FROM backward_extremities WHERE room_id = $1 AND event_id = $2";
    PENDING_ADD = "INSERT INTO pending_redactions (target_id, redaction_id, room_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    PENDING = "SELECT redaction_id FROM pending_redactions WHERE target_id = $1";
    PENDING_REMOVE = "DELETE FROM pending_redactions WHERE target_id = $1";
    ALL_AFTER = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE sn > $1 ORDER BY sn LIMIT $2";
}

/// Rooms whose newest events one statement reads: each is a part of the statement.
const ROOMS_AT_ONCE: usize = 32;

/// What this server thinks of an event, as bits on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventFlags {
    /// Known, but without a place in the graph.
    pub outlier: bool,
    /// Failed authorisation.
    pub rejected: bool,
    /// Failed authorisation against the current state only.
    pub soft_failed: bool,
}

impl EventFlags {
    /// An event of the timeline.
    pub const NONE: EventFlags = EventFlags { outlier: false, rejected: false, soft_failed: false };
    /// An event outside the graph.
    pub const OUTLIER: EventFlags = EventFlags { outlier: true, rejected: false, soft_failed: false };

    pub(crate) fn bits(self) -> i16 {
        i16::from(self.outlier) | i16::from(self.rejected) << 1 | i16::from(self.soft_failed) << 2
    }
    fn from_bits(bits: i16) -> EventFlags {
        EventFlags { outlier: bits & 1 != 0, rejected: bits & 2 != 0, soft_failed: bits & 4 != 0 }
    }
    /// Shown to people: in the graph, accepted.
    pub fn visible(self) -> bool {
        self == EventFlags::NONE
    }
}

/// An event with what is kept beside it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The event; in redacted form once it has been redacted.
    pub event: Arc<Event>,
    /// Orders the room's timeline; equal to the log position of a live event, below zero for others.
    pub sn: i64,
    /// The verdict.
    pub flags: EventFlags,
    /// The root of the state before it; none for an outlier.
    pub state_before: Option<NodeId>,
    /// The redaction that redacted it.
    pub redacted_by: Option<OwnedEventId>,
}

pub(crate) type Columns = (i64, String, String, i16, Option<Vec<u8>>, Option<String>, String);

pub(crate) fn decode(columns: Columns) -> StoreResult<StoredEvent> {
    let (sn, event_id, room_id, flags, state_before, redacted_by, json) = columns;
    let corrupt = |why: String| StoreError::corrupt("events", event_id.clone(), why);
    let id = OwnedEventId::try_from(event_id.as_str()).map_err(|error| corrupt(error.to_string()))?;
    let room = OwnedRoomId::try_from(room_id).map_err(|error| corrupt(error.to_string()))?;
    let raw = RawValue::from_string(json).map_err(|error| corrupt(error.to_string()))?;
    let event = Event::parse(id, room, raw).map_err(|error| corrupt(error.to_string()))?;
    let state_before = state_before
        .map(|bytes| NodeId::try_from(bytes.as_slice()))
        .transpose()
        .map_err(|_| corrupt("state_before is no node id".to_owned()))?;
    let redacted_by =
        redacted_by.map(OwnedEventId::try_from).transpose().map_err(|error| corrupt(error.to_string()))?;
    Ok(StoredEvent {
        event: Arc::new(event),
        sn,
        flags: EventFlags::from_bits(flags),
        state_before,
        redacted_by,
    })
}

impl Conn {
    /// Those of `ids` that are known, in no particular order.
    pub async fn events_load(&mut self, ids: &[OwnedEventId]) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let mut loaded = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(LOAD, 1, chunk.len());
            let found: Vec<Columns> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.fetch_all(c).await
            })?;
            for columns in found {
                loaded.push(Arc::new(decode(columns)?));
            }
        }
        Ok(loaded)
    }

    /// The room's visible events with `sn` below `before`, newest first, at most `limit`.
    pub async fn events_backward(
        &mut self,
        room: &RoomId,
        before: i64,
        limit: i64,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(BACKWARD)
            .bind(room.as_str())
            .bind(before)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(|columns| decode(columns).map(Arc::new)).collect()
    }

    /// The ids of the newest visible events of many rooms with `sn` below `before`, newest first, `limit` of each.
    pub(crate) async fn timelines_ids(
        &mut self,
        rooms: &[OwnedRoomId],
        before: i64,
        limit: i64,
    ) -> StoreResult<HashMap<OwnedRoomId, Vec<OwnedEventId>>> {
        let mut all: HashMap<OwnedRoomId, Vec<(i64, OwnedEventId)>> = HashMap::new();
        for chunk in rooms.chunks(ROOMS_AT_ONCE) {
            let chunk = padded(chunk);
            let of = |index: usize| BACKWARD_OF.replace("$3", &format!("${}", index + 3));
            let text = (0..chunk.len()).map(of).collect::<Vec<_>>().join(" UNION ALL ");
            let found: Vec<(i64, String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(before).bind(limit);
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            for (sn, id, room) in found {
                let (Ok(id), Ok(room)) = (id.try_into(), OwnedRoomId::try_from(room)) else { continue };
                let ids = all.entry(room).or_default();
                // The last room is there more than once.
                if ids.last().is_none_or(|(last, _)| *last > sn) {
                    ids.push((sn, id));
                }
            }
        }
        let without_numbers = |ids: Vec<(i64, OwnedEventId)>| ids.into_iter().map(|(_, id)| id).collect();
        Ok(all.into_iter().map(|(room, ids)| (room, without_numbers(ids))).collect())
    }

    /// Like [`Conn::backward_extremities`] for many rooms at once.
    pub async fn backward_extremities_of(
        &mut self,
        rooms: &[OwnedRoomId],
    ) -> StoreResult<HashMap<OwnedRoomId, Vec<OwnedEventId>>> {
        let mut all: HashMap<OwnedRoomId, Vec<OwnedEventId>> = HashMap::new();
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(EXTREMITIES_OF, 1, chunk.len());
            let found: Vec<(String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            for (room, id) in found {
                let (Ok(room), Ok(id)) = (room.try_into(), id.try_into()) else { continue };
                all.entry(room).or_default().push(id);
            }
        }
        Ok(all)
    }

    /// The room's visible events with `sn` above `after`, oldest first, at most `limit`.
    pub async fn events_forward(
        &mut self,
        room: &RoomId,
        after: i64,
        limit: i64,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(FORWARD)
            .bind(room.as_str())
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(|columns| decode(columns).map(Arc::new)).collect()
    }

    /// Every event of the database with `sn` above `after`, whatever its flags, in order of `sn`: for audits.
    pub async fn events_scan(&mut self, after: i64, limit: i64) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(ALL_AFTER).bind(after).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(|columns| decode(columns).map(Arc::new)).collect()
    }

    /// Events that the room's history is known to lack, at most 100.
    pub async fn backward_extremities(&mut self, room: &RoomId) -> StoreResult<Vec<OwnedEventId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(EXTREMITIES).bind(room.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// Whether the room's history is known to lack this event.
    pub async fn is_backward_extremity(&mut self, room: &RoomId, id: &EventId) -> StoreResult<bool> {
        let found: Option<(String,)> = on_engine!(self, |c| sqlx::query_as(IS_EXTREMITY)
            .bind(room.as_str())
            .bind(id.as_str())
            .fetch_optional(c)
            .await)?;
        Ok(found.is_some())
    }

    /// Redactions that wait for `target`.
    pub async fn pending_redactions(&mut self, target: &EventId) -> StoreResult<Vec<OwnedEventId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(PENDING).bind(target.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// `in_time`: which of them stand in their room's timeline in the order of their times. `numbers`: theirs in the auth
    /// graph.
    pub(crate) async fn events_insert(
        &mut self,
        all: &[Arc<StoredEvent>],
        in_time: &[bool],
        numbers: &[Option<i64>],
    ) -> StoreResult<()> {
        let beside = in_time.iter().copied().zip(numbers.iter().copied());
        let all: Vec<(&Arc<StoredEvent>, (bool, Option<i64>))> = all.iter().zip(beside).collect();
        for chunk in pieces(&all) {
            let text = rows(INSERT, 10, chunk.len());
            on_engine!(self, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for (stored, (in_time, number)) in chunk {
                    query = query
                        .bind(stored.sn)
                        .bind(stored.event.event_id.as_str())
                        .bind(stored.event.room_id.as_str())
                        .bind(stored.flags.bits())
                        .bind(stored.state_before.as_ref().map(|root| root.as_bytes().to_vec()))
                        .bind(stored.redacted_by.as_ref().map(|id| id.as_str()))
                        .bind(stored.event.sent_at())
                        .bind(stored.event.json.get())
                        .bind(!in_time)
                        .bind(*number);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }
}

impl crate::Tx {
    /// Changes the verdict of a stored event. The caller appends [`crate::Fact::EventChanged`].
    pub async fn event_set_flags(&mut self, id: &EventId, flags: EventFlags) -> StoreResult<()> {
        self.event_changed(id);
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SET_FLAGS)
            .bind(id.as_str())
            .bind(flags.bits())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Notes that `missing` is named by an event that we have, but is not here.
    pub async fn backward_extremity_add(&mut self, room: &RoomId, missing: &EventId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(EXTREMITY_ADD)
            .bind(room.as_str())
            .bind(missing.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// `id` is here now. Returns whether it had been missing.
    pub async fn backward_extremity_remove(&mut self, room: &RoomId, id: &EventId) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let removed = on_engine!(conn, |c| sqlx::query(EXTREMITY_REMOVE)
            .bind(room.as_str())
            .bind(id.as_str())
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(removed > 0)
    }

    /// Keeps a redaction until its target is here.
    pub async fn pending_redaction_add(
        &mut self,
        room: &RoomId,
        target: &EventId,
        redaction: &EventId,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PENDING_ADD)
            .bind(target.as_str())
            .bind(redaction.as_str())
            .bind(room.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The redactions of `target` have been dealt with.
    pub async fn pending_redactions_remove(&mut self, target: &EventId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PENDING_REMOVE).bind(target.as_str()).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}
