//! Who is in a room, for its name and its list entry.
//! <https://spec.matrix.org/v1.19/client-server-api/#calculating-the-display-name-for-a-room>

use super::build::Build;
use super::response::Summary;
use quick_cache::sync::Cache;
use ruma::events::StateEventType;
use ruma::{OwnedRoomId, RoomId};
use waxwing_model::{LogPosition, state_key};
use waxwing_rooms::state_tree::NodeId;
use waxwing_storage::StoreResult;

/// Rooms of which the counts are kept.
const ROOMS: usize = 20_000;

/// Joined and invited members, and all who have or had a membership.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub joined: u64,
    pub invited: u64,
    pub all: u64,
}

/// Counts, with the position at which they were read.
pub(super) struct Summaries(Cache<OwnedRoomId, (LogPosition, Counts)>);

impl Default for Summaries {
    fn default() -> Summaries {
        Summaries(Cache::new(ROOMS))
    }
}

impl Counts {
    /// So many more of this membership.
    pub fn add(&mut self, membership: &str, count: i64) {
        let count = count as u64;
        self.all += count;
        match membership {
            "join" => self.joined += count,
            "invite" => self.invited += count,
            _ => {}
        }
    }
}

impl Summaries {
    /// These are the room's, as read at `read`.
    pub fn put(&self, room: &OwnedRoomId, read: LogPosition, counts: Counts) {
        self.0.insert(room.clone(), (read, counts));
    }
}

impl Build<'_> {
    /// How many are in the room.
    pub async fn member_counts(&self, room: &RoomId) -> StoreResult<Counts> {
        let cache = &self.sync.summaries.0;
        let changed = self.sync.notifier.folds().members_changed(room);
        if let Some((read, counts)) = cache.get(room)
            && read >= changed
        {
            return Ok(counts);
        }
        let read = self.sync.notifier.folds().head();
        let mut counts = Counts::default();
        for (membership, count) in self.core().store.read().await?.member_counts(room).await? {
            counts.add(&membership, count);
        }
        cache.insert(room.to_owned(), (read, counts));
        Ok(counts)
    }

    /// The summary; heroes only of a room that has neither a name nor an alias.
    pub async fn summary(&self, room: &RoomId, current: Option<NodeId>) -> StoreResult<Summary> {
        let counts = self.member_counts(room).await?;
        let mut summary =
            Summary { heroes: None, joined: Some(counts.joined), invited: Some(counts.invited) };
        let Some(root) = current else { return Ok(summary) };
        if !self.is_named(root).await? {
            let heroes = match self.ahead().heroes.get(room) {
                Some(heroes) => heroes.clone(),
                None => self.core().store.read().await?.room_heroes(room, self.user()).await?,
            };
            summary.heroes = Some(heroes.into_iter().map(|(user, _)| user).collect());
        }
        Ok(summary)
    }

    /// Whether a state has a name or an alias of the room.
    pub async fn is_named(&self, root: NodeId) -> StoreResult<bool> {
        let fields = [(StateEventType::RoomName, "name"), (StateEventType::RoomCanonicalAlias, "alias")];
        let keys: Vec<_> = fields.iter().map(|(kind, _)| state_key(kind.clone(), "")).collect();
        let ids = self.core().store.state_get_many(root, &keys).await?;
        for (id, (_, field)) in ids.iter().zip(&fields) {
            let Some(id) = id else { continue };
            let Some(stored) = self.core().store.event(id).await? else { continue };
            if stored.event.content_str(field).is_some_and(|name| !name.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
