//! Invitations of our users by other servers.
//! <https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room>

use super::{Federation, FederationError};
use crate::invite_permission::{InviteVerdict, invite_verdict};
use crate::timeline::effects::member_row;
use crate::timeline::membership::resident_in;
use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, OwnedRoomId, RoomVersionId, ServerName, UserId};
use serde_json::value::RawValue;
use waxwing_model::Event;
use waxwing_rooms::format::Counts;
use waxwing_rooms::{parse, sign, stripped, version};

/// State events of an invitation that are kept; the specification names eight kinds.
const MAX_STATE: usize = 100;

/// An invitation as it comes.
#[derive(Debug)]
pub struct Invitation {
    /// The room.
    pub room: OwnedRoomId,
    /// The id of the event.
    pub event_id: OwnedEventId,
    /// The room's version.
    pub version: RoomVersionId,
    /// The event, signed by the inviter's server.
    pub event: Box<RawValue>,
    /// State by which the user recognises the room.
    pub state: Vec<Box<RawValue>>,
}

impl Federation {
    /// Takes an invitation of one of our users: keeps it, and gives the event with our signature.
    ///
    /// # Errors
    /// [`FederationError::InvalidParam`] for an event that is no invitation of one of our users by one of theirs,
    /// [`FederationError::IncompatibleVersion`], [`FederationError::InviteBlocked`].
    pub async fn invite(
        &self,
        origin: &ServerName,
        invitation: Invitation,
    ) -> Result<Box<RawValue>, FederationError> {
        let room_version = &invitation.version;
        if version::rules(room_version).is_none() {
            return Err(FederationError::IncompatibleVersion(room_version.clone()));
        }
        let pdu = parse::parse_pdu(&invitation.event, room_version, Counts::Limited)
            .map_err(|error| FederationError::InvalidParam(error.to_string()))?;
        let target = self.check_invitation(origin, &invitation, &pdu.event)?;
        check_create(&invitation)?;
        let verified = self.inbound.verify_event(&invitation.room, room_version, &invitation.event).await;
        verified.map_err(FederationError::Forbidden)?;
        let resident = {
            let mut conn = self.core.store.read().await?;
            if conn.room_blocked_by(&invitation.room).await?.is_some() {
                return Err(FederationError::Forbidden("this room has been blocked here".to_owned()));
            }
            let row = conn.room_load(&invitation.room).await?;
            let resident = row.is_some() && resident_in(&self.core, &mut conn, &invitation.room).await?;
            row.filter(|_| resident)
        };
        if let Some(row) = &resident {
            self.check_acl(row, origin).await?;
        }
        if let Err(error) = self.timeline.ask_for_user(&target).await {
            tracing::info!(%error, "an invitation of a user who is not there");
        }
        let verdict = self.wanted(&target, &pdu.event).await?;
        if verdict == InviteVerdict::Block {
            return Err(FederationError::InviteBlocked);
        }
        let mut object = pdu.object;
        sign::sign_event(&mut object, room_version, &self.core.server_name, &self.core.key)
            .map_err(|error| FederationError::InvalidParam(error.to_string()))?;
        let signed = parse::raw_canonical(&object)
            .map_err(|error| FederationError::InvalidParam(error.to_string()))?;
        // In a room of ours it arrives in a transaction, with its place in the graph.
        if resident.is_none() && verdict == InviteVerdict::Allow {
            self.keep_invitation(&invitation, &pdu.event).await?;
        }
        Ok(signed)
    }

    fn check_invitation(
        &self,
        origin: &ServerName,
        invitation: &Invitation,
        event: &Event,
    ) -> Result<ruma::OwnedUserId, FederationError> {
        let invalid = |why: &str| FederationError::InvalidParam(why.to_owned());
        if event.event_id != invitation.event_id || event.room_id != invitation.room {
            return Err(invalid("the event has another id, or is of another room"));
        }
        if event.kind != TimelineEventType::RoomMember
            || event.content_str("membership").as_deref() != Some("invite")
        {
            return Err(invalid("the event is no invitation"));
        }
        if event.sender.server_name() != origin {
            return Err(invalid("the inviter is of another server"));
        }
        let target = event.state_key.as_deref().and_then(|key| UserId::parse(key).ok());
        target
            .filter(|user| self.core.is_local(user))
            .ok_or_else(|| invalid("the invited user is not of this server"))
    }

    /// Whether the user takes invitations by this inviter. One that was taken before is taken again.
    async fn wanted(&self, target: &UserId, invite: &Event) -> Result<InviteVerdict, FederationError> {
        let already = self.core.store.read().await?.member_load(&invite.room_id, target).await?;
        if already.is_some_and(|row| row.event_id == invite.event_id) {
            return Ok(InviteVerdict::Allow);
        }
        Ok(invite_verdict(&self.core, target, &invite.sender).await?)
    }

    async fn keep_invitation(&self, invitation: &Invitation, event: &Event) -> Result<(), FederationError> {
        let Some(mut row) = member_row(event) else { return Ok(()) };
        let mut state: Vec<Box<RawValue>> =
            invitation.state.iter().take(MAX_STATE).filter_map(|event| stripped::strip_raw(event)).collect();
        state.extend(stripped::strip(event));
        let state = serde_json::to_string(&state)
            .map_err(|error| FederationError::InvalidParam(error.to_string()))?;
        row.stripped = Some(state);
        Ok(self.timeline.save_outside(row).await?)
    }
}

/// A create event among the state of an invitation must be that of the room.
/// <https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2inviteroomideventid>
fn check_create(invitation: &Invitation) -> Result<(), FederationError> {
    let Some(create) = waxwing_rooms::auth::create_event_id(&invitation.room, &invitation.version) else {
        return Ok(());
    };
    for json in &invitation.state {
        let Ok(pdu) = parse::parse_pdu(json, &invitation.version, Counts::Unlimited) else { continue };
        if pdu.event.kind == TimelineEventType::RoomCreate && pdu.event.event_id != create {
            return Err(FederationError::InvalidParam("the create event is of another room".to_owned()));
        }
    }
    Ok(())
}
