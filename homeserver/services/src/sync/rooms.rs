//! Which rooms appear in an answer, and as what.

use super::ahead::StateAhead;
use super::build::Build;
use super::response::{JoinedRoom, Rooms};
use super::window::{RoomRows, Window};
use crate::folds::Membership;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, RoomId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_rooms::visibility::membership_of;
use waxwing_storage::{Fact, LogRow, RoomRow, StoreResult, StoredEvent};

/// Rooms of an answer, and which of them are new to the client.
#[derive(Default)]
pub(super) struct Shown {
    pub rooms: Rooms,
    /// Joined since the last answer.
    pub newly_joined: BTreeSet<OwnedRoomId>,
    /// Left since the last answer.
    pub newly_left: BTreeSet<OwnedRoomId>,
}

/// What the user's own membership of a room went through.
pub(super) struct OwnChange {
    /// Was joined before.
    pub was_joined: bool,
    /// Was joined at some time after that.
    pub joined_between: bool,
    /// Was not joined at some time.
    pub absent_between: bool,
    /// The last row of it.
    pub last: Arc<LogRow>,
}

fn is_membership(row: &LogRow) -> bool {
    matches!(row.fact, Fact::Event | Fact::State | Fact::Outside) && row.room.is_some()
}

impl Build<'_> {
    /// All rooms of the answer.
    pub async fn rooms(&self, window: &Window) -> StoreResult<Shown> {
        let mut shown = Shown::default();
        let mut whole: BTreeSet<OwnedRoomId> = BTreeSet::new();
        let everything = self.since.is_none() || self.request.full_state;
        let changes = self.own_changes(window).await?;
        let mut joined: BTreeSet<OwnedRoomId> = BTreeSet::new();
        for (room, change) in &changes {
            if self.rooms.get(room) == Some(&Membership::Join)
                && (!change.was_joined || change.absent_between)
            {
                shown.newly_joined.insert(room.clone());
                whole.insert(room.clone());
                joined.insert(room.clone());
            }
        }
        if everything {
            whole.extend(self.joined().cloned());
            joined.extend(self.joined().cloned());
        } else {
            let is_joined = |room: &OwnedRoomId| self.rooms.get(room) == Some(&Membership::Join);
            joined.extend(window.rooms.keys().filter(|room| is_joined(room)).cloned());
        }
        let typing = self.typing_rooms();
        joined.extend(typing.iter().cloned());
        for room in self.arrived(&joined, window).await? {
            shown.newly_joined.insert(room.clone());
            whole.insert(room);
        }
        shown.newly_joined.retain(|room| !self.is_held_back(room));
        joined.retain(|room| self.request.filter.room(room) && !self.is_held_back(room));
        if self.since.is_none() {
            self.rooms_from_nothing(&joined, &typing, &mut shown).await?;
            joined.clear();
        }
        let states = self.room_rows(&joined, &whole, window).await?;
        let empty = RoomRows::All(Vec::new());
        for room in joined {
            let newly = shown.newly_joined.contains(&room);
            let rows = window.rooms.get(&room).unwrap_or(&empty);
            let view = super::joined::View {
                rows,
                whole: whole.contains(&room),
                anew: newly || self.since.is_none(),
                newly,
                typing: typing.contains(&room),
                current: states.get(&room).map(|row| row.state_root),
            };
            if let Some(entry) = self.joined_room(&room, view).await? {
                shown.rooms.join.insert(room, entry);
            }
        }
        self.outside(window, &changes, everything, &mut shown).await?;
        Ok(shown)
    }

    /// Of the rooms, those whose members came since the last answer: for a client that wants all members at once they
    /// are new.
    async fn arrived(&self, rooms: &BTreeSet<OwnedRoomId>, window: &Window) -> StoreResult<Vec<OwnedRoomId>> {
        let Some(since) = self.since.filter(|_| self.request.filter.lazy_load().is_none()) else {
            return Ok(Vec::new());
        };
        let mut arrived = Vec::new();
        for room in rooms {
            let complete = match window.rooms.get(room) {
                None => false,
                Some(RoomRows::All(rows)) => rows.iter().any(|row| row.completes_room()),
                Some(RoomRows::Many) => {
                    self.core().store.read().await?.room_completed(room, since.0, self.upto.0).await?
                }
            };
            if complete {
                arrived.push(room.clone());
            }
        }
        Ok(arrived)
    }

    /// The joined rooms of an answer to a client that has nothing, read and shown together, some at a time.
    async fn rooms_from_nothing(
        &self,
        joined: &BTreeSet<OwnedRoomId>,
        typing: &BTreeSet<OwnedRoomId>,
        shown: &mut Shown,
    ) -> StoreResult<()> {
        let filter = &self.request.filter;
        let state = match (filter.no_state(), filter.lazy_load()) {
            (true, _) => StateAhead::None,
            (false, Some(_)) => StateAhead::BesidesMembers,
            (false, None) => StateAhead::Everything,
        };
        let joined: Vec<OwnedRoomId> = joined.iter().cloned().collect();
        let mut groups = Vec::with_capacity(joined.len() / super::ahead::ROOMS + 1);
        for some in joined.chunks(super::ahead::ROOMS) {
            groups.push(self.rooms_together(some, typing, state));
        }
        let mut groups = stream::iter(groups).buffered(super::ahead::TOGETHER);
        while let Some(group) = groups.next().await {
            shown.rooms.join.extend(group?);
        }
        Ok(())
    }

    /// Some of the joined rooms of an answer to a client that has nothing.
    fn rooms_together<'b>(
        &'b self,
        some: &'b [OwnedRoomId],
        typing: &'b BTreeSet<OwnedRoomId>,
        state: StateAhead,
    ) -> BoxFuture<'b, StoreResult<Vec<(OwnedRoomId, JoinedRoom)>>> {
        Box::pin(async move {
            let part = self.part();
            let ahead = part.look_ahead(some, self.request.filter.timeline_limit(), state).await?;
            part.set_ahead(ahead);
            let ahead = part.ahead();
            let rows = RoomRows::All(Vec::new());
            let mut drafts = Vec::with_capacity(some.len());
            for room in some {
                let view = super::joined::View {
                    rows: &rows,
                    whole: true,
                    anew: true,
                    newly: false,
                    typing: typing.contains(room),
                    current: ahead.rows.get(room).map(|row| row.state_root),
                };
                drafts.push((room.clone(), part.joined_whole(room, view).await?));
            }
            part.joined_rooms(drafts).await
        })
    }

    /// Invitations, knocks, and what was left.
    async fn outside(
        &self,
        window: &Window,
        changes: &BTreeMap<OwnedRoomId, OwnChange>,
        everything: bool,
        shown: &mut Shown,
    ) -> StoreResult<()> {
        // Whom the user ignores changed: so did the invitations that are shown.
        let ignored = window.own.iter().any(|row| {
            row.fact == Fact::AccountData && row.reference.as_deref() == Some("m.ignored_user_list")
        });
        for (room, membership) in self.rooms.iter() {
            if !(everything || ignored || changes.contains_key(room)) || !self.request.filter.room(room) {
                continue;
            }
            match membership {
                Membership::Join => {}
                Membership::Invite => {
                    if let Some(entry) = self.invited(room).await? {
                        shown.rooms.invite.insert(room.clone(), entry);
                    }
                }
                Membership::Knock => {
                    if let Some(entry) = self.knocked(room).await? {
                        shown.rooms.knock.insert(room.clone(), entry);
                    }
                }
            }
        }
        for (room, change) in changes {
            if self.rooms.contains_key(room) {
                continue;
            }
            if change.was_joined || change.joined_between {
                shown.newly_left.insert(room.clone());
            }
            if self.request.filter.room(room)
                && let Some(entry) = self.left_room(room, change, window).await?
            {
                shown.rooms.leave.insert(room.clone(), entry);
            }
        }
        if everything && self.request.filter.include_leave() {
            self.archived(shown).await?;
        }
        Ok(())
    }

    /// The rows of the rooms that are shown whole or of which too much happened to list.
    async fn room_rows(
        &self,
        rooms: &BTreeSet<OwnedRoomId>,
        whole: &BTreeSet<OwnedRoomId>,
        window: &Window,
    ) -> StoreResult<BTreeMap<OwnedRoomId, RoomRow>> {
        let needs = |room: &OwnedRoomId| match window.rooms.get(room) {
            _ if whole.contains(room) => true,
            Some(RoomRows::Many) => true,
            Some(RoomRows::All(rows)) => {
                rows.iter().any(|row| is_membership(row) && row.user.is_some() || row.completes_room())
            }
            None => false,
        };
        let wanted: Vec<OwnedRoomId> = rooms.iter().filter(|room| needs(room)).cloned().collect();
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.core().store.read().await?.rooms_load(&wanted).await
    }

    /// The rooms in which the user's own membership changed, or its member event did.
    pub async fn own_changes(&self, window: &Window) -> StoreResult<BTreeMap<OwnedRoomId, OwnChange>> {
        let mut by_room: BTreeMap<&RoomId, Vec<&Arc<LogRow>>> = BTreeMap::new();
        for row in window.own.iter().filter(|row| is_membership(row)) {
            if let Some(room) = &row.room {
                by_room.entry(room).or_default().push(row);
            }
        }
        let mut changes = BTreeMap::new();
        for (room, rows) in by_room {
            let (Some(first), Some(last)) = (rows.first(), rows.last()) else { continue };
            let mut joined_between = false;
            let mut absent_between = false;
            for row in &rows {
                let joined = self.is_join(row).await?;
                joined_between |= joined;
                absent_between |= !joined;
            }
            let was_joined = self.was_joined_before(first).await?;
            let change = OwnChange { was_joined, joined_between, absent_between, last: Arc::clone(last) };
            changes.insert(room.to_owned(), change);
        }
        Ok(changes)
    }

    async fn event_of(&self, row: &LogRow) -> StoreResult<Option<Arc<StoredEvent>>> {
        match (&row.event, row.event_id()) {
            (Some(stored), _) => Ok(Some(Arc::clone(stored))),
            (None, Some(id)) => self.core().store.event(&id).await,
            (None, None) => Ok(None),
        }
    }

    async fn is_join(&self, row: &LogRow) -> StoreResult<bool> {
        if row.fact == Fact::Outside {
            return Ok(row.data.as_deref() == Some("join"));
        }
        let event = self.event_of(row).await?;
        Ok(event.is_some_and(|stored| membership_of(Some(&stored.event)).as_str() == "join"))
    }

    /// Whether the user was joined before the row. Of a row that does not say what it replaced: no, so that the room
    /// is shown whole.
    async fn was_joined_before(&self, row: &LogRow) -> StoreResult<bool> {
        if row.fact != Fact::Event {
            return Ok(false);
        }
        let Some(root) = self.event_of(row).await?.and_then(|stored| stored.state_before) else {
            return Ok(false);
        };
        let store = &self.core().store;
        let before = store.state_get(root, StateEventType::RoomMember, self.user().as_str()).await?;
        let Some(before) = before else { return Ok(false) };
        let stored = store.event(&before).await?;
        Ok(stored.is_some_and(|stored| membership_of(Some(&stored.event)).as_str() == "join"))
    }
}
