//! The events that came since a room was joined without its members, and how far they are judged again.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{EventId, OwnedEventId, RoomId};
use sqlx::AssertSqlSafe;
use std::collections::BTreeMap;
use waxwing_rooms::state_tree::NodeId;

statements! {
    PUT = "INSERT INTO partial_events (room_id, event_id, roots, place, joined, wanted) VALUES ($1, $2, $3, (SELECT COALESCE(MAX(p.place), 0) + 1 FROM partial_events p WHERE p.room_id = $1), $4, $5) ON CONFLICT DO NOTHING";
    UNJUDGED = "SELECT event_id, roots, place, joined, wanted FROM partial_events WHERE room_id = $1 AND verdict = 0 ORDER BY place LIMIT $2";
    ONE = "SELECT event_id, roots, place, joined, wanted FROM partial_events WHERE room_id = $1 AND event_id = $2";
    WANTED = "SELECT event_id FROM partial_events WHERE room_id = $1 AND wanted ORDER BY place LIMIT $2";
    FILL = "UPDATE partial_events SET roots = $3, wanted = FALSE WHERE room_id = $1 AND event_id = $2";
    JUDGED = "UPDATE partial_events SET state_after = $3, verdict = $4 WHERE room_id = $1 AND event_id = $2";
    GONE = "DELETE FROM partial_events WHERE room_id = $1 AND event_id = $2";
    KNOWN = "SELECT event_id, place, joined, verdict, state_after FROM partial_events WHERE room_id = $1 AND verdict <> 0 AND event_id IN ($list)";
    BACKWARD = "SELECT event_id, place, joined, verdict, state_after FROM partial_events WHERE room_id = $1 AND verdict <> 0 AND place < $2 AND place >= $3 ORDER BY place DESC LIMIT $4";
    PENDING = "SELECT event_id, place, joined, verdict, state_after FROM partial_events WHERE room_id = $1 AND verdict = 3 AND place > $2 ORDER BY place LIMIT $3";
}

/// An event that came while members were missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialEvent {
    /// The event.
    pub event_id: OwnedEventId,
    /// The states that were fetched for those of its `prev_events` that were not here.
    pub fetched: Vec<NodeId>,
    /// Its place in the order in which they came.
    pub place: i64,
    /// It is a join of ours through another server.
    pub joined: bool,
    /// The state before it is still to be asked for.
    pub wanted: bool,
}

/// What an event turned out to be when it was judged with the members. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum PartialVerdict {
    /// Part of the timeline.
    Shown = 1,
    /// Against the rules.
    Rejected = 2,
    /// It had been kept back, and is allowed where it stands: the current state decides at the end.
    Pending = 3,
}

/// An event that was judged again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialJudged {
    /// The event.
    pub event_id: OwnedEventId,
    /// Its place in the order in which they came.
    pub place: i64,
    /// It is a join of ours through another server.
    pub joined: bool,
    /// What it turned out to be.
    pub verdict: PartialVerdict,
    /// The state after it.
    pub after: NodeId,
}

type Noted = (String, Vec<u8>, i64, bool, bool);
type Judged = (String, i64, bool, i16, Option<Vec<u8>>);

fn corrupt(id: &str, why: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt("partial_events", id, why.to_string())
}

fn noted((id, roots, place, joined, wanted): Noted) -> StoreResult<PartialEvent> {
    let fetched = roots.chunks(32).map(NodeId::try_from).collect::<Result<_, _>>();
    Ok(PartialEvent {
        fetched: fetched.map_err(|error| corrupt(&id, error))?,
        event_id: OwnedEventId::try_from(id.as_str()).map_err(|error| corrupt(&id, error))?,
        place,
        joined,
        wanted,
    })
}

fn judged((id, place, joined, verdict, after): Judged) -> StoreResult<PartialJudged> {
    let after = after.ok_or_else(|| corrupt(&id, "judged without a state"))?;
    Ok(PartialJudged {
        after: NodeId::try_from(after.as_slice()).map_err(|error| corrupt(&id, error))?,
        verdict: match verdict {
            1 => PartialVerdict::Shown,
            2 => PartialVerdict::Rejected,
            3 => PartialVerdict::Pending,
            other => return Err(corrupt(&id, format!("verdict {other}"))),
        },
        event_id: OwnedEventId::try_from(id.as_str()).map_err(|error| corrupt(&id, error))?,
        place,
        joined,
    })
}

fn bytes(roots: &[NodeId]) -> Vec<u8> {
    roots.iter().flat_map(|root| root.as_bytes().to_vec()).collect()
}

impl Conn {
    /// The next events that are to be judged, in the order in which they came, at most `limit`.
    pub async fn partial_unjudged(&mut self, room: &RoomId, limit: i64) -> StoreResult<Vec<PartialEvent>> {
        let found: Vec<Noted> = on_engine!(self, |c| sqlx::query_as(UNJUDGED)
            .bind(room.as_str())
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(noted).collect()
    }

    /// What was noted of an event.
    pub async fn partial_event(&mut self, room: &RoomId, id: &EventId) -> StoreResult<Option<PartialEvent>> {
        let found: Option<Noted> = on_engine!(self, |c| sqlx::query_as(ONE)
            .bind(room.as_str())
            .bind(id.as_str())
            .fetch_optional(c)
            .await)?;
        found.map(noted).transpose()
    }

    /// Joins before which the state is to be asked for, the oldest first, at most `limit`.
    pub async fn partial_wanted(&mut self, room: &RoomId, limit: i64) -> StoreResult<Vec<OwnedEventId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(WANTED).bind(room.as_str()).bind(limit).fetch_all(c).await)?;
        found.into_iter().map(|(id,)| id.as_str().try_into().map_err(|error| corrupt(&id, error))).collect()
    }

    /// Those of these events that are judged.
    pub async fn partial_known(
        &mut self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> StoreResult<BTreeMap<OwnedEventId, PartialJudged>> {
        let mut known = BTreeMap::new();
        for chunk in ids.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(KNOWN, 2, chunk.len());
            let found: Vec<Judged> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(room.as_str());
                for id in &chunk {
                    query = query.bind(id.as_str());
                }
                query.fetch_all(c).await
            })?;
            for row in found {
                let row = judged(row)?;
                known.insert(row.event_id.clone(), row);
            }
        }
        Ok(known)
    }

    /// Judged events with places below `before` and not below `from`, the newest first, at most `limit`.
    pub async fn partial_backward(
        &mut self,
        room: &RoomId,
        before: i64,
        from: i64,
        limit: i64,
    ) -> StoreResult<Vec<PartialJudged>> {
        let found: Vec<Judged> = on_engine!(self, |c| sqlx::query_as(BACKWARD)
            .bind(room.as_str())
            .bind(before)
            .bind(from)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(judged).collect()
    }

    /// Judged events that wait for the end, after a place, in their order, at most `limit`.
    pub async fn partial_pending(
        &mut self,
        room: &RoomId,
        after: i64,
        limit: i64,
    ) -> StoreResult<Vec<PartialJudged>> {
        let found: Vec<Judged> = on_engine!(self, |c| sqlx::query_as(PENDING)
            .bind(room.as_str())
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(judged).collect()
    }
}

impl crate::Tx {
    /// Notes an event that came while members are missing, with the states fetched for what it follows.
    pub async fn partial_event_put(
        &mut self,
        room: &RoomId,
        event: &EventId,
        fetched: &[NodeId],
    ) -> StoreResult<()> {
        self.partial_note(room, event, fetched, (false, false)).await
    }

    /// Notes a join of ours through another server, with the whole state before it, if that is known.
    pub(crate) async fn partial_join_put(
        &mut self,
        room: &RoomId,
        join: &EventId,
        before: Option<NodeId>,
    ) -> StoreResult<()> {
        let fetched: Vec<NodeId> = before.into_iter().collect();
        self.partial_note(room, join, &fetched, (true, before.is_none())).await
    }

    async fn partial_note(
        &mut self,
        room: &RoomId,
        event: &EventId,
        fetched: &[NodeId],
        (joined, wanted): (bool, bool),
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PUT)
            .bind(room.as_str())
            .bind(event.as_str())
            .bind(bytes(fetched))
            .bind(joined)
            .bind(wanted)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The whole state before a join is here; `None`: nobody has it, and it is judged by what is known.
    pub async fn partial_fill(
        &mut self,
        room: &RoomId,
        join: &EventId,
        before: Option<NodeId>,
    ) -> StoreResult<()> {
        let fetched: Vec<NodeId> = before.into_iter().collect();
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FILL)
            .bind(room.as_str())
            .bind(join.as_str())
            .bind(bytes(&fetched))
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// An event is judged. `None`: it is not there any more.
    pub async fn partial_judged(
        &mut self,
        room: &RoomId,
        event: &EventId,
        judged: Option<(PartialVerdict, NodeId)>,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        let Some((verdict, after)) = judged else {
            on_engine!(conn, |c| sqlx::query(GONE)
                .bind(room.as_str())
                .bind(event.as_str())
                .execute(c)
                .await
                .map(|_| ()))?;
            return Ok(());
        };
        on_engine!(conn, |c| sqlx::query(JUDGED)
            .bind(room.as_str())
            .bind(event.as_str())
            .bind(after.as_bytes().to_vec())
            .bind(verdict as i16)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
