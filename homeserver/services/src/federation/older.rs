//! History that other servers have and we lack, for readers.

use super::Federation;
use crate::rooms_read::RemoteHistory;
use async_trait::async_trait;
use ruma::{OwnedEventId, OwnedServerName, RoomId};
use waxwing_storage::StoreResult;

/// Servers asked for history, one after the other, while a client waits.
const MAX_SERVERS: usize = 5;
/// Events that one request starts from.
const MAX_STARTS: usize = 20;
/// Events before a fetched one that come with it, so that a client can read on from there.
const WITH_EVENT: usize = 100;

impl Federation {
    /// Where our history of a room ends, and the other servers in the room.
    async fn ends(&self, room: &RoomId) -> StoreResult<(Vec<OwnedEventId>, Vec<OwnedServerName>)> {
        let mut conn = self.core.store.read().await?;
        let mut ends = conn.backward_extremities(room).await?;
        ends.truncate(MAX_STARTS);
        let servers = conn.servers_in(room).await?;
        let others = servers.into_iter().filter(|server| *server != self.core.server_name);
        Ok((ends, others.take(MAX_SERVERS).collect()))
    }

    async fn history(
        &self,
        room: &RoomId,
        servers: &[OwnedServerName],
        from: &[OwnedEventId],
        limit: usize,
    ) -> bool {
        if servers.is_empty() || from.is_empty() {
            return false;
        }
        match self.inbound().backfill(room, servers, from, limit).await {
            Ok(stored) => stored > 0,
            Err(error) => {
                tracing::warn!(%room, %error, "history could not be stored");
                false
            }
        }
    }
}

#[async_trait]
impl RemoteHistory for Federation {
    async fn backfill(&self, room: &RoomId, limit: usize) -> bool {
        match self.ends(room).await {
            Ok((ends, servers)) => self.history(room, &servers, &ends, limit).await,
            Err(error) => {
                tracing::warn!(%room, %error, "where history ends could not be read");
                false
            }
        }
    }

    async fn fetch(&self, room: &RoomId, event: OwnedEventId, server: OwnedServerName) -> bool {
        let here = async || {
            let stored = self.core.store.event(&event).await.ok().flatten();
            stored.is_some_and(|stored| !stored.flags.outlier)
        };
        if here().await {
            return true;
        }
        let ends = [event.clone()];
        self.history(room, &[server], &ends, WITH_EVENT).await;
        here().await
    }
}
