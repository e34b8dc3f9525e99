//! Events of a room by the time at which they were sent, by their senders' clocks.
//!
//! Most events of a timeline come in the order of their times: among these a time is found by halving. Those that do not
//! (from history, of bridges, of clocks that are wrong) are marked, and an index has only them.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::events::{Columns, StoredEvent, decode};
use crate::sql::statements;
use ruma::RoomId;
use std::sync::Arc;

statements! {
    NEXT = "SELECT sn, ts FROM events WHERE room_id = $1 AND sn >= $2 AND NOT out_of_time ORDER BY sn LIMIT 1";
    LAST = "SELECT sn FROM events WHERE room_id = $1 AND sn > 0 AND NOT out_of_time ORDER BY sn DESC LIMIT 1";
    AFTER = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND sn >= $2 AND NOT out_of_time AND flags = 0 ORDER BY sn LIMIT $3";
    AFTER_OUT = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND ts >= $2 AND out_of_time AND flags = 0 ORDER BY ts, sn LIMIT $3";
    BEFORE = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND sn > 0 AND sn < $2 AND NOT out_of_time AND flags = 0 ORDER BY sn DESC LIMIT $3";
    BEFORE_OUT = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND ts <= $2 AND out_of_time AND flags = 0 ORDER BY ts DESC, sn DESC LIMIT $3";
    BETWEEN = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND sn >= $2 AND sn < $3 AND NOT out_of_time AND (ts > $4 OR sn > $5) ORDER BY sn LIMIT $6";
    BETWEEN_OUT = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, json FROM events WHERE room_id = $1 AND ts >= $2 AND ts < $3 AND out_of_time AND (ts > $2 OR sn > $4) ORDER BY ts, sn LIMIT $5";
}

impl Conn {
    /// The number from which on the events in order have times of `at` or later; before it they are earlier.
    async fn number_at(&mut self, room: &RoomId, at: i64) -> StoreResult<i64> {
        let last: Option<(i64,)> =
            on_engine!(self, |c| sqlx::query_as(LAST).bind(room.as_str()).fetch_optional(c).await)?;
        let (mut low, mut high) = (1, last.map_or(1, |(number,)| number + 1));
        while low < high {
            let middle = low + (high - low) / 2;
            let next: Option<(i64, i64)> = on_engine!(self, |c| sqlx::query_as(NEXT)
                .bind(room.as_str())
                .bind(middle)
                .fetch_optional(c)
                .await)?;
            match next {
                Some((number, ts)) if ts < at => low = number + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The room's visible events sent at `at` (milliseconds) or later, the earliest first; or at `at` or before, the
    /// latest first. At most `limit`.
    pub async fn events_by_time(
        &mut self,
        room: &RoomId,
        at: i64,
        forward: bool,
        limit: i64,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let number = self.number_at(room, if forward { at } else { at.saturating_add(1) }).await?;
        let (in_order, out) = if forward { (AFTER, AFTER_OUT) } else { (BEFORE, BEFORE_OUT) };
        let mut found: Vec<Columns> = Vec::new();
        for (text, from) in [(in_order, number), (out, at)] {
            let some: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(text)
                .bind(room.as_str())
                .bind(from)
                .bind(limit)
                .fetch_all(c)
                .await)?;
            found.extend(some);
        }
        let mut events = in_order_of_time(found)?;
        if !forward {
            events.reverse();
        }
        events.truncate(limit as usize);
        Ok(events)
    }

    /// Events of a room sent before `before`, from the one after (time, number) on, whatever their flags, in the order
    /// of (time, number), at most `limit`.
    pub async fn events_sent_before(
        &mut self,
        room: &RoomId,
        after: (i64, i64),
        before: i64,
        limit: i64,
    ) -> StoreResult<Vec<Arc<StoredEvent>>> {
        let low = self.number_at(room, after.0).await?;
        let high = self.number_at(room, before).await?;
        let mut found: Vec<Columns> = on_engine!(&mut *self, |c| sqlx::query_as(BETWEEN)
            .bind(room.as_str())
            .bind(low)
            .bind(high)
            .bind(after.0)
            .bind(after.1)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        let out: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(BETWEEN_OUT)
            .bind(room.as_str())
            .bind(after.0)
            .bind(before)
            .bind(after.1)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        found.extend(out);
        let mut events = in_order_of_time(found)?;
        events.truncate(limit as usize);
        Ok(events)
    }
}

fn in_order_of_time(found: Vec<Columns>) -> StoreResult<Vec<Arc<StoredEvent>>> {
    let mut events: Vec<Arc<StoredEvent>> =
        found.into_iter().map(|columns| decode(columns).map(Arc::new)).collect::<StoreResult<_>>()?;
    events.sort_by_key(|stored| (stored.event.sent_at(), stored.sn));
    Ok(events)
}
