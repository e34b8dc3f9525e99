//! Unread counts: the user's push rules over what came after the user's receipts. What is counted is also what is
//! pushed.
//!
//! Nothing is written for a message. What a room's newer events do to a user is worked out when the user looks, and
//! kept: the next look goes over newer events only.
//! <https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications>

mod kept;
mod seed;

use super::build::Build;
use super::response::UnreadCount;
use crate::Core;
use crate::push::rules::{RuleContext, Rules, Source, UserRules, flattened};
use crate::receipts::thread_of;
use crate::thread_subscriptions::is_change;
use kept::Kept;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedUserId, RoomId, UserId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, ReceiptRow, StoreResult, StoredEvent};

/// Events looked at to count what is unread in a room: a client shows "99+" long before.
const MAX_EVENTS: usize = 500;

/// What is unread in a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomUnread {
    /// In the main timeline.
    pub main: UnreadCount,
    /// In threads, by their roots: those with something unread.
    pub threads: BTreeMap<OwnedEventId, UnreadCount>,
}

impl RoomUnread {
    /// Everywhere in the room.
    pub fn total(&self) -> UnreadCount {
        let mut total = self.main;
        for count in self.threads.values() {
            total.notification_count += count.notification_count;
            total.highlight_count += count.highlight_count;
        }
        total
    }
}

/// An event that the user is notified of and has not read.
struct Noted {
    sn: i64,
    id: OwnedEventId,
    thread: Option<OwnedEventId>,
    highlight: bool,
}

/// Up to which `sn` a user has read: whatever has that or a smaller one is read.
#[derive(Default)]
struct Bounds {
    everything: Option<i64>,
    main: Option<i64>,
    threads: HashMap<OwnedEventId, i64>,
}

impl Bounds {
    fn raise(bound: &mut Option<i64>, sn: i64) {
        *bound = Some(bound.map_or(sn, |bound| bound.max(sn)));
    }

    fn raise_thread(&mut self, thread: Option<&OwnedEventId>, sn: i64) {
        match thread {
            None => Bounds::raise(&mut self.main, sn),
            Some(root) => {
                let bound = self.threads.entry(root.clone()).or_insert(sn);
                *bound = sn.max(*bound);
            }
        }
    }

    fn is_read(&self, thread: Option<&OwnedEventId>, sn: i64) -> bool {
        let own = match thread {
            None => self.main,
            Some(root) => self.threads.get(root).copied(),
        };
        [self.everything, own].into_iter().flatten().any(|bound| sn <= bound)
    }
}

struct Room {
    upto: LogPosition,
    /// Which rules were asked.
    source: Source,
    ignored: Arc<BTreeSet<OwnedUserId>>,
    bounds: Bounds,
    noted: Vec<Noted>,
    /// What rules ask, while events are gone through.
    context: Option<RuleContext>,
    /// The user's name in the room, where it is known.
    name: Option<Box<str>>,
}

/// Counts what is unread.
pub struct Unread {
    core: Core,
    rules: Rules,
    rooms: Kept,
}

impl Build<'_> {
    /// What is unread in a joined room.
    pub async fn unread_of(&self, room: &RoomId) -> StoreResult<RoomUnread> {
        self.seed_unread(room).await?;
        self.sync.unread.count(self.user(), room, &self.ignored, self.upto).await
    }
}

impl Unread {
    /// Over the database of `core`.
    pub fn new(core: Core) -> Unread {
        Unread { rules: Rules::new(core.clone()), core, rooms: Kept::default() }
    }

    /// The push rules that it asks.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What a joined user has not read in a room at `upto`. Messages of `ignored` users do not count.
    pub async fn count(
        &self,
        user: &UserId,
        room: &RoomId,
        ignored: &Arc<BTreeSet<OwnedUserId>>,
        upto: LogPosition,
    ) -> StoreResult<RoomUnread> {
        self.looked(user, room, ignored, upto, Room::counts).await
    }

    /// The same events themselves, by number and id, in the order in which they came.
    pub async fn unread_events(
        &self,
        user: &UserId,
        room: &RoomId,
        ignored: &Arc<BTreeSet<OwnedUserId>>,
        upto: LogPosition,
    ) -> StoreResult<Vec<(i64, OwnedEventId)>> {
        self.looked(user, room, ignored, upto, Room::events).await
    }

    async fn looked<T>(
        &self,
        user: &UserId,
        room: &RoomId,
        ignored: &Arc<BTreeSet<OwnedUserId>>,
        upto: LogPosition,
        answer: impl FnOnce(&Room) -> T,
    ) -> StoreResult<T> {
        let rules = self.rules.of(user, upto).await?;
        let slot = self.rooms.slot(user, room);
        let mut slot = slot.lock().await;
        let known = slot.take().filter(|known| {
            known.source == rules.source
                && known.ignored == *ignored
                && self.follows_as_before(user, known.upto, upto)
        });
        let looked = match known {
            Some(known) => self.advance(user, room, known, &rules, upto).await?,
            None => None,
        };
        let mut looked = match looked {
            Some(looked) => looked,
            None => self.look(user, room, &rules, Arc::clone(ignored), upto).await?,
        };
        let answer = answer(&looked);
        let weight = looked.rest();
        *slot = Some(looked);
        drop(slot);
        self.rooms.weigh(user, room, weight);
        Ok(answer)
    }

    /// Whether the user began or ceased to follow no thread in between: rules ask for that.
    fn follows_as_before(&self, user: &UserId, known: LogPosition, upto: LogPosition) -> bool {
        if known >= upto {
            return true;
        }
        let rows = self.core.store.tail().range_of_user(user, known, upto);
        rows.is_some_and(|rows| !rows.iter().any(|row| is_change(row)))
    }

    /// Goes on from what is known; `None` when the tail does not reach back to it.
    async fn advance(
        &self,
        user: &UserId,
        room: &RoomId,
        mut known: Room,
        rules: &UserRules,
        upto: LogPosition,
    ) -> StoreResult<Option<Room>> {
        if known.upto >= upto {
            return Ok(Some(known));
        }
        let Some(rows) = self.core.store.tail().range_of_room(room, known.upto, upto) else {
            return Ok(None);
        };
        for row in rows {
            match row.fact {
                Fact::Event => {
                    let stored = match (&row.event, row.event_id()) {
                        (Some(stored), _) => Some(Arc::clone(stored)),
                        (None, Some(id)) => self.core.store.event(&id).await?,
                        (None, None) => None,
                    };
                    if let Some(stored) = stored {
                        self.take(user, &mut known, &stored, rules, upto).await?;
                    }
                }
                Fact::EventChanged => {
                    let changed = row.event_id();
                    known.noted.retain(|noted| Some(&noted.id) != changed.as_ref());
                }
                Fact::Receipt if row.user.as_deref() == Some(user) => {
                    self.raise_by_receipts(user, room, &mut known.bounds).await?;
                }
                _ => {}
            }
        }
        let bounds = &known.bounds;
        known.noted.retain(|noted| !bounds.is_read(noted.thread.as_ref(), noted.sn));
        let surplus = known.noted.len().saturating_sub(MAX_EVENTS);
        known.noted.drain(..surplus);
        known.upto = upto;
        Ok(Some(known))
    }

    /// Looks at the room's newest events, back to what has been read.
    async fn look(
        &self,
        user: &UserId,
        room: &RoomId,
        rules: &UserRules,
        ignored: Arc<BTreeSet<OwnedUserId>>,
        upto: LogPosition,
    ) -> StoreResult<Room> {
        let mut looked = Room::new(rules.source.clone(), ignored, upto);
        self.raise_by_receipts(user, room, &mut looked.bounds).await?;
        let (mut before, mut seen, mut chunk) = (upto.0 + 1, 0, 20_usize);
        loop {
            let events = self.core.store.timeline_backward(room, before, chunk).await?;
            for stored in &events {
                let read = looked.bounds.everything.is_some_and(|bound| stored.sn <= bound);
                if read || self.take(user, &mut looked, stored, rules, upto).await? {
                    return Ok(looked);
                }
            }
            seen += events.len();
            let Some(last) = events.last() else { return Ok(looked) };
            if events.len() < chunk || seen >= MAX_EVENTS {
                return Ok(looked);
            }
            before = last.sn;
            chunk = 100;
        }
    }

    async fn raise_by_receipts(&self, user: &UserId, room: &RoomId, bounds: &mut Bounds) -> StoreResult<()> {
        let receipts = self.core.store.read().await?.receipts_of_user_in_room(user, room).await?;
        self.raise_to(receipts, bounds).await
    }

    async fn raise_to(&self, receipts: Vec<ReceiptRow>, bounds: &mut Bounds) -> StoreResult<()> {
        for receipt in receipts {
            let Some(sn) = self.sn_of(&receipt).await? else { continue };
            match receipt.thread.as_str() {
                "" => Bounds::raise(&mut bounds.everything, sn),
                "main" => Bounds::raise(&mut bounds.main, sn),
                root => {
                    if let Ok(root) = OwnedEventId::try_from(root) {
                        bounds.raise_thread(Some(&root), sn);
                    }
                }
            }
        }
        Ok(())
    }

    async fn sn_of(&self, receipt: &ReceiptRow) -> StoreResult<Option<i64>> {
        match (receipt.event_sn, OwnedEventId::try_from(receipt.event_id.as_str())) {
            (Some(sn), _) => Ok(Some(sn)),
            (None, Ok(id)) => Ok(self.core.store.event(&id).await?.map(|stored| stored.sn)),
            (None, Err(_)) => Ok(None),
        }
    }

    /// Takes in one event. Answers whether nothing before it can be unread: the user came into the room with it.
    async fn take(
        &self,
        user: &UserId,
        room: &mut Room,
        stored: &Arc<StoredEvent>,
        rules: &UserRules,
        upto: LogPosition,
    ) -> StoreResult<bool> {
        let event = &stored.event;
        let is_own_member = event.is_state_of(&StateEventType::RoomMember, user.as_str());
        if is_own_member {
            // The name that rules look for may be another now.
            (room.context, room.name) = (None, None);
        }
        let thread = thread_of(&self.core, stored).await?;
        if event.sender == user {
            // Who writes has read: what was there before it.
            if is_own_member && event.content_str("membership").as_deref() == Some("join") {
                let came = !self.was_joined(user, stored).await?;
                if came {
                    Bounds::raise(&mut room.bounds.everything, stored.sn);
                    return Ok(true);
                }
                return Ok(false);
            }
            room.bounds.raise_thread(thread.as_ref(), stored.sn);
            return Ok(false);
        }
        if room.bounds.is_read(thread.as_ref(), stored.sn)
            || room.ignored.contains(&event.sender)
            || !stored.flags.visible()
            || stored.redacted_by.is_some()
        {
            return Ok(false);
        }
        let context = match (room.context.take(), room.name.take()) {
            (None, Some(name)) => {
                self.rules.context_named(user, &event.room_id, Some(name.into()), upto).await?
            }
            (known, _) => self.rules.context(user, &event.room_id, known, upto).await?,
        };
        let actions = context.actions(rules, &flattened(event)).await;
        if actions.iter().any(ruma::push::Action::should_notify) {
            let highlight = actions.iter().any(ruma::push::Action::is_highlight);
            room.noted.push(Noted { sn: stored.sn, id: event.event_id.clone(), thread, highlight });
        }
        room.context = Some(context);
        Ok(false)
    }

    async fn was_joined(&self, user: &UserId, stored: &StoredEvent) -> StoreResult<bool> {
        let Some(root) = stored.state_before else { return Ok(false) };
        let store = &self.core.store;
        let before = store.state_get(root, StateEventType::RoomMember, user.as_str()).await?;
        let Some(before) = before else { return Ok(false) };
        let member = store.event(&before).await?;
        Ok(member.is_some_and(|member| member.event.content_str("membership").as_deref() == Some("join")))
    }
}

impl Room {
    fn new(source: Source, ignored: Arc<BTreeSet<OwnedUserId>>, upto: LogPosition) -> Room {
        Room {
            upto,
            source,
            ignored,
            bounds: Bounds::default(),
            noted: Vec::new(),
            context: None,
            name: None,
        }
    }

    /// Lets go of what is made again quickly; about how many bytes are left.
    fn rest(&mut self) -> u64 {
        if let Some(context) = self.context.take() {
            self.name = Some(context.name().into());
        }
        self.noted.shrink_to_fit();
        (500 + self.noted.len() * 120 + self.bounds.threads.len() * 120) as u64
    }

    fn unread(&self) -> impl Iterator<Item = &Noted> {
        self.noted.iter().filter(|noted| !self.bounds.is_read(noted.thread.as_ref(), noted.sn))
    }

    fn events(&self) -> Vec<(i64, OwnedEventId)> {
        let mut events: Vec<_> = self.unread().map(|noted| (noted.sn, noted.id.clone())).collect();
        events.sort_unstable_by_key(|(sn, _)| *sn);
        events
    }

    fn counts(&self) -> RoomUnread {
        let mut unread = RoomUnread::default();
        for noted in self.unread() {
            let count = match &noted.thread {
                None => &mut unread.main,
                Some(root) => unread.threads.entry(root.clone()).or_default(),
            };
            count.notification_count += 1;
            count.highlight_count += u64::from(noted.highlight);
        }
        unread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unthreaded_receipt_reads_threads_too() {
        let root: OwnedEventId = "$t".try_into().unwrap();
        let mut bounds = Bounds::default();
        assert!(!bounds.is_read(None, 1));
        bounds.raise_thread(None, 5);
        assert!(bounds.is_read(None, 5) && !bounds.is_read(None, 6) && !bounds.is_read(Some(&root), 5));
        Bounds::raise(&mut bounds.everything, 7);
        assert!(bounds.is_read(None, 6) && bounds.is_read(Some(&root), 7));
        bounds.raise_thread(Some(&root), 9);
        bounds.raise_thread(Some(&root), 8);
        assert!(bounds.is_read(Some(&root), 9) && !bounds.is_read(None, 9));
    }
}
