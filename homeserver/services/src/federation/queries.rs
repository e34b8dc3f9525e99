//! Small questions of other servers.

use super::{Federation, FederationError};
use ruma::{OwnedRoomId, OwnedServerName, RoomAliasId, UserId};
use serde_json::{Map, Value};

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
        let mut room = self.core.store.read().await?.alias_load(alias).await?;
        if room.is_none()
            && let Some(queries) = &self.timeline.queries
            // One that does not answer is no reason to keep another server waiting again.
            && queries.alias(alias).await.unwrap_or(false)
        {
            room = self.core.store.read().await?.alias_load(alias).await?;
        }
        let room = room.ok_or(FederationError::NotFound("alias"))?;
        let mut conn = self.core.store.read().await?;
        let mut servers = conn.servers_in(&room).await?;
        // Ourselves first: we know the room best.
        servers.retain(|server| *server != self.core.server_name);
        servers.insert(0, self.core.server_name.clone());
        Ok((room, servers))
    }

    /// A user's profile, or one field of it: `/query/profile`.
    ///
    /// # Errors
    /// [`FederationError::NotFound`] for an unknown user or field.
    pub async fn query_profile(
        &self,
        user: &UserId,
        field: Option<&str>,
    ) -> Result<Map<String, Value>, FederationError> {
        if !self.core.is_local(user) {
            return Err(FederationError::InvalidParam("the user is of another server".to_owned()));
        }
        let mut conn = self.core.store.read().await?;
        if conn.user_load(user).await?.is_none_or(|row| row.deactivated) {
            return Err(FederationError::NotFound("user"));
        }
        let mut profile: Map<String, Value> = conn
            .profile_load(user)
            .await?
            .into_iter()
            .filter_map(|(name, value)| Some((name, serde_json::from_str(&value).ok()?)))
            .collect();
        if let Some(field) = field {
            profile.retain(|name, _| name == field);
            if profile.is_empty() && !matches!(field, "displayname" | "avatar_url") {
                return Err(FederationError::NotFound("profile field"));
            }
        }
        Ok(profile)
    }
}
