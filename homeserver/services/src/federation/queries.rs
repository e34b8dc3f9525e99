//! Small questions of other servers.

use super::{Federation, FederationError};
use ruma::{OwnedRoomId, OwnedServerName, RoomAliasId};

impl Federation {
    /// The room of an alias, and servers that are in it: `/query/directory`.
    ///
    /// # Errors
    /// [`FederationError::NotFound`].
    pub async fn query_directory(
        &self,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>), FederationError> {
        if alias.server_name() != self.core.server_name {
            return Err(FederationError::NotFound("alias"));
        }
        let mut conn = self.core.store.read().await?;
        let room = conn.alias_load(alias).await?.ok_or(FederationError::NotFound("alias"))?;
        let mut servers = conn.servers_in(&room).await?;
        // Ourselves first: we know the room best.
        servers.retain(|server| *server != self.core.server_name);
        servers.insert(0, self.core.server_name.clone());
        Ok((room, servers))
    }
}
