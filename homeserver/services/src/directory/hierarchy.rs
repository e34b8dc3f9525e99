//! The tree of a space. <https://spec.matrix.org/v1.19/client-server-api/#spaces>

use super::order::{Child, sort};
use super::{Directory, DirectoryError, Summary};
use moka::future::Cache;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName, UserId};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Rooms of one page at most, and unless the client says otherwise.
const MAX_LIMIT: usize = 50;
/// Levels at most: a space deeper than this is a mistake or an attack.
const MAX_DEPTH: u64 = 50;
/// Rooms looked at for one client at most, over all pages.
const MAX_ROOMS: usize = 1000;
/// Children of one space that are followed.
const MAX_CHILDREN: usize = 500;
/// Other servers asked for one room.
const MAX_SERVERS: usize = 3;
/// For how long the later pages of a tree may use what other servers said for the first.
const REMOTE_LIFE: Duration = Duration::from_mins(5);
/// Answers of other servers kept.
const REMOTE_ANSWERS: u64 = 1000;

/// A room in the tree of a space.
#[derive(Clone, Debug, Serialize)]
pub struct SpaceRoom {
    /// What it looks like.
    #[serde(flatten)]
    pub summary: Summary,
    /// Its `m.space.child` events, stripped, if it is a space.
    pub children_state: Vec<Box<RawValue>>,
}

/// What another server says of a space.
#[derive(Clone, Debug)]
pub(super) struct RemoteSpace {
    pub room: SpaceRoom,
    pub children: Vec<Summary>,
    pub inaccessible: Vec<OwnedRoomId>,
}

pub(super) type RemoteCache = Cache<(OwnedServerName, OwnedRoomId, bool), Arc<RemoteSpace>>;

pub(super) fn remote_cache() -> RemoteCache {
    Cache::builder().max_capacity(REMOTE_ANSWERS).time_to_live(REMOTE_LIFE).build()
}

/// Which part of a tree.
#[derive(Clone, Debug, Default)]
pub struct HierarchyQuery {
    /// Where to go on.
    pub from: Option<String>,
    /// At most so many rooms.
    pub limit: Option<usize>,
    /// Levels below the root.
    pub max_depth: Option<u64>,
    /// Only rooms that their space suggests.
    pub suggested_only: bool,
}

/// A page of a tree, depth first.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// The rooms.
    pub rooms: Vec<SpaceRoom>,
    /// Where to go on.
    pub next: Option<String>,
}

/// A room yet to be looked at.
struct Open {
    room: OwnedRoomId,
    via: Vec<OwnedServerName>,
    depth: u64,
    /// What the server that named it said of it and its neighbours.
    parent: Option<Arc<RemoteSpace>>,
}

/// What a look at a room found.
struct Seen {
    room: SpaceRoom,
    remote: Option<Arc<RemoteSpace>>,
}

/// A place in a tree. The tree is walked again for each page; what other servers said is kept meanwhile.
fn place(query: &HierarchyQuery, depth: u64) -> Result<usize, DirectoryError> {
    let wrong = DirectoryError::InvalidParam("the pagination token does not fit the parameters");
    let Some(from) = &query.from else { return Ok(0) };
    let rest = token(0, depth, query.suggested_only);
    let rest = rest.trim_start_matches("h0");
    let skipped = from.strip_prefix('h').and_then(|from| from.strip_suffix(rest));
    skipped.and_then(|skipped| skipped.parse().ok()).filter(|skipped| *skipped < MAX_ROOMS).ok_or(wrong)
}

fn token(skip: usize, depth: u64, suggested_only: bool) -> String {
    format!("h{skip}_{depth}_{}", u8::from(suggested_only))
}

impl Directory {
    /// A page of the tree below `root` as far as the user may know of its rooms.
    ///
    /// # Errors
    /// [`DirectoryError::Forbidden`] for a root that the user may not know of; [`DirectoryError::InvalidParam`] for a
    /// token of other parameters.
    pub async fn hierarchy(
        &self,
        user: &UserId,
        root: &RoomId,
        query: &HierarchyQuery,
    ) -> Result<Hierarchy, DirectoryError> {
        let depth = query.max_depth.unwrap_or(MAX_DEPTH).min(MAX_DEPTH);
        let skip = place(query, depth)?;
        let limit = query.limit.unwrap_or(MAX_LIMIT).clamp(1, MAX_LIMIT);
        let wanted = skip.saturating_add(limit).saturating_add(1).min(MAX_ROOMS);
        let mut rooms: Vec<SpaceRoom> = Vec::new();
        let mut visited: HashSet<OwnedRoomId> = HashSet::new();
        let via = self.root_servers(user, root).await?;
        let mut stack = vec![Open { room: root.to_owned(), via, depth: 0, parent: None }];
        let mut looked = 0;
        while let Some(open) = stack.pop() {
            if rooms.len() >= wanted || looked >= MAX_ROOMS {
                break;
            }
            if !visited.insert(open.room.clone()) {
                continue;
            }
            looked += 1;
            let Some(seen) = self.look(user, &open, query).await? else {
                if rooms.is_empty() && open.depth == 0 {
                    return Err(DirectoryError::Forbidden("you may not see this room"));
                }
                continue;
            };
            if seen.room.summary.is_space() && open.depth < depth {
                let mut children: Vec<Child> =
                    seen.room.children_state.iter().filter_map(|event| Child::read(event)).collect();
                sort(&mut children);
                children.truncate(MAX_CHILDREN);
                stack.extend(children.into_iter().rev().map(|child| Open {
                    room: child.room,
                    via: child.via,
                    depth: open.depth + 1,
                    parent: seen.remote.clone(),
                }));
            }
            rooms.push(seen.room);
        }
        let more = rooms.len() > skip.saturating_add(limit);
        let next = more.then(|| token(skip + limit, depth, query.suggested_only));
        Ok(Hierarchy { rooms: rooms.into_iter().skip(skip).take(limit).collect(), next })
    }

    /// Servers that may know the root, when we are not in it.
    async fn root_servers(
        &self,
        user: &UserId,
        root: &RoomId,
    ) -> Result<Vec<OwnedServerName>, DirectoryError> {
        let mut conn = self.core.store.read().await?;
        let member = conn.member_load(root, user).await?;
        let mut servers = conn.servers_in(root).await?;
        servers.extend(member.map(|member| member.sender.server_name().to_owned()));
        servers.extend(root.server_name().map(ToOwned::to_owned));
        Ok(servers)
    }

    /// What one room looks like to the user; `None` for one that the user may not know of, or that nobody knows.
    async fn look(
        &self,
        user: &UserId,
        open: &Open,
        query: &HierarchyQuery,
    ) -> Result<Option<Seen>, DirectoryError> {
        let seen = if self.takes_part(&open.room).await? {
            let room = self.space_here(&open.room, query.suggested_only).await?;
            room.map(|room| Seen { room, remote: None })
        } else {
            self.look_elsewhere(open, query).await
        };
        let Some(seen) = seen else { return Ok(None) };
        Ok(self.user_may_know(Some(user), &seen.room.summary).await?.then_some(seen))
    }

    async fn look_elsewhere(&self, open: &Open, query: &HierarchyQuery) -> Option<Seen> {
        if let Some(parent) = &open.parent {
            if parent.inaccessible.contains(&open.room) {
                return None;
            }
            let known = parent.children.iter().find(|child| child.room_id == open.room);
            if let Some(known) = known
                && !known.is_space()
            {
                let room = SpaceRoom { summary: known.clone(), children_state: Vec::new() };
                return Some(Seen { room, remote: None });
            }
        }
        let others = open.via.iter().filter(|server| **server != self.core.server_name);
        for server in others.take(MAX_SERVERS) {
            let key = (server.clone(), open.room.clone(), query.suggested_only);
            let kept = if query.from.is_some() { self.remote.get(&key).await } else { None };
            let found = match kept {
                Some(found) => Some(found),
                None => self.hierarchy_from(server, &open.room, query.suggested_only).await,
            };
            if let Some(found) = found {
                return Some(Seen { room: found.room.clone(), remote: Some(found) });
            }
        }
        None
    }

    /// What a server says of a room; `None` when it says nothing, or nothing that fits.
    pub(super) async fn hierarchy_from(
        &self,
        server: &ServerName,
        room: &RoomId,
        suggested_only: bool,
    ) -> Option<Arc<RemoteSpace>> {
        let client = self.client.as_ref()?;
        let answer = match client.hierarchy(server, room, suggested_only).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%server, %room, %error, "no summary");
                return None;
            }
        };
        let convert = |summary: &ruma::room::RoomSummary| -> Option<Summary> {
            serde_json::to_value(summary).and_then(serde_json::from_value).ok()
        };
        let summary = convert(&answer.room.summary).filter(|summary| summary.room_id == room)?;
        let mut children_state: Vec<Box<RawValue>> =
            answer.room.children_state.into_iter().map(ruma::serde::Raw::into_json).collect();
        children_state
            .retain(|event| Child::read(event).is_some_and(|child| child.suggested || !suggested_only));
        if !summary.is_space() {
            children_state.clear();
        }
        let found = Arc::new(RemoteSpace {
            room: SpaceRoom { summary, children_state },
            children: answer.children.iter().filter_map(convert).collect(),
            inaccessible: answer.inaccessible_children,
        });
        let key = (server.to_owned(), room.to_owned(), suggested_only);
        self.remote.insert(key, Arc::clone(&found)).await;
        Some(found)
    }

    /// A room that is known here, with its children.
    async fn space_here(
        &self,
        room: &RoomId,
        suggested_only: bool,
    ) -> Result<Option<SpaceRoom>, DirectoryError> {
        let Some(summary) = self.summary_here(room).await? else { return Ok(None) };
        let children_state =
            if summary.is_space() { self.children_here(room, suggested_only).await? } else { Vec::new() };
        Ok(Some(SpaceRoom { summary, children_state }))
    }

    /// The stripped `m.space.child` events of a space.
    async fn children_here(
        &self,
        room: &RoomId,
        suggested_only: bool,
    ) -> Result<Vec<Box<RawValue>>, DirectoryError> {
        let ids: Vec<OwnedEventId> = {
            let mut conn = self.core.store.read().await?;
            let Some(row) = conn.room_load(room).await? else { return Ok(Vec::new()) };
            let mut state = self.core.store.state(&mut conn);
            let entries = state.entries_of_type(row.state_root, &StateEventType::SpaceChild).await?;
            entries.into_iter().map(|(_, id)| id).collect()
        };
        let events = self.core.store.events(&ids).await?;
        let stripped = ids.iter().filter_map(|id| events.get(id)).filter_map(|stored| {
            let event = &stored.event;
            let stripped = json!({
                "type": event.kind.to_string(),
                "state_key": event.state_key,
                "content": &event.content,
                "sender": event.sender,
                "origin_server_ts": event.origin_server_ts,
            });
            serde_json::value::to_raw_value(&stripped).ok()
        });
        let mut children: Vec<(Child, Box<RawValue>)> = stripped
            .filter_map(|event| Some((Child::read(&event)?, event)))
            .filter(|(child, _)| child.suggested || !suggested_only)
            .collect();
        children.sort_by(|(one, _), (other, _)| one.place().cmp(&other.place()));
        Ok(children.into_iter().map(|(_, event)| event).collect())
    }

    /// What federation tells another server of a room and its direct children: the room, children that the server may
    /// know of, and children that it may not. Children that we do not know are in neither list.
    /// <https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1hierarchyroomid>
    ///
    /// # Errors
    /// [`DirectoryError::NotFound`] for a room that is not here, or that the server may not know of.
    pub async fn hierarchy_for(
        &self,
        origin: &ServerName,
        room: &RoomId,
        suggested_only: bool,
    ) -> Result<(SpaceRoom, Vec<Summary>, Vec<OwnedRoomId>), DirectoryError> {
        let missing = DirectoryError::NotFound("room");
        if !self.takes_part(room).await? {
            return Err(missing);
        }
        let space = self.space_here(room, suggested_only).await?.ok_or(missing)?;
        if !self.server_may_know(origin, &space.summary).await? {
            return Err(DirectoryError::NotFound("room"));
        }
        let mut children: Vec<Child> =
            space.children_state.iter().filter_map(|event| Child::read(event)).collect();
        sort(&mut children);
        children.truncate(MAX_CHILDREN);
        let (mut open, mut closed) = (Vec::new(), Vec::new());
        for child in children {
            if !self.takes_part(&child.room).await? {
                continue;
            }
            let Some(summary) = self.summary_here(&child.room).await? else { continue };
            if self.server_may_know(origin, &summary).await? {
                open.push(summary);
            } else {
                closed.push(child.room);
            }
        }
        Ok((space, open, closed))
    }
}
