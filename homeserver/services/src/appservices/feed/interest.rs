//! What concerns an application service: a fold over the log, in step with what it was told.
//! <https://spec.matrix.org/v1.19/application-service-api/#registration>

use crate::Core;
use crate::appservices::Appservice;
use parking_lot::Mutex;
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, LogRow, StoreResult, StoredEvent};

/// Rows read at once when memberships are followed back.
const CHUNK: i64 = 1000;

/// The rooms of an application service's users as of a position of the log.
pub(super) struct Interest {
    core: Core,
    appservice: Arc<Appservice>,
    joined: HashMap<OwnedRoomId, HashSet<OwnedUserId>>,
    /// Rooms by whether they have an alias that is its. Aliases are not in the log: see [`Interest::refresh`].
    aliased: Mutex<HashMap<OwnedRoomId, bool>>,
}

impl Interest {
    /// As of `at`: today's memberships, followed back over what changed since.
    pub async fn load(core: &Core, appservice: &Arc<Appservice>, at: LogPosition) -> StoreResult<Interest> {
        let (core, appservice) = (core.clone(), Arc::clone(appservice));
        let aliased = Mutex::default();
        let mut interest = Interest { core, appservice, joined: HashMap::new(), aliased };
        let mut conn = interest.core.store.read().await?;
        for (room, user) in conn.local_joined_all().await? {
            if interest.appservice.has_user(&user) {
                interest.set(&room, &user, true);
            }
        }
        // Read after the memberships: everything that they show already is followed back.
        let head = conn.log_head().await?;
        drop(conn);
        interest.follow_back(at, head).await?;
        Ok(interest)
    }

    /// The first change of a membership after `at` tells what it was at `at`.
    async fn follow_back(&mut self, at: LogPosition, head: LogPosition) -> StoreResult<()> {
        let mut first: HashSet<(OwnedRoomId, OwnedUserId)> = HashSet::new();
        let mut after = at;
        while after < head {
            let mut conn = self.core.store.read().await?;
            let rows = conn.log_range_of_kind(Fact::Event, after, head, CHUNK).await?;
            drop(conn);
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.position;
            for row in &rows {
                let (Some(room), Some(user)) = (&row.room, &row.user) else { continue };
                if !self.appservice.has_user(user) || !first.insert((room.clone(), user.clone())) {
                    continue;
                }
                let Some(stored) = event_of(&self.core, row).await? else { continue };
                let joined = was_joined(&self.core, &stored, user).await?;
                self.set(room, user, joined);
            }
        }
        Ok(())
    }

    /// Forgets what was read of aliases. To be called after rows of the log are read and before they are looked at: an
    /// alias that was there before a row is then found.
    pub fn refresh(&mut self) {
        self.aliased.get_mut().clear();
    }

    /// The users of the application service who are in the room.
    pub fn users_in(&self, room: &RoomId) -> Option<&HashSet<OwnedUserId>> {
        self.joined.get(room)
    }

    /// Whether what happens in the room concerns it: a user of its is there, or the room or an alias of it is its.
    pub async fn has_room(&self, room: &RoomId) -> StoreResult<bool> {
        if self.joined.contains_key(room) || self.appservice.has_room(room) {
            return Ok(true);
        }
        if !self.appservice.has_aliases() {
            return Ok(false);
        }
        if let Some(known) = self.aliased.lock().get(room) {
            return Ok(*known);
        }
        let aliases = self.core.store.read().await?.aliases_of(room).await?;
        let found = aliases.iter().any(|alias| self.appservice.has_alias(alias));
        self.aliased.lock().insert(room.to_owned(), found);
        Ok(found)
    }

    /// Whether it knows the user: one of its own, or one in a room of its users.
    pub async fn knows(&self, user: &UserId) -> StoreResult<bool> {
        if self.appservice.has_user(user) {
            return Ok(true);
        }
        let rows = self.core.store.read().await?.memberships_of(user).await?;
        Ok(rows.iter().any(|row| row.membership == "join" && self.joined.contains_key(&row.room_id)))
    }

    /// A user of the application service is in the room from here on, or no longer.
    fn set(&mut self, room: &OwnedRoomId, user: &OwnedUserId, joined: bool) {
        if joined {
            self.joined.entry(room.clone()).or_default().insert(user.clone());
        } else if let Some(users) = self.joined.get_mut(room) {
            users.remove(user);
            if users.is_empty() {
                self.joined.remove(room);
            }
        }
    }

    /// Takes in a membership of one of the application service's users that a row of the log sets.
    pub fn take_in(&mut self, row: &LogRow, stored: Option<&StoredEvent>) {
        let (Some(room), Some(user)) = (&row.room, &row.user) else { return };
        if self.appservice.has_user(user) {
            let membership = stored.and_then(|stored| stored.event.content_str("membership"));
            self.set(room, user, membership.as_deref() == Some("join"));
        }
    }
}

/// The event that a row names.
pub(super) async fn event_of(core: &Core, row: &LogRow) -> StoreResult<Option<Arc<StoredEvent>>> {
    match (&row.event, row.event_id()) {
        (Some(stored), _) => Ok(Some(Arc::clone(stored))),
        (None, Some(id)) => core.store.event(&id).await,
        (None, None) => Ok(None),
    }
}

/// Whether the user was joined before the event.
async fn was_joined(core: &Core, stored: &StoredEvent, user: &UserId) -> StoreResult<bool> {
    let Some(root) = stored.state_before else { return Ok(false) };
    let before = {
        let mut conn = core.store.read().await?;
        core.store.state(&mut conn).get(root, StateEventType::RoomMember, user.as_str()).await?
    };
    let Some(before) = before else { return Ok(false) };
    let member = core.store.event(&before).await?;
    Ok(member.is_some_and(|member| member.event.content_str("membership").as_deref() == Some("join")))
}
