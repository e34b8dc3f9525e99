//! One answer: the parts in order.

use super::ahead::Ahead;
use super::response::SyncResponse;
use super::token::SyncToken;
use super::{Sync, SyncError, SyncRequest};
use crate::Core;
use crate::folds::UserRooms;
use crate::notifier::Follower;
use parking_lot::RwLock;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use waxwing_model::{Event, LogPosition};
use waxwing_storage::StoreResult;

/// Everything that the parts of one answer share.
pub(super) struct Build<'a> {
    pub sync: &'a Sync,
    pub request: &'a SyncRequest,
    pub follower: &'a Arc<Follower>,
    /// Where the client is; none: nowhere.
    pub since: Option<LogPosition>,
    /// Where the answer ends.
    pub upto: LogPosition,
    /// The clocks of what is not logged, typing and presence, where the answer ends.
    pub clocks: (u64, u64),
    /// The user's rooms at `upto`.
    pub rooms: Arc<UserRooms>,
    /// Rooms whose members are being fetched.
    pub partial: Arc<HashSet<OwnedRoomId>>,
    /// The users whose messages are not shown.
    pub ignored: Arc<BTreeSet<OwnedUserId>>,
    /// What was read of the rooms that are being shown.
    ahead: RwLock<Arc<Ahead>>,
}

impl<'a> Build<'a> {
    pub async fn new(
        sync: &'a Sync,
        request: &'a SyncRequest,
        follower: &'a Arc<Follower>,
    ) -> StoreResult<Build<'a>> {
        let clocks = (sync.typing.clock(), sync.presence.clock());
        let snapshot = sync.notifier.folds().snapshot(&request.viewer.user);
        let since = request.since.map(|since| since.position);
        // A token from a node that is ahead of this one: there is nothing new, and the token stays.
        let upto = since.map_or(snapshot.upto, |since| since.max(snapshot.upto));
        let ignored = sync.ignored.of(&sync.core, &request.viewer.user, upto).await?;
        let (rooms, partial, ahead) = (snapshot.rooms, snapshot.partial, RwLock::default());
        Ok(Build { sync, request, follower, since, upto, clocks, rooms, partial, ignored, ahead })
    }

    /// The same, for some of the rooms.
    pub fn part(&self) -> Build<'a> {
        Build {
            rooms: Arc::clone(&self.rooms),
            partial: Arc::clone(&self.partial),
            ignored: Arc::clone(&self.ignored),
            ahead: RwLock::default(),
            ..*self
        }
    }

    /// What was read of the rooms that are being shown.
    pub fn ahead(&self) -> Arc<Ahead> {
        Arc::clone(&self.ahead.read())
    }

    /// From now on these are being shown.
    pub fn set_ahead(&self, ahead: Ahead) {
        *self.ahead.write() = Arc::new(ahead);
    }

    pub fn core(&self) -> &Core {
        &self.sync.core
    }

    pub fn user(&self) -> &UserId {
        &self.request.viewer.user
    }

    /// Whether a room is kept from the client for now: it wants all members at once, and they are still being fetched.
    pub fn is_held_back(&self, room: &RoomId) -> bool {
        self.request.filter.lazy_load().is_none() && self.partial.contains(room)
    }

    /// Whether the event is kept from the viewer because its sender is ignored. State is shown all the same.
    pub fn is_ignored(&self, event: &Event) -> bool {
        event.state_key.is_none() && self.ignored.contains(&event.sender)
    }

    /// The whole answer.
    pub async fn run(&self) -> Result<SyncResponse, SyncError> {
        let mut answer = SyncResponse::default();
        let window = self.window().await?;
        let rooms = self.rooms(&window).await?;
        answer.account_data.events = self.account_data(&window).await?;
        answer.device_lists = self.device_lists(&window, &rooms).await?;
        answer.presence.events = self.presence(&window, &rooms).await?;
        answer.rooms = rooms.rooms;
        let mut token = SyncToken::new(self.upto, self.clocks.0, self.clocks.1);
        if let Some(device) = &self.request.viewer.device {
            let after = self.request.since.map_or(LogPosition::START, |since| since.to_device);
            let (messages, upto) = self.to_device(device, after, usize::MAX).await?;
            answer.to_device.events = messages;
            token.to_device = upto;
            let counts = self.sync.devices.counts(self.core(), self.user(), device, self.upto).await?;
            answer.device_one_time_keys_count = counts.one_time.clone();
            answer.device_unused_fallback_key_types = counts.fallback.clone();
            answer.old_fallback_key_types = counts.fallback.clone();
        }
        answer.next_batch = token.to_string();
        Ok(answer)
    }
}
