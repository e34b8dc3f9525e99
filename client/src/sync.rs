//! Long polls with `GET /v3/sync`, and what their answers change.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use client_ruma::{
    OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId,
    api::client::{
        filter::{FilterDefinition, RoomEventFilter, RoomFilter},
        membership::get_member_events,
        state::get_state_events,
        sync::sync_events::v3::{
            Filter, InvitedRoom, JoinedRoom, LeftRoom, Request, Response, State, Timeline,
        },
    },
    events::{AnySyncStateEvent, room::member::MembershipState},
    serde::Raw,
};
use matrix_sdk_crypto::EncryptionSyncChanges;

use crate::{
    client::Client,
    crypto::DECRYPTION,
    error::{Error, Result},
    store::{Membership, Store},
    timeline::TimelineEvent,
};

/// What the network may cost on top of the time the server holds the poll.
const SYNC_SLACK: Duration = Duration::from_mins(1);
/// The longest one poll inside `sync_until` holds.
const POLL: Duration = Duration::from_secs(20);
/// Timeline events per room and sync; older ones come with `messages`.
const TIMELINE_LIMIT: u32 = 50;

/// What one sync brought.
#[derive(Debug, Default)]
pub struct Update {
    /// New events, and older ones that became readable, in order of arrival.
    pub events: Vec<TimelineEvent>,
    pub invitations: Vec<OwnedRoomId>,
    /// Room keys that arrived.
    pub new_room_keys: usize,
}

impl Client {
    /// One sync; the server holds it for up to `timeout` when there is nothing new.
    pub async fn sync_once(&self, timeout: Duration) -> Result<Update> {
        let _turn = self.sync_turn().lock().await;
        self.send_outgoing().await?;
        let mut request = Request::new();
        request.since = self.store().since.clone();
        request.timeout = Some(timeout);
        request.filter = Some(Filter::FilterDefinition(filter()));
        let answer = self.http().send_within(request, timeout + SYNC_SLACK).await?;
        self.absorb(answer).await
    }

    /// Syncs until `satisfied` says so. It sees the store before the first sync and after each one.
    pub async fn sync_until(
        &self,
        mut satisfied: impl FnMut(&Store) -> bool,
        timeout: Duration,
    ) -> Result<()> {
        self.sync_for(timeout, "the expected change", |store| satisfied(store).then_some(())).await
    }

    /// Syncs until `found` answers, and hands its answer out. `what` names it should time run out.
    pub async fn sync_for<T>(
        &self,
        timeout: Duration,
        what: &str,
        mut found: impl FnMut(&Store) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let answer = found(&self.store());
            if let Some(answer) = answer {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { what: what.to_owned(), after: timeout });
            }
            self.sync_once(left.min(POLL)).await?;
        }
    }

    /// Waits for an event, one that already arrived included.
    pub async fn wait_for_event(
        &self,
        mut wanted: impl FnMut(&TimelineEvent) -> bool,
        timeout: Duration,
    ) -> Result<TimelineEvent> {
        self.sync_for(timeout, "an event", |store| store.find(&mut wanted).cloned()).await
    }

    /// Waits until `body` was said in `room`, by anybody.
    pub async fn wait_for_text(&self, room: &RoomId, body: &str, timeout: Duration) -> Result<TimelineEvent> {
        let what = format!("a message in {room}");
        self.sync_for(timeout, &what, |store| {
            store.find(|event| event.room_id == room && event.body() == Some(body)).cloned()
        })
        .await
    }

    /// Waits for an invitation to `room`.
    pub async fn wait_for_invitation(&self, room: &RoomId, timeout: Duration) -> Result<()> {
        self.sync_for(timeout, &format!("an invitation to {room}"), |store| {
            store.room(room).filter(|known| known.membership == Membership::Invited).map(|_| ())
        })
        .await
    }

    /// Waits until we see that `user` has joined `room`.
    pub async fn wait_for_member(&self, room: &RoomId, user: &UserId, timeout: Duration) -> Result<()> {
        self.sync_for(timeout, &format!("{user} to join {room}"), |store| {
            store.room(room)?.membership_of(user).filter(|state| **state == MembershipState::Join).map(|_| ())
        })
        .await
    }

    /// Applies a sync answer: keys first, then rooms, then what the keys opened.
    async fn absorb(&self, answer: Response) -> Result<Update> {
        let mut update = Update::default();
        let changes = EncryptionSyncChanges {
            to_device_events: answer.to_device.events,
            changed_devices: &answer.device_lists,
            one_time_keys_counts: &answer.device_one_time_keys_count,
            unused_fallback_keys: answer.device_unused_fallback_key_types.as_deref(),
            next_batch_token: Some(answer.next_batch.clone()),
        };
        let (_, keys) = self.machine().receive_sync_changes(changes, &DECRYPTION).await?;
        update.new_room_keys = keys.len();
        for (room_id, room) in answer.rooms.invite {
            self.absorb_invitation(&room_id, &room);
            update.invitations.push(room_id);
        }
        for (room_id, room) in answer.rooms.leave {
            self.absorb_left(&room_id, &room);
        }
        for (room_id, room) in &answer.rooms.join {
            self.absorb_joined(room_id, room).await?;
        }
        // Device queries before the timelines: a verification request from an unknown device would be ignored, also
        // when its room is new to us.
        self.send_outgoing().await?;
        for (room_id, room) in &answer.rooms.join {
            for raw in &room.timeline.events {
                if let Some(event) = self.receive_event(room_id, raw).await? {
                    self.store().put(event.clone());
                    update.events.push(event);
                }
            }
        }
        if update.new_room_keys > 0 {
            update.events.extend(self.open_waiting().await?);
        }
        self.store().since = Some(answer.next_batch);
        self.save()?;
        // Verification steps the timeline called for, and new keys for the backup.
        self.send_outgoing().await?;
        self.upload_backup_quietly().await;
        Ok(update)
    }

    fn absorb_invitation(&self, room_id: &RoomId, invited: &InvitedRoom) {
        let mut store = self.store();
        let room = store.room_mut(room_id, Membership::Invited);
        for event in &invited.invite_state.events {
            room.apply_stripped(event, self.user_id());
        }
    }

    fn absorb_left(&self, room_id: &RoomId, left: &LeftRoom) {
        let mut store = self.store();
        let room = store.room_mut(room_id, Membership::Left);
        for event in state_events(&left.state).chain(timeline_state(&left.timeline)) {
            room.apply(&event);
        }
        room.members_complete = false;
    }

    /// Applies a room's state, and has the devices of its members watched.
    async fn absorb_joined(&self, room_id: &RoomId, joined: &JoinedRoom) -> Result<()> {
        let users = {
            let mut store = self.store();
            let fresh = store.room(room_id).is_none_or(|room| room.membership != Membership::Joined);
            let room = store.room_mut(room_id, Membership::Joined);
            for event in state_events(&joined.state).chain(timeline_state(&joined.timeline)) {
                room.apply(&event);
            }
            // With lazy loading a gap may hide members who came or went.
            if fresh || joined.timeline.limited {
                room.members_complete = false;
            }
            if room.is_encrypted() { room.recipients() } else { Vec::new() }
        };
        self.machine().update_tracked_users(users.iter().map(|user| &**user)).await?;
        Ok(())
    }

    /// Makes the member list complete: everybody in it must get the room key.
    pub(crate) async fn complete_members(&self, room_id: &RoomId) -> Result<()> {
        let known = self.room(room_id);
        if known.as_ref().is_some_and(|room| room.members_complete && room.is_encrypted()) {
            return Ok(());
        }
        if known.is_some_and(|room| room.is_encrypted()) {
            let mut request = get_member_events::v3::Request::new(room_id.to_owned());
            request.not_membership = Some(MembershipState::Leave);
            let answer = self.http().send(request).await?;
            self.replace_members(room_id, answer.chunk.into_iter().map(Raw::cast_unchecked));
        } else {
            let answer = self.http().send(get_state_events::v3::Request::new(room_id.to_owned())).await?;
            self.replace_members(room_id, answer.room_state.into_iter().map(Raw::cast_unchecked));
        }
        self.save()
    }

    fn replace_members(&self, room_id: &RoomId, state: impl Iterator<Item = Raw<AnySyncStateEvent>>) {
        let mut store = self.store();
        let room = store.room_mut(room_id, Membership::Joined);
        room.members.clear();
        for event in state {
            room.apply(&event);
        }
        room.members_complete = true;
    }

    /// The complete member list of a room.
    pub async fn members(&self, room_id: &RoomId) -> Result<BTreeMap<OwnedUserId, MembershipState>> {
        self.complete_members(room_id).await?;
        Ok(self.room(room_id).map(|room| room.members).unwrap_or_default())
    }

    /// The servers that can tell about a room, taken from its members.
    pub fn servers_of(&self, room_id: &RoomId) -> Vec<OwnedServerName> {
        let mut servers: Vec<OwnedServerName> = self
            .room(room_id)
            .map(|room| room.members.keys().map(|user| user.server_name().to_owned()).collect())
            .unwrap_or_default();
        servers.sort();
        servers.dedup();
        servers
    }
}

fn filter() -> FilterDefinition {
    let mut timeline = RoomEventFilter::with_lazy_loading();
    timeline.limit = Some(TIMELINE_LIMIT.into());
    let mut room = RoomFilter::default();
    room.timeline = timeline;
    room.state = RoomEventFilter::with_lazy_loading();
    room.ephemeral = RoomEventFilter::ignore_all();
    let mut filter = FilterDefinition::default();
    filter.room = room;
    filter.presence = client_ruma::api::client::filter::Filter::ignore_all();
    filter
}

fn state_events(state: &State) -> impl Iterator<Item = Raw<AnySyncStateEvent>> + '_ {
    let events = match state {
        State::Before(state) | State::After(state) => state.events.as_slice(),
        _ => &[],
    };
    events.iter().cloned()
}

/// The timeline's own state events, which come after the `state` section.
fn timeline_state(timeline: &Timeline) -> impl Iterator<Item = Raw<AnySyncStateEvent>> + '_ {
    timeline
        .events
        .iter()
        .filter(|raw| matches!(raw.get_field::<String>("state_key"), Ok(Some(_))))
        .map(|raw| raw.clone().cast_unchecked())
}
