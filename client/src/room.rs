//! Rooms: create, invite, join, leave, speak, read.

use client_ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, RoomOrAliasId, TransactionId, UInt, UserId,
    api::client::{
        membership::{invite_user, join_room_by_id_or_alias, leave_room},
        message::{get_message_events, send_message_event},
        room::create_room::v3::{Request as CreateRoom, RoomPreset},
    },
    events::{
        InitialStateEvent, MessageLikeEventContent,
        room::{
            encryption::RoomEncryptionEventContent, member::MembershipState, message::RoomMessageEventContent,
        },
    },
};

use crate::{client::Client, crypto::Opened, error::Result, store::Membership, timeline::TimelineEvent};

/// Events per page of history.
const PAGE: u32 = 100;
/// Pages per call: a limit for rooms whose recent history is all state.
const MAX_PAGES: usize = 50;

impl Client {
    /// Creates a private encrypted room and invites `invite`.
    pub async fn create_encrypted_room(&self, name: &str, invite: &[&UserId]) -> Result<OwnedRoomId> {
        let encryption = RoomEncryptionEventContent::with_recommended_defaults();
        let mut request = CreateRoom::new();
        request.name = Some(name.to_owned()).filter(|name| !name.is_empty());
        request.preset = Some(RoomPreset::PrivateChat);
        request.invite = invite.iter().map(|user| (*user).to_owned()).collect();
        request.initial_state =
            vec![InitialStateEvent::with_empty_state_key(encryption.clone()).to_raw_any()];
        let room_id = self.http().send(request).await?.room_id;
        {
            let mut store = self.store();
            let room = store.room_mut(&room_id, Membership::Joined);
            room.encryption = Some(encryption);
            room.members.insert(self.user_id().to_owned(), MembershipState::Join);
        }
        self.save()?;
        Ok(room_id)
    }

    pub async fn invite(&self, room: &RoomId, user: &UserId) -> Result<()> {
        let recipient =
            invite_user::v3::InvitationRecipient::UserId(invite_user::v3::InviteUserId::new(user.to_owned()));
        self.http().send(invite_user::v3::Request::new(room.to_owned(), recipient)).await?;
        let mut store = self.store();
        let room = store.room_mut(room, Membership::Joined);
        room.members.entry(user.to_owned()).or_insert(MembershipState::Invite);
        Ok(())
    }

    /// Joins a room by id or alias; `via` names servers that know it.
    pub async fn join(&self, room: &RoomOrAliasId, via: &[OwnedServerName]) -> Result<OwnedRoomId> {
        let mut via = via.to_vec();
        if via.is_empty()
            && let Ok(id) = <&RoomId>::try_from(room)
            && let Some(inviter) = self.room(id).and_then(|known| known.inviter)
        {
            // Who invites us can let us in.
            via.push(inviter.server_name().to_owned());
        }
        let mut request = join_room_by_id_or_alias::v3::Request::new(room.to_owned());
        request.via = via;
        let room_id = self.http().send(request).await?.room_id;
        self.store().room_mut(&room_id, Membership::Joined).members_complete = false;
        self.save()?;
        Ok(room_id)
    }

    /// Leaves a room, or declines an invitation.
    pub async fn leave(&self, room: &RoomId) -> Result<()> {
        self.http().send(leave_room::v3::Request::new(room.to_owned())).await?;
        self.store().room_mut(room, Membership::Left);
        self.save()
    }

    /// Sends a line of text, sealed. Fails in a room that is not encrypted.
    pub async fn send_text(&self, room: &RoomId, text: &str) -> Result<OwnedEventId> {
        self.send_content(room, RoomMessageEventContent::text_plain(text)).await
    }

    /// Sends any message-like content, sealed.
    pub async fn send_content(
        &self,
        room: &RoomId,
        content: impl MessageLikeEventContent,
    ) -> Result<OwnedEventId> {
        self.complete_members(room).await?;
        let sealed = self.seal(room, content).await?;
        let request = send_message_event::v3::Request::new_raw(
            room.to_owned(),
            TransactionId::new(),
            "m.room.encrypted".into(),
            sealed,
        );
        let event_id = self.http().send(request).await?.event_id;
        self.upload_backup_quietly().await;
        Ok(event_id)
    }

    /// The last `limit` messages of a room, oldest first, decrypted where we hold the key.
    pub async fn messages(&self, room: &RoomId, limit: usize) -> Result<Vec<TimelineEvent>> {
        let mut found = Vec::new();
        let mut from = None;
        for _ in 0..MAX_PAGES {
            let mut request = get_message_events::v3::Request::backward(room.to_owned()).from(from.take());
            request.limit = UInt::from(PAGE);
            let page = self.http().send(request).await?;
            for raw in page.chunk {
                let raw = raw.cast_unchecked();
                let (Opened::Clear(event) | Opened::Decrypted(event, _) | Opened::Sealed(event)) =
                    self.open_event(room, &raw).await?;
                found.extend(event);
            }
            from = page.end;
            if from.is_none() || found.len() >= limit {
                break;
            }
        }
        found.truncate(limit);
        found.reverse();
        Ok(found)
    }
}
