//! What another server may see: whether it may take part, and which form of an event it gets.

use super::{Federation, FederationError};
use crate::timeline::membership::resident_in;
use ruma::events::room::history_visibility::HistoryVisibility;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedUserId, RoomId, RoomVersionId, ServerName};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_federation::acl::ServerAcl;
use waxwing_model::{Event, StateKey, state_key};
use waxwing_rooms::redact;
use waxwing_rooms::state_tree::NodeId;
use waxwing_rooms::visibility::{ServerPresence, membership_of, server_may_see, visibility_of};
use waxwing_storage::{RoomRow, StoredEvent};

impl Federation {
    /// The row of a room that this server is in, for a server that the room's ACL permits.
    ///
    /// # Errors
    /// [`FederationError::NoRoom`], [`FederationError::Forbidden`] by the ACL.
    pub(super) async fn room_for(
        &self,
        origin: &ServerName,
        room: &RoomId,
    ) -> Result<RoomRow, FederationError> {
        let row = {
            let mut conn = self.core.store.read().await?;
            let row = conn.room_load(room).await?.ok_or(FederationError::NoRoom)?;
            if !resident_in(&self.core, &mut conn, room).await? {
                return Err(FederationError::NoRoom);
            }
            row
        };
        self.check_acl(&row, origin).await?;
        Ok(row)
    }

    /// The same, for a server that is in the room.
    pub(crate) async fn room_of_member(
        &self,
        origin: &ServerName,
        room: &RoomId,
    ) -> Result<RoomRow, FederationError> {
        let row = self.room_for(origin, room).await?;
        self.must_be_in(origin, room).await?;
        Ok(row)
    }

    /// Whether a user of the server is joined.
    pub(super) async fn must_be_in(&self, origin: &ServerName, room: &RoomId) -> Result<(), FederationError> {
        if self.core.store.read().await?.server_is_in(room, origin).await? {
            Ok(())
        } else {
            Err(FederationError::Forbidden("your server is not in the room".to_owned()))
        }
    }

    /// The room's server ACL: <https://spec.matrix.org/v1.19/server-server-api/#server-access-control-lists-acls>.
    pub(super) async fn check_acl(&self, row: &RoomRow, origin: &ServerName) -> Result<(), FederationError> {
        let key = state_key(StateEventType::RoomServerAcl, "");
        let acl = self.state_events(row.state_root, std::slice::from_ref(&key)).await?;
        if acl.get(&key).is_none_or(|event| ServerAcl::from_event(event).permits(origin)) {
            Ok(())
        } else {
            Err(FederationError::Forbidden("your server is banned from the room".to_owned()))
        }
    }

    /// The events of these entries of a state, as far as they are set.
    pub(super) async fn state_events(
        &self,
        root: NodeId,
        keys: &[StateKey],
    ) -> Result<BTreeMap<StateKey, Arc<Event>>, FederationError> {
        let ids = {
            let mut conn = self.core.store.read().await?;
            self.core.store.state(&mut conn).get_many(root, keys).await?
        };
        let wanted: Vec<OwnedEventId> = ids.iter().flatten().cloned().collect();
        let events = self.core.store.events(&wanted).await?;
        Ok(keys
            .iter()
            .zip(ids)
            .filter_map(|(key, id)| Some((key.clone(), Arc::clone(&events.get(&id?)?.event))))
            .collect())
    }

    /// All state event ids at `root`.
    pub(super) async fn state_ids_at(&self, root: NodeId) -> Result<Vec<OwnedEventId>, FederationError> {
        let mut conn = self.core.store.read().await?;
        let entries = self.core.store.state(&mut conn).entries(root).await?;
        Ok(entries.into_iter().map(|(_, id)| id).collect())
    }

    /// Events that are here, in the order of `ids`.
    pub(super) async fn events_in_order(
        &self,
        ids: &[OwnedEventId],
    ) -> Result<Vec<Arc<StoredEvent>>, FederationError> {
        let found = self.core.store.events(ids).await?;
        Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
    }

    /// The auth chain of these events, without themselves (unless one authorises another).
    pub(crate) async fn auth_chain(
        &self,
        row: &RoomRow,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Arc<StoredEvent>>, FederationError> {
        let mut seen: BTreeSet<OwnedEventId> = BTreeSet::new();
        let mut chain = Vec::new();
        let implied = waxwing_rooms::auth::create_event_id(&row.room_id, &row.version);
        let of = |stored: &StoredEvent| stored.event.auth_events.clone();
        let mut next: Vec<OwnedEventId> = events.iter().flat_map(|stored| of(stored)).collect();
        next.extend(implied.filter(|create| events.iter().any(|stored| stored.event.event_id != *create)));
        while !next.is_empty() {
            next.retain(|id| seen.insert(id.clone()));
            let found = self.events_in_order(&next).await?;
            next = found.iter().flat_map(|stored| of(stored)).collect();
            chain.extend(found.into_iter().filter(|stored| stored.event.room_id == row.room_id));
        }
        Ok(chain)
    }

    /// Whether the server may see each of these events whole; in the same order.
    pub(crate) async fn may_see(
        &self,
        origin: &ServerName,
        room: &RoomId,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<bool>, FederationError> {
        let users = self.core.store.read().await?.members_of_server(room, origin).await?;
        let concealed = crate::erasure::concealed(&self.core, &users, events).await?;
        let mut known: BTreeMap<NodeId, bool> = BTreeMap::new();
        let mut seen = Vec::with_capacity(events.len());
        for stored in events {
            if concealed.contains(&stored.event.event_id) {
                seen.push(false);
                continue;
            }
            // State events that let servers take part are seen by whoever takes part.
            let Some(root) = stored.state_before else {
                seen.push(stored.event.is_state());
                continue;
            };
            let own = stored.event.kind == TimelineEventType::RoomMember
                && stored.event.state_key.as_deref().is_some_and(|key| users.iter().any(|user| user == key));
            if own || stored.event.sender.server_name() == origin {
                seen.push(true);
                continue;
            }
            let may = match known.get(&root) {
                Some(may) => *may,
                None => {
                    let may = self.may_see_at(root, &users).await?;
                    known.insert(root, may);
                    may
                }
            };
            seen.push(may);
        }
        Ok(seen)
    }

    async fn may_see_at(&self, root: NodeId, users: &[OwnedUserId]) -> Result<bool, FederationError> {
        let key = state_key(StateEventType::RoomHistoryVisibility, "");
        let state = self.state_events(root, std::slice::from_ref(&key)).await?;
        let visibility = visibility_of(state.get(&key).map(|event| &**event));
        if !matches!(visibility, HistoryVisibility::Invited | HistoryVisibility::Joined) {
            return Ok(server_may_see(&visibility, ServerPresence::default()));
        }
        let keys: Vec<StateKey> =
            users.iter().map(|user| state_key(StateEventType::RoomMember, user.as_str())).collect();
        let mut presence = ServerPresence::default();
        for event in self.state_events(root, &keys).await?.values() {
            match membership_of(Some(event)) {
                ruma::events::room::member::MembershipState::Join => presence.joined = true,
                ruma::events::room::member::MembershipState::Invite => presence.invited = true,
                _ => {}
            }
        }
        Ok(server_may_see(&visibility, presence))
    }

    /// The events as the server gets them: those that it may not see are redacted.
    /// <https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events>
    pub(super) async fn shown(
        &self,
        origin: &ServerName,
        row: &RoomRow,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Box<RawValue>>, FederationError> {
        let may = self.may_see(origin, &row.room_id, events).await?;
        Ok(events
            .iter()
            .zip(may)
            .filter_map(
                |(stored, may)| {
                    if may { Some(raw(stored)) } else { redacted(&stored.event, &row.version) }
                },
            )
            .collect())
    }
}

fn redacted(event: &Event, version: &RoomVersionId) -> Option<Box<RawValue>> {
    redact::redact_event(event, version, None).ok().map(|event| (*event.json).to_owned())
}

/// The event in federation format.
pub(super) fn raw(stored: &StoredEvent) -> Box<RawValue> {
    (*stored.event.json).to_owned()
}
