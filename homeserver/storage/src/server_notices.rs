//! The rooms in which the server writes to its users.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use ruma::{OwnedRoomId, RoomId, UserId};

statements! {
    OF_USER = "SELECT room_id FROM server_notice_rooms WHERE user_id = $1";
    IS_ONE = "SELECT room_id FROM server_notice_rooms WHERE room_id = $1";
    SET = "INSERT INTO server_notice_rooms (user_id, room_id) VALUES ($1, $2) ON CONFLICT (user_id) DO UPDATE SET room_id = excluded.room_id";
}

impl Conn {
    /// The room in which the server writes to a user.
    pub async fn notice_room_of(&mut self, user: &UserId) -> StoreResult<Option<OwnedRoomId>> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(OF_USER).bind(user.as_str()).fetch_optional(c).await)?;
        found
            .map(|(room,)| {
                OwnedRoomId::try_from(&*room)
                    .map_err(|error| StoreError::corrupt("server_notice_rooms", &room, error))
            })
            .transpose()
    }

    /// Whether the server writes to somebody in this room.
    pub async fn is_notice_room(&mut self, room: &RoomId) -> StoreResult<bool> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(IS_ONE).bind(room.as_str()).fetch_optional(c).await)?;
        Ok(found.is_some())
    }
}

impl crate::Tx {
    /// From now on the server writes to the user in this room.
    pub async fn notice_room_set(&mut self, user: &UserId, room: &RoomId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SET)
            .bind(user.as_str())
            .bind(room.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
