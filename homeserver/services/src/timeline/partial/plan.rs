//! What a room becomes when all events since the join are judged again: its ends, its current state, and which of the
//! events that had been kept back are shown. Of the events themselves only a page is in memory, of all of them the ids.

use crate::timeline::Timeline;
use crate::timeline::error::TimelineError;
use crate::timeline::resolve::resolve_roots;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedEventId, OwnedServerName, RoomId};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::state_tree::{Change, NodeId};
use waxwing_storage::{EventFlags, PartialRow, PartialVerdict, RoomRow, StoredEvent};

/// Events looked at at once.
const PAGE: i64 = 500;
/// An event may come after one that follows it: so often it is looked whether such a one was missed.
const PASSES: usize = 4;

/// The flags of an event that stays back.
pub(super) const KEPT_BACK: EventFlags = EventFlags { soft_failed: true, ..EventFlags::NONE };

/// An event that had been kept back and is allowed where it stands.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// As it is stored, with the state before it that is right.
    pub stored: Arc<StoredEvent>,
    /// It is to be shown now.
    pub appears: bool,
}

/// What is to be committed.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The room as it was.
    pub row: RoomRow,
    /// The events that had been kept back, in their order.
    pub pending: Vec<Pending>,
    /// The forward extremities.
    pub extremities: Vec<(OwnedEventId, u64)>,
    /// The current state.
    pub current: NodeId,
    /// What changes in it.
    pub changes: Vec<Change>,
    /// The events of members that are in the table already.
    pub members: BTreeSet<OwnedEventId>,
    /// The servers that were in the room before the join.
    pub servers_before: BTreeSet<OwnedServerName>,
    /// Those that came since.
    pub servers_since: BTreeSet<OwnedServerName>,
    /// The newest event of our users since the join.
    pub newest_of_ours: Option<OwnedEventId>,
}

/// The end of the room.
#[derive(Default)]
struct End {
    extremities: Vec<(OwnedEventId, u64)>,
    roots: BTreeSet<NodeId>,
    servers_since: BTreeSet<OwnedServerName>,
    newest_of_ours: Option<OwnedEventId>,
}

fn is_join(event: &Event) -> bool {
    event.kind == TimelineEventType::RoomMember && event.content_str("membership").as_deref() == Some("join")
}

fn server_of(event: &Event) -> Option<OwnedServerName> {
    let user = ruma::UserId::parse(event.state_key.as_deref()?).ok()?;
    Some(user.server_name().to_owned())
}

impl Timeline {
    /// Works it out; `None` when the state before the newest join is not here yet.
    pub(super) async fn plan(
        &self,
        row: &RoomRow,
        partial: &PartialRow,
    ) -> Result<Option<Plan>, TimelineError> {
        let store = &self.core.store;
        let join = store.read().await?.partial_event(&row.room_id, &partial.join_id).await?;
        let Some(join) = join.filter(|join| !join.wanted) else { return Ok(None) };
        let mut shown = BTreeSet::new();
        let mut end = self.end(&row.room_id, join.place, &shown).await?;
        let mut current = resolve_roots(&self.core, row, &end.roots, None).await?;
        // What had been kept back is shown now if the current state allows it.
        let pending = self.pending(row, current).await?;
        shown.extend(pending.iter().filter(|it| it.appears).map(|it| it.stored.event.event_id.clone()));
        if !shown.is_empty() {
            end = self.end(&row.room_id, join.place, &shown).await?;
            current = resolve_roots(&self.core, row, &end.roots, None).await?;
        }
        let mut servers_before = BTreeSet::new();
        for root in join.fetched {
            servers_before.append(&mut self.servers_at(root).await?);
        }
        Ok(Some(Plan {
            row: row.clone(),
            pending,
            extremities: end.extremities,
            current,
            changes: store.state_diff(row.state_root, current).await?,
            members: BTreeSet::new(),
            servers_before,
            servers_since: end.servers_since,
            newest_of_ours: end.newest_of_ours,
        }))
    }

    async fn pending(&self, row: &RoomRow, current: NodeId) -> Result<Vec<Pending>, TimelineError> {
        let mut pending = Vec::new();
        let mut after = i64::MIN;
        loop {
            let page = self.core.store.read().await?.partial_pending(&row.room_id, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(pending) };
            after = last.place;
            let ids: Vec<OwnedEventId> = page.into_iter().map(|judged| judged.event_id).collect();
            let mut stored = self.core.store.events(&ids).await?;
            for stored in ids.iter().filter_map(|id| stored.remove(id)) {
                let appears = self.allows(&stored.event, &row.version, current).await?;
                pending.push(Pending { stored, appears });
            }
        }
    }

    /// The accepted events since the newest join that no accepted one follows. `shown`: pending ones that count as accepted.
    async fn end(
        &self,
        room: &RoomId,
        from: i64,
        shown: &BTreeSet<OwnedEventId>,
    ) -> Result<End, TimelineError> {
        let mut end = End::default();
        let mut followed: BTreeSet<OwnedEventId> = BTreeSet::new();
        let mut last = Vec::new();
        for pass in 0..PASSES {
            let mut passed_over: BTreeSet<OwnedEventId> = BTreeSet::new();
            let mut before = i64::MAX;
            loop {
                let page = self.core.store.read().await?.partial_backward(room, before, from, PAGE).await?;
                let Some(oldest) = page.last() else { break };
                before = oldest.place;
                let ids: Vec<OwnedEventId> = page.iter().map(|judged| judged.event_id.clone()).collect();
                let stored = self.core.store.events(&ids).await?;
                for judged in page {
                    let Some(stored) = stored.get(&judged.event_id) else { continue };
                    let id = &judged.event_id;
                    let accepted = judged.verdict == PartialVerdict::Shown || shown.contains(id);
                    // What follows a rejected event follows what that one follows.
                    if accepted || followed.contains(id) {
                        followed.extend(stored.event.prev_events.iter().cloned());
                    } else {
                        passed_over.insert(id.clone());
                    }
                    if accepted && pass == 0 {
                        self.note_accepted(&mut end, &stored.event, judged.joined);
                        if !followed.contains(id) {
                            last.push((id.clone(), u64::from(stored.event.depth), judged.after));
                        }
                    }
                }
            }
            if passed_over.is_disjoint(&followed) {
                break;
            }
        }
        for (id, depth, after) in last.into_iter().rev().filter(|(id, _, _)| !followed.contains(id)) {
            end.roots.insert(after);
            end.extremities.push((id, depth));
        }
        Ok(end)
    }

    fn note_accepted(&self, end: &mut End, event: &Event, joined: bool) {
        if is_join(event) {
            end.servers_since.extend(server_of(event));
        }
        if !joined && end.newest_of_ours.is_none() && self.core.is_local(&event.sender) {
            end.newest_of_ours = Some(event.event_id.clone());
        }
    }

    /// The servers with a joined user in a state.
    async fn servers_at(&self, root: NodeId) -> Result<BTreeSet<OwnedServerName>, TimelineError> {
        let members = self.core.store.state_of_type(root, &StateEventType::RoomMember).await?;
        let ids: Vec<OwnedEventId> = members.into_iter().map(|(_, id)| id).collect();
        let mut servers = BTreeSet::new();
        for ids in ids.chunks(PAGE as usize) {
            let events = self.core.store.events(ids).await?;
            let joined = events.values().filter(|stored| is_join(&stored.event));
            servers.extend(joined.filter_map(|stored| server_of(&stored.event)));
        }
        Ok(servers)
    }
}
