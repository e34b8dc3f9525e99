//! Who is where, in memory: folds over the log that say whom a row wakes and what a sync has to look at.
//!
//! A fold starts from the database and then applies the rows of the log in order, whichever node wrote them. It keeps
//! this server's users only; what it says is true as of [`Snapshot::upto`].

use parking_lot::{RwLock, RwLockWriteGuard};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use waxwing_model::{Event, LogPosition};
use waxwing_storage::{Fact, LogRow, Store, StoreResult};

/// Device-list changes remembered: those of the last minutes of a busy server.
const DEVICE_LISTS_KEPT: usize = 10_000;

/// A membership that shows in a sync without having just ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Joined.
    Join,
    /// Invited.
    Invite,
    /// Knocking.
    Knock,
}

impl Membership {
    /// From the word in a member event; the other memberships are not kept.
    pub fn parse(word: &str) -> Option<Membership> {
        match word {
            "join" => Some(Membership::Join),
            "invite" => Some(Membership::Invite),
            "knock" => Some(Membership::Knock),
            _ => None,
        }
    }
}

/// The rooms of one user.
pub type UserRooms = BTreeMap<OwnedRoomId, Membership>;

/// A user's rooms and the position that they hold at.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Everything up to here is taken in, and nothing after it.
    pub upto: LogPosition,
    /// The user's rooms.
    pub rooms: Arc<UserRooms>,
    /// Rooms, anyone's, whose members are being fetched.
    pub partial: Arc<HashSet<OwnedRoomId>>,
}

#[derive(Default)]
struct RoomFold {
    joined: HashSet<OwnedUserId>,
    /// When anyone's membership of it last changed, since the fold began.
    members_changed: LogPosition,
    /// When its state beside memberships last changed, since the fold began.
    state_changed: LogPosition,
    activity: Activity,
}

/// When something last happened in a room, since this node's folds began; [`LogPosition::START`]: not since then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Any event of the timeline.
    pub last: LogPosition,
    /// One that people look at: a message, a call, a poll.
    pub bumped: LogPosition,
}

/// Event types that move a room up in a list of rooms (`bump_stamp` of MSC4186), under all of their names.
const BUMPS: &[&str] = &[
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "org.matrix.msc3381.poll.start",
    "m.beacon_info",
    "org.matrix.msc3672.beacon_info",
];

/// Whether an event of this type moves its room up in a list of rooms.
pub fn bumps(event: &Event) -> bool {
    BUMPS.contains(&event.kind.to_string().as_str())
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) head: LogPosition,
    started: LogPosition,
    rooms: HashMap<OwnedRoomId, RoomFold>,
    users: HashMap<OwnedUserId, Arc<UserRooms>>,
    to_device: HashMap<OwnedUserId, HashMap<String, LogPosition>>,
    device_lists: VecDeque<(LogPosition, OwnedUserId)>,
    device_lists_floor: LogPosition,
    /// Rooms whose members are being fetched.
    partial: Arc<HashSet<OwnedRoomId>>,
}

/// The folds of this node.
#[derive(Default)]
pub struct Folds {
    state: RwLock<State>,
}

/// What a row does to the folds, worked out before they are locked.
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Someone's membership of the row's room: of one of our users what it is now, of others only that it changed.
    Member(Option<(OwnedUserId, Option<Membership>)>),
    /// The lists of devices of the row's user changed: whom of ours that concerns.
    DeviceList(Vec<OwnedUserId>),
}

impl Folds {
    /// Reads where the folds start. Rows after [`Snapshot::upto`] are then to be applied.
    pub(crate) async fn load(store: &Store) -> StoreResult<Folds> {
        // The head first: rows that the tables already show are applied again, which changes nothing.
        let head = store.tail().head();
        let mut conn = store.read().await?;
        let memberships = conn.local_memberships_all().await?;
        let partial = Arc::new(conn.partial_rooms().await?.into_iter().collect());
        drop(conn);
        let waiting = store.to_device_newest().await?;
        let mut state = State { head, started: head, device_lists_floor: head, partial, ..State::default() };
        for (room, user, membership) in memberships {
            state.set_member(&room, &user, Membership::parse(&membership));
        }
        for (user, device, position) in waiting {
            let newest = state.to_device.entry(user).or_default().entry(device).or_default();
            *newest = position.max(*newest);
        }
        Ok(Folds { state: RwLock::new(state) })
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write()
    }

    /// Runs `then` while the folds stand still.
    pub(crate) fn at_rest<T>(&self, then: impl FnOnce(LogPosition) -> T) -> T {
        let state = self.state.read();
        then(state.head)
    }

    /// The user's rooms now.
    pub fn snapshot(&self, user: &UserId) -> Snapshot {
        let state = self.state.read();
        Snapshot {
            upto: state.head,
            rooms: state.users.get(user).cloned().unwrap_or_default(),
            partial: Arc::clone(&state.partial),
        }
    }

    /// Everything up to this position is taken in.
    pub fn head(&self) -> LogPosition {
        self.state.read().head
    }

    /// This server's users who are joined to the room.
    pub fn joined_locals(&self, room: &RoomId) -> Vec<OwnedUserId> {
        let state = self.state.read();
        state.rooms.get(room).map(|fold| fold.joined.iter().cloned().collect()).unwrap_or_default()
    }

    /// Those of this server's users joined to the room whom `wanted` names.
    pub fn joined_locals_among(&self, room: &RoomId, wanted: impl Fn(&UserId) -> bool) -> Vec<OwnedUserId> {
        let state = self.state.read();
        let joined = state.rooms.get(room).map(|fold| &fold.joined).into_iter().flatten();
        joined.filter(|user| wanted(user)).cloned().collect()
    }

    /// The user's membership of the room, if it is one that is kept.
    pub fn membership(&self, user: &UserId, room: &RoomId) -> Option<Membership> {
        self.state.read().users.get(user)?.get(room).copied()
    }

    /// The rooms that the user of ours is joined to.
    pub fn joined_rooms(&self, user: &UserId) -> Vec<OwnedRoomId> {
        let state = self.state.read();
        let Some(rooms) = state.users.get(user) else { return Vec::new() };
        let joined = rooms.iter().filter(|(_, membership)| **membership == Membership::Join);
        joined.map(|(room, _)| room.clone()).collect()
    }

    /// Those of our users who share a room with a user of ours, that one too.
    pub fn locals_sharing(&self, user: &UserId) -> HashSet<OwnedUserId> {
        let state = self.state.read();
        state.locals_in(state.joined_of(user), user)
    }

    /// Whether two users of ours share a room.
    pub fn share_room(&self, one: &UserId, other: &UserId) -> bool {
        let state = self.state.read();
        state.joined_of(one).any(|room| state.rooms.get(room).is_some_and(|fold| fold.joined.contains(other)))
    }

    /// The position after which no membership of the room has changed: what was read at or after it still holds.
    pub fn members_changed(&self, room: &RoomId) -> LogPosition {
        let state = self.state.read();
        let changed = state.rooms.get(room).map_or(LogPosition::START, |fold| fold.members_changed);
        changed.max(state.started)
    }

    /// The position after which the room's state beside memberships has not changed.
    pub fn state_changed(&self, room: &RoomId) -> LogPosition {
        let state = self.state.read();
        let changed = state.rooms.get(room).map_or(LogPosition::START, |fold| fold.state_changed);
        changed.max(state.started)
    }

    /// When something last happened in each of these rooms, in their order.
    pub fn activity<'a>(&self, rooms: impl Iterator<Item = &'a OwnedRoomId>) -> Vec<Activity> {
        let state = self.state.read();
        rooms.map(|room| state.rooms.get(room).map(|fold| fold.activity).unwrap_or_default()).collect()
    }

    /// The newest to-device message that came for the device.
    pub fn to_device_newest(&self, user: &UserId, device: &str) -> Option<LogPosition> {
        self.state.read().to_device.get(user)?.get(device).copied()
    }

    /// Whose device lists changed after `after` and up to `upto`; `None` when that is too long ago to know.
    pub fn device_lists_changed(
        &self,
        after: LogPosition,
        upto: LogPosition,
    ) -> Option<HashSet<OwnedUserId>> {
        let state = self.state.read();
        if after < state.device_lists_floor {
            return None;
        }
        let start = state.device_lists.partition_point(|(position, _)| *position <= after);
        let newer = state.device_lists.range(start..);
        Some(newer.take_while(|(position, _)| *position <= upto).map(|(_, user)| user.clone()).collect())
    }
}

impl State {
    fn joined_of(&self, user: &UserId) -> impl Iterator<Item = &OwnedRoomId> {
        let rooms = self.users.get(user).into_iter().flat_map(|rooms| rooms.iter());
        rooms.filter(|(_, membership)| **membership == Membership::Join).map(|(room, _)| room)
    }

    /// Those of our users who are joined to one of `rooms`, and `user`.
    fn locals_in<'a>(
        &self,
        rooms: impl Iterator<Item = &'a OwnedRoomId>,
        user: &UserId,
    ) -> HashSet<OwnedUserId> {
        let folds = rooms.filter_map(|room| self.rooms.get(room));
        let mut locals: HashSet<OwnedUserId> = folds.flat_map(|fold| fold.joined.iter().cloned()).collect();
        locals.insert(user.to_owned());
        locals
    }

    fn set_member(&mut self, room: &OwnedRoomId, user: &OwnedUserId, membership: Option<Membership>) {
        let fold = self.rooms.entry(room.clone()).or_default();
        if membership == Some(Membership::Join) {
            fold.joined.insert(user.clone());
        } else {
            fold.joined.remove(user);
        }
        let rooms = self.users.entry(user.clone()).or_default();
        match membership {
            Some(membership) if rooms.get(room) == Some(&membership) => {}
            Some(membership) => drop(Arc::make_mut(rooms).insert(room.clone(), membership)),
            None if rooms.contains_key(room) => drop(Arc::make_mut(rooms).remove(room)),
            None => {}
        }
    }

    /// The local users joined to the room.
    pub(crate) fn joined(&self, room: &RoomId) -> Option<&HashSet<OwnedUserId>> {
        self.rooms.get(room).map(|fold| &fold.joined)
    }

    /// Takes in one row.
    pub(crate) fn apply(&mut self, row: &LogRow, effect: &Effect) {
        match effect {
            Effect::Member(change) => {
                let Some(room) = &row.room else { return };
                if let Some((user, membership)) = change {
                    self.set_member(room, user, *membership);
                }
                self.rooms.entry(room.clone()).or_default().members_changed = row.position;
            }
            Effect::DeviceList(_) => {
                if let Some(user) = &row.user {
                    self.device_lists.push_back((row.position, user.clone()));
                }
                while self.device_lists.len() > DEVICE_LISTS_KEPT {
                    if let Some((position, _)) = self.device_lists.pop_front() {
                        self.device_lists_floor = position;
                    }
                }
            }
            Effect::None => {}
        }
        self.apply_activity(row);
        self.apply_members(row);
        if row.fact == Fact::ToDevice
            && let (Some(user), Some(device)) = (&row.user, &row.reference)
        {
            self.to_device.entry(user.clone()).or_default().insert(device.clone(), row.position);
        }
    }
}

impl State {
    /// A room's members are missing from now on, or have come.
    fn apply_members(&mut self, row: &LogRow) {
        let (Some(room), Some(what)) = (&row.room, &row.data) else { return };
        if row.fact != Fact::Room {
            return;
        }
        match what.as_str() {
            "partial" => drop(Arc::make_mut(&mut self.partial).insert(room.clone())),
            "complete" => {
                Arc::make_mut(&mut self.partial).remove(room);
                let fold = self.rooms.entry(room.clone()).or_default();
                fold.members_changed = row.position;
                fold.state_changed = row.position;
            }
            _ => {}
        }
    }

    fn apply_activity(&mut self, row: &LogRow) {
        let Some(room) = row.room.as_ref().filter(|_| matches!(row.fact, Fact::Event | Fact::State)) else {
            return;
        };
        let fold = self.rooms.entry(room.clone()).or_default();
        // Of an event that is not at hand anything is assumed.
        let event = row.event.as_ref().map(|stored| &stored.event);
        if row.user.is_none() && event.is_none_or(|event| event.is_state()) {
            fold.state_changed = row.position;
        }
        if row.fact == Fact::Event {
            fold.activity.last = row.position;
            if event.is_none_or(|event| bumps(event)) {
                fold.activity.bumped = row.position;
            }
        }
    }
}

/// The membership that a row sets, for one of our users.
async fn member_of(store: &Store, row: &LogRow, user: &UserId) -> StoreResult<Option<Membership>> {
    if row.fact == Fact::Outside {
        return Ok(row.data.as_deref().and_then(Membership::parse));
    }
    let event = match (&row.event, row.event_id()) {
        (Some(stored), _) => Some(Arc::clone(stored)),
        (None, Some(id)) => store.event(&id).await?,
        (None, None) => None,
    };
    let event = event.filter(|stored| stored.event.state_key.as_deref() == Some(user.as_str()));
    let membership = event.and_then(|stored| stored.event.content_str("membership"));
    Ok(membership.as_deref().and_then(Membership::parse))
}

/// Works out what a row does, reading what it does not carry.
pub(crate) async fn effect_of(
    store: &Store,
    folds: &Folds,
    is_local: impl Fn(&UserId) -> bool,
    row: &LogRow,
) -> StoreResult<Effect> {
    match (row.fact, &row.user) {
        (Fact::Event | Fact::State | Fact::Outside, Some(user)) => {
            if !is_local(user) {
                return Ok(Effect::Member(None));
            }
            let membership = member_of(store, row, user).await?;
            Ok(Effect::Member(Some((user.clone(), membership))))
        }
        (Fact::DeviceList, Some(user)) if row.room.is_none() => {
            if row.reference.is_some() {
                return Ok(Effect::DeviceList(vec![user.clone()]));
            }
            if is_local(user) {
                return Ok(Effect::DeviceList(folds.locals_sharing(user).into_iter().collect()));
            }
            let sharing = store.read().await?.users_sharing(user).await?;
            Ok(Effect::DeviceList(sharing.into_iter().filter(|user| is_local(user)).collect()))
        }
        _ => Ok(Effect::None),
    }
}
