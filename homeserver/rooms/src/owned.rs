//! State entries that belong to users (MSC3757): a state key may be a user's id with something behind it, and those who
//! stand above the user may set it, too. Two experimental room versions have it: <https://github.com/matrix-org/matrix-spec-proposals/pull/3757>.
//!
//! ruma knows only the rule of the other versions, which forbids every foreign user id as a state key. So it is shown
//! such keys in disguise, and the rule is checked here. State resolution sees the disguise alone: whether an event was
//! allowed when it came is known by then, but a change of power levels between the sides does not undo it.

use crate::auth::{AuthError, AuthMap};
use crate::power::PowerLevels;
use crate::version;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{OwnedUserId, RoomVersionId, UserId};
use std::borrow::Cow;
use waxwing_model::{Event, StateKey, state_key};

/// What stands before a state key in disguise.
const DISGUISE: char = '\0';

/// The user to whom a state key belongs: all of it, or what stands before the first underscore of its server's name.
/// `None` where that is no user id.
pub fn owner(key: &str) -> Option<OwnedUserId> {
    let colon = key.find(':')?;
    let end = key[colon..].find('_').map_or(key.len(), |at| colon + at);
    UserId::parse(&key[..end]).ok()
}

/// Whether the rule is asked about an event of this kind with this state key.
fn concerns(kind: &TimelineEventType, key: Option<&str>, version: &RoomVersionId) -> bool {
    version::has_owned_state(version)
        && *kind != TimelineEventType::RoomMember
        && key.is_some_and(|key| key.starts_with('@'))
}

/// Whether the sender may set the entry, as far as it belongs to somebody.
///
/// # Errors
/// [`AuthError::Forbidden`] for another's entry unless that one stands below the sender, and for keys that begin like a
/// user id and are none.
pub(crate) fn check(event: &Event, version: &RoomVersionId, state: &AuthMap) -> Result<(), AuthError> {
    let Some(key) = event.state_key.as_deref().filter(|key| concerns(&event.kind, Some(key), version)) else {
        return Ok(());
    };
    let forbidden = |why: &str| Err(AuthError::Forbidden(why.to_owned()));
    let Some(owner) = owner(key) else { return forbidden("the state key names no user") };
    if owner == event.sender {
        return Ok(());
    }
    let Some(create) = state.get(&state_key(StateEventType::RoomCreate, "")) else {
        return forbidden("there is no create event");
    };
    let levels = state.get(&state_key(StateEventType::RoomPowerLevels, "")).map(|event| &**event);
    let power = PowerLevels::new(create, levels, version)?;
    if power.user_level(&event.sender) > power.user_level(&owner) {
        return Ok(());
    }
    forbidden("the state entry belongs to somebody who does not stand below the sender")
}

/// The state key that ruma is shown for an event of this kind.
pub(crate) fn disguised<'a>(kind: &TimelineEventType, key: &'a str, version: &RoomVersionId) -> Cow<'a, str> {
    if concerns(kind, Some(key), version) || version::has_owned_state(version) && key.starts_with(DISGUISE) {
        Cow::Owned(format!("{DISGUISE}{key}"))
    } else {
        Cow::Borrowed(key)
    }
}

/// The same for an entry of a state.
pub(crate) fn disguised_entry(entry: &StateKey, version: &RoomVersionId) -> StateKey {
    let kind = TimelineEventType::from(entry.0.to_string());
    (entry.0.clone(), disguised(&kind, &entry.1, version).into_owned())
}

/// The entry behind the disguise.
pub(crate) fn revealed(mut entry: StateKey, version: &RoomVersionId) -> StateKey {
    if version::has_owned_state(version)
        && let Some(key) = entry.1.strip_prefix(DISGUISE)
    {
        entry.1 = key.to_owned();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_end_at_an_underscore_of_the_server_name() {
        let of = |key: &str| owner(key).map(|user| user.to_string());
        assert_eq!(of("@a:b.c").as_deref(), Some("@a:b.c"));
        assert_eq!(of("@a_b:c.d_DEVICE_x:1").as_deref(), Some("@a_b:c.d"));
        assert_eq!(of("@a:b.c:8448_x").as_deref(), Some("@a:b.c:8448"));
        for wrong in ["@oops", "", "@a:b@c_x", "@a:_x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_disguise_can_be_taken_off_and_hides_nothing_else() {
        let owned = RoomVersionId::try_from("org.matrix.msc3757.11").unwrap();
        for (kind, key) in [("x.y", "@a:b_c"), ("x.y", "\0@a:b_c"), ("x.y", ""), ("m.room.member", "@a:b")] {
            let entry: StateKey = (kind.into(), key.to_owned());
            let hidden = disguised_entry(&entry, &owned);
            assert_eq!(hidden.1.starts_with('@'), kind == "m.room.member", "{key:?}");
            assert_eq!(revealed(hidden, &owned), entry);
            assert_eq!(disguised_entry(&entry, &RoomVersionId::V11), entry);
        }
    }
}
