//! What application services are told: how far in the log each was, the transaction that it has not accepted yet, and
//! the lists of rooms that they keep. <https://spec.matrix.org/v1.19/application-service-api/#pushing-events>

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{OwnedRoomId, RoomId};
use waxwing_model::LogPosition;

statements! {
    CURSOR = "SELECT position FROM appservice_cursors WHERE appservice = $1";
    CURSOR_MAKE = "INSERT INTO appservice_cursors (appservice, position, next_txn) VALUES ($1, $2, $3) ON CONFLICT (appservice) DO NOTHING";
    CURSOR_MOVE = "UPDATE appservice_cursors SET position = $2 WHERE appservice = $1 AND position < $2";
    OPEN = "SELECT txn_id, body FROM appservice_transactions WHERE appservice = $1 ORDER BY txn_id LIMIT 1";
    NEXT = "UPDATE appservice_cursors SET position = $2, next_txn = next_txn + 1 WHERE appservice = $1 RETURNING next_txn - 1";
    PUT = "INSERT INTO appservice_transactions (appservice, txn_id, body) VALUES ($1, $2, $3)";
    ACCEPTED = "DELETE FROM appservice_transactions WHERE appservice = $1 AND txn_id = $2";
    ROOM_ADD = "INSERT INTO appservice_rooms (appservice, network_id, room_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    ROOM_REMOVE = "DELETE FROM appservice_rooms WHERE appservice = $1 AND network_id = $2 AND room_id = $3";
    ROOMS = "SELECT room_id FROM appservice_rooms WHERE appservice = $1 AND network_id = $2 ORDER BY room_id";
    ROOMS_ALL = "SELECT DISTINCT room_id FROM appservice_rooms ORDER BY room_id";
}

fn rooms(found: Vec<(String,)>) -> Vec<OwnedRoomId> {
    found.into_iter().filter_map(|(room,)| room.try_into().ok()).collect()
}

impl Conn {
    /// Up to where the log was put into transactions of this application service; none before it was ever told anything.
    pub async fn appservice_cursor(&mut self, appservice: &str) -> StoreResult<Option<LogPosition>> {
        let found: Option<(i64,)> =
            on_engine!(self, |c| sqlx::query_as(CURSOR).bind(appservice).fetch_optional(c).await)?;
        Ok(found.map(|(position,)| LogPosition(position)))
    }

    /// The oldest transaction that was not accepted yet: its number and body.
    pub async fn appservice_transaction_open(
        &mut self,
        appservice: &str,
    ) -> StoreResult<Option<(i64, String)>> {
        Ok(on_engine!(self, |c| sqlx::query_as(OPEN).bind(appservice).fetch_optional(c).await)?)
    }

    /// The rooms that an application service lists for one of its networks.
    pub async fn appservice_rooms(
        &mut self,
        appservice: &str,
        network: &str,
    ) -> StoreResult<Vec<OwnedRoomId>> {
        Ok(rooms(on_engine!(self, |c| sqlx::query_as(ROOMS)
            .bind(appservice)
            .bind(network)
            .fetch_all(c)
            .await)?))
    }

    /// The rooms that any application service lists for any network.
    pub async fn appservice_rooms_all(&mut self) -> StoreResult<Vec<OwnedRoomId>> {
        Ok(rooms(on_engine!(self, |c| sqlx::query_as(ROOMS_ALL).fetch_all(c).await)?))
    }
}

impl crate::Tx {
    /// Makes the cursor of an application service that has none: it is told what comes after `position`, in
    /// transactions numbered from `first` on.
    pub async fn appservice_cursor_make(
        &mut self,
        appservice: &str,
        position: LogPosition,
        first: u64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(CURSOR_MAKE)
            .bind(appservice)
            .bind(position.0)
            .bind(first as i64)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Nothing up to `position` concerns the application service.
    pub async fn appservice_cursor_move(
        &mut self,
        appservice: &str,
        position: LogPosition,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(CURSOR_MOVE)
            .bind(appservice)
            .bind(position.0)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Keeps a transaction that takes the cursor to `position`; gives its number. None: there is no cursor.
    pub async fn appservice_transaction_put(
        &mut self,
        appservice: &str,
        position: LogPosition,
        body: &str,
    ) -> StoreResult<Option<i64>> {
        let conn = self.writing().await?;
        let found: Option<(i64,)> = on_engine!(&mut *conn, |c| sqlx::query_as(NEXT)
            .bind(appservice)
            .bind(position.0)
            .fetch_optional(c)
            .await)?;
        let Some((number,)) = found else { return Ok(None) };
        on_engine!(conn, |c| sqlx::query(PUT)
            .bind(appservice)
            .bind(number)
            .bind(body)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(Some(number))
    }

    /// The application service has accepted a transaction.
    pub async fn appservice_transaction_accepted(
        &mut self,
        appservice: &str,
        number: i64,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(ACCEPTED)
            .bind(appservice)
            .bind(number)
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Puts a room into the list of one of an application service's networks, or takes it out.
    pub async fn appservice_room_set(
        &mut self,
        appservice: &str,
        network: &str,
        room: &RoomId,
        listed: bool,
    ) -> StoreResult<()> {
        let conn = self.writing().await?;
        let text = if listed { ROOM_ADD } else { ROOM_REMOVE };
        on_engine!(conn, |c| sqlx::query(text)
            .bind(appservice)
            .bind(network)
            .bind(room.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
