//! One answer: which rooms appear in it and as what, and what the connection remembers of it.

use super::super::ahead::{ROOMS, StateAhead};
use super::super::build::Build;
use super::super::rooms::{OwnChange, Shown};
use super::super::window::{RoomRows, Window};
use super::SlidingError;
use super::answer::SlidingAnswer;
use super::connection::{Draft, Sent, State};
use super::list::{Matched, Relevant};
use super::request::SlidingRequest;
use crate::folds::Membership;
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::{LogRow, StateQuestion, StoreResult};

/// Everything that the parts of one answer share.
pub(super) struct Slide<'a> {
    pub build: &'a Build<'a>,
    pub request: &'a SlidingRequest,
    /// What the connection had sent at the position of the request.
    pub state: Arc<State>,
    /// Extensions that the answer before this one had, as bits.
    pub parts: u8,
    pub window: Window,
    pub changes: BTreeMap<OwnedRoomId, OwnChange>,
    pub shown: Shown,
    pub matched: Matched,
    pub direct: Arc<BTreeSet<OwnedRoomId>>,
}

/// What the client has of a room.
pub(super) enum Base<'a> {
    /// Nothing.
    Nothing,
    /// What happened up to here.
    Upto(i64),
    /// Everything but these rows.
    Rows(&'a [Arc<LogRow>]),
    /// Everything.
    Same,
}

/// What an answer has of a room beside what is in it.
pub(super) struct Told {
    /// The client had nothing of it, or too much happened to say what.
    pub anew: bool,
    /// Events that are shown.
    pub events: Vec<OwnedEventId>,
}

impl<'a> Slide<'a> {
    /// Gathers what happened, and what the request is about.
    pub async fn new(
        build: &'a Build<'a>,
        request: &'a SlidingRequest,
        state: Arc<State>,
        parts: u8,
    ) -> StoreResult<Slide<'a>> {
        let window = build.window().await?;
        let changes = build.own_changes(&window).await?;
        let mut shown = Shown::default();
        for (room, change) in &changes {
            let joined = build.rooms.get(room) == Some(&Membership::Join);
            if joined && (!change.was_joined || change.absent_between) {
                shown.newly_joined.insert(room.clone());
            } else if !joined && (change.was_joined || change.joined_between) {
                shown.newly_left.insert(room.clone());
            }
        }
        let matched = build.matched(request, &state).await?;
        let direct = if matched.rooms.is_empty() { Arc::default() } else { build.direct_rooms().await? };
        Ok(Slide { build, request, state, parts, window, changes, shown, matched, direct })
    }

    /// What the client has of a room, if anything.
    pub fn sent(&self, room: &OwnedRoomId) -> Option<&Sent> {
        self.state.rooms.get(room).filter(|_| !self.shown.newly_joined.contains(room))
    }

    /// The same, as where to go on.
    pub fn base(&self, room: &OwnedRoomId) -> Base<'_> {
        let Some(sent) = self.sent(room) else { return Base::Nothing };
        match (sent.upto, self.window.rooms.get(room), self.build.since) {
            (Some(upto), _, _) => Base::Upto(upto),
            (None, Some(RoomRows::Many), Some(since)) => Base::Upto(since.0),
            (None, Some(RoomRows::Many), None) => Base::Nothing,
            (None, Some(RoomRows::All(rows)), _) => Base::Rows(rows),
            (None, None, _) => Base::Same,
        }
    }

    /// The answer without its position, and what the connection will remember.
    pub async fn run(mut self) -> Result<(SlidingAnswer, Draft), SlidingError> {
        let whole = self.whole();
        let mut slices = whole.chunks(ROOMS);
        let mut draft = Draft::new(Arc::clone(&self.state));
        let mut answer = SlidingAnswer::default();
        let mut told = BTreeMap::new();
        for (room, relevant) in &self.matched.rooms {
            if whole.binary_search(room).is_ok()
                && !self.build.ahead().rows.contains_key(room)
                && let Some(slice) = slices.next()
            {
                self.look_ahead(slice).await?;
            }
            let (news, sent) = self.room(room, relevant).await?;
            if let Some((mut news, of)) = news {
                news.lists.clone_from(&relevant.lists);
                answer.rooms.insert(room.clone(), news);
                told.insert(room.clone(), of);
            }
            if let Some(sent) = sent {
                draft.set(room, sent, Some(&relevant.state));
            }
        }
        self.fall_behind(&mut draft);
        answer.extensions = self.extensions(&told).await?;
        answer.lists = std::mem::take(&mut self.matched.counts);
        Ok((answer, draft))
    }

    async fn room(
        &self,
        room: &OwnedRoomId,
        relevant: &Relevant,
    ) -> StoreResult<(Option<(super::answer::SlidingRoom, Told)>, Option<Sent>)> {
        match relevant.membership {
            "join" => self.joined(room, relevant).await,
            "invite" | "knock" => self.invited(room, relevant).await,
            _ => self.gone(room, relevant).await,
        }
    }

    /// Rooms that the client has, that no rule matches any more, and in which something happened.
    fn fall_behind(&self, draft: &mut Draft) {
        let Some(since) = self.build.since else { return };
        for room in self.window.rooms.keys().filter(|room| !self.matched.rooms.contains_key(*room)) {
            if let Some(sent) = self.state.rooms.get(room).filter(|sent| sent.upto.is_none()) {
                draft.set(room, Sent { upto: Some(since.0), ..sent.clone() }, None);
            }
        }
    }

    /// The joined rooms that are shown whole, in order.
    fn whole(&self) -> Vec<OwnedRoomId> {
        let whole = |room: &OwnedRoomId, relevant: &Relevant| {
            let widened = self.sent(room).is_some_and(|sent| sent.config != relevant.config);
            widened || matches!(self.base(room), Base::Nothing | Base::Upto(_))
        };
        let joined = self.matched.rooms.iter().filter(|(_, relevant)| relevant.membership == "join");
        joined.filter(|(room, relevant)| whole(room, relevant)).map(|(room, _)| room.clone()).collect()
    }

    /// Reads together what these rooms need.
    async fn look_ahead(&self, rooms: &[OwnedRoomId]) -> StoreResult<()> {
        let relevant = || rooms.iter().filter_map(|room| Some((room, self.matched.rooms.get(room)?)));
        let limit = relevant().map(|(_, relevant)| relevant.timeline_limit).max().unwrap_or_default();
        let mut besides_members = false;
        let mut keys = Vec::new();
        for (room, relevant) in relevant() {
            let reach = relevant.state.reach();
            besides_members |= reach.besides_members;
            keys.push((room, reach.keys.into_iter().collect::<Vec<_>>()));
        }
        let state = if besides_members { StateAhead::BesidesMembers } else { StateAhead::None };
        let ahead = self.build.look_ahead(rooms, limit, state).await?;
        let questions: Vec<StateQuestion> = keys
            .into_iter()
            .filter_map(|(room, keys)| Some((ahead.rows.get(room)?.state_root, keys)))
            .collect();
        let store = &self.build.core().store;
        let found = store.states_get_many(&questions).await?;
        let ids: Vec<OwnedEventId> = found.into_iter().flatten().flatten().collect();
        store.events(&ids).await?;
        self.build.set_ahead(ahead);
        self.build.room_facts(rooms).await?;
        Ok(())
    }

    /// The root of the room's state, where it was read.
    pub fn root(&self, room: &RoomId) -> Option<NodeId> {
        self.build.ahead().rows.get(room).map(|row| row.state_root)
    }
}
