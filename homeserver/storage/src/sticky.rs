//! Events that are sticky for a time (MSC4354).

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{EventId, OwnedEventId, RoomId};

statements! {
    ADD = "INSERT INTO sticky_events (event_id, room_id, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    OF_ROOM = "SELECT event_id FROM sticky_events WHERE room_id = $1 AND expires_at > $2 ORDER BY expires_at DESC LIMIT $3";
    EXPIRE = "DELETE FROM sticky_events WHERE room_id = $1 AND expires_at <= $2";
}

impl Conn {
    /// The events of a room that are sticky at `now`, those that stay so longest first, at most `limit`.
    pub async fn sticky_events(
        &mut self,
        room: &RoomId,
        now: u64,
        limit: i64,
    ) -> StoreResult<Vec<OwnedEventId>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(OF_ROOM)
            .bind(room.as_str())
            .bind(now as i64)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
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
