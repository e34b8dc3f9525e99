//! Asking a user's push rules about an event, with what they ask about the room and the user in it.
//! <https://spec.matrix.org/v1.19/client-server-api/#push-rules>

use crate::{Core, push_rules};
use quick_cache::sync::Cache;
use ruma::events::{AnySyncTimelineEvent, StateEventType, TimelineEventType};
use ruma::power_levels::NotificationPowerLevels;
use ruma::push::{Action, FlattenedJson, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset};
use ruma::room_version_rules::RoomPowerLevelsRules;
use ruma::serde::Raw;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UInt, UserId};
use std::sync::Arc;
use waxwing_model::{Event, LogPosition, state_key};
use waxwing_rooms::PowerLevels;
use waxwing_rooms::client_json::{ClientEvent, Unsigned};
use waxwing_storage::{Fact, LogRow, RoomRow, StoreResult};

/// Rooms of which is kept what rules ask about them.
const FACTS: usize = 10_000;
/// Users whose rules are kept ready for use: those to whom something happens at the same time. About 9 KB each; of all
/// others what they set is kept, which for most is nothing.
const USERS: usize = 1500;

/// An event as rules look at it.
pub(crate) fn flattened(event: &Event) -> FlattenedJson {
    let raw: Raw<AnySyncTimelineEvent> =
        Raw::from_json(ClientEvent::new(event).with_room(&Unsigned::default()));
    FlattenedJson::from_raw(&raw)
}

/// What push rules ask about a room, the same for all of its users.
pub(crate) struct Facts {
    joined: UInt,
    levels: Option<PushConditionPowerLevelsCtx>,
}

fn moves_facts(event: &Event) -> bool {
    let kinds =
        [TimelineEventType::RoomMember, TimelineEventType::RoomPowerLevels, TimelineEventType::RoomCreate];
    event.is_state() && kinds.contains(&event.kind)
}

/// What rules ask about a room and a user in it.
pub(crate) struct RuleContext {
    facts: Arc<Facts>,
    room: PushConditionRoomCtx,
}

impl RuleContext {
    /// The user's name in the room.
    pub fn name(&self) -> &str {
        &self.room.user_display_name
    }

    /// What the user's rules say about the event.
    pub async fn actions<'a>(&self, rules: &'a Ruleset, event: &FlattenedJson) -> &'a [Action] {
        if event.get_str("sender") == Some(self.room.user_id.as_str()) {
            return &[];
        }
        for rule in rules {
            if rule.applies(event, &self.room).await {
                return rule.actions();
            }
        }
        &[]
    }
}

/// What a user's push rules were made of: what the user set; none: the defaults.
pub(crate) type Source = Option<Arc<str>>;

/// A user's push rules.
pub struct UserRules {
    set: Ruleset,
    /// Rules of equal sources are equal.
    pub(crate) source: Source,
}

impl std::ops::Deref for UserRules {
    type Target = Ruleset;
    fn deref(&self) -> &Ruleset {
        &self.set
    }
}

/// Push rules, and what they ask about rooms, kept while nothing says that they changed.
pub struct Rules {
    core: Core,
    sets: Cache<OwnedUserId, Arc<UserRules>>,
    facts: Cache<OwnedRoomId, (LogPosition, Arc<Facts>)>,
}

impl Rules {
    /// Over the database of `core`.
    pub(crate) fn new(core: Core) -> Rules {
        Rules { core, sets: Cache::new(USERS), facts: Cache::new(FACTS) }
    }

    /// The user's push rules at `upto`.
    pub async fn of(&self, user: &UserId, upto: LogPosition) -> StoreResult<Arc<UserRules>> {
        let source = self.core.store.as_of(upto).account_data(user, push_rules::KIND).await?;
        if let Some(rules) = self.sets.get(user).filter(|rules| rules.source == source) {
            return Ok(rules);
        }
        let set = push_rules::parse(&self.core, user, source.as_deref());
        let rules = Arc::new(UserRules { set, source });
        self.sets.insert(user.to_owned(), Arc::clone(&rules));
        Ok(rules)
    }

    /// What rules ask about the user in the room, at `upto`. `known`: what was asked for the same user and room
    /// before, if the user's name there has not changed since.
    pub(crate) async fn context(
        &self,
        user: &UserId,
        room: &RoomId,
        known: Option<RuleContext>,
        upto: LogPosition,
    ) -> StoreResult<RuleContext> {
        let facts = self.facts(room, upto).await?;
        match known {
            Some(known) if Arc::ptr_eq(&known.facts, &facts) => Ok(known),
            Some(known) => Ok(with_facts(known.room, facts)),
            None => {
                let member = self.core.store.as_of(upto).member(room, user).await?;
                let name = member.and_then(|member| member.display_name.clone());
                Ok(self.named(user, room, name, facts))
            }
        }
    }

    /// The same for a user whose name in the room is known.
    pub(crate) async fn context_named(
        &self,
        user: &UserId,
        room: &RoomId,
        name: Option<String>,
        upto: LogPosition,
    ) -> StoreResult<RuleContext> {
        let facts = self.facts(room, upto).await?;
        Ok(self.named(user, room, name, facts))
    }

    /// Keeps what rules ask about a room whose row and number of joined members are at hand, as they are at `upto`.
    pub(crate) async fn seed(&self, row: &RoomRow, joined: u64, upto: LogPosition) -> StoreResult<()> {
        if self.facts.get(&row.room_id).is_none() {
            let facts = Arc::new(self.facts_of(row, joined).await?);
            self.facts.insert(row.room_id.clone(), (upto, facts));
        }
        Ok(())
    }

    /// The same for an event that rules cannot find the user's name in, because it has no words: nothing is read for
    /// each user.
    pub(crate) async fn context_for(
        &self,
        user: &UserId,
        room: &RoomId,
        event: &FlattenedJson,
        upto: LogPosition,
    ) -> StoreResult<RuleContext> {
        if event.get_str("content.body").is_some() {
            return self.context(user, room, None, upto).await;
        }
        let facts = self.facts(room, upto).await?;
        Ok(self.named(user, room, None, facts))
    }

    fn named(&self, user: &UserId, room: &RoomId, name: Option<String>, facts: Arc<Facts>) -> RuleContext {
        let name = name.unwrap_or_else(|| user.localpart().to_owned());
        let context = PushConditionRoomCtx::new(room.to_owned(), facts.joined, user.to_owned(), name);
        let key = Arc::new((self.core.clone(), user.to_owned(), room.to_owned()));
        let context = context.with_has_thread_subscription_fn(move |root| {
            let (key, root) = (Arc::clone(&key), root.to_owned());
            Box::pin(async move { follows(&key.0, &key.1, &key.2, &root).await })
        });
        with_facts(context, facts)
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
        let row = conn.room_load(room).await?;
        drop(conn);
        match row {
            Some(row) => self.facts_of(&row, joined as u64).await,
            None => Ok(Facts { joined: UInt::new_saturating(joined as u64), levels: None }),
        }
    }

    async fn facts_of(&self, row: &RoomRow, joined: u64) -> StoreResult<Facts> {
        let store = &self.core.store;
        let mut facts = Facts { joined: UInt::new_saturating(joined), levels: None };
        let keys =
            [state_key(StateEventType::RoomCreate, ""), state_key(StateEventType::RoomPowerLevels, "")];
        let ids = store.state_get_many(row.state_root, &keys).await?;
        let wanted: Vec<OwnedEventId> = ids.iter().flatten().cloned().collect();
        let events = store.events(&wanted).await?;
        let event = |index: usize| {
            let id = ids.get(index).and_then(Option::as_ref)?;
            events.get(id).map(|stored| &*stored.event)
        };
        let Some(create) = event(0) else { return Ok(facts) };
        let levels = PowerLevels::new(create, event(1), &row.version);
        let (Ok(levels), Some(rules)) = (levels, row.version.rules()) else { return Ok(facts) };
        let mut notifications = NotificationPowerLevels::default();
        notifications.room = levels.notification_level("room");
        let rules = RoomPowerLevelsRules::new(&rules.authorization, levels.creators().iter().cloned());
        facts.levels = Some(PushConditionPowerLevelsCtx::new(
            levels.users().clone(),
            levels.users_default(),
            notifications,
            rules,
        ));
        Ok(facts)
    }
}

/// Whether the user follows the thread (MSC4306). One that cannot be looked up is not followed.
async fn follows(core: &Core, user: &UserId, room: &RoomId, root: &EventId) -> bool {
    let row = async { core.store.read().await?.thread_subscription(user, room, root).await };
    match row.await {
        Ok(row) => row.is_some_and(|row| row.subscribed),
        Err(error) => {
            tracing::warn!(%error, "a thread's subscription cannot be read");
            false
        }
    }
}

fn with_facts(mut room: PushConditionRoomCtx, facts: Arc<Facts>) -> RuleContext {
    room.member_count = facts.joined;
    room.power_levels.clone_from(&facts.levels);
    RuleContext { facts, room }
}
