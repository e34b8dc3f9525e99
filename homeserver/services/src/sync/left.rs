//! Rooms that the user has left or was banned from: what there was up to that moment.

use super::build::Build;
use super::response::{Events, LeftRoom, StateSection};
use super::rooms::{OwnChange, Shown};
use super::state::Entries;
use super::timeline::Stretch;
use super::window::{RoomRows, Window};
use crate::rooms_read::PageToken;
use crate::visibility::{LastJoined, last_stay};
use ruma::RoomId;
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_storage::{Fact, MemberRow, StoreResult, StoredEvent};

/// The end of an invitation of which there is no event here: another server has it, or none could be told.
fn made_leave(row: &MemberRow, now: u64) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(&serde_json::json!({
        "type": "m.room.member",
        "event_id": row.event_id,
        "origin_server_ts": now,
        "sender": row.sender,
        "state_key": row.user_id,
        "content": { "membership": row.membership },
    }))
    .ok()
}

impl Build<'_> {
    /// A room that was left since the last answer.
    pub async fn left_room(
        &self,
        room: &RoomId,
        change: &OwnChange,
        window: &Window,
    ) -> StoreResult<Option<LeftRoom>> {
        let leave = match (&change.last.event, change.last.event_id()) {
            (Some(stored), _) => Some(Arc::clone(stored)),
            (None, Some(id)) => self.core().store.event(&id).await?,
            (None, None) => None,
        };
        let in_room = leave.as_ref().is_some_and(|stored| !stored.flags.outlier);
        if change.last.fact == Fact::Outside || !in_room {
            return Ok(Some(self.rejected(room, leave).await?));
        }
        let last = LastJoined::Until(change.last.position.0);
        let last = if change.was_joined || change.joined_between { last } else { LastJoined::Never };
        let end = change.last.position;
        let rows = match window.rooms.get(room) {
            Some(RoomRows::All(rows)) => rows.as_slice(),
            Some(RoomRows::Many) | None => &[],
        };
        let rows = &rows[..rows.partition_point(|row| row.position <= end)];
        let limit = self.request.filter.timeline_limit();
        let stretch = if rows.is_empty() {
            self.stretch_backward(room, end.0 + 1, self.since.map(|since| since.0), last, limit).await?
        } else {
            self.stretch_of_rows(room, rows, Some(last), limit).await?
        };
        let entries = if !change.was_joined && change.joined_between {
            self.state_at_leave(leave.as_deref(), &stretch).await?
        } else if change.was_joined {
            self.state_of_rows(rows, &stretch)
        } else {
            Entries::new()
        };
        let mut entry = self.left_entry(room, entries, stretch, false).await?;
        entry.account_data.events = self.room_account_data(room, rows, false).await?;
        Ok(Some(entry))
    }

    async fn left_entry(
        &self,
        room: &RoomId,
        mut entries: Entries,
        stretch: Stretch,
        whole: bool,
    ) -> StoreResult<LeftRoom> {
        let root = stretch.events.last().and_then(|stored| stored.state_before);
        self.add_members(room, &mut entries, &stretch, whole, &[], root).await?;
        Ok(LeftRoom {
            state: StateSection::new(self.show_state(entries).await?, self.request.state),
            timeline: self.show_timeline(&stretch).await?,
            account_data: Events::default(),
        })
    }

    /// An invitation that was rejected or taken back, or a knock: there is nothing but the end of it to show.
    async fn rejected(&self, room: &RoomId, leave: Option<Arc<StoredEvent>>) -> StoreResult<LeftRoom> {
        let is_leave = |stored: &Arc<StoredEvent>| {
            matches!(stored.event.content_str("membership").as_deref(), Some("leave" | "ban"))
        };
        let events: Vec<Arc<StoredEvent>> = leave.into_iter().filter(is_leave).collect();
        let stretch = Stretch { events, limited: false, start: PageToken(self.upto.0).0 };
        let mut timeline = self.show_timeline(&stretch).await?;
        timeline.prev_batch = None;
        if timeline.events.is_empty() {
            let row = self.core().store.read().await?.member_load(room, self.user()).await?;
            let gone = row.filter(|row| matches!(row.membership.as_str(), "leave" | "ban"));
            timeline.events.extend(gone.and_then(|row| made_leave(&row, self.core().now())));
        }
        Ok(LeftRoom {
            state: StateSection::new(Vec::new(), self.request.state),
            timeline,
            account_data: Events::default(),
        })
    }

    /// The root of the state with the leave in it, and all entries of that state.
    async fn state_at_leave(&self, leave: Option<&StoredEvent>, stretch: &Stretch) -> StoreResult<Entries> {
        let Some((leave, root)) = leave.and_then(|leave| Some((leave, leave.state_before?))) else {
            return Ok(Entries::new());
        };
        let mut entries = self.state_whole(&leave.event.room_id, root, stretch).await?;
        if let Some(entry) = leave.event.state_entry()
            && (!stretch.contains(&leave.event.event_id) || self.request.state != super::StateWanted::Before)
        {
            entries.insert(entry, leave.event.event_id.clone());
        }
        Ok(entries)
    }

    /// All rooms that the user has ever left and not forgotten.
    pub async fn archived(&self, shown: &mut Shown) -> StoreResult<()> {
        let rows = self.core().store.read().await?.memberships_of(self.user()).await?;
        for row in rows {
            let gone = matches!(row.membership.as_str(), "leave" | "ban") && !row.forgotten;
            if !gone
                || shown.rooms.leave.contains_key(&row.room_id)
                || !self.request.filter.room(&row.room_id)
            {
                continue;
            }
            let (last, end) = last_stay(self.core(), self.user(), &row.room_id).await?;
            let entry = match end {
                Some(end) => {
                    let (end_sn, limit) = (end.sn.saturating_add(1), self.request.filter.timeline_limit());
                    let stretch = self.stretch_backward(&row.room_id, end_sn, None, last, limit).await?;
                    let entries = self.state_at_leave(Some(&*end), &stretch).await?;
                    let mut entry = self.left_entry(&row.room_id, entries, stretch, true).await?;
                    entry.account_data.events = self.room_account_data(&row.room_id, &[], true).await?;
                    entry
                }
                None => self.rejected(&row.room_id, self.core().store.event(&row.event_id).await?).await?,
            };
            shown.rooms.leave.insert(row.room_id.clone(), entry);
        }
        Ok(())
    }
}
