//! Room aliases of this server, and relations between events.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{EventId, OwnedEventId, OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId, UserId};

statements! {
    LOAD = "SELECT room_id FROM aliases WHERE alias = $1";
    LOAD_CREATOR = "SELECT creator FROM aliases WHERE alias = $1";
    OF_ROOM = "SELECT alias FROM aliases WHERE room_id = $1 ORDER BY alias";
    SAVE = "INSERT INTO aliases (alias, room_id, creator) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    REMOVE = "DELETE FROM aliases WHERE alias = $1";
    MOVE = "UPDATE aliases SET room_id = $2 WHERE room_id = $1";
    CHILDREN_BY = "SELECT child_id FROM relations WHERE parent_id = $1 AND rel_type = $2 AND sender = $3 ORDER BY sn LIMIT 1000";
}

impl Conn {
    /// The room that an alias of this server points at.
    pub async fn alias_load(&mut self, alias: &RoomAliasId) -> StoreResult<Option<OwnedRoomId>> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(alias.as_str()).fetch_optional(c).await)?;
        Ok(found.and_then(|(room,)| room.try_into().ok()))
    }

    /// Who made an alias.
    pub async fn alias_creator(&mut self, alias: &RoomAliasId) -> StoreResult<Option<String>> {
        let found: Option<(String,)> =
            on_engine!(self, |c| sqlx::query_as(LOAD_CREATOR).bind(alias.as_str()).fetch_optional(c).await)?;
        Ok(found.map(|(creator,)| creator))
    }

    /// The aliases of this server that point at a room.
    pub async fn aliases_of(&mut self, room: &RoomId) -> StoreResult<Vec<OwnedRoomAliasId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(OF_ROOM).bind(room.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(alias,)| alias.try_into().ok()).collect())
    }

    /// Events of one sender that relate to `parent` in this way, oldest first, at most 1000.
    pub async fn relation_children(
        &mut self,
        parent: &EventId,
        rel_type: &str,
        sender: &str,
    ) -> StoreResult<Vec<OwnedEventId>> {
        let found: Vec<(String,)> = on_engine!(self, |c| sqlx::query_as(CHILDREN_BY)
            .bind(parent.as_str())
            .bind(rel_type)
            .bind(sender)
            .fetch_all(c)
            .await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }
}

impl crate::Tx {
    /// Makes an alias. Returns whether it was free.
    pub async fn alias_save(
        &mut self,
        alias: &RoomAliasId,
        room: &RoomId,
        creator: &UserId,
    ) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let made = on_engine!(conn, |c| sqlx::query(SAVE)
            .bind(alias.as_str())
            .bind(room.as_str())
            .bind(creator.as_str())
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(made > 0)
    }

    /// Removes an alias. Returns whether there was one.
    pub async fn alias_remove(&mut self, alias: &RoomAliasId) -> StoreResult<bool> {
        let conn = self.writing().await?;
        let removed = on_engine!(conn, |c| sqlx::query(REMOVE)
            .bind(alias.as_str())
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(removed > 0)
    }

    /// Points every alias of one room at another (an upgrade).
    pub async fn aliases_move(&mut self, from: &RoomId, to: &RoomId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(MOVE)
            .bind(from.as_str())
            .bind(to.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
