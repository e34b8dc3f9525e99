//! Lookups that only readers of the log need: where folds start, which rooms changed, who a room is named after.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::{CHUNK, list, padded, statements};
use crate::store::Store;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use sqlx::AssertSqlSafe;
use std::collections::HashMap;
use waxwing_model::LogPosition;

statements! {
    LOCAL_MEMBERSHIPS = "SELECT room_id, user_id, membership FROM members WHERE local AND membership IN ('join', 'invite', 'knock') AND NOT forgotten";
    ROOMS_CHANGED = "SELECT room_id FROM log WHERE position > $1 AND position <= $2 AND kind <> 1 AND room_id IN ($list) UNION SELECT room_id FROM events WHERE sn > $1 AND sn <= $2 AND room_id IN ($list)";
    NEWEST = "SELECT r.room_id, (SELECT e.sn FROM events e WHERE e.room_id = r.room_id AND e.flags = 0 ORDER BY e.sn DESC LIMIT 1) FROM rooms r WHERE r.room_id IN ($list)";
    HEROES = "SELECT user_id, event_id FROM members WHERE room_id = $1 AND user_id <> $2 AND membership IN ('join', 'invite') ORDER BY sn, user_id LIMIT 5";
    HEROES_OF = "SELECT room_id, user_id, event_id FROM (SELECT room_id, user_id, event_id, ROW_NUMBER() OVER (PARTITION BY room_id ORDER BY sn, user_id) AS place FROM members WHERE user_id <> $1 AND membership IN ('join', 'invite') AND room_id IN ($list)) AS ranked WHERE place <= 5 ORDER BY room_id, place";
    FORMER_HEROES = "SELECT user_id, event_id FROM members WHERE room_id = $1 AND user_id <> $2 AND membership IN ('leave', 'ban') ORDER BY sn, user_id LIMIT 5";
    TO_DEVICE_NEWEST = "SELECT user_id, device_id, MAX(position) FROM to_device WHERE filed GROUP BY user_id, device_id";
}

/// Someone a room may be named after, and the member event.
pub type Hero = (OwnedUserId, OwnedEventId);

impl Conn {
    /// Every membership (join, invite, knock) of this server's users: what a fold over the log starts from.
    pub async fn local_memberships_all(&mut self) -> StoreResult<Vec<(OwnedRoomId, OwnedUserId, String)>> {
        let found: Vec<(String, String, String)> =
            on_engine!(self, |c| sqlx::query_as(LOCAL_MEMBERSHIPS).fetch_all(c).await)?;
        Ok(found
            .into_iter()
            .filter_map(|(room, user, membership)| {
                Some((room.try_into().ok()?, user.try_into().ok()?, membership))
            })
            .collect())
    }

    /// Those of `rooms` that have rows after `after` and up to `upto`.
    pub async fn log_rooms_changed(
        &mut self,
        rooms: &[OwnedRoomId],
        after: LogPosition,
        upto: LogPosition,
    ) -> StoreResult<Vec<OwnedRoomId>> {
        let mut changed = Vec::new();
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(ROOMS_CHANGED, 3, chunk.len());
            let found: Vec<(String,)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(after.0).bind(upto.0);
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            changed.extend(found.into_iter().filter_map(|(room,)| OwnedRoomId::try_from(room).ok()));
        }
        Ok(changed)
    }

    /// The number of the newest event of the timeline of each of these rooms that has one.
    pub async fn rooms_newest_events(
        &mut self,
        rooms: &[OwnedRoomId],
    ) -> StoreResult<HashMap<OwnedRoomId, i64>> {
        let mut newest = HashMap::with_capacity(rooms.len());
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(NEWEST, 1, chunk.len());
            let found: Vec<(String, Option<i64>)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            newest.extend(found.into_iter().filter_map(|(room, sn)| Some((room.try_into().ok()?, sn?))));
        }
        Ok(newest)
    }

    /// Up to five others that a room without a name is named after: the first who joined or were invited, or, where
    /// there is none, the first who left.
    /// <https://spec.matrix.org/v1.19/client-server-api/#calculating-the-display-name-for-a-room>
    pub async fn room_heroes(&mut self, room: &RoomId, viewer: &UserId) -> StoreResult<Vec<Hero>> {
        for text in [HEROES, FORMER_HEROES] {
            let found: Vec<(String, String)> = on_engine!(self, |c| sqlx::query_as(text)
                .bind(room.as_str())
                .bind(viewer.as_str())
                .fetch_all(c)
                .await)?;
            if !found.is_empty() {
                return Ok(found
                    .into_iter()
                    .filter_map(|(user, event)| Some((user.try_into().ok()?, event.try_into().ok()?)))
                    .collect());
            }
        }
        Ok(Vec::new())
    }

    /// Like [`Conn::room_heroes`] for many rooms at once.
    pub async fn heroes_of(
        &mut self,
        rooms: &[OwnedRoomId],
        viewer: &UserId,
    ) -> StoreResult<HashMap<OwnedRoomId, Vec<Hero>>> {
        let mut heroes: HashMap<OwnedRoomId, Vec<Hero>> = HashMap::with_capacity(rooms.len());
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(HEROES_OF, 2, chunk.len());
            let found: Vec<(String, String, String)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(viewer.as_str());
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            for (room, user, event) in found {
                let (Ok(room), Ok(user), Ok(event)) = (room.try_into(), user.try_into(), event.try_into())
                else {
                    continue;
                };
                heroes.entry(room).or_default().push((user, event));
            }
        }
        for room in rooms.iter().filter(|room| !heroes.contains_key(*room)).cloned().collect::<Vec<_>>() {
            let former = self.room_heroes(&room, viewer).await?;
            heroes.insert(room, former);
        }
        Ok(heroes)
    }
}

impl Store {
    /// The newest to-device message that waits for each device that one waits for.
    pub async fn to_device_newest(&self) -> StoreResult<Vec<(OwnedUserId, String, LogPosition)>> {
        // First: what is filed meanwhile is found by the database. A later row for a device replaces an earlier one.
        let unfiled = self.inner.unfiled.newest();
        let mut conn = self.read().await?;
        let found: Vec<(String, String, i64)> =
            on_engine!(&mut conn, |c| sqlx::query_as(TO_DEVICE_NEWEST).fetch_all(c).await)?;
        let filed = found.into_iter().filter_map(|(user, device, position)| {
            Some((OwnedUserId::try_from(user).ok()?, device, position))
        });
        let all = filed.chain(unfiled);
        Ok(all.map(|(user, device, position)| (user, device, LogPosition(position))).collect())
    }
}
