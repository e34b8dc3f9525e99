//! Sending: messages, state, redactions.

use super::append::{Draft, MAX_PREV_EVENTS, append, room_row, state_events};
use super::effects::power_at;
use super::error::TimelineError;
use super::{Author, Timeline};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_model::{Event, state_key};
use waxwing_rooms::sealed;
use waxwing_storage::{Needs, TransactionKey, Tx};

/// A request that may be repeated: its answer is kept in the transaction that stores the event.
#[derive(Clone, Debug)]
pub struct Repeatable {
    /// The device that sends; empty for an application service without one.
    pub device: String,
    /// The endpoint, with room and type.
    pub endpoint: String,
    /// The client's transaction id.
    pub txn_id: String,
}

impl Repeatable {
    fn key(&self, user: &UserId) -> TransactionKey {
        (user.to_owned(), self.device.clone(), self.endpoint.clone(), self.txn_id.clone())
    }
}

impl Timeline {
    /// Sends a message-like event. With `repeat`, a repetition returns the first answer and sends nothing.
    ///
    /// # Errors
    /// [`TimelineError::Sealed`] for plaintext where it is refused, before anything is written.
    pub async fn send(
        &self,
        author: &Author,
        room: &RoomId,
        mut draft: Draft,
        repeat: Option<Repeatable>,
    ) -> Result<OwnedEventId, TimelineError> {
        let policy = self.seal_policy(room, author);
        sealed::check_local_send(&draft.kind, &draft.content, draft.state_key.as_deref(), &policy)?;
        self.settle_redaction(room, &mut draft).await?;
        let core = self.core.clone();
        let room: OwnedRoomId = room.to_owned();
        let request = repeat.as_ref().map(|repeat| repeat.key(&draft.sender));
        let needs = Needs { rooms: vec![room.clone()], request, ..Needs::default() };
        let input = Arc::new((draft, repeat));
        let suspended = author.suspended;
        for ends_joined in [false, true] {
            let sent = self.with_policy(|| {
                let (core, room, input) = (core.clone(), room.clone(), Arc::clone(&input));
                self.core.store.write_needing("send", needs.clone(), move |tx| {
                    let (core, room, input) = (core.clone(), room.clone(), Arc::clone(&input));
                    Box::pin(async move {
                        let (draft, repeat) = &*input;
                        if let Some(done) = answered(tx, &draft.sender, repeat.as_ref()).await? {
                            return Ok(Some(done));
                        }
                        if !ends_joined && room_row(tx, &room).await?.extremities.len() > MAX_PREV_EVENTS {
                            return Ok(None);
                        }
                        must_be_joined(tx, &room, &draft.sender).await?;
                        check_relation(tx, &room, draft).await?;
                        if draft.kind == TimelineEventType::RoomRedaction {
                            check_redaction(tx, &room, draft, suspended).await?;
                        }
                        let event = append(&core, tx, &room, draft).await?;
                        if let Some(repeat) = repeat {
                            remember(tx, &core, &draft.sender, repeat, &event.event_id);
                        }
                        Ok(Some(event.event_id.clone()))
                    })
                })
            });
            if let Some(id) = sent.await? {
                return Ok(id);
            }
            // Only where they were found to be too many are they looked at beforehand.
            super::ends::note(&room, self.join_ends(&room).await)?;
        }
        Err(TimelineError::Raced)
    }

    /// Sets a state entry. The same content by the same sender again is no new event.
    ///
    /// # Errors
    /// As [`Timeline::send`]; [`TimelineError::BadAlias`] for a canonical alias that does not point at the room.
    pub async fn set_state(
        &self,
        author: &Author,
        room: &RoomId,
        mut draft: Draft,
    ) -> Result<OwnedEventId, TimelineError> {
        let policy = self.seal_policy(room, author);
        sealed::check_local_send(&draft.kind, &draft.content, draft.state_key.as_deref(), &policy)?;
        if draft.kind == TimelineEventType::RoomMember {
            without_authoriser(&mut draft)?;
        }
        super::check::state_content(&self.core, room, &draft).await?;
        super::ends::note(room, self.join_ends(room).await)?;
        if draft.kind == TimelineEventType::RoomMember
            && let Some(done) = self.set_membership(author, room, &draft).await?
        {
            return Ok(done);
        }
        let core = self.core.clone();
        let room: OwnedRoomId = room.to_owned();
        let draft = Arc::new(draft);
        let rooms = vec![room.clone()];
        self.with_policy(|| {
            let (core, room, draft) = (core.clone(), room.clone(), Arc::clone(&draft));
            self.core.store.write("set state", rooms.clone(), move |tx| {
                let (core, room, draft) = (core.clone(), room.clone(), Arc::clone(&draft));
                Box::pin(async move {
                    must_be_joined(tx, &room, &draft.sender).await?;
                    if let Some(same) = unchanged(tx, &room, &draft).await? {
                        return Ok(same);
                    }
                    Ok(append(&core, tx, &room, &draft).await?.event_id.clone())
                })
            })
        })
        .await
    }

    /// A membership set as state does what the membership endpoints do: invitations are signed elsewhere, joins
    /// authorised. Gives the member event, or `None` where it is a state event like any other.
    async fn set_membership(
        &self,
        author: &Author,
        room: &RoomId,
        draft: &Draft,
    ) -> Result<Option<OwnedEventId>, TimelineError> {
        let Some(target) = draft.state_key.as_deref().and_then(|key| UserId::parse(key).ok()) else {
            return Err(TimelineError::BadContent("the state key must be a user id".to_owned()));
        };
        let content: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(draft.content.get())
                .map_err(|error| TimelineError::BadContent(error.to_string()))?;
        let now = self.core.store.read().await?.member_load(room, &target).await?;
        let joined = now.is_some_and(|row| row.membership == "join");
        match content.get("membership").and_then(serde_json::Value::as_str) {
            Some("invite") if !joined => self.invite(author, room, &target, content).await?,
            Some("join") if target == author.user && !joined => {
                let join = super::JoinRoom {
                    author: author.clone(),
                    room: room.to_owned(),
                    via: Vec::new(),
                    content,
                };
                self.join(join).await?;
            }
            Some("leave") if target == author.user => {
                let reason = content.get("reason").and_then(serde_json::Value::as_str).map(str::to_owned);
                self.leave(author, room, reason).await?;
            }
            _ => return Ok(None),
        }
        let row = self.core.store.read().await?.member_load(room, &target).await?;
        Ok(row.map(|row| row.event_id))
    }

    /// Where a redaction's target stands: below version 11 beside the content, later in it. Clients may write either.
    pub(super) async fn settle_redaction(
        &self,
        room: &RoomId,
        draft: &mut Draft,
    ) -> Result<(), TimelineError> {
        #[derive(Deserialize)]
        struct Content {
            redacts: Option<OwnedEventId>,
        }
        if draft.kind != TimelineEventType::RoomRedaction {
            return Ok(());
        }
        if draft.redacts.is_none() {
            let content: Content = serde_json::from_str(draft.content.get())
                .map_err(|error| TimelineError::BadContent(error.to_string()))?;
            draft.redacts = content.redacts;
        }
        if draft.redacts.is_none() {
            return Err(TimelineError::BadContent("a redaction must say what it redacts".to_owned()));
        }
        let row = self.core.store.read().await?.room_load(room).await?.ok_or(TimelineError::NoRoom)?;
        let in_content = waxwing_rooms::version::rules(&row.version)
            .is_some_and(|rules| rules.redaction.content_field_redacts);
        let mut content: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(draft.content.get())
                .map_err(|error| TimelineError::BadContent(error.to_string()))?;
        match (&draft.redacts, in_content) {
            (Some(id), true) => content.insert("redacts".to_owned(), id.as_str().into()),
            _ => content.remove("redacts"),
        };
        draft.content = super::append::raw(&content)?;
        Ok(())
    }
}

/// Who authorises a restricted join is for servers to say.
fn without_authoriser(draft: &mut Draft) -> Result<(), TimelineError> {
    let mut content: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(draft.content.get())
            .map_err(|_| TimelineError::BadContent("the content must be an object".to_owned()))?;
    if content.remove("join_authorised_via_users_server").is_some() {
        draft.content = super::append::raw(&content)?;
    }
    Ok(())
}

/// The answer that an earlier request with this transaction id got.
async fn answered(
    tx: &mut Tx,
    user: &UserId,
    repeat: Option<&Repeatable>,
) -> Result<Option<OwnedEventId>, TimelineError> {
    let Some(repeat) = repeat else { return Ok(None) };
    let found = tx.transaction_get(&repeat.key(user)).await?;
    Ok(found.and_then(|id| EventId::parse(id).ok()))
}

fn remember(tx: &mut Tx, core: &crate::Core, user: &UserId, repeat: &Repeatable, id: &EventId) {
    // Syncs show the transaction id to the device that sent it, without asking the database.
    tx.transaction_sent(repeat.key(user), id, core.now());
}

/// Only members speak.
pub(crate) async fn must_be_joined(tx: &mut Tx, room: &RoomId, user: &UserId) -> Result<(), TimelineError> {
    let row = room_row(tx, room).await?;
    let key = state_key(StateEventType::RoomMember, user.as_str());
    let state = state_events(tx, row.state_root, std::slice::from_ref(&key)).await?;
    match state.get(&key).and_then(|event| event.content_str("membership")).as_deref() {
        Some("join") => Ok(()),
        _ => Err(TimelineError::NotInRoom),
    }
}

/// The event that holds the entry now, when it says the same already.
pub(super) async fn unchanged(
    tx: &mut Tx,
    room: &RoomId,
    draft: &Draft,
) -> Result<Option<OwnedEventId>, TimelineError> {
    let row = room_row(tx, room).await?;
    let Some(key) = &draft.state_key else { return Ok(None) };
    let entry = state_key(StateEventType::from(draft.kind.to_string()), key.clone());
    let state = state_events(tx, row.state_root, std::slice::from_ref(&entry)).await?;
    let Some(now) = state.get(&entry) else { return Ok(None) };
    let same = now.sender == draft.sender && same_json(&now.content, &draft.content);
    Ok(same.then(|| now.event_id.clone()))
}

fn same_json(one: &RawValue, other: &RawValue) -> bool {
    let parse = |raw: &RawValue| serde_json::from_str::<serde_json::Value>(raw.get()).ok();
    parse(one).is_some_and(|one| Some(one) == parse(other))
}

/// A user may redact what is theirs; others' events only with the room's redact level, and while not suspended.
pub(super) async fn check_redaction(
    tx: &mut Tx,
    room: &RoomId,
    draft: &Draft,
    suspended: bool,
) -> Result<(), TimelineError> {
    let row = room_row(tx, room).await?;
    let Some(target_id) = &draft.redacts else { return Ok(()) };
    let target = tx.events_known(std::slice::from_ref(target_id)).await?.pop();
    let target: Option<Arc<Event>> = target.map(|stored| Arc::clone(&stored.event));
    match target {
        Some(target) if target.room_id != *room => Err(TimelineError::NotFound("event")),
        Some(target) if target.sender == draft.sender => Ok(()),
        _ if suspended => Err(TimelineError::Suspended),
        _ => match power_at(tx, &row.version, row.state_root).await? {
            Some(power) if power.can_redact(&draft.sender) => Ok(()),
            _ => Err(TimelineError::Forbidden("you may not redact this event".to_owned())),
        },
    }
}

#[derive(Deserialize)]
struct RelatesTo {
    #[serde(rename = "m.relates_to")]
    relates_to: Option<Relation>,
}

#[derive(Deserialize)]
struct Relation {
    rel_type: Option<String>,
    event_id: Option<OwnedEventId>,
    key: Option<String>,
}

/// The same reaction twice, or a thread on an event that is in a relation itself, is refused.
/// <https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-for-mreaction>
pub(super) async fn check_relation(tx: &mut Tx, room: &RoomId, draft: &Draft) -> Result<(), TimelineError> {
    let Ok(RelatesTo { relates_to: Some(relation) }) = serde_json::from_str(draft.content.get()) else {
        return Ok(());
    };
    let (Some(rel_type), Some(parent)) = (relation.rel_type, relation.event_id) else { return Ok(()) };
    match rel_type.as_str() {
        "m.annotation" => {
            let children = tx.relation_children(&parent, "m.annotation", draft.sender.as_str()).await?;
            for child in tx.events_known(&children).await? {
                let same = child.event.kind == draft.kind
                    && child.redacted_by.is_none()
                    && serde_json::from_str::<RelatesTo>(child.event.content.get())
                        .ok()
                        .and_then(|content| content.relates_to)
                        .is_some_and(|other| other.key == relation.key);
                if same {
                    return Err(TimelineError::DuplicateAnnotation);
                }
            }
            Ok(())
        }
        "m.thread" => {
            let Some(root) = tx.events_known(std::slice::from_ref(&parent)).await?.pop() else {
                return Ok(());
            };
            if root.event.room_id == *room && super::effects::relation(&root.event).is_some() {
                return Err(TimelineError::NoThreadRoot);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
