//! Inviting: a user of this server in one transaction, a user of another with that server's signature.

use super::append::{Draft, append_built, prepare, raw, room_row, state_events};
use super::error::TimelineError;
use super::join::remote_error;
use super::{Author, Timeline};
use crate::invite_permission::{InviteVerdict, invite_verdict};
use ruma::events::TimelineEventType;
use ruma::{RoomId, RoomVersionId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::sync::Arc;
use waxwing_federation::remote::RemoteInvite;
use waxwing_model::Event;
use waxwing_rooms::stripped;

/// An invitation is signed elsewhere while the room goes on; when it moved meanwhile, it is made again.
const ATTEMPTS: usize = 5;

/// An invitation that is built, with what the other server gets to see of the room.
struct Prepared {
    event: Arc<Event>,
    version: RoomVersionId,
    revision: i64,
    state: Vec<Box<RawValue>>,
}

impl Timeline {
    /// Invites `target`; `content` holds more of the member event (a reason, `is_direct`).
    ///
    /// # Errors
    /// [`TimelineError::Forbidden`] by the rules, [`TimelineError::Remote`] when the other server refuses.
    pub async fn invite(
        &self,
        author: &Author,
        room: &RoomId,
        target: &UserId,
        mut content: Map<String, Value>,
    ) -> Result<(), TimelineError> {
        content.insert("membership".to_owned(), "invite".into());
        super::partial::wait_for_members(&self.core, room, self.patience.members).await?;
        self.ask_for_user(target).await?;
        if self.core.is_local(target) {
            content.extend(super::membership::profile_content(&self.core, target).await?);
        }
        let member = TimelineEventType::RoomMember;
        let draft = Draft::state(author.user.clone(), member, target.as_str(), raw(&content)?);
        if self.core.is_local(target) {
            self.invite_allowed(&author.user, target).await?;
            return self.invite_here(room, draft).await;
        }
        for _ in 0..ATTEMPTS {
            let prepared = self.with_policy(|| self.prepare_invite(room, &draft)).await?;
            let Some(remote) = &self.remote else {
                return Err(TimelineError::Forbidden("this server does not federate".to_owned()));
            };
            let invite =
                RemoteInvite { version: &prepared.version, event: &prepared.event, state: &prepared.state };
            let signed = remote.invite(target.server_name(), &invite).await.map_err(remote_error)?;
            if self.commit_invite(room, signed, prepared.revision).await? {
                return Ok(());
            }
        }
        Err(TimelineError::Raced)
    }

    /// Whether a user of ours takes invitations of `inviter`.
    pub(crate) async fn invite_allowed(
        &self,
        inviter: &UserId,
        target: &UserId,
    ) -> Result<(), TimelineError> {
        match invite_verdict(&self.core, target, inviter).await? {
            InviteVerdict::Block => Err(TimelineError::InviteBlocked),
            InviteVerdict::Allow | InviteVerdict::Ignore => Ok(()),
        }
    }

    async fn invite_here(&self, room: &RoomId, draft: Draft) -> Result<(), TimelineError> {
        let (core, room, draft) = (self.core.clone(), room.to_owned(), Arc::new(draft));
        let rooms = vec![room.clone()];
        self.with_policy(|| {
            let (core, room, draft) = (core.clone(), room.clone(), Arc::clone(&draft));
            self.core.store.write("invite", rooms.clone(), move |tx| {
                let (core, room, draft) = (core.clone(), room.clone(), Arc::clone(&draft));
                Box::pin(async move {
                    super::send::must_be_joined(tx, &room, &draft.sender).await?;
                    super::append::append(&core, tx, &room, &draft).await.map(|_| ())
                })
            })
        })
        .await
    }

    async fn prepare_invite(&self, room: &RoomId, draft: &Draft) -> Result<Prepared, TimelineError> {
        let (core, room, draft) = (self.core.clone(), room.to_owned(), Arc::new(draft.clone()));
        let rooms = vec![room.clone()];
        self.core
            .store
            .write("prepare invite", rooms, move |tx| {
                let (core, room, draft) = (core.clone(), room.clone(), Arc::clone(&draft));
                Box::pin(async move {
                    super::send::must_be_joined(tx, &room, &draft.sender).await?;
                    let row = room_row(tx, &room).await?;
                    let event = prepare(&core, tx, &row, draft.event_draft(&core)).await?;
                    let event = super::policy::approved(&core, tx, &row, &draft.approvals, event).await?;
                    let keys = stripped::keys(Some(&draft.sender));
                    let state = state_events(tx, row.state_root, &keys).await?;
                    let state = state
                        .values()
                        .map(|event| RawValue::from_string(event.json.get().to_owned()))
                        .collect::<Result<Vec<_>, _>>()
                        .map_err(|error| TimelineError::Internal(error.to_string()))?;
                    Ok(Prepared { event, version: row.version, revision: row.revision, state })
                })
            })
            .await
    }

    /// Whether the room was still as it had been when the invitation was built.
    async fn commit_invite(
        &self,
        room: &RoomId,
        signed: Event,
        revision: i64,
    ) -> Result<bool, TimelineError> {
        let (core, room, signed) = (self.core.clone(), room.to_owned(), Arc::new(signed));
        let rooms = vec![room.clone()];
        self.core
            .store
            .write("invite", rooms, move |tx| {
                let (core, room, signed) = (core.clone(), room.clone(), Arc::clone(&signed));
                Box::pin(async move {
                    let row = room_row(tx, &room).await?;
                    if row.revision != revision {
                        return Ok::<bool, TimelineError>(false);
                    }
                    append_built(&core, tx, row, signed).await?;
                    Ok(true)
                })
            })
            .await
    }
}
