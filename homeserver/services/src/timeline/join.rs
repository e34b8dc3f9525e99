//! Joining and knocking: here, or through another server.

use super::append::{Draft, append, raw, room_row, state_events};
use super::error::TimelineError;
use super::membership::{membership_now, profile_content};
use super::policy::Approvals;
use super::{Author, Timeline, partial};
use crate::guests;
use ruma::canonical_json::CanonicalJsonObject;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde_json::{Map, Value};
use std::sync::Arc;
use waxwing_federation::remote::{JoinRequest, KnockRequest, LeaveRequest, RemoteError};
use waxwing_model::state_key;
use waxwing_rooms::sealed;
use waxwing_rooms::{AuthMap, PowerLevels};
use waxwing_storage::{MemberRow, Tx};

/// A wish to be in a room.
#[derive(Clone, Debug)]
pub struct JoinRoom {
    /// Who.
    pub author: Author,
    /// Where.
    pub room: OwnedRoomId,
    /// Servers that may help, from the client or an alias.
    pub via: Vec<OwnedServerName>,
    /// More content of the member event: a reason, `third_party_invite`.
    pub content: Map<String, Value>,
}

/// How a local join can be done.
enum Way {
    Done,
    Remote,
}

impl Timeline {
    /// Joins a room. Joining again is no error and no event.
    ///
    /// # Errors
    /// [`TimelineError::Sealed`] for a room without encryption, [`TimelineError::Forbidden`] where the rules forbid
    /// it, [`TimelineError::GuestsForbidden`] for guests, [`TimelineError::Unreachable`] and [`TimelineError::Remote`] from other servers.
    pub async fn join(&self, join: JoinRoom) -> Result<(), TimelineError> {
        self.not_blocked(&join.room).await?;
        let guest = guests::is_guest(&self.core, &join.author.user).await?;
        if self.resident(&join.room).await? {
            if guest && !guests::may_enter(&self.core, &join.room).await? {
                return Err(TimelineError::GuestsForbidden);
            }
            match self.join_here(&join).await? {
                Way::Done => return Ok(()),
                Way::Remote => {}
            }
        }
        let (author, room) = (join.author.clone(), join.room.clone());
        self.join_elsewhere(join).await?;
        if guest && !guests::may_enter(&self.core, &room).await? {
            // Only from inside was it to be seen.
            self.leave(&author, &room, None).await?;
            return Err(TimelineError::GuestsForbidden);
        }
        Ok(())
    }

    /// Nobody enters a room that an administrator has blocked, or that is being purged.
    async fn not_blocked(&self, room: &RoomId) -> Result<(), TimelineError> {
        match self.core.store.read().await?.room_blocked_by(room).await? {
            Some(_) => Err(TimelineError::Forbidden("this room has been blocked on this server".to_owned())),
            None => Ok(()),
        }
    }

    async fn join_here(&self, join: &JoinRoom) -> Result<Way, TimelineError> {
        super::ends::note(&join.room, self.join_ends(&join.room).await)?;
        let policy = self.seal_policy(&join.room, &join.author);
        let mut content = profile_content(&self.core, &join.author.user).await?;
        content.extend(join.content.clone());
        content.insert("membership".to_owned(), "join".into());
        let input = Arc::new((join.clone(), content, policy, Approvals::default()));
        let core = self.core.clone();
        let rooms = vec![join.room.clone()];
        self.with_policy(|| {
            let (core, input) = (core.clone(), Arc::clone(&input));
            self.core.store.write("join", rooms.clone(), move |tx| {
                let (core, input) = (core.clone(), Arc::clone(&input));
                Box::pin(async move {
                    let (join, content, policy, approvals) = &*input;
                    let user = &join.author.user;
                    let row = room_row(tx, &join.room).await?;
                    let now = membership_now(tx, &join.room, user).await?;
                    if now.as_deref() == Some("join") {
                        return Ok(Way::Done);
                    }
                    if row.partial && now.is_none() {
                        // Whether the user is banned is not known here yet.
                        return Ok(Way::Remote);
                    }
                    let keys = [
                        state_key(StateEventType::RoomCreate, ""),
                        state_key(StateEventType::RoomEncryption, ""),
                        state_key(StateEventType::RoomJoinRules, ""),
                        state_key(StateEventType::RoomPowerLevels, ""),
                    ];
                    let state = state_events(tx, row.state_root, &keys).await?;
                    let create = state.get(&keys[0]).ok_or(TimelineError::NoRoom)?;
                    let encryption = state.get(&keys[1]).map(|event| &**event);
                    if let Err(refusal) = sealed::check_local_join(create, encryption, policy)
                        && !tx.is_notice_room(&join.room).await?
                    {
                        return Err(refusal.into());
                    }
                    let mut content = content.clone();
                    match authorise_restricted(&core, tx, &join.room, user, &row.version, &state).await? {
                        Restricted::No => {}
                        Restricted::By(authoriser) => {
                            content.insert(
                                "join_authorised_via_users_server".to_owned(),
                                authoriser.as_str().into(),
                            );
                        }
                        Restricted::Elsewhere | Restricted::NoInviter => return Ok(Way::Remote),
                    }
                    let member = TimelineEventType::RoomMember;
                    let mut draft = Draft::state(user.clone(), member, user.as_str(), raw(&content)?);
                    draft.approvals = approvals.clone();
                    append(&core, tx, &join.room, &draft).await?;
                    Ok(Way::Done)
                })
            })
        })
        .await
    }

    async fn join_elsewhere(&self, join: JoinRoom) -> Result<(), TimelineError> {
        // Where we are in the room with all of its members, another server lets us in, but need not be believed.
        let whole = self.resident(&join.room).await? && !self.lacks_members(&join.room).await?;
        let Some(remote) = &self.remote else { return Err(TimelineError::NoRoom) };
        let servers = self.helpers(&join.room, &join.author.user, &join.via).await?;
        if servers.is_empty() {
            return Err(TimelineError::NoRoom);
        }
        self.check_before_join(&join, &servers).await?;
        let mut content = profile_content(&self.core, &join.author.user).await?;
        content.extend(join.content.clone());
        let request = JoinRequest {
            room: join.room.clone(),
            user: join.author.user.clone(),
            servers,
            content: canonical(content)?,
            omit_members: !whole,
        };
        let joined = remote.join(&request).await.map_err(remote_error)?;
        let encryption = joined.state.get(&state_key(StateEventType::RoomEncryption, ""));
        let policy = self.seal_policy(&join.room, &join.author);
        let sealed = sealed::check_local_join(&joined.create, encryption.map(|event| &**event), &policy);
        self.accept_joined(joined).await?;
        self.members_wanted.notify_waiters();
        partial::wait_for_members(&self.core, &join.room, self.patience.join).await?;
        if let Err(refusal) = sealed {
            // The room turned out to be one that our people could not read. Out again, as soon as we can see it.
            self.leave(&join.author, &join.room, None).await?;
            return Err(refusal.into());
        }
        Ok(())
    }

    /// Servers that may help with a room: those named and the inviter's, in this order; where there are none, those that
    /// were in it, and the one that the room's id names.
    pub(crate) async fn helpers(
        &self,
        room: &RoomId,
        user: &UserId,
        via: &[OwnedServerName],
    ) -> Result<Vec<OwnedServerName>, TimelineError> {
        let mut conn = self.core.store.read().await?;
        let mut servers = via.to_vec();
        if let Some(row) = conn.member_load(room, user).await? {
            match row.membership.as_str() {
                "invite" => servers.push(row.sender.server_name().to_owned()),
                // The id of a room of version 12 names no server; who made its state is in it, or was.
                "knock" => servers.extend(servers_of_stripped(row.stripped.as_deref())),
                _ => {}
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        servers.retain(|server| *server != self.core.server_name && seen.insert(server.clone()));
        if servers.is_empty() {
            servers.extend(conn.servers_in(room).await?);
            if let Some(name) = room.server_name() {
                servers.push(name.to_owned());
            }
            servers.retain(|server| *server != self.core.server_name && seen.insert(server.clone()));
        }
        Ok(servers)
    }

    /// Knocks on a room.
    ///
    /// # Errors
    /// As [`Timeline::join`].
    pub async fn knock(&self, knock: JoinRoom) -> Result<(), TimelineError> {
        self.not_blocked(&knock.room).await?;
        let mut content = profile_content(&self.core, &knock.author.user).await?;
        content.extend(knock.content.clone());
        if self.resident(&knock.room).await? {
            content.insert("membership".to_owned(), "knock".into());
            let user = knock.author.user.clone();
            let member = TimelineEventType::RoomMember;
            let draft = Draft::state(user.clone(), member, user.as_str(), raw(&content)?);
            return self.append_one("knock", &knock.room, draft).await.map(|_| ());
        }
        let Some(remote) = &self.remote else { return Err(TimelineError::NoRoom) };
        let servers = self.helpers(&knock.room, &knock.author.user, &knock.via).await?;
        if servers.is_empty() {
            return Err(TimelineError::NoRoom);
        }
        let request = KnockRequest {
            room: knock.room.clone(),
            user: knock.author.user.clone(),
            servers,
            content: canonical(content)?,
        };
        let knocked = remote.knock(&request).await.map_err(remote_error)?;
        let Some(mut row) = super::effects::member_row(&knocked.knock) else {
            return Err(TimelineError::Internal("a knock that is none".to_owned()));
        };
        row.stripped = Some(raw(&knocked.stripped_state)?.get().to_owned());
        self.save_outside(row).await
    }

    /// Rejects an invitation to, or leaves, a room that this server is not in.
    pub(crate) async fn leave_elsewhere(
        &self,
        row: &MemberRow,
        reason: Option<String>,
    ) -> Result<(), TimelineError> {
        let Some(remote) = &self.remote else { return Err(TimelineError::NoRoom) };
        let mut content = Map::new();
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        let request = LeaveRequest {
            room: row.room_id.clone(),
            user: row.user_id.clone(),
            servers: self.helpers(&row.room_id, &row.user_id, &[]).await?,
            content: canonical(content)?,
        };
        let (_, event) = remote.leave(&request).await.map_err(remote_error)?;
        self.leave_outside(row, Some(event.event_id)).await
    }
}

/// The servers of those who sent the events that came with an invitation or a knock, in their order.
fn servers_of_stripped(stripped: Option<&str>) -> Vec<OwnedServerName> {
    #[derive(serde::Deserialize)]
    struct Sent {
        sender: OwnedUserId,
    }
    let events: Vec<Sent> = stripped.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    events.into_iter().map(|event| event.sender.server_name().to_owned()).collect()
}

/// Whether a join needs an authoriser of this server.
pub(crate) enum Restricted {
    /// No: it is no restricted room, or the user is invited.
    No,
    /// Yes, this one.
    By(OwnedUserId),
    /// This server does not see the rooms that admit: another server must help.
    Elsewhere,
    /// Yes, but nobody here may invite: another server must help.
    NoInviter,
}

/// Finds who of this server authorises a join by the membership of another room.
/// <https://spec.matrix.org/v1.19/server-server-api/#restricted-rooms>
///
/// # Errors
/// [`TimelineError::Forbidden`] when the user meets none of the conditions.
pub(crate) async fn authorise_restricted(
    core: &crate::Core,
    tx: &mut Tx,
    room: &RoomId,
    user: &UserId,
    version: &RoomVersionId,
    state: &AuthMap,
) -> Result<Restricted, TimelineError> {
    let Some(rules) = state.get(&state_key(StateEventType::RoomJoinRules, "")) else {
        return Ok(Restricted::No);
    };
    let content: Map<String, Value> = rules.content_as().unwrap_or_default();
    if !matches!(content.get("join_rule").and_then(Value::as_str), Some("restricted" | "knock_restricted")) {
        return Ok(Restricted::No);
    }
    if matches!(membership_now(tx, room, user).await?.as_deref(), Some("invite" | "join")) {
        return Ok(Restricted::No);
    }
    let mut unknown = false;
    let mut allowed = false;
    for condition in content.get("allow").and_then(Value::as_array).into_iter().flatten() {
        if condition.get("type").and_then(Value::as_str) != Some("m.room_membership") {
            continue;
        }
        let Some(other) =
            condition.get("room_id").and_then(Value::as_str).and_then(|id| RoomId::parse(id).ok())
        else {
            continue;
        };
        if tx.local_joined_count(&other).await? == 0 {
            // What was known of a room that we have left may not hold any more.
            unknown = true;
        } else if tx.member_load(&other, user).await?.is_some_and(|row| row.membership == "join") {
            allowed = true;
        }
    }
    if !allowed {
        return if unknown {
            Ok(Restricted::Elsewhere)
        } else {
            Err(TimelineError::Forbidden("you are in none of the rooms that this room admits".to_owned()))
        };
    }
    let Some(create) = state.get(&state_key(StateEventType::RoomCreate, "")) else {
        return Ok(Restricted::No);
    };
    let levels = state.get(&state_key(StateEventType::RoomPowerLevels, "")).map(|event| &**event);
    let power = PowerLevels::new(create, levels, version)?;
    let locals = tx.local_members_of(room, "join").await?;
    debug_assert!(locals.iter().all(|member| core.is_local(member)));
    Ok(locals
        .into_iter()
        .find(|member| power.can_invite(member))
        .map_or(Restricted::NoInviter, Restricted::By))
}

fn canonical(content: Map<String, Value>) -> Result<CanonicalJsonObject, TimelineError> {
    content
        .into_iter()
        .map(|(field, value)| Ok((field, value.try_into()?)))
        .collect::<Result<_, ruma::CanonicalJsonError>>()
        .map_err(|error| TimelineError::BadContent(error.to_string()))
}

/// What another server's refusal means to our user.
pub(crate) fn remote_error(error: RemoteError) -> TimelineError {
    match error {
        RemoteError::NoServers => TimelineError::NoRoom,
        RemoteError::Refused(refusal) if refusal.errcode == "M_INCOMPATIBLE_ROOM_VERSION" => {
            TimelineError::IncompatibleVersion(refusal.room_version.unwrap_or_default())
        }
        RemoteError::Refused(refusal) => TimelineError::Remote {
            status: refusal.status.as_u16(),
            errcode: refusal.errcode,
            error: refusal.error,
            retry_after: refusal.retry_after,
        },
        RemoteError::IncompatibleVersion(version) => TimelineError::IncompatibleVersion(version),
        RemoteError::Unreachable(why) | RemoteError::Invalid(why) => TimelineError::Unreachable(why),
        RemoteError::Internal(error) => TimelineError::Internal(error.to_string()),
    }
}
