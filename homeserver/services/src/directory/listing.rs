//! The public room list. <https://spec.matrix.org/v1.19/client-server-api/#published-room-directory>

use super::{Directory, DirectoryError, Summary};
use crate::appservices::of_instance;
use ruma::api::federation::directory::get_public_rooms_filtered::v1 as remote;
use ruma::directory::{Filter, PublicRoomsChunk, RoomNetwork};
use ruma::events::TimelineEventType;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, UInt, UserId};
use std::collections::BTreeSet;
use waxwing_storage::{Fact, NewRow};

/// Rooms of one page at most, and unless the client says otherwise.
const MAX_LIMIT: usize = 500;
/// Rooms of one page unless the client says otherwise.
const DEFAULT_LIMIT: usize = 100;

/// Which rooms of the list.
#[derive(Clone, Debug, Default)]
pub struct PublicRoomsQuery {
    /// The server whose list it is; none for ours.
    pub server: Option<OwnedServerName>,
    /// At most so many.
    pub limit: Option<UInt>,
    /// Where to go on.
    pub since: Option<String>,
    /// By words and by type.
    pub filter: Filter,
    /// Of which network.
    pub network: RoomNetwork,
}

/// A page of the list.
#[derive(Clone, Debug, Default)]
pub struct PublicRooms {
    /// The rooms.
    pub chunk: Vec<PublicRoomsChunk>,
    /// Where to go on.
    pub next: Option<String>,
    /// Where to go back to.
    pub prev: Option<String>,
    /// How many there are.
    pub total: Option<UInt>,
}

fn matches(summary: &Summary, filter: &Filter) -> bool {
    let of_type = filter.room_types.is_empty()
        || filter.room_types.iter().any(|wanted| wanted.as_str() == summary.room_type.as_deref());
    let term = filter.generic_search_term.as_deref().unwrap_or_default().trim().to_lowercase();
    let alias = summary.canonical_alias.as_ref().map(|alias| alias.as_str());
    let worded = term.is_empty()
        || [summary.name.as_deref(), summary.topic.as_deref(), alias]
            .into_iter()
            .flatten()
            .any(|text| text.to_lowercase().contains(&term));
    of_type && worded
}

fn offset(since: Option<&str>) -> Result<usize, DirectoryError> {
    let wrong = DirectoryError::InvalidParam("unknown pagination token");
    match since {
        None | Some("") => Ok(0),
        Some(since) => since.strip_prefix('p').and_then(|at| at.parse().ok()).ok_or(wrong),
    }
}

impl Directory {
    /// A page of the list of this server or another.
    ///
    /// # Errors
    /// [`DirectoryError::Unreachable`] when the other server does not answer.
    pub async fn public_rooms(&self, query: PublicRoomsQuery) -> Result<PublicRooms, DirectoryError> {
        match &query.server {
            Some(server) if *server != self.core.server_name => {
                let server = server.clone();
                self.list_elsewhere(&server, query).await
            }
            _ => self.list_here(&query).await,
        }
    }

    async fn list_elsewhere(
        &self,
        server: &OwnedServerName,
        query: PublicRoomsQuery,
    ) -> Result<PublicRooms, DirectoryError> {
        let Some(client) = &self.client else { return Err(DirectoryError::Unreachable) };
        let mut request = remote::Request::new();
        request.limit = query.limit;
        request.since = query.since;
        request.filter = query.filter;
        request.room_network = query.network;
        match client.public_rooms(server, request).await {
            Ok(found) => Ok(PublicRooms {
                chunk: found.chunk,
                next: found.next_batch,
                prev: found.prev_batch,
                total: found.total_room_count_estimate,
            }),
            Err(error) => {
                tracing::info!(%server, %error, "a room list could not be fetched");
                Err(DirectoryError::Unreachable)
            }
        }
    }

    /// A page of our own list: what federation gives others, too.
    pub async fn list_here(&self, query: &PublicRoomsQuery) -> Result<PublicRooms, DirectoryError> {
        let at = offset(query.since.as_deref())?;
        let limit = query.limit.map_or(DEFAULT_LIMIT, |limit| {
            // Nothing stands for no limit: <https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1publicrooms>.
            match usize::try_from(u64::from(limit)) {
                Ok(limit @ 1..=MAX_LIMIT) => limit,
                _ => MAX_LIMIT,
            }
        });
        let rooms = self.rooms_of(&query.network).await?;
        let mut found = Vec::new();
        for room in rooms {
            if let Some(summary) = self.summary_here(&room).await?
                && summary.num_joined_members > 0
                && matches(&summary, &query.filter)
            {
                found.push(summary);
            }
        }
        found.sort_by(|one, other| {
            let members = other.num_joined_members.cmp(&one.num_joined_members);
            members.then_with(|| one.room_id.cmp(&other.room_id))
        });
        let total = found.len();
        let end = at.saturating_add(limit);
        let chunk = found.iter().skip(at).take(limit).filter_map(chunk).collect();
        Ok(PublicRooms {
            chunk,
            next: (end < total).then(|| format!("p{end}")),
            prev: (at > 0).then(|| format!("p{}", at.saturating_sub(limit))),
            total: UInt::try_from(total).ok(),
        })
    }

    /// The rooms in the list of a network: ours, one of an application service, or all together.
    async fn rooms_of(&self, network: &RoomNetwork) -> Result<BTreeSet<OwnedRoomId>, DirectoryError> {
        let mut conn = self.core.store.read().await?;
        let mut rooms = BTreeSet::new();
        if let RoomNetwork::ThirdParty(instance) = network {
            let Some(queries) = &self.queries else { return Ok(rooms) };
            if let Some((id, network)) = of_instance(queries.appservices(), instance) {
                rooms.extend(conn.appservice_rooms(&id, network).await?);
            }
            return Ok(rooms);
        }
        rooms.extend(conn.rooms_published().await?);
        if *network == RoomNetwork::All {
            rooms.extend(conn.appservice_rooms_all().await?);
        }
        Ok(rooms)
    }

    /// Whether the room is in the list.
    ///
    /// # Errors
    /// [`DirectoryError::NotFound`] for an unknown room.
    pub async fn is_published(&self, room: &RoomId) -> Result<bool, DirectoryError> {
        let row = self.core.store.read().await?.room_load(room).await?;
        row.map(|row| row.published).ok_or(DirectoryError::NotFound("room"))
    }

    /// Puts a room into the list or takes it out. Whoever may set its canonical alias may, where the server lets
    /// everyone publish; and administrators.
    ///
    /// # Errors
    /// [`DirectoryError::NotFound`] for an unknown room, [`DirectoryError::Forbidden`].
    pub async fn publish(
        &self,
        user: &UserId,
        admin: bool,
        room: &RoomId,
        published: bool,
    ) -> Result<(), DirectoryError> {
        if self.is_published(room).await? == published {
            return Ok(());
        }
        if !admin {
            if published && !self.core.settings.everyone_publishes_rooms {
                return Err(DirectoryError::Forbidden("only administrators publish rooms on this server"));
            }
            if !self.may_set(user, room, &TimelineEventType::RoomCanonicalAlias).await? {
                return Err(DirectoryError::Forbidden("you may not publish this room"));
            }
        }
        self.set_published(room, published).await
    }

    pub(super) async fn set_published(&self, room: &RoomId, published: bool) -> Result<(), DirectoryError> {
        let room = room.to_owned();
        self.core
            .store
            .write("publish room", vec![room.clone()], move |tx| {
                let room = room.clone();
                Box::pin(async move {
                    let mut row = tx.room(&room).await?.ok_or(DirectoryError::NotFound("room"))?;
                    if row.published != published {
                        row.published = published;
                        tx.room_put(row).await?;
                        tx.log_append(NewRow::new(Fact::Room).room(room));
                    }
                    Ok(())
                })
            })
            .await
    }
}

/// The summary as the list has it.
fn chunk(summary: &Summary) -> Option<PublicRoomsChunk> {
    serde_json::to_value(summary).and_then(serde_json::from_value).ok()
}
