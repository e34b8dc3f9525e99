//! Received events that are still to be taken in, kept in the database.

use crate::Core;
use async_trait::async_trait;
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::ports::{PortError, PortResult, Staged as StagedEvent, Staging};
use waxwing_storage::{Engine, LEASE_LASTS, StagedRow, StoreError};

/// Events kept of one room: some transactions of a busy one. Beyond that later events bring a gap, and with it these.
const MOST_OF_ROOM: i64 = 2000;
/// The lease of the node that takes them in.
const LEASE_NAME: &str = "staged-pdus";
/// How long it lasts without being renewed, milliseconds: it is renewed with each look at the table.
const LEASE: u64 = LEASE_LASTS;

/// Over the database.
pub(super) struct Staged {
    pub(super) core: Core,
    /// Names this node as the holder of the lease.
    pub(super) owner: Arc<str>,
}

impl Staged {
    /// Whether this node is the one that takes them in.
    async fn is_ours(&self) -> PortResult<bool> {
        if self.core.store.engine() == Engine::Sqlite {
            return Ok(true);
        }
        let taken = self.core.store.lease_take(LEASE_NAME, &self.owner, self.core.now(), LEASE).await;
        Ok(taken.map_err(PortError::new)?.is_some())
    }
}

fn row(event: StagedEvent) -> StagedRow {
    StagedRow {
        event_id: event.event_id,
        origin: event.origin,
        json: event.json.get().to_owned(),
        attempts: i64::from(event.attempts),
    }
}

#[async_trait]
impl Staging for Staged {
    async fn staged_put(&self, room: &RoomId, events: Vec<StagedEvent>, wait: Duration) -> PortResult<()> {
        let now = self.core.now();
        let next = now + wait.as_millis() as u64;
        // A thousand places for each millisecond: a transaction has fifty events.
        let place = (now as i64).saturating_mul(1000);
        let rows: Arc<[StagedRow]> = events.into_iter().map(row).collect();
        let room = room.to_owned();
        self.core
            .store
            .write("stage", Vec::new(), move |tx| {
                let (room, rows) = (room.clone(), Arc::clone(&rows));
                Box::pin(async move {
                    if tx.staged_count(&room).await? >= MOST_OF_ROOM {
                        tracing::warn!(%room, "too many events wait to be taken in; some are dropped");
                        return Ok(());
                    }
                    tx.staged_put(&room, &rows, place, next).await
                })
            })
            .await
            .map_err(|error: StoreError| PortError::new(error))
    }

    async fn staged_rooms(&self, limit: usize) -> PortResult<Vec<OwnedRoomId>> {
        let now = self.core.now();
        let mut conn = self.core.store.read().await.map_err(PortError::new)?;
        let rooms = conn.staged_rooms(now, limit as i64).await.map_err(PortError::new)?;
        drop(conn);
        // Where nothing waits no lease is needed.
        if rooms.is_empty() || !self.is_ours().await? { Ok(Vec::new()) } else { Ok(rooms) }
    }

    async fn staged_load(&self, room: &RoomId, limit: usize) -> PortResult<Vec<StagedEvent>> {
        let now = self.core.now();
        let mut conn = self.core.store.read().await.map_err(PortError::new)?;
        let rows = conn.staged_load(room, now, limit as i64).await.map_err(PortError::new)?;
        rows.into_iter()
            .map(|row| {
                Ok(StagedEvent {
                    event_id: row.event_id,
                    origin: row.origin,
                    json: RawValue::from_string(row.json).map_err(PortError::new)?,
                    attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
                })
            })
            .collect()
    }

    async fn staged_remove(&self, room: &RoomId, events: &[OwnedEventId]) -> PortResult<()> {
        let (room, events): (OwnedRoomId, Arc<[OwnedEventId]>) = (room.to_owned(), events.into());
        self.core
            .store
            .write("staged", Vec::new(), move |tx| {
                let (room, events) = (room.clone(), Arc::clone(&events));
                Box::pin(async move { tx.staged_remove(&room, &events).await })
            })
            .await
            .map_err(|error: StoreError| PortError::new(error))
    }

    async fn staged_later(&self, room: &RoomId, events: &[OwnedEventId], wait: Duration) -> PortResult<()> {
        let (room, events): (OwnedRoomId, Arc<[OwnedEventId]>) = (room.to_owned(), events.into());
        let next = self.core.now() + wait.as_millis() as u64;
        self.core
            .store
            .write("staged later", Vec::new(), move |tx| {
                let (room, events) = (room.clone(), Arc::clone(&events));
                Box::pin(async move { tx.staged_later(&room, &events, next).await })
            })
            .await
            .map_err(|error: StoreError| PortError::new(error))
    }
}
