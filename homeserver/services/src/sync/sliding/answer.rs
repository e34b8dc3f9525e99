//! The answer of sliding sync, before it is written in one of its dialects.

use super::super::response::{DeviceLists, UnreadCount};
use crate::thread_subscriptions::SubscriptionPage;
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The whole answer.
#[derive(Debug, Default)]
pub struct SlidingAnswer {
    /// Where the next request goes on.
    pub pos: String,
    /// How many rooms each list has, in its ranges or not.
    pub lists: BTreeMap<String, usize>,
    /// Rooms with news.
    pub rooms: BTreeMap<OwnedRoomId, SlidingRoom>,
    /// News beside rooms.
    pub extensions: ExtensionNews,
}

impl SlidingAnswer {
    /// Whether there is no news in it: a poll goes on waiting.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.extensions.is_empty()
    }
}

/// A value that may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum News<T> {
    /// It is as before, or was never there.
    #[default]
    None,
    /// It is gone.
    Gone,
    /// It is this now.
    Is(T),
}

/// A state entry.
#[derive(Debug)]
pub enum StateNews {
    /// It is this event now.
    Event(Box<RawValue>),
    /// It is gone: event type and state key.
    Gone(String, String),
}

/// Someone a room may be named after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hero {
    /// Who.
    pub user_id: OwnedUserId,
    /// The name in this room.
    pub displayname: Option<String>,
    /// The avatar in this room.
    pub avatar_url: Option<String>,
}

/// A room.
#[derive(Debug, Default)]
pub struct SlidingRoom {
    /// The client shall forget what it knew of the room.
    pub initial: bool,
    /// The timeline goes back further than what is new.
    pub expanded: bool,
    /// The user's membership.
    pub membership: &'static str,
    /// The lists that have it in their ranges.
    pub lists: Vec<String>,
    /// Orders rooms by when something of interest last happened.
    pub bump_stamp: Option<i64>,
    /// Its name.
    pub name: News<String>,
    /// Its avatar.
    pub avatar: News<String>,
    /// Whom it is named after, if it has no name.
    pub heroes: Option<Vec<Hero>>,
    /// Whether it is for direct messages, where the client does not know.
    pub is_dm: Option<bool>,
    /// State that was asked for.
    pub state: Vec<StateNews>,
    /// Newest events, oldest first.
    pub timeline: Vec<Box<RawValue>>,
    /// From where `/messages` goes on backwards.
    pub prev_batch: Option<String>,
    /// Events before these were left out.
    pub limited: bool,
    /// How many of the events came since the last answer.
    pub live: usize,
    /// How many are joined.
    pub joined_count: Option<u64>,
    /// How many are invited.
    pub invited_count: Option<u64>,
    /// What is unread.
    pub unread: Option<UnreadCount>,
    /// What may be seen of the room from outside.
    pub stripped: Option<Vec<Box<RawValue>>>,
}

/// News beside rooms.
#[derive(Debug, Default)]
pub struct ExtensionNews {
    /// Messages to the device, and the token to acknowledge them by.
    pub to_device: Option<(Vec<Box<RawValue>>, String)>,
    /// Device lists and key counts.
    pub e2ee: Option<KeyNews>,
    /// Account data.
    pub account_data: Option<AccountDataNews>,
    /// Receipts: one event for each room.
    pub receipts: Option<BTreeMap<OwnedRoomId, Box<RawValue>>>,
    /// Typing: one event for each room.
    pub typing: Option<BTreeMap<OwnedRoomId, Box<RawValue>>>,
    /// Threads that the user began or ceased to follow.
    pub thread_subscriptions: Option<SubscriptionPage>,
    /// Sticky events.
    pub sticky_events: Option<StickyNews>,
}

/// Sticky events of the user's rooms.
#[derive(Debug, Default)]
pub struct StickyNews {
    /// Oldest first.
    pub rooms: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
    /// Where to go on.
    pub next_batch: String,
}

impl ExtensionNews {
    fn is_empty(&self) -> bool {
        self.to_device.as_ref().is_none_or(|(messages, _)| messages.is_empty())
            && self.e2ee.as_ref().is_none_or(|news| !news.changed && news.device_lists.is_empty())
            && self.account_data.as_ref().is_none_or(|news| news.global.is_empty() && news.rooms.is_empty())
            && self.receipts.as_ref().is_none_or(BTreeMap::is_empty)
            && self.typing.as_ref().is_none_or(BTreeMap::is_empty)
            && self.thread_subscriptions.as_ref().is_none_or(|page| page.rows.is_empty())
            && self.sticky_events.as_ref().is_none_or(|news| news.rooms.is_empty())
    }
}

/// Device lists and key counts.
#[derive(Debug, Default)]
pub struct KeyNews {
    /// Whose devices changed.
    pub device_lists: DeviceLists,
    /// Unclaimed one-time keys of the device, for each algorithm.
    pub one_time: BTreeMap<String, u64>,
    /// Algorithms with a fallback key that was not used.
    pub fallback: Vec<String>,
    /// The counts changed.
    pub changed: bool,
}

/// Account data.
#[derive(Debug, Default)]
pub struct AccountDataNews {
    /// Of no room.
    pub global: Vec<Box<RawValue>>,
    /// Of rooms.
    pub rooms: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
}
