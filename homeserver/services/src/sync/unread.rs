//! Unread counts: the user's push rules over what came after the user's receipts.
//!
//! Nothing is written for a message. What a room's newer events do to a user is worked out when the user looks, and
//! kept: the next look goes over newer events only.
//! <https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications>

use super::account_data::unchanged;
use super::build::Build;
use super::response::UnreadCount;
use crate::{Core, push_rules, timeline};
use quick_cache::sync::Cache;
use ruma::events::StateEventType;
use ruma::events::TimelineEventType;
use ruma::push::{PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset};
use ruma::serde::Raw;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UInt, UserId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::Mutex;
use waxwing_model::{Event, LogPosition, state_key};
use waxwing_rooms::PowerLevels;
use waxwing_rooms::client_json::{ClientEvent, Unsigned};
use waxwing_storage::{Fact, LogRow, ReceiptRow, StoreResult, StoredEvent};

/// Events looked at to count what is unread in a room: a client shows "99+" long before.
const MAX_EVENTS: usize = 500;
/// Rooms of users that are kept.
const ROOMS: usize = 100_000;
/// Rooms of which is kept what rules ask about them.
const FACTS: usize = 10_000;
/// Users whose rules are kept.
const USERS: usize = 20_000;

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
    rules: Arc<Ruleset>,
    ignored: Arc<BTreeSet<OwnedUserId>>,
    bounds: Bounds,
    noted: Vec<Noted>,
    context: Option<(Arc<Facts>, PushConditionRoomCtx)>,
}

/// What push rules ask about a room, the same for all of its users.
struct Facts {
    joined: UInt,
    levels: Option<PushConditionPowerLevelsCtx>,
}

fn moves_facts(event: &Event) -> bool {
    let kinds =
        [TimelineEventType::RoomMember, TimelineEventType::RoomPowerLevels, TimelineEventType::RoomCreate];
    event.is_state() && kinds.contains(&event.kind)
}

type Key = (OwnedUserId, OwnedRoomId);

/// Counts what is unread.
pub struct Unread {
    core: Core,
    rules: Cache<OwnedUserId, (LogPosition, Arc<Ruleset>)>,
    rooms: Cache<Key, Arc<Mutex<Option<Room>>>>,
    facts: Cache<OwnedRoomId, (LogPosition, Arc<Facts>)>,
}

/// The thread that an event is part of, by its root.
pub(crate) fn thread_of(event: &Event) -> Option<OwnedEventId> {
    timeline::relation(event).filter(|(_, rel_type)| rel_type == "m.thread").map(|(root, _)| root)
}

impl Build<'_> {
    /// What is unread in a joined room.
    pub async fn unread_of(&self, room: &RoomId) -> StoreResult<RoomUnread> {
        self.sync.unread.count(self.user(), room, &self.ignored, self.upto).await
    }
}

impl Unread {
    /// Over the database of `core`.
    pub fn new(core: Core) -> Unread {
        Unread { core, rules: Cache::new(USERS), rooms: Cache::new(ROOMS), facts: Cache::new(FACTS) }
    }

    /// The user's push rules at `upto`.
    pub async fn rules(&self, user: &UserId, upto: LogPosition) -> StoreResult<Arc<Ruleset>> {
        if let Some((read, rules)) = self.rules.get(user)
            && unchanged(&self.core, user, push_rules::KIND, read, upto)
        {
            self.rules.insert(user.to_owned(), (upto.max(read), Arc::clone(&rules)));
            return Ok(rules);
        }
        let content = self.core.store.read().await?.account_data_load(user, None, push_rules::KIND).await?;
        let rules = Arc::new(push_rules::parse(user, content.as_deref()));
        self.rules.insert(user.to_owned(), (upto, Arc::clone(&rules)));
        Ok(rules)
    }

    /// What a joined user has not read in a room at `upto`. Messages of `ignored` users do not count.
    pub async fn count(
        &self,
        user: &UserId,
        room: &RoomId,
        ignored: &Arc<BTreeSet<OwnedUserId>>,
        upto: LogPosition,
    ) -> StoreResult<RoomUnread> {
        let rules = self.rules(user, upto).await?;
        let key = (user.to_owned(), room.to_owned());
        let slot = self.rooms.get(&key).unwrap_or_else(|| {
            let slot = Arc::default();
            self.rooms.insert(key, Arc::clone(&slot));
            slot
        });
        let mut slot = slot.lock().await;
        let known =
            slot.take().filter(|known| Arc::ptr_eq(&known.rules, &rules) && known.ignored == *ignored);
        let looked = match known {
            Some(known) => self.advance(user, room, known, upto).await?,
            None => None,
        };
        let looked = match looked {
            Some(looked) => looked,
            None => self.look(user, room, rules, Arc::clone(ignored), upto).await?,
        };
        let counts = looked.counts();
        *slot = Some(looked);
        Ok(counts)
    }

    /// Goes on from what is known; `None` when the tail does not reach back to it.
    async fn advance(
        &self,
        user: &UserId,
        room: &RoomId,
        mut known: Room,
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
                        self.take(user, &mut known, &stored, upto).await?;
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
        known.upto = upto;
        Ok(Some(known))
    }

    /// Looks at the room's newest events, back to what has been read.
    async fn look(
        &self,
        user: &UserId,
        room: &RoomId,
        rules: Arc<Ruleset>,
        ignored: Arc<BTreeSet<OwnedUserId>>,
        upto: LogPosition,
    ) -> StoreResult<Room> {
        let mut looked =
            Room { upto, rules, ignored, bounds: Bounds::default(), noted: Vec::new(), context: None };
        self.raise_by_receipts(user, room, &mut looked.bounds).await?;
        let (mut before, mut seen, mut chunk) = (upto.0 + 1, 0, 20);
        loop {
            let events = self.core.store.read().await?.events_backward(room, before, chunk).await?;
            for stored in &events {
                let read = looked.bounds.everything.is_some_and(|bound| stored.sn <= bound);
                if read || self.take(user, &mut looked, stored, upto).await? {
                    return Ok(looked);
                }
            }
            seen += events.len();
            let Some(last) = events.last() else { return Ok(looked) };
            if (events.len() as i64) < chunk || seen >= MAX_EVENTS {
                return Ok(looked);
            }
            before = last.sn;
            chunk = 100;
        }
    }

    async fn raise_by_receipts(&self, user: &UserId, room: &RoomId, bounds: &mut Bounds) -> StoreResult<()> {
        let receipts = self.core.store.read().await?.receipts_of_user_in_room(user, room).await?;
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
        match receipt.event_sn {
            Some(sn) => Ok(Some(sn)),
            None => Ok(self.core.store.event(&receipt.event_id).await?.map(|stored| stored.sn)),
        }
    }

    /// Takes in one event. Answers whether nothing before it can be unread: the user came into the room with it.
    async fn take(
        &self,
        user: &UserId,
        room: &mut Room,
        stored: &Arc<StoredEvent>,
        upto: LogPosition,
    ) -> StoreResult<bool> {
        let event = &stored.event;
        let is_own_member = event.is_state_of(&StateEventType::RoomMember, user.as_str());
        if is_own_member {
            // The name that rules look for may be another now.
            room.context = None;
        }
        let thread = thread_of(event);
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
        let facts = self.facts(&event.room_id, upto).await?;
        let context = match room.context.take() {
            Some((of, context)) if Arc::ptr_eq(&of, &facts) => context,
            Some((_, context)) => with_facts(context, &facts),
            None => self.context(user, &event.room_id, &facts).await?,
        };
        let raw: Raw<ruma::events::AnySyncTimelineEvent> =
            Raw::from_json(ClientEvent::new(event).with_room(&Unsigned::default()));
        let actions = room.rules.get_actions(&raw, &context).await;
        if actions.iter().any(ruma::push::Action::should_notify) {
            let highlight = actions.iter().any(ruma::push::Action::is_highlight);
            room.noted.push(Noted { sn: stored.sn, id: event.event_id.clone(), thread, highlight });
        }
        room.context = Some((facts, context));
        Ok(false)
    }

    async fn was_joined(&self, user: &UserId, stored: &StoredEvent) -> StoreResult<bool> {
        let Some(root) = stored.state_before else { return Ok(false) };
        let store = &self.core.store;
        let mut conn = store.read().await?;
        let before = store.state(&mut conn).get(root, StateEventType::RoomMember, user.as_str()).await?;
        drop(conn);
        let Some(before) = before else { return Ok(false) };
        let member = store.event(&before).await?;
        Ok(member.is_some_and(|member| member.event.content_str("membership").as_deref() == Some("join")))
    }

    /// What push rules ask about the room and the user in it, at `upto`.
    pub async fn room_context(
        &self,
        user: &UserId,
        room: &RoomId,
        upto: LogPosition,
    ) -> StoreResult<PushConditionRoomCtx> {
        let facts = self.facts(room, upto).await?;
        self.context(user, room, &facts).await
    }

    /// What push rules ask about the room and the user in it.
    async fn context(
        &self,
        user: &UserId,
        room: &RoomId,
        facts: &Facts,
    ) -> StoreResult<PushConditionRoomCtx> {
        let member = self.core.store.read().await?.member_load(room, user).await?;
        let name = member.and_then(|member| member.display_name);
        let name = name.unwrap_or_else(|| user.localpart().to_owned());
        Ok(with_facts(PushConditionRoomCtx::new(room.to_owned(), facts.joined, user.to_owned(), name), facts))
    }

    /// The room's part of it, from memory while no row says that it changed.
    async fn facts(&self, room: &RoomId, upto: LogPosition) -> StoreResult<Arc<Facts>> {
        if let Some((read, facts)) = self.facts.get(room) {
            let rows = self.core.store.tail().range_of_room(room, read, upto);
            let moved = |row: &Arc<LogRow>| {
                row.fact == Fact::State
                    || row.fact == Fact::Event && row.event.as_ref().is_none_or(|it| moves_facts(&it.event))
            };
            if rows.is_some_and(|rows| !rows.iter().any(moved)) {
                self.facts.insert(room.to_owned(), (upto.max(read), Arc::clone(&facts)));
                return Ok(facts);
            }
        }
        let facts = Arc::new(self.load_facts(room).await?);
        self.facts.insert(room.to_owned(), (upto, Arc::clone(&facts)));
        Ok(facts)
    }

    async fn load_facts(&self, room: &RoomId) -> StoreResult<Facts> {
        let store = &self.core.store;
        let mut conn = store.read().await?;
        let counts = conn.member_counts(room).await?;
        let joined =
            counts.iter().find(|(membership, _)| membership == "join").map_or(0, |(_, count)| *count);
        let mut facts = Facts { joined: UInt::new_saturating(joined as u64), levels: None };
        let Some(row) = conn.room_load(room).await? else { return Ok(facts) };
        let keys =
            [state_key(StateEventType::RoomCreate, ""), state_key(StateEventType::RoomPowerLevels, "")];
        let ids = store.state(&mut conn).get_many(row.state_root, &keys).await?;
        drop(conn);
        let wanted: Vec<OwnedEventId> = ids.iter().flatten().cloned().collect();
        let events = store.events(&wanted).await?;
        let event = |index: usize| {
            let id = ids.get(index).and_then(Option::as_ref)?;
            events.get(id).map(|stored| &*stored.event)
        };
        let Some(create) = event(0) else { return Ok(facts) };
        let levels = PowerLevels::new(create, event(1), &row.version);
        let (Ok(levels), Some(rules)) = (levels, row.version.rules()) else { return Ok(facts) };
        let mut notifications = ruma::power_levels::NotificationPowerLevels::default();
        notifications.room = levels.notification_level("room");
        let rules = ruma::room_version_rules::RoomPowerLevelsRules::new(
            &rules.authorization,
            levels.creators().iter().cloned(),
        );
        facts.levels = Some(PushConditionPowerLevelsCtx::new(
            levels.users().clone(),
            levels.users_default(),
            notifications,
            rules,
        ));
        Ok(facts)
    }
}

fn with_facts(mut context: PushConditionRoomCtx, facts: &Facts) -> PushConditionRoomCtx {
    context.member_count = facts.joined;
    context.power_levels.clone_from(&facts.levels);
    context
}

impl Room {
    fn counts(&self) -> RoomUnread {
        let mut unread = RoomUnread::default();
        for noted in &self.noted {
            if self.bounds.is_read(noted.thread.as_ref(), noted.sn) {
                continue;
            }
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
