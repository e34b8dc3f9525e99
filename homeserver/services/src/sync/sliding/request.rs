//! What a client asks of sliding sync, whichever dialect it speaks.

use super::config::StateConfig;
use crate::render::Viewer;
use ruma::OwnedRoomId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use waxwing_model::LogPosition;

/// Lists, and room subscriptions, of one request at most: by MSC4186.
pub const MAX_RULES: usize = 100;
/// Timeline events of one room at most, whatever the client asks: it bounds an answer.
pub const MAX_TIMELINE: usize = 100;
/// Patterns of required state of one rule at most: a client names about twenty.
pub const MAX_PATTERNS: usize = 200;
/// Ranges, spaces, tags or types of one list at most.
pub const MAX_LISTED: usize = 100;
/// Bytes of a `conn_id` or of a list's name at most: the length of an opaque identifier.
pub const MAX_NAME: usize = 255;

/// One request.
#[derive(Clone, Debug)]
pub struct SlidingRequest {
    /// Who, on which device.
    pub viewer: Viewer,
    /// Which of the device's connections.
    pub conn_id: String,
    /// Where the last answer ended; none: the connection begins.
    pub pos: Option<String>,
    /// How long to wait for news.
    pub timeout: Duration,
    /// Lists by their names.
    pub lists: BTreeMap<String, ListRule>,
    /// Rooms that the client names.
    pub subscriptions: BTreeMap<OwnedRoomId, RoomRule>,
    /// What else is wanted.
    pub extensions: Extensions,
    /// Whether unread counts are wanted of rooms.
    pub counts: bool,
}

/// What is wanted of a room.
#[derive(Clone, Debug, Default)]
pub struct RoomRule {
    /// Newest events at most.
    pub timeline_limit: usize,
    /// Which state.
    pub state: StateConfig,
}

/// A list.
#[derive(Clone, Debug, Default)]
pub struct ListRule {
    /// Which places of the list, first and last; none: all.
    pub ranges: Option<Vec<(usize, usize)>>,
    /// Which rooms.
    pub filters: Filters,
    /// What of each.
    pub room: RoomRule,
}

/// Which rooms a list has; what is absent does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// Rooms for direct messages, or others.
    pub is_dm: Option<bool>,
    /// Encrypted rooms, or others.
    pub is_encrypted: Option<bool>,
    /// Invitations, or others.
    pub is_invited: Option<bool>,
    /// Rooms of these types (`None`: without a type).
    pub room_types: Option<BTreeSet<Option<String>>>,
    /// Not rooms of these types.
    pub not_room_types: BTreeSet<Option<String>>,
    /// Rooms in one of these spaces.
    pub spaces: Option<BTreeSet<OwnedRoomId>>,
    /// Rooms with one of these tags.
    pub tags: Option<BTreeSet<String>>,
    /// Not rooms with one of these tags.
    pub not_tags: BTreeSet<String>,
}

/// What is wanted beside rooms.
#[derive(Clone, Debug, Default)]
pub struct Extensions {
    /// To-device messages (MSC3885).
    pub to_device: Option<ToDeviceRule>,
    /// Device lists and key counts (MSC3884).
    pub e2ee: bool,
    /// Account data (MSC3959).
    pub account_data: Option<Reach>,
    /// Typing (MSC3961).
    pub typing: Option<Reach>,
    /// Receipts (MSC3960).
    pub receipts: Option<Reach>,
    /// Threads that the user follows (MSC4308); at most so many.
    pub thread_subscriptions: Option<usize>,
    /// Sticky events (MSC4480).
    pub sticky_events: Option<StickyRule>,
}

/// How sticky events are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StickyRule {
    /// Those after this position; none: all that are sticky still.
    pub since: Option<LogPosition>,
    /// At most so many.
    pub limit: usize,
}

/// How to-device messages are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToDeviceRule {
    /// Those after this position; what is before it has arrived and goes.
    pub since: LogPosition,
    /// At most so many.
    pub limit: usize,
}

/// Of which rooms an extension tells.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Of the rooms of these lists; none: of all lists.
    pub lists: Option<BTreeSet<String>>,
    /// Of these subscribed rooms; none: of all.
    pub rooms: Option<BTreeSet<OwnedRoomId>>,
}

impl Reach {
    /// Whether it tells of a room that is subscribed to, or not, and matches `lists`.
    pub(super) fn covers(&self, room: &OwnedRoomId, subscribed: bool, lists: &[String]) -> bool {
        let by_list = match &self.lists {
            None => !lists.is_empty(),
            Some(wanted) => lists.iter().any(|list| wanted.contains(list)),
        };
        let by_room = match &self.rooms {
            None => subscribed,
            Some(rooms) => rooms.contains(room),
        };
        by_list || by_room
    }
}
