//! Account data: what clients keep for a user, for all rooms or for one.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use crate::{Fact, NewRow};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};

statements! {
    ONE = "SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND kind = $3";
    OF_ROOM = "SELECT kind, content FROM account_data WHERE user_id = $1 AND room_id = $2 ORDER BY kind";
    ALL = "SELECT room_id, kind, content FROM account_data WHERE user_id = $1 ORDER BY room_id, kind";
    SET = "INSERT INTO account_data (user_id, room_id, kind, content) VALUES ($1, $2, $3, $4) ON CONFLICT (user_id, room_id, kind) DO UPDATE SET content = excluded.content";
    REMOVE = "DELETE FROM account_data WHERE user_id = $1 AND room_id = $2 AND kind = $3";
    OF_KIND = "SELECT user_id, content FROM account_data WHERE room_id = '' AND kind = $1 AND user_id > $2 ORDER BY user_id LIMIT $3";
}

/// How the table says "of no room".
fn key(room: Option<&RoomId>) -> &str {
    room.map_or("", |room| room.as_str())
}

fn row(user: &UserId, room: Option<&RoomId>, kind: &str) -> NewRow {
    let mut row = NewRow::new(Fact::AccountData).user(user.to_owned()).reference(kind);
    row.room = room.map(ToOwned::to_owned);
    row
}

/// One entry: the room it belongs to, its type, its content as JSON.
pub type AccountDataEntry = (Option<OwnedRoomId>, String, String);

impl Conn {
    /// The content of one entry, as JSON.
    pub async fn account_data_load(
        &mut self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
    ) -> StoreResult<Option<String>> {
        let found: Option<(String,)> = on_engine!(self, |c| sqlx::query_as(ONE)
            .bind(user.as_str())
            .bind(key(room))
            .bind(kind)
            .fetch_optional(c)
            .await)?;
        Ok(found.map(|(content,)| content))
    }

    /// Type and content of a user's entries of one room, or of none.
    pub async fn account_data_of(
        &mut self,
        user: &UserId,
        room: Option<&RoomId>,
    ) -> StoreResult<Vec<(String, String)>> {
        Ok(on_engine!(self, |c| sqlx::query_as(OF_ROOM)
            .bind(user.as_str())
            .bind(key(room))
            .fetch_all(c)
            .await)?)
    }

    /// All entries of a user.
    pub async fn account_data_all(&mut self, user: &UserId) -> StoreResult<Vec<AccountDataEntry>> {
        let found: Vec<(String, String, String)> =
            on_engine!(self, |c| sqlx::query_as(ALL).bind(user.as_str()).fetch_all(c).await)?;
        let entries = found.into_iter().filter_map(|(room, kind, content)| {
            let room = if room.is_empty() { None } else { Some(OwnedRoomId::try_from(room).ok()?) };
            Some((room, kind, content))
        });
        Ok(entries.collect())
    }

    /// The entry of this type of every user who has one, in order of user, those after `after`, at most `limit`.
    pub async fn account_data_of_kind(
        &mut self,
        kind: &str,
        after: &str,
        limit: i64,
    ) -> StoreResult<Vec<(OwnedUserId, String)>> {
        let found: Vec<(String, String)> = on_engine!(self, |c| sqlx::query_as(OF_KIND)
            .bind(kind)
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await)?;
        Ok(found.into_iter().filter_map(|(user, content)| Some((user.try_into().ok()?, content))).collect())
    }
}

impl crate::Tx {
    /// Sets an entry to this JSON and announces it.
    pub async fn account_data_set(
        &mut self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
        content: &str,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(SET)
            .bind(user.as_str())
            .bind(key(room))
            .bind(kind)
            .bind(content)
            .execute(c)
            .await
            .map(|_| ()))?;
        self.log_append(row(user, room, kind));
        Ok(())
    }

    /// Removes an entry and announces it. Returns whether it was there.
    pub async fn account_data_remove(
        &mut self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
    ) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let removed = on_engine!(conn, |c| sqlx::query(REMOVE)
            .bind(user.as_str())
            .bind(key(room))
            .bind(kind)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        if removed > 0 {
            self.log_append(row(user, room, kind));
        }
        Ok(removed > 0)
    }
}
