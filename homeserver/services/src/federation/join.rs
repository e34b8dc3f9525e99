//! Joins and knocks of other servers' users, through us.
//! <https://spec.matrix.org/v1.19/server-server-api/#joining-rooms>

use super::access::raw;
use super::{Federation, FederationError};
use crate::timeline::TimelineError;
use crate::timeline::append::{Draft, context, raw as raw_content, room_row, state_events};
use crate::timeline::join::{Restricted, authorise_restricted};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName,
    UserId,
};
use serde_json::Map;
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::{Event, state_key};
use waxwing_rooms::format::Counts;
use waxwing_rooms::{Pdu, auth, build, parse, sign, stripped};
use waxwing_storage::{Fact, NewRow, RoomRow, ServerSet, StoredEvent};

/// Members that a client shows for a room without a name.
const HEROES: usize = 5;

/// A membership event to complete and sign.
#[derive(Debug)]
pub struct Template {
    /// The room's version.
    pub version: RoomVersionId,
    /// The event.
    pub event: Box<RawValue>,
}

/// The answer to an accepted join.
#[derive(Debug)]
pub struct Joined {
    /// The join, with our signature where it needs one.
    pub event: Box<RawValue>,
    /// The state before it.
    pub state: Vec<Box<RawValue>>,
    /// What authorises it and the join.
    pub auth_chain: Vec<Box<RawValue>>,
    /// Whether members are missing from `state`.
    pub members_omitted: bool,
    /// Servers in the room before.
    pub servers: Vec<OwnedServerName>,
}

/// What a template is made of.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) room: OwnedRoomId,
    pub(super) user: OwnedUserId,
    pub(super) membership: &'static str,
}

impl Federation {
    /// `make_join`.
    ///
    /// # Errors
    /// [`FederationError::IncompatibleVersion`], [`FederationError::Forbidden`], and for restricted rooms
    /// [`FederationError::UnableToAuthorise`] and [`FederationError::UnableToGrant`].
    pub async fn make_join(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, FederationError> {
        self.template(origin, room, user, "join", Some(versions)).await
    }

    /// `make_knock`.
    ///
    /// # Errors
    /// As [`Federation::make_join`].
    pub async fn make_knock(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, FederationError> {
        self.template(origin, room, user, "knock", Some(versions)).await
    }

    pub(super) async fn template(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
        membership: &'static str,
        versions: Option<&[RoomVersionId]>,
    ) -> Result<Template, FederationError> {
        if user.server_name() != origin {
            return Err(FederationError::Forbidden("the user is of another server".to_owned()));
        }
        let row = self.room_for(origin, room).await?;
        if membership != "leave" {
            must_be_whole(&row)?;
        }
        if versions.is_some_and(|versions| !versions.contains(&row.version)) {
            return Err(FederationError::IncompatibleVersion(row.version));
        }
        let wanted = Wanted { room: room.to_owned(), user: user.to_owned(), membership };
        let core = self.core.clone();
        self.core
            .store
            .write("membership template", vec![room.to_owned()], move |tx| {
                let (core, wanted) = (core.clone(), wanted.clone());
                Box::pin(async move {
                    let row = room_row(tx, &wanted.room).await?;
                    let mut content = Map::new();
                    content.insert("membership".to_owned(), wanted.membership.into());
                    if wanted.membership == "join" {
                        let keys = [
                            state_key(StateEventType::RoomCreate, ""),
                            state_key(StateEventType::RoomJoinRules, ""),
                            state_key(StateEventType::RoomPowerLevels, ""),
                        ];
                        let state = state_events(tx, row.state_root, &keys).await?;
                        let restricted =
                            authorise_restricted(&core, tx, &wanted.room, &wanted.user, &row.version, &state)
                                .await?;
                        if let Some(user) = authoriser(restricted)? {
                            content.insert(AUTHORISER.to_owned(), user.as_str().into());
                        }
                    }
                    let draft = Draft::state(
                        wanted.user.clone(),
                        TimelineEventType::RoomMember,
                        wanted.user.as_str(),
                        raw_content(&content)?,
                    )
                    .event_draft(&core);
                    let context = context(tx, &row, &draft).await?;
                    let event = build::build_event(draft.clone(), &context, &core.server_name, &core.key)?;
                    auth::check_state_dependent(&event, &row.version, &context.state)
                        .map_err(TimelineError::from)?;
                    let event = build::draft_without_signing(draft, &context)?;
                    Ok::<_, FederationError>(Template { version: row.version, event })
                })
            })
            .await
    }

    /// `send_join`.
    ///
    /// # Errors
    /// [`FederationError::InvalidParam`] for an event that is no join of a user of that server,
    /// [`FederationError::Forbidden`] for one that the room does not allow.
    pub async fn send_join(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event_id: &EventId,
        json: &RawValue,
        omit_members: bool,
    ) -> Result<Joined, FederationError> {
        let row = self.room_for(origin, room).await?;
        must_be_whole(&row)?;
        let servers = self.core.store.read().await?.servers_in(room).await?;
        let pdu = membership_pdu(&row, origin, event_id, json, "join")?;
        let signed = self.co_sign(&row, pdu).await?;
        let stored = self.accept(origin, room, &signed).await?;
        let before = stored
            .state_before
            .ok_or_else(|| FederationError::Forbidden("the join is not part of the room".to_owned()))?;
        let ids = self.state_ids_at(before).await?;
        let mut state = self.events_in_order(&ids).await?;
        if omit_members {
            omit_members_of(&mut state, &stored.event.sender);
        }
        let mut with_join = state.clone();
        with_join.push(Arc::clone(&stored));
        let chain = self.auth_chain(&row, &with_join).await?;
        let in_state: BTreeSet<&OwnedEventId> = state.iter().map(|stored| &stored.event.event_id).collect();
        Ok(Joined {
            // With the signature of the room's policy server, where it has one.
            event: raw(&stored),
            auth_chain: chain
                .iter()
                .filter(|stored| !omit_members || !in_state.contains(&stored.event.event_id))
                .map(|stored| raw(stored))
                .collect(),
            state: state.iter().map(|stored| raw(stored)).collect(),
            members_omitted: omit_members,
            servers,
        })
    }

    /// Adds our signature where the join needs it: one of our users lets the user into a restricted room.
    async fn co_sign(&self, row: &RoomRow, pdu: Pdu) -> Result<Box<RawValue>, FederationError> {
        let Some(authoriser) = pdu.event.content_str(AUTHORISER) else {
            return Ok((*pdu.event.json).to_owned());
        };
        let authoriser = UserId::parse(authoriser)
            .map_err(|_| FederationError::InvalidParam(format!("{AUTHORISER} is no user")))?;
        if !self.core.is_local(&authoriser) {
            return Ok((*pdu.event.json).to_owned());
        }
        let (core, room, user) = (self.core.clone(), row.room_id.clone(), pdu.event.sender.clone());
        self.core
            .store
            .write("authorise join", vec![room.clone()], move |tx| {
                let (core, room, user) = (core.clone(), room.clone(), user.clone());
                Box::pin(async move {
                    let row = room_row(tx, &room).await?;
                    let keys = [
                        state_key(StateEventType::RoomCreate, ""),
                        state_key(StateEventType::RoomJoinRules, ""),
                        state_key(StateEventType::RoomPowerLevels, ""),
                    ];
                    let state = state_events(tx, row.state_root, &keys).await?;
                    let restricted =
                        authorise_restricted(&core, tx, &room, &user, &row.version, &state).await?;
                    authoriser_of(restricted)
                })
            })
            .await?;
        let mut object = pdu.object;
        sign::sign_event(&mut object, &row.version, &self.core.server_name, &self.core.key)
            .map_err(|error| FederationError::InvalidParam(error.to_string()))?;
        parse::raw_canonical(&object).map_err(|error| FederationError::InvalidParam(error.to_string()))
    }

    /// Takes a membership event in and tells the other servers of the room.
    pub(super) async fn accept(
        &self,
        origin: &ServerName,
        room: &RoomId,
        json: &RawValue,
    ) -> Result<Arc<StoredEvent>, FederationError> {
        let before = self.core.store.read().await?.servers_in(room).await?;
        let id = self.inbound.receive_event(origin, room, json).await.map_err(FederationError::Forbidden)?;
        let stored = self.core.store.event(&id).await?.ok_or(FederationError::NotFound("event"))?;
        if !stored.flags.visible() {
            return Err(FederationError::Forbidden("the room does not allow it".to_owned()));
        }
        self.forward(origin, &stored.event, before).await?;
        Ok(stored)
    }

    /// Queues an event of another server for the rest of the room: we are the one that accepted it.
    async fn forward(
        &self,
        origin: &ServerName,
        event: &Arc<Event>,
        mut servers: Vec<OwnedServerName>,
    ) -> Result<(), FederationError> {
        servers.retain(|server| *server != self.core.server_name && server != origin);
        if servers.is_empty() {
            return Ok(());
        }
        let input = Arc::new((ServerSet::new(servers), event.room_id.clone(), event.event_id.clone()));
        self.core
            .store
            .write("forward", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let slot = tx.log_append(NewRow::new(Fact::Outbox));
                    tx.outgoing_put(slot, input.1.clone(), input.2.clone(), input.0.clone());
                    Ok(())
                })
            })
            .await
    }

    /// `send_knock`: gives what identifies the room, as full events.
    ///
    /// # Errors
    /// As [`Federation::send_join`].
    pub async fn send_knock(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event_id: &EventId,
        json: &RawValue,
    ) -> Result<Vec<Box<RawValue>>, FederationError> {
        let row = self.room_for(origin, room).await?;
        must_be_whole(&row)?;
        let pdu = membership_pdu(&row, origin, event_id, json, "knock")?;
        self.accept(origin, room, &pdu.event.json).await?;
        let state = self.state_events(row.state_root, &stripped::keys(None)).await?;
        Ok(state.values().map(|event| (*event.json).to_owned()).collect())
    }
}

/// While its members are missing, nobody is let into a room through us: other servers know better who may.
fn must_be_whole(row: &RoomRow) -> Result<(), FederationError> {
    if row.partial { Err(FederationError::NoRoom) } else { Ok(()) }
}

/// Leaves members out that a client needs not at once: all but the sender's server's and, in a room without a
/// name, those that it is named after.
fn omit_members_of(state: &mut Vec<Arc<StoredEvent>>, joiner: &UserId) {
    let named = state.iter().any(|stored| {
        stored.event.is_state_of(&StateEventType::RoomName, "")
            || stored.event.is_state_of(&StateEventType::RoomCanonicalAlias, "")
    });
    let mut heroes = if named { 0 } else { HEROES };
    state.retain(|stored| {
        if stored.event.kind != TimelineEventType::RoomMember {
            return true;
        }
        if stored.event.state_key.as_deref() == Some(joiner.as_str()) {
            return true;
        }
        let present = matches!(stored.event.content_str("membership").as_deref(), Some("join" | "invite"));
        let hero = present && heroes > 0;
        heroes -= usize::from(hero);
        hero
    });
}

/// The field that names who lets a user into a restricted room.
const AUTHORISER: &str = "join_authorised_via_users_server";

fn authoriser(restricted: Restricted) -> Result<Option<OwnedUserId>, FederationError> {
    match restricted {
        Restricted::No => Ok(None),
        Restricted::By(user) => Ok(Some(user)),
        Restricted::Elsewhere => Err(FederationError::UnableToAuthorise),
        Restricted::NoInviter => Err(FederationError::UnableToGrant),
    }
}

fn authoriser_of(restricted: Restricted) -> Result<(), FederationError> {
    authoriser(restricted).map(|_| ())
}

/// A membership event as its endpoint takes it: of a user of the sending server, about that user.
pub(super) fn membership_pdu(
    row: &RoomRow,
    origin: &ServerName,
    event_id: &EventId,
    json: &RawValue,
    membership: &str,
) -> Result<Pdu, FederationError> {
    let invalid = |why: &str| FederationError::InvalidParam(why.to_owned());
    let pdu = parse::parse_pdu(json, &row.version, Counts::Limited)
        .map_err(|error| FederationError::InvalidParam(error.to_string()))?;
    let event = &pdu.event;
    if event.event_id != event_id {
        return Err(invalid("the event has another id"));
    }
    if event.room_id != row.room_id {
        return Err(invalid("the event is of another room"));
    }
    if event.kind != TimelineEventType::RoomMember {
        return Err(invalid("the event is no membership event"));
    }
    if event.content_str("membership").as_deref() != Some(membership) {
        return Err(FederationError::InvalidParam(format!("the membership is not {membership}")));
    }
    if event.state_key.as_deref() != Some(event.sender.as_str()) {
        return Err(invalid("the event is about another user than its sender"));
    }
    if event.sender.server_name() != origin {
        return Err(invalid("the sender is of another server"));
    }
    Ok(pdu)
}
