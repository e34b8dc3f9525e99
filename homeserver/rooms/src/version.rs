//! The room versions that this server speaks: <https://spec.matrix.org/v1.19/rooms/>.

use ruma::RoomVersionId;
use ruma::room_version_rules::RoomVersionRules;
use serde::Deserialize;
use waxwing_model::Event;

/// Every version that this server takes part in, oldest first.
pub const SUPPORTED: [RoomVersionId; 12] = [
    RoomVersionId::V1,
    RoomVersionId::V2,
    RoomVersionId::V3,
    RoomVersionId::V4,
    RoomVersionId::V5,
    RoomVersionId::V6,
    RoomVersionId::V7,
    RoomVersionId::V8,
    RoomVersionId::V9,
    RoomVersionId::V10,
    RoomVersionId::V11,
    RoomVersionId::V12,
];

/// Experimental versions that it takes part in, too: versions 10 and 11 with state that belongs to users (MSC3757).
pub const EXPERIMENTAL: [&str; 2] = ["org.matrix.msc3757.10", "org.matrix.msc3757.11"];

/// Every version that this server can join a room of.
pub fn joinable() -> Vec<RoomVersionId> {
    let experimental = EXPERIMENTAL.iter().filter_map(|version| RoomVersionId::try_from(*version).ok());
    SUPPORTED.into_iter().chain(experimental).collect()
}

/// Whether state keys of this version may belong to users, with something behind the user id (MSC3757).
pub fn has_owned_state(version: &RoomVersionId) -> bool {
    EXPERIMENTAL.contains(&version.as_str())
}

/// The server does not know this room version: `M_UNSUPPORTED_ROOM_VERSION`, `M_INCOMPATIBLE_ROOM_VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown room version {0}")]
pub struct UnknownVersion(pub RoomVersionId);

/// The rules of a version; `None` for every version but 1 to 12 and [`EXPERIMENTAL`], whatever else the library below
/// may know.
/// <https://spec.matrix.org/v1.19/rooms/#complete-list-of-room-versions>
pub fn rules(version: &RoomVersionId) -> Option<&'static RoomVersionRules> {
    Some(match version {
        RoomVersionId::V1 => &RoomVersionRules::V1,
        RoomVersionId::V2 => &RoomVersionRules::V2,
        RoomVersionId::V3 => &RoomVersionRules::V3,
        RoomVersionId::V4 => &RoomVersionRules::V4,
        RoomVersionId::V5 => &RoomVersionRules::V5,
        RoomVersionId::V6 => &RoomVersionRules::V6,
        RoomVersionId::V7 => &RoomVersionRules::V7,
        RoomVersionId::V8 => &RoomVersionRules::V8,
        RoomVersionId::V9 => &RoomVersionRules::V9,
        RoomVersionId::V10 => &RoomVersionRules::V10,
        RoomVersionId::V11 => &RoomVersionRules::V11,
        RoomVersionId::V12 => &RoomVersionRules::V12,
        other => match other.as_str() {
            "org.matrix.msc3757.10" => &RoomVersionRules::V10,
            "org.matrix.msc3757.11" => &RoomVersionRules::V11,
            _ => return None,
        },
    })
}

/// [`rules`], for `?`.
pub fn rules_or_unknown(version: &RoomVersionId) -> Result<&'static RoomVersionRules, UnknownVersion> {
    rules(version).ok_or_else(|| UnknownVersion(version.clone()))
}

/// The room version that a create event names: 1 if it names none; `None` if what it names is no version.
/// <https://spec.matrix.org/v1.19/client-server-api/#mroomcreate>
pub fn of_create(create: &Event) -> Option<RoomVersionId> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default = "first")]
        room_version: RoomVersionId,
    }
    create.content_as::<Content>().ok().map(|content| content.room_version)
}

fn first() -> RoomVersionId {
    RoomVersionId::V1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_and_no_more() {
        for number in 1..=12 {
            let version = RoomVersionId::try_from(number.to_string()).unwrap();
            assert!(rules(&version).is_some());
            assert_eq!(SUPPORTED[number - 1], version);
        }
        assert!(joinable().iter().all(|version| rules(version).is_some()));
        for unknown in ["0", "13", "org.matrix.msc2870", "x"] {
            let unknown = RoomVersionId::try_from(unknown).unwrap();
            assert_eq!(rules_or_unknown(&unknown).unwrap_err(), UnknownVersion(unknown));
        }
    }
}
