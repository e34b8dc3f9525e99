//! The room graph as the receiving side of federation sees it.

use super::Timeline;
use super::error::TimelineError;
use super::resolve::{resolve_roots, state_after};
use async_trait::async_trait;
use ruma::{OwnedEventId, RoomId, RoomVersionId, ServerName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_federation::ports::{
    Extremities, Flags, Known, Outlier, Persisted, PortError, PortResult, Received, StateRoot,
};
use waxwing_model::{Event, StateKey};
use waxwing_storage::{EventFlags, RoomRow, StoredEvent};

impl From<TimelineError> for PortError {
    fn from(error: TimelineError) -> PortError {
        PortError::new(error)
    }
}

fn flags(stored: EventFlags) -> Flags {
    Flags { outlier: stored.outlier, rejected: stored.rejected, soft_failed: stored.soft_failed }
}

impl Timeline {
    async fn row(&self, room: &RoomId) -> Result<Option<RoomRow>, TimelineError> {
        Ok(self.core.store.read().await?.room_load(room).await?)
    }

    async fn of_room(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> Result<BTreeMap<OwnedEventId, Arc<StoredEvent>>, TimelineError> {
        let found = self.core.store.events(ids).await?;
        Ok(found.into_iter().filter(|(_, stored)| stored.event.room_id == *room).collect())
    }

    /// The states after these events; `None` when one of them is not part of the graph.
    async fn roots_after(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> Result<Option<BTreeSet<StateRoot>>, TimelineError> {
        let found = self.of_room(room, ids).await?;
        let mut roots = BTreeSet::new();
        for id in ids {
            let Some(stored) = found.get(id) else { return Ok(None) };
            let Some(root) = state_after(&self.core, stored).await? else { return Ok(None) };
            roots.insert(root);
        }
        Ok(Some(roots))
    }

    pub(super) async fn before(
        &self,
        room: &RoomId,
        prev: &[OwnedEventId],
    ) -> Result<Option<StateRoot>, TimelineError> {
        let Some(row) = self.row(room).await? else { return Ok(None) };
        let here: BTreeSet<&OwnedEventId> = row.extremities.iter().map(|(id, _)| id).collect();
        if !prev.is_empty() && here == prev.iter().collect::<BTreeSet<_>>() {
            return Ok(Some(row.state_root));
        }
        let Some(roots) = self.roots_after(room, prev).await? else { return Ok(None) };
        Ok(Some(resolve_roots(&self.core, &row, &roots, None).await?))
    }

    async fn join_states(
        &self,
        room: &RoomId,
        known: &[OwnedEventId],
        fetched: &[StateRoot],
    ) -> Result<StateRoot, TimelineError> {
        let row = self.row(room).await?.ok_or(TimelineError::NoRoom)?;
        let mut roots = self.roots_after(room, known).await?.unwrap_or_default();
        roots.extend(fetched.iter().copied());
        resolve_roots(&self.core, &row, &roots, None).await
    }

    async fn build(&self, entries: Vec<(StateKey, OwnedEventId)>) -> Result<StateRoot, TimelineError> {
        let entries = Arc::new(entries);
        self.core
            .store
            .write("fetched state", Vec::new(), move |tx| {
                let entries = Arc::clone(&entries);
                Box::pin(async move { Ok(tx.state_build(entries.iter().cloned())) })
            })
            .await
    }
}

#[async_trait]
impl waxwing_federation::ports::Timeline for Timeline {
    async fn room_version(&self, room: &RoomId) -> PortResult<Option<RoomVersionId>> {
        Ok(self.row(room).await?.map(|row| row.version))
    }

    async fn has_server(&self, room: &RoomId, server: &ServerName) -> PortResult<bool> {
        let mut conn = self.core.store.read().await.map_err(PortError::new)?;
        conn.server_is_in(room, server).await.map_err(PortError::new)
    }

    async fn events_flags(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> PortResult<BTreeMap<OwnedEventId, Flags>> {
        let found = self.of_room(room, ids).await?;
        Ok(found.into_iter().map(|(id, stored)| (id, flags(stored.flags))).collect())
    }

    async fn events_load(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> PortResult<BTreeMap<OwnedEventId, Known>> {
        let found = self.of_room(room, ids).await?;
        Ok(found
            .into_iter()
            .map(|(id, stored)| (id, Known { event: Arc::clone(&stored.event), flags: flags(stored.flags) }))
            .collect())
    }

    async fn extremities(&self, room: &RoomId) -> PortResult<Extremities> {
        let Some(row) = self.row(room).await? else { return Ok(Extremities::default()) };
        Ok(Extremities { events: row.extremities.into_iter().map(|(id, _)| id).collect() })
    }

    async fn state_current(&self, room: &RoomId) -> PortResult<Option<StateRoot>> {
        Ok(self.row(room).await?.map(|row| row.state_root))
    }

    async fn state_before(
        &self,
        room: &RoomId,
        prev_events: &[OwnedEventId],
    ) -> PortResult<Option<StateRoot>> {
        Ok(self.before(room, prev_events).await?)
    }

    async fn state_join(
        &self,
        room: &RoomId,
        known_prev_events: &[OwnedEventId],
        fetched: &[StateRoot],
    ) -> PortResult<StateRoot> {
        Ok(self.join_states(room, known_prev_events, fetched).await?)
    }

    async fn state_entries(
        &self,
        _room: &RoomId,
        root: StateRoot,
        keys: &[StateKey],
    ) -> PortResult<BTreeMap<StateKey, OwnedEventId>> {
        let mut conn = self.core.store.read().await.map_err(PortError::new)?;
        let found = self.core.store.state(&mut conn).get_many(root, keys).await.map_err(PortError::new)?;
        Ok(keys.iter().cloned().zip(found).filter_map(|(key, id)| Some((key, id?))).collect())
    }

    async fn state_to_judge_by(
        &self,
        room: &RoomId,
        root: StateRoot,
        keys: &[StateKey],
        claimed: &[OwnedEventId],
    ) -> PortResult<BTreeMap<StateKey, OwnedEventId>> {
        let entries = self.state_entries(room, root, keys).await?;
        match self.row(room).await? {
            Some(row) if row.partial => {
                Ok(self.with_claimed((room, &row.version), entries, keys, claimed).await?)
            }
            _ => Ok(entries),
        }
    }

    async fn state_build(
        &self,
        _room: &RoomId,
        entries: Vec<(StateKey, OwnedEventId)>,
    ) -> PortResult<StateRoot> {
        Ok(self.build(entries).await?)
    }

    async fn persist(&self, received: Received) -> PortResult<Persisted> {
        Ok(self.take_in(received).await?)
    }

    async fn invited_version(&self, room: &RoomId) -> PortResult<Option<RoomVersionId>> {
        Ok(self.version_of_invitation(room).await?)
    }

    async fn take_back(&self, event: Arc<Event>) -> PortResult<()> {
        Ok(self.invitation_ends(&event).await?)
    }

    async fn history_reserve(&self, _room: &RoomId, count: usize) -> PortResult<i64> {
        self.core
            .store
            .write("reserve history", Vec::new(), move |tx| {
                Box::pin(async move { tx.history_reserve(count as i64).await })
            })
            .await
            .map_err(|error: waxwing_storage::StoreError| PortError::new(error))
    }

    async fn persist_outliers(&self, room: &RoomId, outliers: Vec<Outlier>) -> PortResult<()> {
        let row = self.row(room).await?.ok_or(TimelineError::NoRoom)?;
        Ok(self.take_outliers(&row.version, outliers).await?)
    }
}
