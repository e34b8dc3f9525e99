//! Events that are sticky for a time (MSC4354).

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, statements};
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use sqlx::AssertSqlSafe;
use std::collections::HashMap;

statements! {
    ADD = "INSERT INTO sticky_events (event_id, room_id, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    OF_ROOMS = "SELECT room_id, event_id FROM (SELECT room_id, event_id, ROW_NUMBER() OVER (PARTITION BY room_id ORDER BY expires_at DESC, event_id) AS place FROM sticky_events WHERE expires_at > $1 AND room_id IN ($list)) AS ranked WHERE place <= $2";
    AFTER = "SELECT e.sn, s.event_id FROM sticky_events s JOIN events e ON e.event_id = s.event_id WHERE s.expires_at > $1 AND e.sn > $2 AND s.room_id IN ($list) ORDER BY e.sn LIMIT $3";
    EXPIRE = "DELETE FROM sticky_events WHERE room_id = $1 AND expires_at <= $2";
}

impl Conn {
    /// The events of these rooms that are sticky at `now` (milliseconds); at most `limit` of each, those that stay so
    /// longest.
    pub async fn sticky_events_of(
        &mut self,
        rooms: &[OwnedRoomId],
        now: u64,
        limit: i64,
    ) -> StoreResult<HashMap<OwnedRoomId, Vec<OwnedEventId>>> {
        let mut events: HashMap<OwnedRoomId, Vec<OwnedEventId>> = HashMap::new();
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(OF_ROOMS, 3, chunk.len());
            let found: Vec<(String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(now as i64).bind(limit);
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            for (room, id) in found {
                let (Ok(room), Ok(id)) = (room.try_into(), id.try_into()) else { continue };
                events.entry(room).or_default().push(id);
            }
        }
        Ok(events)
    }

    /// The events of these rooms that are sticky at `now` (milliseconds) and have numbers above `after`, by their
    /// numbers, at most `limit`.
    pub async fn sticky_events_after(
        &mut self,
        rooms: &[OwnedRoomId],
        now: u64,
        after: i64,
        limit: i64,
    ) -> StoreResult<Vec<(i64, OwnedEventId)>> {
        let mut events = Vec::new();
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(AFTER, 4, chunk.len());
            let found: Vec<(i64, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(now as i64).bind(after).bind(limit);
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            events.extend(found.into_iter().filter_map(|(sn, id)| Some((sn, id.try_into().ok()?))));
        }
        events.sort_unstable();
        events.truncate(usize::try_from(limit).unwrap_or_default());
        Ok(events)
    }
}

impl crate::Tx {
    /// An event is sticky until `until`; what ceased to be in its room is forgotten. Both are milliseconds.
    pub async fn sticky_event_add(
        &mut self,
        room: &RoomId,
        event: &EventId,
        now: u64,
        until: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(&mut *conn, |c| sqlx::query(EXPIRE)
            .bind(room.as_str())
            .bind(now as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        on_engine!(conn, |c| sqlx::query(ADD)
            .bind(event.as_str())
            .bind(room.as_str())
            .bind(until as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
