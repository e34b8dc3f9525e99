//! One joined room of an answer.

use super::build::Build;
use super::response::{Events, JoinedRoom, StateSection, Summary};
use super::state::Entries;
use super::timeline::Stretch;
use super::window::RoomRows;
use crate::render::Shown;
use crate::visibility::LastJoined;
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use std::sync::Arc;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{Fact, LogRow, StoreResult, StoredEvent};

/// How a room is looked at.
pub(super) struct View<'a> {
    /// What happened in it.
    pub rows: &'a RoomRows,
    /// All of its state is sent.
    pub whole: bool,
    /// The client has nothing of it.
    pub anew: bool,
    /// The user joined since the last answer.
    pub newly: bool,
    /// Who types in it changed.
    pub typing: bool,
    /// The root of its state, where it was needed.
    pub current: Option<NodeId>,
}

fn changes_members(row: &LogRow) -> bool {
    row.user.is_some() && matches!(row.fact, Fact::Event | Fact::State) || row.completes_room()
}

/// A room's entry, and what is still to be shown in it together with other rooms.
pub(super) struct Draft {
    entry: JoinedRoom,
    stretch: Stretch,
    state: Entries,
}

impl Build<'_> {
    /// The entries of rooms that the client has nothing of, shown together.
    pub async fn joined_rooms(
        &self,
        drafts: Vec<(OwnedRoomId, Draft)>,
    ) -> StoreResult<Vec<(OwnedRoomId, JoinedRoom)>> {
        let events: Vec<Arc<StoredEvent>> =
            drafts.iter().flat_map(|(_, draft)| draft.stretch.events.iter().cloned()).collect();
        let mut timelines = self.show(&events, Shown::TIMELINE).await?.into_iter();
        let ids: Vec<OwnedEventId> =
            drafts.iter().flat_map(|(_, draft)| draft.state.values().cloned()).collect();
        let loaded = self.core().store.events(&ids).await?;
        let mut states = Vec::new();
        let mut sizes = Vec::with_capacity(drafts.len());
        for (_, draft) in &drafts {
            let of_room = draft.state.values().filter_map(|id| loaded.get(id).cloned());
            let before = states.len();
            states.extend(of_room.filter(|stored| self.request.filter.state(&stored.event)));
            sizes.push(states.len() - before);
        }
        let mut states = self.show(&states, Shown::SYNC_STATE).await?.into_iter();
        let fill = |((room, draft), size): ((OwnedRoomId, Draft), usize)| {
            let Draft { mut entry, stretch, .. } = draft;
            entry.timeline =
                stretch.timeline(timelines.by_ref().take(stretch.events.len()).collect(), self.upto.0);
            entry.state = StateSection::new(states.by_ref().take(size).collect(), self.request.state);
            (room, entry)
        };
        Ok(drafts.into_iter().zip(sizes).map(fill).collect())
    }

    /// A room that the client has nothing of.
    pub async fn joined_whole(&self, room: &RoomId, view: View<'_>) -> StoreResult<Draft> {
        let stretch = self.joined_stretch(room, &view).await?;
        let summary = self.summary(room, view.current).await?;
        let state = self.joined_entries(room, &view, &stretch, &summary).await?;
        let mut entry = JoinedRoom {
            summary,
            ephemeral: Events { events: self.ephemeral(room, &view).await? },
            account_data: Events { events: self.room_account_data(room, &[], true).await? },
            sticky: self.sticky_events(room, &view, &stretch).await?,
            ..JoinedRoom::default()
        };
        self.unread_into(room, &mut entry).await?;
        Ok(Draft { entry, stretch, state })
    }

    async fn unread_into(&self, room: &RoomId, entry: &mut JoinedRoom) -> StoreResult<()> {
        let unread = self.unread_of(room).await?;
        if self.request.filter.thread_counts() {
            entry.unread_notifications = unread.main;
            entry.unread_thread_notifications = unread.threads;
        } else {
            entry.unread_notifications = unread.total();
        }
        Ok(())
    }

    /// The room's entry; `None` when nothing of it is to be shown.
    pub async fn joined_room(&self, room: &RoomId, view: View<'_>) -> StoreResult<Option<JoinedRoom>> {
        let mut stretch = self.joined_stretch(room, &view).await?;
        stretch.limited |= view.newly;
        let rows = view.rows.rows();
        let many = matches!(view.rows, RoomRows::Many);
        let summary = if view.whole || many || rows.iter().any(|row| changes_members(row)) {
            self.summary(room, view.current).await?
        } else {
            Summary::default()
        };
        let state = self.joined_state(room, &view, &stretch, &summary).await?;
        let ephemeral = self.ephemeral(room, &view).await?;
        let account_data = self.room_account_data(room, rows, view.anew || self.request.full_state).await?;
        let read =
            rows.iter().any(|row| row.fact == Fact::Receipt && row.user.as_deref() == Some(self.user()));
        let something = view.whole
            || rows.iter().any(|row| row.completes_room())
            || read
            || stretch.limited
            || !stretch.events.is_empty()
            || !state.is_empty()
            || !ephemeral.is_empty()
            || !account_data.is_empty();
        if !something {
            return Ok(None);
        }
        let mut entry = JoinedRoom {
            summary,
            state,
            timeline: self.show_timeline(&stretch).await?,
            ephemeral: Events { events: ephemeral },
            account_data: Events { events: account_data },
            sticky: self.sticky_events(room, &view, &stretch).await?,
            ..JoinedRoom::default()
        };
        self.unread_into(room, &mut entry).await?;
        Ok(Some(entry))
    }

    async fn joined_stretch(&self, room: &RoomId, view: &View<'_>) -> StoreResult<Stretch> {
        let end = self.upto.0 + 1;
        let limit = self.request.filter.timeline_limit();
        match (view.anew, view.rows) {
            (true, _) => self.stretch_backward(room, end, None, LastJoined::Now, limit).await,
            (false, RoomRows::Many) => {
                let floor = self.since.map(|since| since.0);
                self.stretch_backward(room, end, floor, LastJoined::Now, limit).await
            }
            (false, RoomRows::All(rows)) => self.stretch_of_rows(room, rows, None, limit).await,
        }
    }

    async fn joined_state(
        &self,
        room: &RoomId,
        view: &View<'_>,
        stretch: &Stretch,
        summary: &Summary,
    ) -> StoreResult<StateSection> {
        let entries = self.joined_entries(room, view, stretch, summary).await?;
        Ok(StateSection::new(self.show_state(entries).await?, self.request.state))
    }

    async fn joined_entries(
        &self,
        room: &RoomId,
        view: &View<'_>,
        stretch: &Stretch,
        summary: &Summary,
    ) -> StoreResult<Entries> {
        if self.request.filter.no_state() {
            return Ok(Entries::new());
        }
        let mut entries = match (view.whole, view.current) {
            (true, Some(current)) => self.state_whole(room, current, stretch).await?,
            _ => self.state_changed(room, view.rows, view.current, stretch).await?,
        };
        let heroes = summary.heroes.as_deref().unwrap_or_default();
        self.add_members(room, &mut entries, stretch, view.whole, heroes, view.current).await?;
        Ok(entries)
    }
}
