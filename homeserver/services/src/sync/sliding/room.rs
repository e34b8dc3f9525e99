//! One room of an answer.

use super::super::invites::own_member;
use super::super::timeline::Stretch;
use super::answer::{Hero, News, SlidingRoom};
use super::connection::Sent;
use super::facts::Outside;
use super::list::Relevant;
use super::slide::{Base, Slide, Told};
use super::state::Changes;
use crate::folds::bumps;
use crate::visibility::LastJoined;
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, RoomId};
use std::sync::Arc;
use waxwing_model::{LogPosition, state_key};
use waxwing_storage::{Fact, LogRow, StoreResult};

/// Events looked at to find when something of interest last happened in a room: beyond them the exact place among
/// other quiet rooms matters to nobody.
const MAX_BUMP_SCAN: i64 = 200;

/// A room's entry, if there is something to tell, and what the client then has of it.
pub(super) type Entry = (Option<(SlidingRoom, Told)>, Option<Sent>);

fn changes_members(row: &LogRow) -> bool {
    row.user.is_some() && matches!(row.fact, Fact::Event | Fact::State)
}

impl Slide<'_> {
    /// A room that the user is joined to.
    pub(super) async fn joined(&self, room: &OwnedRoomId, relevant: &Relevant) -> StoreResult<Entry> {
        let sent = self.sent(room);
        let base = self.base(room);
        let direct = self.direct.contains(room);
        let expanded = sent.is_some_and(|sent| relevant.timeline_limit > sent.events);
        let widened = sent.is_some_and(|sent| sent.config != relevant.config);
        let redirected = sent.is_some_and(|sent| sent.direct != direct);
        if matches!(base, Base::Same) && !expanded && !widened && !redirected {
            return Ok((None, None));
        }
        let mut stretch = self.stretch(room, relevant, &base, expanded).await?;
        stretch.limited |= matches!(base, Base::Nothing) && self.shown.newly_joined.contains(room);
        let mut news = SlidingRoom {
            initial: matches!(base, Base::Nothing),
            expanded: expanded && self.goes_back(&stretch),
            membership: "join",
            is_dm: (redirected || (sent.is_none() && direct)).then_some(direct),
            ..SlidingRoom::default()
        };
        let changes = self.changes_of(room, &base).await?;
        self.heading(room, &base, &changes, &mut news).await?;
        let shown = self.state_of(room, relevant, &base, changes, &stretch).await?;
        let read = self.request.counts && self.own_receipt(&base);
        let something = news.initial
            || news.expanded
            || redirected
            || read
            || stretch.limited
            || !stretch.events.is_empty()
            || !shown.is_empty()
            || news.joined_count.is_some()
            || news.name != News::None
            || news.avatar != News::None;
        let sent = Sent {
            upto: None,
            events: if sent.is_none() || expanded || stretch.limited {
                relevant.timeline_limit
            } else {
                sent.map_or(0, |sent| sent.events)
            },
            config: relevant.config,
            direct,
        };
        if !something {
            return Ok((None, Some(sent)));
        }
        news.state = self.show_changes(shown).await?;
        if self.request.counts {
            news.unread = Some(self.build.unread_of(room).await?.total());
        }
        news.bump_stamp = Some(self.bump_stamp(room, &stretch).await?);
        let told = self.show(stretch, &mut news).await?;
        Ok((
            Some((news, Told { anew: matches!(base, Base::Nothing | Base::Upto(_)), events: told })),
            Some(sent),
        ))
    }

    async fn stretch(
        &self,
        room: &OwnedRoomId,
        relevant: &Relevant,
        base: &Base<'_>,
        expanded: bool,
    ) -> StoreResult<Stretch> {
        let (end, limit) = (self.build.upto.0 + 1, relevant.timeline_limit);
        match base {
            Base::Rows(rows) if !expanded => self.build.stretch_of_rows(room, rows, None, limit).await,
            Base::Upto(floor) if !expanded => {
                self.build.stretch_backward(room, end, Some(*floor), LastJoined::Now, limit).await
            }
            Base::Same if !expanded => Ok(Stretch { start: self.build.upto.0, ..Stretch::default() }),
            _ => self.build.stretch_backward(room, end, None, LastJoined::Now, limit).await,
        }
    }

    /// Whether the stretch has what the client may have had before.
    fn goes_back(&self, stretch: &Stretch) -> bool {
        let since = self.build.since.map_or(0, |since| since.0);
        stretch.events.first().is_some_and(|first| first.sn <= since)
    }

    fn own_receipt(&self, base: &Base<'_>) -> bool {
        let Base::Rows(rows) = base else { return false };
        let own =
            |row: &Arc<LogRow>| row.fact == Fact::Receipt && row.user.as_deref() == Some(self.build.user());
        rows.iter().any(own)
    }

    /// Name, avatar, who is in it: as far as they changed.
    async fn heading(
        &self,
        room: &OwnedRoomId,
        base: &Base<'_>,
        changes: &Changes,
        news: &mut SlidingRoom,
    ) -> StoreResult<()> {
        let changed = |kind: StateEventType| changes.contains_key(&state_key(kind, ""));
        let (name, avatar) = (changed(StateEventType::RoomName), changed(StateEventType::RoomAvatar));
        let whole = matches!(base, Base::Nothing);
        let members = match base {
            Base::Nothing | Base::Upto(_) => true,
            Base::Rows(rows) => rows.iter().any(|row| changes_members(row)),
            Base::Same => false,
        };
        if !(whole || name || avatar || members) {
            return Ok(());
        }
        let facts = self.build.room_facts(std::slice::from_ref(room)).await?.pop().unwrap_or_default();
        let value = |changed: bool, value: &Option<String>| match value {
            Some(value) if whole || changed => News::Is(value.clone()),
            None if changed && !whole => News::Gone,
            _ => News::None,
        };
        news.name = value(name, &facts.name);
        news.avatar = value(avatar, &facts.avatar);
        if members {
            let counts = self.build.member_counts(room).await?;
            news.joined_count = Some(counts.joined);
            news.invited_count = Some(counts.invited);
        }
        if facts.name.is_none() && (members || name) {
            news.heroes = Some(self.heroes(room).await?);
        }
        Ok(())
    }

    async fn heroes(&self, room: &RoomId) -> StoreResult<Vec<Hero>> {
        let store = &self.build.core().store;
        let heroes = match self.build.ahead().heroes.get(room) {
            Some(heroes) => heroes.clone(),
            None => store.read().await?.room_heroes(room, self.build.user()).await?,
        };
        let ids: Vec<_> = heroes.iter().map(|(_, id)| id.clone()).collect();
        let events = store.events(&ids).await?;
        let hero = |(user_id, id)| {
            let text = |field| events.get(&id).and_then(|stored| stored.event.content_str(field));
            Hero { user_id, displayname: text("displayname"), avatar_url: text("avatar_url") }
        };
        Ok(heroes.into_iter().map(hero).collect())
    }

    /// When something of interest last happened in the room.
    async fn bump_stamp(&self, room: &OwnedRoomId, stretch: &Stretch) -> StoreResult<i64> {
        let folds = self.build.sync.notifier.folds();
        let activity = folds.activity(std::iter::once(room)).pop().unwrap_or_default();
        if activity.bumped > LogPosition::START {
            return Ok(activity.bumped.0);
        }
        if let Some((_, bump)) = self.build.sync.facts.bumps.get(room) {
            return Ok(bump);
        }
        let shown = stretch.events.iter().rev().find(|stored| bumps(&stored.event));
        let bump = match shown {
            Some(stored) => stored.sn,
            None => self.look_for_bump(room).await?,
        };
        self.build.sync.facts.bumps.insert(room.clone(), (self.build.upto, bump.max(0)));
        Ok(bump.max(0))
    }

    async fn look_for_bump(&self, room: &RoomId) -> StoreResult<i64> {
        let mut conn = self.build.core().store.read().await?;
        let events = conn.events_backward(room, self.build.upto.0 + 1, MAX_BUMP_SCAN).await?;
        let found = events.iter().find(|stored| bumps(&stored.event)).or(events.last());
        Ok(found.map_or(0, |stored| stored.sn))
    }

    /// Puts the timeline into the entry. Gives the events that are shown.
    async fn show(&self, stretch: Stretch, news: &mut SlidingRoom) -> StoreResult<Vec<ruma::OwnedEventId>> {
        let since = self.build.since.map(|since| since.0);
        news.live = since.map_or(0, |since| stretch.events.iter().filter(|stored| stored.sn > since).count());
        news.limited = stretch.limited;
        if !stretch.events.is_empty() || stretch.limited || news.initial {
            news.prev_batch = Some(stretch.prev_batch(self.build.upto.0));
        }
        let bundles = stretch.limited || news.initial || news.expanded;
        let shown = crate::render::Shown { relations: bundles, ..crate::render::Shown::TIMELINE };
        news.timeline = self.build.show(&stretch.events, shown).await?;
        Ok(stretch.events.iter().map(|stored| stored.event.event_id.clone()).collect())
    }

    /// Whether there may be news of a room that the user is not joined to.
    fn is_news(&self, room: &OwnedRoomId) -> bool {
        match self.state.rooms.get(room) {
            None => true,
            Some(sent) => sent.upto.is_some() || self.changes.contains_key(room),
        }
    }

    fn sent_outside(&self, room: &OwnedRoomId, relevant: &Relevant) -> Sent {
        let direct = self.direct.contains(room);
        Sent { upto: None, events: relevant.timeline_limit, config: relevant.config, direct }
    }

    /// A room that the user is invited to or knocks at.
    pub(super) async fn invited(&self, room: &OwnedRoomId, relevant: &Relevant) -> StoreResult<Entry> {
        if !self.is_news(room) {
            return Ok((None, None));
        }
        let stripped = if relevant.membership == "invite" {
            self.build.invited(room).await?.map(|invited| invited.invite_state.events)
        } else {
            self.build.knocked(room).await?.map(|knocked| knocked.knock_state.events)
        };
        let Some(stripped) = stripped else { return Ok((None, None)) };
        let direct = self.direct.contains(room);
        let news = SlidingRoom {
            initial: true,
            membership: relevant.membership,
            is_dm: direct.then_some(true),
            bump_stamp: Some(relevant.at.max(0)),
            stripped: Some(stripped),
            ..SlidingRoom::default()
        };
        let told = Told { anew: true, events: Vec::new() };
        Ok((Some((news, told)), Some(self.sent_outside(room, relevant))))
    }

    /// A room that the user has left or was banned from.
    pub(super) async fn gone(&self, room: &OwnedRoomId, relevant: &Relevant) -> StoreResult<Entry> {
        let outside = self.build.outside_rooms().await?;
        let Some(outside) = outside.get(room).filter(|_| self.is_news(room)) else { return Ok((None, None)) };
        let mut news = SlidingRoom {
            initial: self.sent(room).is_none(),
            membership: relevant.membership,
            bump_stamp: Some(relevant.at.max(0)),
            ..SlidingRoom::default()
        };
        let mut told = Told { anew: news.initial, events: Vec::new() };
        if outside.stay == LastJoined::Never {
            // There is nothing to see but the end of an invitation or a knock.
            let own = self.build.core().store.event(&outside.row.event_id).await?;
            let stripped = own.and_then(|own| waxwing_rooms::stripped::strip(&own.event));
            news.stripped =
                Some(vec![stripped.or_else(|| own_member(&outside.row))].into_iter().flatten().collect());
            self.own_member_state(outside, &mut news).await?;
        } else {
            let (stretch, state) = self.before_the_end(room, relevant, outside).await?;
            news.state = self.show_changes(state).await?;
            told.events = self.show(stretch, &mut news).await?;
        }
        Ok((Some((news, told)), Some(self.sent_outside(room, relevant))))
    }

    /// What happened until the user's stay ended.
    async fn before_the_end(
        &self,
        room: &OwnedRoomId,
        relevant: &Relevant,
        outside: &Outside,
    ) -> StoreResult<(Stretch, Changes)> {
        let (end, last, limit) = (outside.end, outside.stay, relevant.timeline_limit);
        let base = match self.base(room) {
            Base::Rows(rows) => Base::Rows(&rows[..rows.partition_point(|row| row.position.0 <= end)]),
            base => base,
        };
        let floor = match &base {
            Base::Nothing => None,
            Base::Upto(floor) => Some(*floor),
            Base::Rows(_) | Base::Same => self.build.since.map(|since| since.0),
        };
        let stretch = match &base {
            Base::Rows(rows) => self.build.stretch_of_rows(room, rows, Some(last), limit).await?,
            _ => self.build.stretch_backward(room, end.saturating_add(1), floor, last, limit).await?,
        };
        let root = outside.ended.as_ref().and_then(|ended| ended.state_before);
        let mut state = match (&base, root) {
            (Base::Rows(rows), _) => super::super::state::fold(rows),
            (Base::Nothing, Some(root)) => self.select(room, root, &relevant.state).await?,
            (Base::Upto(floor), Some(root)) => self.difference(room, *floor, root).await?,
            _ => Changes::new(),
        };
        state.retain(|key, _| relevant.state.wants(key));
        // By this clients learn that they are out.
        let own = state_key(StateEventType::RoomMember, self.build.user().as_str());
        state.insert(own, Some(outside.row.event_id.clone()));
        Ok((stretch, state))
    }

    async fn own_member_state(&self, outside: &Outside, news: &mut SlidingRoom) -> StoreResult<()> {
        let own = state_key(StateEventType::RoomMember, self.build.user().as_str());
        let changes = Changes::from([(own, Some(outside.row.event_id.clone()))]);
        news.state = self.show_changes(changes).await?;
        Ok(())
    }
}
