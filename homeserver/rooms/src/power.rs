//! Who may do what: a room's power levels, read once.
//! <https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels>

use ruma::events::TimelineEventType;
use ruma::events::room::power_levels::UserPowerLevel;
use ruma::room_version_rules::AuthorizationRules;
use ruma::serde::deserialize_v1_powerlevel;
use ruma::state_res::Event as _;
use ruma::state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent};
use ruma::{Int, OwnedUserId, RoomVersionId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet};
use waxwing_model::Event;

use crate::auth::{AuthError, PduView};
use crate::version::rules_or_unknown;

/// What the creator of a room has before the room has power levels, in room versions 1 to 11.
const CREATOR_WITHOUT_LEVELS: i32 = 100;
/// What a notification needs unless the room says otherwise.
const NOTIFY: i32 = 50;

/// A room's power levels at some state.
#[derive(Debug, Clone)]
pub struct PowerLevels {
    creators: HashSet<OwnedUserId>,
    /// From room version 12 on creators stand above all levels.
    creators_rule: bool,
    /// Whether the room has a power levels event at all.
    present: bool,
    users: BTreeMap<OwnedUserId, Int>,
    events: BTreeMap<TimelineEventType, Int>,
    notifications: BTreeMap<String, Int>,
    users_default: Int,
    events_default: Int,
    state_default: Int,
    ban: Int,
    redact: Int,
    kick: Int,
    invite: Int,
}

impl PowerLevels {
    /// Reads the create event and, where the room has one, the power levels event, by the rules of the room version
    /// (versions 1 to 9 allow integers in strings). An accepted event is never malformed.
    pub fn new(
        create: &Event,
        levels: Option<&Event>,
        version: &RoomVersionId,
    ) -> Result<PowerLevels, AuthError> {
        let rules = &rules_or_unknown(version)?.authorization;
        Self::read(create, levels, version, rules).map_err(AuthError::Forbidden)
    }

    fn read(
        create: &Event,
        levels: Option<&Event>,
        version: &RoomVersionId,
        rules: &AuthorizationRules,
    ) -> Result<PowerLevels, String> {
        let creators = RoomCreateEvent::new(PduView::new(create, false, version)).creators(rules)?;
        let levels = levels.map(|event| PduView::new(event, false, version));
        let content: Map<String, Value> = match &levels {
            Some(event) => serde_json::from_str(event.content().get()).map_err(|error| error.to_string())?,
            None => Map::new(),
        };
        let int = |field: &str, default: i32| match content.get(field) {
            Some(level) => read_level(level, rules).map_err(|error| format!("{field}: {error}")),
            None => Ok(default.into()),
        };
        let levels = levels.map(RoomPowerLevelsEvent::new);
        let (users, events, notifications) = match &levels {
            Some(l) => (
                l.users(rules)?.cloned().unwrap_or_default(),
                l.events(rules)?.unwrap_or_default(),
                l.notifications(rules).unwrap_or_default().unwrap_or_default(),
            ),
            None => Default::default(),
        };
        Ok(PowerLevels {
            creators,
            creators_rule: rules.explicitly_privilege_room_creators,
            present: levels.is_some(),
            users,
            events,
            notifications,
            users_default: int("users_default", 0)?,
            events_default: int("events_default", 0)?,
            state_default: int("state_default", 50)?,
            ban: int("ban", 50)?,
            redact: int("redact", 50)?,
            kick: int("kick", 50)?,
            invite: int("invite", 0)?,
        })
    }

    /// A user's level; infinite for the creators of a version 12 room.
    pub fn user_level(&self, user: &UserId) -> UserPowerLevel {
        let creator = self.creators.contains(user);
        if creator && self.creators_rule {
            return UserPowerLevel::Infinite;
        }
        if !self.present && creator {
            return Int::from(CREATOR_WITHOUT_LEVELS).into();
        }
        (*self.users.get(user).unwrap_or(&self.users_default)).into()
    }

    /// The level that sending an event of this type needs.
    pub fn required_for(&self, kind: &TimelineEventType, is_state: bool) -> Int {
        let default = if is_state { self.state_default } else { self.events_default };
        *self.events.get(kind).unwrap_or(&default)
    }

    /// Whether the level of `user` suffices to send events of this type. Says nothing of membership.
    pub fn can_send(&self, user: &UserId, kind: &TimelineEventType, is_state: bool) -> bool {
        self.user_level(user) >= self.required_for(kind, is_state)
    }

    /// Whether the level of `user` suffices to invite.
    pub fn can_invite(&self, user: &UserId) -> bool {
        self.user_level(user) >= self.invite
    }

    /// Whether `user` may kick `target`: the kick level, and above the target.
    pub fn can_kick(&self, user: &UserId, target: &UserId) -> bool {
        let level = self.user_level(user);
        level >= self.kick && level > self.user_level(target)
    }

    /// Whether `user` may ban `target`: the ban level, and above the target.
    pub fn can_ban(&self, user: &UserId, target: &UserId) -> bool {
        let level = self.user_level(user);
        level >= self.ban && level > self.user_level(target)
    }

    /// Whether `user` may unban `target`: both the kick and the ban level, and above the target.
    pub fn can_unban(&self, user: &UserId, target: &UserId) -> bool {
        self.can_kick(user, target) && self.can_ban(user, target)
    }

    /// Whether `user` may redact events of others.
    pub fn can_redact(&self, user: &UserId) -> bool {
        self.user_level(user) >= self.redact
    }

    /// Whether `user` may notify everyone of `kind`, for example `room`.
    pub fn can_notify(&self, user: &UserId, kind: &str) -> bool {
        self.user_level(user) >= self.notification_level(kind)
    }

    /// The level that a notification of `kind` needs.
    pub fn notification_level(&self, kind: &str) -> Int {
        self.notifications.get(kind).copied().unwrap_or_else(|| NOTIFY.into())
    }

    /// The creators: from room version 12 on with the additional ones.
    pub fn creators(&self) -> &HashSet<OwnedUserId> {
        &self.creators
    }

    /// Every user with a level of their own.
    pub fn users(&self) -> &BTreeMap<OwnedUserId, Int> {
        &self.users
    }

    /// The level that message-like events need whose type has none of its own.
    pub fn events_default(&self) -> Int {
        self.events_default
    }

    /// The level that state events need whose type has none of its own.
    pub fn state_default(&self) -> Int {
        self.state_default
    }

    /// The level that an invite, a kick, a ban and a redaction of someone else's event need, in this order.
    pub fn action_levels(&self) -> [Int; 4] {
        [self.invite, self.kick, self.ban, self.redact]
    }

    /// The level of users without one of their own.
    pub fn users_default(&self) -> Int {
        self.users_default
    }

    /// The users whose level is at least `level`, creators first where they stand above all levels.
    pub fn users_at_least(&self, level: Int) -> Vec<&UserId> {
        let mut users: Vec<&UserId> = Vec::new();
        if self.creators_rule || !self.present {
            users.extend(self.creators.iter().map(|user| &**user));
            users.sort_unstable();
        }
        users.extend(self.users.iter().filter(|(_, has)| **has >= level).map(|(user, _)| &**user));
        users
    }
}

/// Integers in strings up to room version 9. <https://spec.matrix.org/v1.19/rooms/v10/#values-in-mroompower_levels-events-must-be-integers>
fn read_level(level: &Value, rules: &AuthorizationRules) -> Result<Int, serde_json::Error> {
    if rules.integer_power_levels {
        serde_json::from_value(level.clone())
    } else {
        deserialize_v1_powerlevel(level)
    }
}

/// Rooms of versions 1 to 5 may have levels that are floats, which count without their fraction, and levels beyond 53 bits,
/// above and below which there is nothing. The content with such levels as integers; `None` if there are none.
/// <https://spec.matrix.org/v1.19/rooms/v1/#mroompower_levels-events-accept-values-as-strings>
pub(crate) fn whole_levels(content: &RawValue) -> Option<Box<RawValue>> {
    if !has_odd_numbers(content.get()) {
        return None;
    }
    let mut levels: Map<String, Value> = serde_json::from_str(content.get()).ok()?;
    for (field, value) in &mut levels {
        match (field.as_str(), value) {
            ("users" | "events" | "notifications", Value::Object(more)) => {
                more.values_mut().for_each(make_whole);
            }
            (_, value) => make_whole(value),
        }
    }
    serde_json::value::to_raw_value(&levels).ok()
}

/// Whether there may be a float or a large integer: a digit before a point or an exponent, or many digits.
fn has_odd_numbers(json: &str) -> bool {
    const LARGE: usize = 16;
    let mut digits = 0_usize;
    json.bytes().any(|byte| {
        let odd = digits > 0 && matches!(byte, b'.' | b'e' | b'E');
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        odd || digits >= LARGE
    })
}

fn make_whole(level: &mut Value) {
    let Value::Number(number) = &*level else { return };
    let most = i64::from(Int::MAX);
    let whole = match (number.as_i64(), number.as_f64()) {
        (Some(whole), _) => whole.clamp(-most, most),
        // `as` cuts off the fraction and stops at the limits.
        (None, Some(float)) => (float as i64).clamp(-most, most),
        (None, None) => return,
    };
    *level = whole.into();
}
