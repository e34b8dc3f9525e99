//! Who is in which room now: derived from current state, so that questions across rooms are one query.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::outgoing::ServerSet;
use crate::sql::{CHUNK, list, padded, pieces, rows, statements};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use sqlx::AssertSqlSafe;
use std::collections::BTreeSet;
use waxwing_rooms::state_tree::NodeId;

statements! {
    UPSERT_MANY = "INSERT INTO members (room_id, user_id, membership, event_id, sender, local, server, sn, display_name, avatar_url, stripped, forgotten) VALUES $rows ON CONFLICT (room_id, user_id) DO UPDATE SET membership = excluded.membership, event_id = excluded.event_id, sender = excluded.sender, sn = excluded.sn, display_name = excluded.display_name, avatar_url = excluded.avatar_url, stripped = excluded.stripped, forgotten = FALSE";
    ADD_MANY = "INSERT INTO members (room_id, user_id, membership, event_id, sender, local, server, sn, display_name, avatar_url, stripped, forgotten) VALUES $rows ON CONFLICT (room_id, user_id) DO NOTHING";
    EVENTS = "SELECT event_id FROM members WHERE room_id = $1";
    UPSERT = "INSERT INTO members (room_id, user_id, membership, event_id, sender, local, server, sn, display_name, avatar_url, stripped, forgotten) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, FALSE) ON CONFLICT (room_id, user_id) DO UPDATE SET membership = excluded.membership, event_id = excluded.event_id, sender = excluded.sender, sn = excluded.sn, display_name = excluded.display_name, avatar_url = excluded.avatar_url, stripped = excluded.stripped, forgotten = FALSE";
    // Leaves the indexes alone: most changes of a member are of a name.
    CHANGE = "UPDATE members SET event_id = $3, sender = $4, sn = $5, display_name = $6, avatar_url = $7, stripped = $8, forgotten = FALSE WHERE room_id = $1 AND user_id = $2";
    REMOVE = "DELETE FROM members WHERE room_id = $1 AND user_id = $2";
    FORGET = "UPDATE members SET forgotten = TRUE WHERE room_id = $1 AND user_id = $2";
    OF_USER = "SELECT room_id, user_id, membership, event_id, sender, sn, display_name, avatar_url, stripped, forgotten FROM members WHERE user_id = $1";
    OUTSIDE = "SELECT room_id, user_id, membership, event_id, sender, sn, display_name, avatar_url, stripped, forgotten FROM members WHERE user_id = $1 AND membership IN ('invite', 'knock', 'leave', 'ban') AND NOT forgotten";
    ONE = "SELECT room_id, user_id, membership, event_id, sender, sn, display_name, avatar_url, stripped, forgotten FROM members WHERE room_id = $1 AND user_id = $2";
    OF_ROOM = "SELECT room_id, user_id, membership, event_id, sender, sn, display_name, avatar_url, stripped, forgotten FROM members WHERE room_id = $1 AND membership = $2 ORDER BY sn, user_id";
    LOCAL_OF_ROOM = "SELECT user_id FROM members WHERE room_id = $1 AND membership = $2 AND local";
    // From each server to the next by the index, not from member to member.
    SERVERS = "WITH RECURSIVE present(server) AS (SELECT MIN(server) FROM members WHERE room_id = $1 AND membership = 'join' UNION ALL SELECT (SELECT MIN(m.server) FROM members m WHERE m.room_id = $1 AND m.membership = 'join' AND m.server > present.server) FROM present WHERE present.server IS NOT NULL) SELECT server FROM present WHERE server IS NOT NULL UNION SELECT server FROM partial_servers WHERE room_id = $1";
    SERVER_IS_IN = "SELECT EXISTS (SELECT 1 FROM members WHERE server = $1 AND membership = 'join' AND room_id = $2) OR EXISTS (SELECT 1 FROM partial_servers WHERE server = $1 AND room_id = $2)";
    OF_SERVER = "SELECT user_id FROM members WHERE server = $1 AND room_id = $2";
    ROOMS_OF_SERVER = "SELECT DISTINCT room_id FROM members WHERE server = $1 AND membership = 'join'";
    COUNT = "SELECT membership, COUNT(*) FROM members WHERE room_id = $1 GROUP BY membership";
    COUNT_OF = "SELECT room_id, membership, COUNT(*) FROM members WHERE room_id IN ($list) GROUP BY room_id, membership";
    COUNT_LOCAL = "SELECT COUNT(*) FROM members WHERE room_id = $1 AND membership = 'join' AND local";
    SHARING = "SELECT DISTINCT b.user_id FROM members a JOIN members b ON a.room_id = b.room_id WHERE a.user_id = $1 AND a.membership = 'join' AND b.membership = 'join'";
    SHARED = "SELECT DISTINCT b.user_id FROM members a JOIN members b ON a.room_id = b.room_id WHERE a.user_id = $1 AND a.membership = 'join' AND b.membership = 'join' AND b.user_id IN ($list)";
    SHARING_SERVERS = "WITH RECURSIVE present(room_id, server) AS (SELECT a.room_id, (SELECT MIN(b.server) FROM members b WHERE b.room_id = a.room_id AND b.membership = 'join') FROM members a WHERE a.user_id = $1 AND a.membership = 'join' UNION ALL SELECT present.room_id, (SELECT MIN(b.server) FROM members b WHERE b.room_id = present.room_id AND b.membership = 'join' AND b.server > present.server) FROM present WHERE present.server IS NOT NULL) SELECT server FROM present WHERE server IS NOT NULL UNION SELECT p.server FROM members m JOIN partial_servers p ON p.room_id = m.room_id WHERE m.user_id = $1 AND m.membership = 'join'";
    MUTUAL = "SELECT a.room_id FROM members a JOIN members b ON a.room_id = b.room_id WHERE a.user_id = $1 AND a.membership = 'join' AND b.user_id = $2 AND b.membership = 'join' ORDER BY a.room_id";
    MEMBER_PROFILE = "SELECT field, value FROM profiles WHERE user_id = $1 AND field IN ('displayname', 'avatar_url')";
    GUESTS = "SELECT m.room_id, m.user_id FROM users u JOIN members m ON m.user_id = u.user_id WHERE u.guest AND m.membership = 'join' AND m.local";
    GUESTS_OF_ROOM = "SELECT m.user_id FROM members m JOIN users u ON u.user_id = m.user_id WHERE m.room_id = $1 AND m.membership = 'join' AND m.local AND u.guest";
    ALL_LOCAL_JOINED = "SELECT room_id, user_id FROM members WHERE local AND membership = 'join'";
}

/// One user's membership of one room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The user.
    pub user_id: OwnedUserId,
    /// `join`, `invite`, `leave`, `ban`, `knock`.
    pub membership: String,
    /// The member event.
    pub event_id: OwnedEventId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Orders members by when they became so; about the log position of the event.
    pub sn: i64,
    /// The display name in this room.
    pub display_name: Option<String>,
    /// The avatar in this room.
    pub avatar_url: Option<String>,
    /// Of an invitation or knock to a room that this server is not in: JSON array of stripped state events.
    pub stripped: Option<String>,
    /// The user has forgotten the room.
    pub forgotten: bool,
}

type Columns =
    (String, String, String, String, String, i64, Option<String>, Option<String>, Option<String>, bool);

fn decode(columns: Columns) -> StoreResult<MemberRow> {
    let (room, user, membership, event, sender, sn, display_name, avatar_url, stripped, forgotten) = columns;
    let corrupt = |why: String| StoreError::corrupt("members", format!("{room} {user}"), why);
    Ok(MemberRow {
        room_id: OwnedRoomId::try_from(room.as_str()).map_err(|error| corrupt(error.to_string()))?,
        user_id: OwnedUserId::try_from(user.as_str()).map_err(|error| corrupt(error.to_string()))?,
        membership,
        event_id: OwnedEventId::try_from(event).map_err(|error| corrupt(error.to_string()))?,
        sender: OwnedUserId::try_from(sender).map_err(|error| corrupt(error.to_string()))?,
        sn,
        display_name,
        avatar_url,
        stripped,
        forgotten,
    })
}

fn ids<T: for<'a> TryFrom<&'a str>>(found: Vec<(String,)>) -> Vec<T> {
    found.into_iter().filter_map(|(id,)| T::try_from(id.as_str()).ok()).collect()
}

impl Conn {
    /// All memberships of `user`, forgotten and ended ones too.
    pub async fn memberships_of(&mut self, user: &UserId) -> StoreResult<Vec<MemberRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(OF_USER).bind(user.as_str()).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// The memberships of `user` other than joined, without forgotten ones.
    pub async fn memberships_outside(&mut self, user: &UserId) -> StoreResult<Vec<MemberRow>> {
        let found: Vec<Columns> =
            on_engine!(self, |c| sqlx::query_as(OUTSIDE).bind(user.as_str()).fetch_all(c).await)?;
        found.into_iter().map(decode).collect()
    }

    /// `user`'s membership of `room`.
    pub async fn member_load(&mut self, room: &RoomId, user: &UserId) -> StoreResult<Option<MemberRow>> {
        let found: Option<Columns> = on_engine!(self, |c| sqlx::query_as(ONE)
            .bind(room.as_str())
            .bind(user.as_str())
            .fetch_optional(c)
            .await)?;
        found.map(decode).transpose()
    }

    /// The events that say what is known of the members of a room.
    pub async fn member_events(&mut self, room: &RoomId) -> StoreResult<BTreeSet<OwnedEventId>> {
        let found: Vec<(String,)> =
            on_engine!(self, |c| sqlx::query_as(EVENTS).bind(room.as_str()).fetch_all(c).await)?;
        Ok(found.into_iter().filter_map(|(id,)| id.try_into().ok()).collect())
    }

    /// The members of `room` with this membership, in order of `sn`.
    pub async fn members_of(&mut self, room: &RoomId, membership: &str) -> StoreResult<Vec<MemberRow>> {
        let found: Vec<Columns> = on_engine!(self, |c| sqlx::query_as(OF_ROOM)
            .bind(room.as_str())
            .bind(membership)
            .fetch_all(c)
            .await)?;
        found.into_iter().map(decode).collect()
    }

    /// This server's users with this membership of `room`.
    pub async fn local_members_of(
        &mut self,
        room: &RoomId,
        membership: &str,
    ) -> StoreResult<Vec<OwnedUserId>> {
        Ok(ids(on_engine!(self, |c| sqlx::query_as(LOCAL_OF_ROOM)
            .bind(room.as_str())
            .bind(membership)
            .fetch_all(c)
            .await)?))
    }

    /// The servers that have a joined user in `room`, this one too; while its members are missing, those of which we
    /// were told, too.
    pub async fn servers_in(&mut self, room: &RoomId) -> StoreResult<Vec<OwnedServerName>> {
        Ok(ids(on_engine!(self, |c| sqlx::query_as(SERVERS).bind(room.as_str()).fetch_all(c).await)?))
    }

    /// Whether `server` is among those of [`Conn::servers_in`], however many members the room has.
    pub async fn server_is_in(&mut self, room: &RoomId, server: &ServerName) -> StoreResult<bool> {
        let (found,): (bool,) = on_engine!(self, |c| sqlx::query_as(SERVER_IS_IN)
            .bind(server.as_str())
            .bind(room.as_str())
            .fetch_one(c)
            .await)?;
        Ok(found)
    }

    /// The users of `server` that have, or had, any membership of `room`.
    pub async fn members_of_server(
        &mut self,
        room: &RoomId,
        server: &ServerName,
    ) -> StoreResult<Vec<OwnedUserId>> {
        Ok(ids(on_engine!(self, |c| sqlx::query_as(OF_SERVER)
            .bind(server.as_str())
            .bind(room.as_str())
            .fetch_all(c)
            .await)?))
    }

    /// The rooms that `server` has a joined user in.
    pub async fn rooms_of_server(&mut self, server: &ServerName) -> StoreResult<Vec<OwnedRoomId>> {
        Ok(ids(on_engine!(self, |c| sqlx::query_as(ROOMS_OF_SERVER)
            .bind(server.as_str())
            .fetch_all(c)
            .await)?))
    }

    /// How many members `room` has of each membership.
    pub async fn member_counts(&mut self, room: &RoomId) -> StoreResult<Vec<(String, i64)>> {
        Ok(on_engine!(self, |c| sqlx::query_as(COUNT).bind(room.as_str()).fetch_all(c).await)?)
    }

    /// Like [`Conn::member_counts`] for many rooms at once.
    pub async fn member_counts_of(
        &mut self,
        rooms: &[OwnedRoomId],
    ) -> StoreResult<Vec<(OwnedRoomId, String, i64)>> {
        let mut counts = Vec::new();
        for chunk in rooms.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(COUNT_OF, 1, chunk.len());
            let found: Vec<(String, String, i64)> = on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text));
                for room in &chunk {
                    query = query.bind(room.as_str());
                }
                query.fetch_all(c).await
            })?;
            let found = found.into_iter();
            counts.extend(found.filter_map(|(room, of, count)| Some((room.try_into().ok()?, of, count))));
        }
        Ok(counts)
    }

    /// How many users of this server are joined to `room`.
    pub async fn local_joined_count(&mut self, room: &RoomId) -> StoreResult<i64> {
        let (count,): (i64,) =
            on_engine!(self, |c| sqlx::query_as(COUNT_LOCAL).bind(room.as_str()).fetch_one(c).await)?;
        Ok(count)
    }

    /// All users who share a room with `user` (who is among them if in any room).
    pub async fn users_sharing(&mut self, user: &UserId) -> StoreResult<Vec<OwnedUserId>> {
        Ok(ids(on_engine!(self, |c| sqlx::query_as(SHARING).bind(user.as_str()).fetch_all(c).await)?))
    }

    /// Those of `others` who share a room with `user`.
    pub async fn users_sharing_among(
        &mut self,
        user: &UserId,
        others: &[OwnedUserId],
    ) -> StoreResult<Vec<OwnedUserId>> {
        let mut sharing = Vec::new();
        for chunk in others.chunks(CHUNK) {
            let chunk = padded(chunk);
            let text = list(SHARED, 2, chunk.len());
            sharing.extend(ids::<OwnedUserId>(on_engine!(self, |c| {
                let mut query = sqlx::query_as(AssertSqlSafe(text)).bind(user.as_str());
                for other in &chunk {
                    query = query.bind(other.as_str());
                }
                query.fetch_all(c).await
            })?));
        }
        Ok(sharing)
    }

    /// The servers of the users who share a room with `user`.
    pub async fn servers_sharing(&mut self, user: &UserId) -> StoreResult<Vec<OwnedServerName>> {
        Ok(ids(on_engine!(self, |c| sqlx::query_as(SHARING_SERVERS).bind(user.as_str()).fetch_all(c).await)?))
    }

    /// The rooms that both are joined to.
    pub async fn rooms_shared(&mut self, one: &UserId, other: &UserId) -> StoreResult<Vec<OwnedRoomId>> {
        Ok(ids(on_engine!(self, |c| sqlx::query_as(MUTUAL)
            .bind(one.as_str())
            .bind(other.as_str())
            .fetch_all(c)
            .await)?))
    }

    /// The fields of a user's profile that go into its member events; values are JSON.
    pub async fn member_profile(&mut self, user: &UserId) -> StoreResult<Vec<(String, String)>> {
        Ok(on_engine!(self, |c| sqlx::query_as(MEMBER_PROFILE).bind(user.as_str()).fetch_all(c).await)?)
    }

    /// Every (room, joined user of this server): what a fold over the log starts from.
    pub async fn local_joined_all(&mut self) -> StoreResult<Vec<(OwnedRoomId, OwnedUserId)>> {
        let found: Vec<(String, String)> =
            on_engine!(self, |c| sqlx::query_as(ALL_LOCAL_JOINED).fetch_all(c).await)?;
        Ok(found
            .into_iter()
            .filter_map(|(room, user)| Some((room.try_into().ok()?, user.try_into().ok()?)))
            .collect())
    }
}

impl Conn {
    /// All guests of this server that are joined to a room, with the room.
    pub async fn guests_joined(&mut self) -> StoreResult<Vec<(OwnedRoomId, OwnedUserId)>> {
        let found: Vec<(String, String)> = on_engine!(self, |c| sqlx::query_as(GUESTS).fetch_all(c).await)?;
        Ok(found
            .into_iter()
            .filter_map(|(room, user)| Some((room.try_into().ok()?, user.try_into().ok()?)))
            .collect())
    }

    /// The guests of this server that are joined to `room`.
    pub async fn guests_joined_to(&mut self, room: &RoomId) -> StoreResult<Vec<OwnedUserId>> {
        Ok(ids(on_engine!(self, |c| sqlx::query_as(GUESTS_OF_ROOM).bind(room.as_str()).fetch_all(c).await)?))
    }
}

impl crate::Tx {
    /// The servers of who is joined to the room, whose present state is the one at `root`, `ours` apart. Kept by root:
    /// as long as nothing changes in the state of a room, nothing is asked.
    pub async fn servers_in_state(
        &mut self,
        room: &RoomId,
        root: NodeId,
        ours: &ServerName,
    ) -> StoreResult<ServerSet> {
        if let Some(known) = self.servers.get(&root) {
            return Ok(known);
        }
        let servers = self.servers_in(room).await?;
        let servers = ServerSet::new(servers.into_iter().filter(|server| server != ours));
        // The empty state is that of every new room.
        if root != NodeId::EMPTY {
            self.servers.insert(root, servers.clone());
        }
        Ok(servers)
    }

    /// The state at `after` follows the one at `before`, and its servers are the same, with one more at most: whoever asks
    /// next finds them. Does nothing when they are not known.
    pub fn servers_carry(&mut self, before: NodeId, after: NodeId, more: Option<&ServerName>) {
        let Some(known) = self.servers.get(&before).filter(|_| after != NodeId::EMPTY) else { return };
        let servers = match more.filter(|server| !known.contains(server)) {
            Some(server) => ServerSet::new(known.names().iter().cloned().chain([server.to_owned()])),
            None => known,
        };
        self.servers.insert(after, servers);
    }

    /// The state at `after` follows the one at `before`, and a user of `server` is no longer joined in it, as the table of
    /// members says already: its servers are the same, without that one if the user was its last. Does nothing when they
    /// are not known.
    pub async fn servers_carry_less(
        &mut self,
        room: &RoomId,
        (before, after): (NodeId, NodeId),
        server: &ServerName,
    ) -> StoreResult<()> {
        let Some(known) = self.servers.get(&before).filter(|_| after != NodeId::EMPTY) else { return Ok(()) };
        let stays = !known.contains(server) || self.server_is_in(room, server).await?;
        self.servers.insert(after, if stays { known } else { known.without(server) });
        Ok(())
    }

    /// Sets a membership. `row.sn` and `row.forgotten` are ignored: the order is now, and nothing is forgotten.
    pub async fn member_save(&mut self, row: &MemberRow, local: bool) -> StoreResult<()> {
        let sn = self.position_hint();
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(UPSERT)
            .bind(row.room_id.as_str())
            .bind(row.user_id.as_str())
            .bind(&row.membership)
            .bind(row.event_id.as_str())
            .bind(row.sender.as_str())
            .bind(local)
            .bind(row.user_id.server_name().as_str())
            .bind(sn)
            .bind(row.display_name.as_deref())
            .bind(row.avatar_url.as_deref())
            .bind(row.stripped.as_deref())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The same of a member that is here, with this very membership.
    pub async fn member_change(&mut self, row: &MemberRow) -> StoreResult<()> {
        let sn = self.position_hint();
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(CHANGE)
            .bind(row.room_id.as_str())
            .bind(row.user_id.as_str())
            .bind(row.event_id.as_str())
            .bind(row.sender.as_str())
            .bind(sn)
            .bind(row.display_name.as_deref())
            .bind(row.avatar_url.as_deref())
            .bind(row.stripped.as_deref())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// Sets many memberships, each of another user of one room, as [`crate::Tx::member_save`] does. `local` says whose users are
    /// this server's.
    pub async fn members_save(
        &mut self,
        all: &[MemberRow],
        local: impl Fn(&UserId) -> bool,
    ) -> StoreResult<()> {
        self.members_write(UPSERT_MANY, all, local).await
    }

    /// The same, and leaves those alone of whom the room knows something already.
    pub async fn members_add(
        &mut self,
        all: &[MemberRow],
        local: impl Fn(&UserId) -> bool,
    ) -> StoreResult<()> {
        self.members_write(ADD_MANY, all, local).await
    }

    async fn members_write(
        &mut self,
        statement: &'static str,
        all: &[MemberRow],
        local: impl Fn(&UserId) -> bool,
    ) -> StoreResult<()> {
        let sn = self.position_hint();
        let conn = self.writing().await?;
        for piece in pieces(all) {
            let text = rows(statement, 12, piece.len());
            on_engine!(conn, |c| {
                let mut query = sqlx::query(AssertSqlSafe(text));
                for row in piece {
                    query = query
                        .bind(row.room_id.as_str())
                        .bind(row.user_id.as_str())
                        .bind(&row.membership)
                        .bind(row.event_id.as_str())
                        .bind(row.sender.as_str())
                        .bind(local(&row.user_id))
                        .bind(row.user_id.server_name().as_str())
                        .bind(sn)
                        .bind(row.display_name.as_deref())
                        .bind(row.avatar_url.as_deref())
                        .bind(row.stripped.as_deref())
                        .bind(false);
                }
                query.execute(c).await.map(|_| ())
            })?;
        }
        Ok(())
    }

    /// The user has no membership of the room any more (state resolution took it away).
    pub async fn member_remove(&mut self, room: &RoomId, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(REMOVE)
            .bind(room.as_str())
            .bind(user.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The user forgets the room.
    pub async fn member_forget(&mut self, room: &RoomId, user: &UserId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(FORGET)
            .bind(room.as_str())
            .bind(user.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn servers_are_found_without_a_look_at_each_member() {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("sqlite:{}", folder.path().join("plan.db").display());
        let store = crate::Store::open(&address).await.unwrap();
        let mut conn = store.read().await.unwrap();
        let mut elsewhere = crate::device_lists::STATEMENTS.iter();
        let elsewhere = elsewhere.find(|(name, _)| *name == "SERVERS_ELSEWHERE").unwrap().1;
        for text in [SERVERS, SHARING_SERVERS, elsewhere] {
            let Conn::Sqlite(inner) = &mut conn else { panic!("a file is SQLite's") };
            let text = format!("EXPLAIN QUERY PLAN {text}");
            let plan: Vec<(i64, i64, i64, String)> =
                sqlx::query_as(AssertSqlSafe(text)).bind("a").fetch_all(&mut **inner).await.unwrap();
            let steps: Vec<&str> = plan.iter().map(|(.., step)| step.as_str()).collect();
            let by_server = "members_joined (room_id=? AND server>?)";
            assert!(steps.iter().any(|step| step.contains(by_server)), "{steps:?}");
            assert!(steps.iter().all(|step| !step.contains("autoindex_members")), "{steps:?}");
        }
    }
}
