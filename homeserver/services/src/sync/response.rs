//! The answer of `/sync`, as it is written out. Events are JSON texts already.
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// A list of events.
#[derive(Debug, Default, Serialize)]
pub struct Events {
    /// The events.
    pub events: Vec<Box<RawValue>>,
}

impl Events {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// The whole answer.
#[derive(Debug, Default, Serialize)]
pub struct SyncResponse {
    /// Where the next sync goes on.
    pub next_batch: String,
    /// Rooms.
    #[serde(skip_serializing_if = "Rooms::is_empty")]
    pub rooms: Rooms,
    /// Presence of others.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub presence: Events,
    /// Account data of no room.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub account_data: Events,
    /// Messages to this device.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub to_device: Events,
    /// Whose devices changed.
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    pub device_lists: DeviceLists,
    /// Unclaimed one-time keys of this device, for each algorithm.
    pub device_one_time_keys_count: BTreeMap<String, u64>,
    /// Algorithms with a fallback key that was not used. Always there: its presence says that the server knows them.
    pub device_unused_fallback_key_types: Vec<String>,
    /// The same under the name that older clients look for.
    #[serde(rename = "org.matrix.msc2732.device_unused_fallback_key_types")]
    pub old_fallback_key_types: Vec<String>,
}

impl SyncResponse {
    /// Whether there is no news in it: a poll goes on waiting.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
            && self.presence.is_empty()
            && self.account_data.is_empty()
            && self.to_device.is_empty()
            && self.device_lists.is_empty()
    }
}

/// Rooms by the user's membership.
#[derive(Debug, Default, Serialize)]
pub struct Rooms {
    /// Joined.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub join: BTreeMap<OwnedRoomId, JoinedRoom>,
    /// Invited.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub invite: BTreeMap<OwnedRoomId, InvitedRoom>,
    /// Knocking.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub knock: BTreeMap<OwnedRoomId, KnockedRoom>,
    /// Left or banned.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub leave: BTreeMap<OwnedRoomId, LeftRoom>,
}

impl Rooms {
    fn is_empty(&self) -> bool {
        self.join.is_empty() && self.invite.is_empty() && self.knock.is_empty() && self.leave.is_empty()
    }
}

/// A joined room.
#[derive(Debug, Default, Serialize)]
pub struct JoinedRoom {
    /// Who is in it.
    #[serde(skip_serializing_if = "Summary::is_empty")]
    pub summary: Summary,
    /// State.
    #[serde(flatten)]
    pub state: StateSection,
    /// The timeline.
    pub timeline: Timeline,
    /// Receipts and typing.
    pub ephemeral: Events,
    /// The user's account data of the room.
    pub account_data: Events,
    /// Sticky events that the timeline does not show (MSC4354).
    #[serde(rename = "msc4354_sticky", skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Events>,
    /// Unread messages: those of the main timeline only, when threads have their own counts.
    pub unread_notifications: UnreadCount,
    /// Unread messages in threads.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unread_thread_notifications: BTreeMap<OwnedEventId, UnreadCount>,
}

/// State before the timeline, or after it, as the client asked.
#[derive(Debug, Default, Serialize)]
pub struct StateSection {
    /// What changed from the last sync to the start of the timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Events>,
    /// What changed from the last sync to the end of the timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_after: Option<Events>,
    /// The same under the name that it had before it was specified (MSC4222).
    #[serde(rename = "org.matrix.msc4222.state_after", skip_serializing_if = "Option::is_none")]
    pub old_state_after: Option<Events>,
}

/// Which of the names of `state_after` the client uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateWanted {
    /// `state`: up to the start of the timeline.
    #[default]
    Before,
    /// `state_after`.
    After,
    /// `org.matrix.msc4222.state_after`.
    AfterUnstable,
}

impl StateSection {
    /// Under the name that the client wants.
    pub fn new(events: Vec<Box<RawValue>>, wanted: StateWanted) -> StateSection {
        let events = Some(Events { events });
        match wanted {
            StateWanted::Before => StateSection { state: events, ..StateSection::default() },
            StateWanted::After => StateSection { state_after: events, ..StateSection::default() },
            StateWanted::AfterUnstable => StateSection { old_state_after: events, ..StateSection::default() },
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        let sections = [&self.state, &self.state_after, &self.old_state_after];
        sections.into_iter().flatten().all(Events::is_empty)
    }
}

/// A stretch of a timeline.
#[derive(Debug, Default, Serialize)]
pub struct Timeline {
    /// Oldest first.
    pub events: Vec<Box<RawValue>>,
    /// Events before these were left out.
    pub limited: bool,
    /// From where `/messages` goes on backwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_batch: Option<String>,
}

/// Who is in a room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Whom a room without a name is named after.
    #[serde(rename = "m.heroes", skip_serializing_if = "Option::is_none")]
    pub heroes: Option<Vec<OwnedUserId>>,
    /// How many are joined.
    #[serde(rename = "m.joined_member_count", skip_serializing_if = "Option::is_none")]
    pub joined: Option<u64>,
    /// How many are invited.
    #[serde(rename = "m.invited_member_count", skip_serializing_if = "Option::is_none")]
    pub invited: Option<u64>,
}

impl Summary {
    fn is_empty(&self) -> bool {
        self.heroes.is_none() && self.joined.is_none() && self.invited.is_none()
    }
}

/// Unread messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnreadCount {
    /// Those that the user is notified of.
    pub notification_count: u64,
    /// Those of them that are highlighted.
    pub highlight_count: u64,
}

/// A room that the user is invited to.
#[derive(Debug, Default, Serialize)]
pub struct InvitedRoom {
    /// Stripped state.
    pub invite_state: Events,
}

/// A room that the user knocks at.
#[derive(Debug, Default, Serialize)]
pub struct KnockedRoom {
    /// Stripped state.
    pub knock_state: Events,
}

/// A room that the user has left.
#[derive(Debug, Default, Serialize)]
pub struct LeftRoom {
    /// State up to the leave.
    #[serde(flatten)]
    pub state: StateSection,
    /// The timeline up to the leave.
    pub timeline: Timeline,
    /// The user's account data of the room.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub account_data: Events,
}

/// Whose devices changed.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceLists {
    /// Keys are to be fetched again.
    pub changed: Vec<OwnedUserId>,
    /// No room is shared any more.
    pub left: Vec<OwnedUserId>,
}

impl DeviceLists {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}
