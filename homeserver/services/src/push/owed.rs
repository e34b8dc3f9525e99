//! What a user is to be told: unread events that their rules notify of, invitations, and how many there are.

use super::Parts;
use super::inbox::{Inbox, UnreadEvent};
use super::invitation::{Stripped, invitation};
use super::notification::{Details, Told};
use super::rules::flattened;
use crate::Badge;
use crate::folds::Membership;
use crate::visibility::visible_events;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::push::Action;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::{Event, LogPosition, state_key};
use waxwing_storage::{Fact, LogRow, MemberRow, StoreResult, StoredEvent};

/// After an outage the newest so many are told, and the older ones left out: a device shows no more.
const MAX_BACKLOG: usize = 100;
/// Log rows of a user that are looked through for invitations.
const MAX_ROWS: i64 = 1000;

/// Something to tell, by its place in the log.
#[derive(Debug)]
pub(super) struct Item {
    pub position: i64,
    kind: ItemKind,
}

#[derive(Debug)]
enum ItemKind {
    Event(OwnedEventId),
    Invitation(OwnedRoomId),
}

/// What a pusher owes its gateway.
#[derive(Debug)]
pub(super) struct Owed {
    /// Oldest first.
    pub items: Vec<Item>,
    /// How much is unread.
    pub badge: u64,
}

impl Parts {
    /// What came after `after` and up to `upto` and is unread, and how much is unread in all.
    pub(super) async fn owed(&self, user: &UserId, after: i64, upto: LogPosition) -> StoreResult<Owed> {
        let by_room = self.core.settings.push.badge == Badge::Rooms;
        let look = |inbox: &Inbox| {
            let mut owed = Owed { items: Vec::new(), badge: 0 };
            for events in inbox.unread.values() {
                owed.badge += if by_room { 1 } else { events.len() as u64 };
                let new = events.iter().filter(|(sn, _)| *sn > after && *sn <= upto.0);
                let item = |(sn, id): &UnreadEvent| Item { position: *sn, kind: ItemKind::Event(id.clone()) };
                owed.items.extend(new.map(item));
            }
            let invited = inbox.rooms.values().any(|membership| *membership == Membership::Invite);
            (owed, invited.then(|| Arc::clone(&inbox.ignored)))
        };
        let (mut owed, invited) = self.with_inbox(user, upto, look).await?;
        if let Some(ignored) = invited {
            self.invitations(user, after, upto, &ignored, &mut owed).await?;
        }
        owed.items.sort_unstable_by_key(|item| item.position);
        if owed.items.len() > MAX_BACKLOG {
            owed.items.drain(..owed.items.len() - MAX_BACKLOG);
        }
        Ok(owed)
    }

    async fn invitations(
        &self,
        user: &UserId,
        after: i64,
        upto: LogPosition,
        ignored: &BTreeSet<OwnedUserId>,
        owed: &mut Owed,
    ) -> StoreResult<()> {
        let rows = self.core.store.read().await?.memberships_of(user).await?;
        let open: HashMap<OwnedRoomId, OwnedEventId> = rows
            .into_iter()
            .filter(|row| row.membership == "invite" && !ignored.contains(&row.sender))
            .map(|row| (row.room_id, row.event_id))
            .collect();
        owed.badge += open.len() as u64;
        for row in self.rows_of(user, LogPosition(after), upto).await? {
            let (Fact::Event | Fact::Outside, Some(room)) = (row.fact, &row.room) else { continue };
            if open.get(room).map(|id| id.as_str()) == row.reference.as_deref() {
                let kind = ItemKind::Invitation(room.clone());
                owed.items.push(Item { position: row.position.0, kind });
            }
        }
        Ok(())
    }

    async fn rows_of(
        &self,
        user: &UserId,
        after: LogPosition,
        upto: LogPosition,
    ) -> StoreResult<Vec<Arc<LogRow>>> {
        if let Some(rows) = self.core.store.tail().range_of_user(user, after, upto) {
            return Ok(rows);
        }
        let mut conn = self.core.store.read().await?;
        let rows = conn.log_range_of_user(user, after, upto, MAX_ROWS).await?;
        Ok(rows.into_iter().map(Arc::new).collect())
    }

    /// What is told of an item now. `None`: nothing, because the user may not see it, or the rules say no by now.
    pub(super) async fn told(
        &self,
        user: &UserId,
        item: &Item,
        upto: LogPosition,
    ) -> StoreResult<Option<Told>> {
        match &item.kind {
            ItemKind::Event(id) => {
                let Some(stored) = self.core.store.event(id).await? else { return Ok(None) };
                let room = stored.event.room_id.clone();
                let visible = visible_events(&self.core, user, &room, vec![stored]).await?;
                match visible.into_iter().next() {
                    Some(stored) if stored.redacted_by.is_none() => {
                        self.tell_event(user, &stored, upto).await
                    }
                    _ => Ok(None),
                }
            }
            ItemKind::Invitation(room) => {
                let row = self.core.store.read().await?.member_load(room, user).await?;
                match row.filter(|row| row.membership == "invite") {
                    Some(row) => self.tell_invitation(&row, upto).await,
                    None => Ok(None),
                }
            }
        }
    }

    async fn tell_event(
        &self,
        user: &UserId,
        stored: &StoredEvent,
        upto: LogPosition,
    ) -> StoreResult<Option<Told>> {
        let event = &stored.event;
        let Some(actions) = self.actions(user, event, upto).await? else { return Ok(None) };
        let row = self.core.store.read().await?.room_load(&event.room_id).await?;
        let details =
            if row.is_none_or(|row| row.encrypted) { None } else { Some(self.details(user, event).await?) };
        let urgent = event.kind == TimelineEventType::RoomEncrypted;
        let (event_id, room) = (event.event_id.clone(), event.room_id.clone());
        Ok(Some(Told { event_id, room, actions, urgent, details }))
    }

    async fn tell_invitation(&self, row: &MemberRow, upto: LogPosition) -> StoreResult<Option<Told>> {
        let stored = self.core.store.event(&row.event_id).await?;
        let event = match stored {
            Some(stored) => Arc::clone(&stored.event),
            None => Arc::new(invitation(row)),
        };
        let Some(actions) = self.actions(&row.user_id, &event, upto).await? else { return Ok(None) };
        let known = self.core.store.read().await?.room_load(&row.room_id).await?;
        let state = Stripped::read(row.stripped.as_deref());
        let encrypted = known.is_some_and(|room| room.encrypted) || state.encrypted;
        let details = if encrypted {
            None
        } else if row.stripped.is_none() {
            Some(self.details(&row.user_id, &event).await?)
        } else {
            Some(Details {
                kind: event.kind.to_string(),
                sender: row.sender.to_string(),
                sender_name: state.names.get(row.sender.as_str()).cloned(),
                room_name: state.name,
                room_alias: state.alias,
                user_is_target: true,
                content: event.content.clone(),
            })
        };
        let (event_id, room) = (row.event_id.clone(), row.room_id.clone());
        Ok(Some(Told { event_id, room, actions, urgent: true, details }))
    }

    /// What the user's rules say about an event; `None` when they do not notify.
    pub(super) async fn actions(
        &self,
        user: &UserId,
        event: &Event,
        upto: LogPosition,
    ) -> StoreResult<Option<Vec<Action>>> {
        let flat = flattened(event);
        let rules = self.unread.rules().of(user, upto).await?;
        let context = self.unread.rules().context_for(user, &event.room_id, &flat, upto).await?;
        let actions = context.actions(&rules, &flat).await;
        Ok(actions.iter().any(Action::should_notify).then(|| actions.to_vec()))
    }

    async fn details(&self, user: &UserId, event: &Event) -> StoreResult<Details> {
        let sender = self.core.store.read().await?.member_load(&event.room_id, &event.sender).await?;
        let (room_name, room_alias) = self.names(&event.room_id).await?;
        Ok(Details {
            kind: event.kind.to_string(),
            sender: event.sender.to_string(),
            sender_name: sender.and_then(|sender| sender.display_name),
            room_name,
            room_alias,
            user_is_target: event.is_state_of(&StateEventType::RoomMember, user.as_str()),
            content: event.content.clone(),
        })
    }

    /// A room's name and its canonical alias.
    async fn names(&self, room: &RoomId) -> StoreResult<(Option<String>, Option<String>)> {
        let store = &self.core.store;
        let mut conn = store.read().await?;
        let Some(row) = conn.room_load(room).await? else { return Ok((None, None)) };
        let keys =
            [state_key(StateEventType::RoomName, ""), state_key(StateEventType::RoomCanonicalAlias, "")];
        let ids = store.state(&mut conn).get_many(row.state_root, &keys).await?;
        drop(conn);
        let mut names = [None, None];
        for (place, (id, field)) in names.iter_mut().zip(ids.into_iter().zip(["name", "alias"])) {
            let Some(id) = id else { continue };
            let stored = store.event(&id).await?;
            let text = stored.and_then(|stored| stored.event.content_str(field));
            *place = text.filter(|text| !text.is_empty());
        }
        let [name, alias] = names;
        Ok((name, alias))
    }
}
