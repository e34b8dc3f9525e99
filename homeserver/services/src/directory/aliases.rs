//! Room aliases. <https://spec.matrix.org/v1.19/client-server-api/#room-aliases>

use super::{Directory, DirectoryError};
use crate::timeline::{Author, Draft};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, UserId};
use serde_json::{Map, Value};
use waxwing_federation::client::ClientError;
use waxwing_model::state_key;
use waxwing_rooms::PowerLevels;

impl Directory {
    /// The room that an alias points at, and servers that are in it. Aliases of other servers are asked for there.
    ///
    /// # Errors
    /// [`DirectoryError::NotFound`]; [`DirectoryError::Unreachable`] when the other server does not answer,
    /// [`DirectoryError::Silent`] when an application service does not.
    pub async fn resolve_alias(
        &self,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>), DirectoryError> {
        if alias.server_name() != self.core.server_name {
            return self.resolve_elsewhere(alias).await;
        }
        let missing = DirectoryError::NotFound("room alias");
        let room = self.local_alias(alias).await?.ok_or(missing)?;
        let mut conn = self.core.store.read().await?;
        let mut servers = conn.servers_in(&room).await?;
        servers.retain(|server| *server != self.core.server_name);
        servers.insert(0, self.core.server_name.clone());
        Ok((room, servers))
    }

    /// The room of an alias of this server; one that points at nothing may be made by an application service.
    async fn local_alias(&self, alias: &RoomAliasId) -> Result<Option<OwnedRoomId>, DirectoryError> {
        let found = self.core.store.read().await?.alias_load(alias).await?;
        match (&found, &self.queries) {
            (None, Some(queries)) if queries.alias(alias).await? => {
                Ok(self.core.store.read().await?.alias_load(alias).await?)
            }
            _ => Ok(found),
        }
    }

    async fn resolve_elsewhere(
        &self,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>), DirectoryError> {
        let Some(client) = &self.client else { return Err(DirectoryError::NotFound("room alias")) };
        match client.query_directory(alias.server_name(), alias.to_owned()).await {
            Ok(found) => {
                let mut servers = found.servers;
                if !servers.iter().any(|server| server == alias.server_name()) {
                    servers.push(alias.server_name().to_owned());
                }
                Ok((found.room_id, servers))
            }
            Err(ClientError::Refused(refusal)) if refusal.status.is_client_error() => {
                Err(DirectoryError::NotFound("room alias"))
            }
            Err(error) => {
                tracing::info!(server = %alias.server_name(), %error, "an alias could not be looked up");
                Err(DirectoryError::Unreachable)
            }
        }
    }

    /// Points a new alias of this server at a room that the user is in.
    ///
    /// # Errors
    /// [`DirectoryError::AliasTaken`], [`DirectoryError::Exclusive`], [`DirectoryError::Forbidden`] for a room that the
    /// user is not in.
    pub async fn create_alias(
        &self,
        author: &Author,
        admin: bool,
        alias: &RoomAliasId,
        room: &RoomId,
    ) -> Result<(), DirectoryError> {
        if alias.server_name() != self.core.server_name {
            return Err(DirectoryError::InvalidParam("the alias belongs to another server"));
        }
        if alias.as_str().len() > MAX_ALIAS {
            return Err(DirectoryError::InvalidParam("the alias is too long"));
        }
        if !self.timeline.may_make_alias(author, alias) {
            return Err(DirectoryError::Exclusive);
        }
        let user = &*author.user;
        {
            let mut conn = self.core.store.read().await?;
            if conn.room_load(room).await?.is_none() {
                return Err(DirectoryError::NotFound("room"));
            }
            let member = conn.member_load(room, user).await?;
            if !admin && member.is_none_or(|member| member.membership != "join") {
                return Err(DirectoryError::Forbidden("you are not in the room"));
            }
        }
        let (alias, room, user) = (alias.to_owned(), room.to_owned(), user.to_owned());
        self.core
            .store
            .write("create alias", Vec::new(), move |tx| {
                let (alias, room, user) = (alias.clone(), room.clone(), user.clone());
                Box::pin(async move {
                    if tx.alias_save(&alias, &room, &user).await? {
                        Ok(())
                    } else {
                        Err(DirectoryError::AliasTaken)
                    }
                })
            })
            .await
    }

    /// Removes an alias of this server, and its mention in the room's canonical alias if the user may change that.
    /// Its creator may, administrators, and whoever may set the room's canonical alias; of the aliases of an application
    /// service, only that.
    ///
    /// # Errors
    /// [`DirectoryError::NotFound`], [`DirectoryError::Exclusive`], [`DirectoryError::Forbidden`].
    pub async fn delete_alias(
        &self,
        author: &Author,
        admin: bool,
        alias: &RoomAliasId,
    ) -> Result<(), DirectoryError> {
        let missing = DirectoryError::NotFound("room alias");
        if alias.server_name() != self.core.server_name {
            return Err(missing);
        }
        let (room, creator) = {
            let mut conn = self.core.store.read().await?;
            let room = conn.alias_load(alias).await?.ok_or(missing)?;
            (room, conn.alias_creator(alias).await?)
        };
        if !admin && !self.timeline.may_make_alias(author, alias) {
            return Err(DirectoryError::Exclusive);
        }
        let own = author.appservice.is_some() || creator.as_deref() == Some(author.user.as_str());
        if !own
            && !admin
            && !self.may_set(&author.user, &room, &TimelineEventType::RoomCanonicalAlias).await?
        {
            return Err(DirectoryError::Forbidden("you may not remove this alias"));
        }
        let gone = alias.to_owned();
        self.core
            .store
            .write("delete alias", Vec::new(), move |tx| {
                let gone = gone.clone();
                Box::pin(async move {
                    tx.alias_remove(&gone).await?;
                    Ok::<(), DirectoryError>(())
                })
            })
            .await?;
        if let Err(error) = self.unmention(author, &room, alias).await {
            tracing::debug!(%room, %error, "the canonical alias still names a removed alias");
        }
        Ok(())
    }

    /// Takes an alias out of the room's canonical alias event.
    async fn unmention(
        &self,
        author: &Author,
        room: &RoomId,
        alias: &RoomAliasId,
    ) -> Result<(), DirectoryError> {
        let kind = TimelineEventType::RoomCanonicalAlias;
        let Some(mut content) = self.state_content(room, StateEventType::RoomCanonicalAlias).await? else {
            return Ok(());
        };
        let before = content.clone();
        if content.get("alias").and_then(Value::as_str) == Some(alias.as_str()) {
            content.remove("alias");
        }
        if let Some(Value::Array(others)) = content.get_mut("alt_aliases") {
            others.retain(|other| other.as_str() != Some(alias.as_str()));
            if others.is_empty() {
                content.remove("alt_aliases");
            }
        }
        if content == before || !self.may_set(&author.user, room, &kind).await? {
            return Ok(());
        }
        let content = crate::timeline::raw(&content)?;
        self.timeline.set_state(author, room, Draft::state(author.user.clone(), kind, "", content)).await?;
        Ok(())
    }

    /// The content of a state entry with an empty key in the room's current state.
    pub(super) async fn state_content(
        &self,
        room: &RoomId,
        kind: StateEventType,
    ) -> Result<Option<Map<String, Value>>, DirectoryError> {
        let id = {
            let mut conn = self.core.store.read().await?;
            let Some(row) = conn.room_load(room).await? else { return Ok(None) };
            self.core.store.state(&mut conn).get(row.state_root, kind, "").await?
        };
        let Some(id) = id else { return Ok(None) };
        let stored = self.core.store.event(&id).await?;
        Ok(stored.and_then(|stored| stored.event.content_as().ok()))
    }

    /// Whether the user is in the room and has the power to set state of this type.
    pub(super) async fn may_set(
        &self,
        user: &UserId,
        room: &RoomId,
        kind: &TimelineEventType,
    ) -> Result<bool, DirectoryError> {
        let power = self.power(room).await?;
        let member = self.core.store.read().await?.member_load(room, user).await?;
        let joined = member.is_some_and(|member| member.membership == "join");
        Ok(joined && power.is_some_and(|power| power.can_send(user, kind, true)))
    }

    /// The room's power levels.
    pub(super) async fn power(&self, room: &RoomId) -> Result<Option<PowerLevels>, DirectoryError> {
        let keys =
            [state_key(StateEventType::RoomCreate, ""), state_key(StateEventType::RoomPowerLevels, "")];
        let (version, ids) = {
            let mut conn = self.core.store.read().await?;
            let Some(row) = conn.room_load(room).await? else { return Ok(None) };
            (row.version, self.core.store.state(&mut conn).get_many(row.state_root, &keys).await?)
        };
        let wanted: Vec<_> = ids.iter().flatten().cloned().collect();
        let events = self.core.store.events(&wanted).await?;
        let event = |index: usize| ids.get(index)?.as_ref().and_then(|id| events.get(id));
        let Some(create) = event(0) else { return Ok(None) };
        let levels = event(1).map(|stored| &*stored.event);
        Ok(PowerLevels::new(&create.event, levels, &version).ok())
    }

    /// The aliases of this server that point at a room.
    pub async fn aliases(&self, room: &RoomId) -> Result<Vec<OwnedRoomAliasId>, DirectoryError> {
        Ok(self.core.store.read().await?.aliases_of(room).await?)
    }
}

/// Bytes of an alias: <https://spec.matrix.org/v1.19/appendices/#room-aliases>.
const MAX_ALIAS: usize = 255;
