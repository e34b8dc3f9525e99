//! One joined room of an answer.

use super::build::Build;
use super::response::{Events, JoinedRoom, StateSection, Summary};
use super::timeline::Stretch;
use super::window::RoomRows;
use crate::visibility::LastJoined;
use ruma::RoomId;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{Fact, LogRow, StoreResult};

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
    row.user.is_some() && matches!(row.fact, Fact::Event | Fact::State)
}

impl Build<'_> {
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
            || read
            || stretch.limited
            || !stretch.events.is_empty()
            || !state.is_empty()
            || !ephemeral.is_empty()
            || !account_data.is_empty();
        if !something {
            return Ok(None);
        }
        let unread = self.unread_of(room).await?;
        let mut entry = JoinedRoom {
            summary,
            state,
            timeline: self.show_timeline(&stretch).await?,
            ephemeral: Events { events: ephemeral },
            account_data: Events { events: account_data },
            sticky: self.sticky_events(room, &view, &stretch).await?,
            ..JoinedRoom::default()
        };
        if self.request.filter.thread_counts() {
            entry.unread_notifications = unread.main;
            entry.unread_thread_notifications = unread.threads;
        } else {
            entry.unread_notifications = unread.total();
        }
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
        let wanted = self.request.state;
        if self.request.filter.no_state() {
            return Ok(StateSection::new(Vec::new(), wanted));
        }
        let mut entries = match (view.whole, view.current) {
            (true, Some(current)) => self.state_whole(room, current, stretch).await?,
            _ => self.state_changed(room, view.rows, view.current, stretch).await?,
        };
        let heroes = summary.heroes.as_deref().unwrap_or_default();
        self.add_members(room, &mut entries, stretch, view.whole, heroes, view.current).await?;
        Ok(StateSection::new(self.show_state(entries).await?, wanted))
    }
}
