//! Kick, ban, unban, leave, forget: what a membership change needs beyond the authorisation rules.

use super::append::{Draft, append, raw, room_row, state_events};
use super::error::TimelineError;
use super::{Author, Timeline, partial};
use crate::Core;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value};
use std::sync::Arc;
use waxwing_model::{Event, state_key};
use waxwing_storage::{Conn, Fact, MemberRow, NewRow, Tx};

/// What is done to a member by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Out, may come back.
    Kick,
    /// Out for good.
    Ban,
    /// May come back.
    Unban,
}

impl Timeline {
    /// Kicks, bans or unbans `target`.
    ///
    /// # Errors
    /// [`TimelineError::Forbidden`] where the rules or the target's membership do not allow it.
    pub async fn remove(
        &self,
        author: &Author,
        room: &RoomId,
        target: &UserId,
        removal: Removal,
        reason: Option<String>,
    ) -> Result<(), TimelineError> {
        // Whether the target is in the room may not be known yet.
        partial::wait_for_members(&self.core, room, self.patience.members).await?;
        super::ends::note(room, self.join_ends(room).await)?;
        let mut content = Map::new();
        let membership = if removal == Removal::Ban { "ban" } else { "leave" };
        content.insert("membership".to_owned(), membership.into());
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        let member = TimelineEventType::RoomMember;
        let draft = Arc::new(Draft::state(author.user.clone(), member, target.as_str(), raw(&content)?));
        let (core, room, target) = (self.core.clone(), room.to_owned(), target.to_owned());
        let rooms = vec![room.clone()];
        self.with_policy(|| {
            let (core, room, target, draft) =
                (core.clone(), room.clone(), target.clone(), Arc::clone(&draft));
            self.core.store.write("remove member", rooms.clone(), move |tx| {
                let (core, room, target, draft) =
                    (core.clone(), room.clone(), target.clone(), Arc::clone(&draft));
                Box::pin(async move {
                    super::send::must_be_joined(tx, &room, &draft.sender).await?;
                    let now = membership_now(tx, &room, &target).await?;
                    let fits = match removal {
                        Removal::Kick => matches!(now.as_deref(), Some("join" | "invite" | "knock")),
                        Removal::Ban => true,
                        Removal::Unban => now.as_deref() == Some("ban"),
                    };
                    match (fits, removal) {
                        (true, _) => append(&core, tx, &room, &draft).await.map(|_| ()),
                        (false, Removal::Unban) => {
                            Err(TimelineError::BadState("the user is not banned".to_owned()))
                        }
                        (false, _) => Err(TimelineError::Forbidden("the user is not in the room".to_owned())),
                    }
                })
            })
        })
        .await
    }

    /// Leaves a room, rejects an invitation or takes back a knock. For a room that this server is not in, the other
    /// servers are told; when none can be reached the user is out all the same.
    ///
    /// # Errors
    /// [`TimelineError::NotInRoom`] when there is nothing to leave, [`TimelineError::NoticeRoom`] for an invitation to
    /// where the server writes its notices.
    pub async fn leave(
        &self,
        author: &Author,
        room: &RoomId,
        reason: Option<String>,
    ) -> Result<(), TimelineError> {
        let row = self.core.store.read().await?.member_load(room, &author.user).await?;
        let Some(row) = row else {
            let known = self.core.store.read().await?.room_load(room).await?.is_some();
            return Err(if known { TimelineError::NotInRoom } else { TimelineError::NoRoom });
        };
        match row.membership.as_str() {
            "leave" => return Ok(()),
            "ban" => return Err(TimelineError::Forbidden("you are banned from this room".to_owned())),
            "invite"
                if self.core.is_notices_user(&row.sender)
                    && self.core.store.read().await?.is_notice_room(room).await? =>
            {
                return Err(TimelineError::NoticeRoom);
            }
            _ => {}
        }
        self.leave_whatever(author, &row, reason).await
    }

    async fn leave_whatever(
        &self,
        author: &Author,
        row: &MemberRow,
        reason: Option<String>,
    ) -> Result<(), TimelineError> {
        let room = &row.room_id;
        if self.resident(room).await? {
            return self.leave_here(author, room, reason).await;
        }
        let left = self.leave_elsewhere(row, reason).await;
        if let Err(error) = left {
            tracing::info!(%room, %error, "no server of the room took the leave; leaving here only");
            self.leave_outside(row, None).await?;
        }
        Ok(())
    }

    async fn leave_here(
        &self,
        author: &Author,
        room: &RoomId,
        reason: Option<String>,
    ) -> Result<(), TimelineError> {
        let mut content = Map::new();
        content.insert("membership".to_owned(), "leave".into());
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        let member = TimelineEventType::RoomMember;
        let draft = Draft::state(author.user.clone(), member, author.user.as_str(), raw(&content)?);
        self.append_one("leave", room, draft).await.map(|_| ())
    }

    /// Appends one event that needs no further checks.
    pub(crate) async fn append_one(
        &self,
        name: &'static str,
        room: &RoomId,
        draft: Draft,
    ) -> Result<Arc<Event>, TimelineError> {
        super::ends::note(room, self.join_ends(room).await)?;
        let (core, room, draft) = (self.core.clone(), room.to_owned(), Arc::new(draft));
        let rooms = vec![room.clone()];
        self.with_policy(|| {
            let (core, room, draft) = (core.clone(), room.clone(), Arc::clone(&draft));
            self.core.store.write(name, rooms.clone(), move |tx| {
                let (core, room, draft) = (core.clone(), room.clone(), Arc::clone(&draft));
                Box::pin(async move { append(&core, tx, &room, &draft).await })
            })
        })
        .await
    }

    /// Whether this server takes part in the room: one of its users is joined, or no other server's is.
    pub(crate) async fn resident(&self, room: &RoomId) -> Result<bool, TimelineError> {
        let mut conn = self.core.store.read().await?;
        Ok(conn.room_load(room).await?.is_some() && resident_in(&self.core, &mut conn, room).await?)
    }

    /// Sets down that the user is out of a room that this server is not in.
    pub(crate) async fn leave_outside(
        &self,
        row: &MemberRow,
        event: Option<OwnedEventId>,
    ) -> Result<(), TimelineError> {
        let mut row = row.clone();
        row.membership = "leave".to_owned();
        row.sender = row.user_id.clone();
        row.event_id = match event {
            Some(event) => event,
            // No event says so; the invitation's id must not pass for it.
            None => OwnedEventId::try_from(format!("${}", waxwing_model::opaque_id(43)))
                .map_err(|error| TimelineError::Internal(error.to_string()))?,
        };
        self.save_outside(row).await
    }

    /// Keeps a membership of a room that this server is not in, and tells the user.
    pub async fn save_outside(&self, row: MemberRow) -> Result<(), TimelineError> {
        let row = Arc::new(row);
        self.core
            .store
            .write("outside membership", Vec::new(), move |tx| {
                let row = Arc::clone(&row);
                Box::pin(async move {
                    tx.member_save(&row, true).await?;
                    let fact = NewRow::new(Fact::Outside)
                        .room(row.room_id.clone())
                        .user(row.user_id.clone())
                        .reference(row.event_id.as_str())
                        .data(row.membership.clone());
                    tx.log_append(fact);
                    Ok(())
                })
            })
            .await
    }

    /// Forgets a room that the user has left: it vanishes from the user's view.
    ///
    /// # Errors
    /// [`TimelineError::StillIn`] while the user is still in it.
    pub async fn forget(&self, user: &UserId, room: &RoomId) -> Result<(), TimelineError> {
        let row = self.core.store.read().await?.member_load(room, user).await?;
        match row.as_ref().map(|row| row.membership.as_str()) {
            None => return Err(TimelineError::NoRoom),
            Some("leave" | "ban") => {}
            Some(_) => return Err(TimelineError::StillIn),
        }
        let (room, user): (OwnedRoomId, OwnedUserId) = (room.to_owned(), user.to_owned());
        self.core
            .store
            .write("forget", Vec::new(), move |tx| {
                let (room, user) = (room.clone(), user.clone());
                Box::pin(async move {
                    tx.member_forget(&room, &user).await?;
                    tx.log_append(NewRow::new(Fact::Forgotten).room(room).user(user));
                    Ok(())
                })
            })
            .await
    }

    /// Leaves every room: what a deactivated account does. Failures are logged; the rest goes on.
    pub async fn leave_all(&self, user: &UserId) -> Result<(), TimelineError> {
        let rows = self.core.store.read().await?.memberships_of(user).await?;
        let author = Author::new(user);
        for row in rows.iter().filter(|row| matches!(row.membership.as_str(), "join" | "invite" | "knock")) {
            if let Err(error) = self.leave_whatever(&author, row, None).await {
                tracing::warn!(room = %row.room_id, %error, "a deactivated account could not leave a room");
            }
        }
        Ok(())
    }

    /// Writes the profile into the user's member event of each joined room.
    pub async fn spread_profile(&self, user: &UserId) -> Result<(), TimelineError> {
        let rows = self.core.store.read().await?.memberships_of(user).await?;
        for row in rows.iter().filter(|row| row.membership == "join") {
            let Some(event) = self.core.store.event(&row.event_id).await? else { continue };
            let mut content: Map<String, Value> = event.event.content_as().unwrap_or_default();
            let before = content.clone();
            content.retain(|field, _| !matches!(field.as_str(), "displayname" | "avatar_url" | "reason"));
            content.remove("join_authorised_via_users_server");
            content.extend(profile_content(&self.core, user).await?);
            if content == before {
                continue;
            }
            let draft = Draft::state(user, TimelineEventType::RoomMember, user.as_str(), raw(&content)?);
            if let Err(error) = self.append_one("profile", &row.room_id, draft).await {
                tracing::debug!(room = %row.room_id, %error, "a profile change was not taken by a room");
            }
        }
        Ok(())
    }
}

/// Whether this server takes part in a room that it knows.
pub(crate) async fn resident_in(core: &Core, conn: &mut Conn, room: &RoomId) -> Result<bool, TimelineError> {
    if conn.local_joined_count(room).await? > 0 {
        return Ok(true);
    }
    Ok(conn.servers_in(room).await?.iter().all(|server| *server == core.server_name))
}

/// The target's membership in the room's current state.
pub(crate) async fn membership_now(
    tx: &mut Tx,
    room: &RoomId,
    user: &UserId,
) -> Result<Option<String>, TimelineError> {
    let row = room_row(tx, room).await?;
    let key = state_key(StateEventType::RoomMember, user.as_str());
    let state = state_events(tx, row.state_root, std::slice::from_ref(&key)).await?;
    Ok(state.get(&key).and_then(|event| event.content_str("membership")))
}

/// What a member event says of the user beside the membership.
pub(crate) async fn profile_content(core: &Core, user: &UserId) -> Result<Map<String, Value>, TimelineError> {
    let fields = core.store.read().await?.member_profile(user).await?;
    Ok(fields
        .into_iter()
        .filter_map(|(field, value)| Some((field, serde_json::from_str::<Value>(&value).ok()?)))
        .filter(|(_, value)| value.is_string())
        .collect())
}
