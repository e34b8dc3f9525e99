//! Whose device lists a user must fetch anew, and whose no longer concern the user.
//! <https://spec.matrix.org/v1.19/client-server-api/#tracking-the-device-list-for-a-user>

use ruma::{OwnedRoomId, OwnedUserId, UserId};
use std::collections::BTreeSet;
use waxwing_model::LogPosition;
use waxwing_storage::{Conn, DeviceListRow, Fact, Store, StoreResult};

/// Changes of the device lists that a user follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListChanges {
    /// Users whose lists changed while they share a room, or who began to share one.
    pub changed: BTreeSet<OwnedUserId>,
    /// Users who no longer share any room.
    pub left: BTreeSet<OwnedUserId>,
}

impl ListChanges {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// What changed for `user` after `since` and up to `upto`. Asks the database nothing when nothing happened to any device
/// list and the tail reaches back to `since`.
pub async fn device_list_changes(
    store: &Store,
    user: &UserId,
    since: LogPosition,
    upto: LogPosition,
) -> StoreResult<ListChanges> {
    if since >= upto {
        return Ok(ListChanges::default());
    }
    let rows = match store.tail().range(since, upto) {
        Some(rows) => {
            let rows: Vec<DeviceListRow> = rows
                .iter()
                .filter(|row| row.fact == Fact::DeviceList)
                .filter_map(|row| {
                    Some(DeviceListRow {
                        user: row.user.clone()?,
                        room: row.room.clone(),
                        reference: row.reference.clone(),
                        data: row.data.clone(),
                    })
                })
                .collect();
            rows
        }
        // Up to now: of changes long ago the newest row of each is left, which may be a later one.
        None => store.read().await?.device_list_rows(user, since, upto.max(store.tail().head())).await?,
    };
    if rows.is_empty() {
        return Ok(ListChanges::default());
    }
    let mut conn = store.read().await?;
    fold(&mut conn, user, rows).await
}

/// Candidates from the rows, sifted by who shares a room now.
async fn fold(conn: &mut Conn, user: &UserId, rows: Vec<DeviceListRow>) -> StoreResult<ListChanges> {
    let mut changes = ListChanges::default();
    let mut candidates: BTreeSet<OwnedUserId> = BTreeSet::new();
    let mut gone: BTreeSet<OwnedUserId> = BTreeSet::new();
    let mut rooms: BTreeSet<OwnedRoomId> = BTreeSet::new();
    let mut own_rooms: BTreeSet<OwnedRoomId> = BTreeSet::new();
    if rows.iter().any(|row| row.room.is_some()) {
        let memberships = conn.memberships_of(user).await?;
        rooms.extend(memberships.into_iter().filter(|row| row.membership == "join").map(|row| row.room_id));
    }
    for row in rows.iter().filter(|row| row.user == *user) {
        if let Some(room) = &row.room {
            own_rooms.insert(room.clone());
        }
    }
    for row in rows {
        match (&row.room, &row.reference) {
            (None, None) => drop(candidates.insert(row.user)),
            (None, Some(target)) if row.user == *user => {
                changes.changed.extend(OwnedUserId::try_from(target.as_str()));
            }
            (Some(room), _) if row.user != *user && (rooms.contains(room) || own_rooms.contains(room)) => {
                let joined = row.data.as_deref() == Some("join");
                let set = if joined { &mut candidates } else { &mut gone };
                set.insert(row.user);
            }
            _ => {}
        }
    }
    for room in &own_rooms {
        let members = conn.members_of(room, "join").await?.into_iter().map(|row| row.user_id);
        if rooms.contains(room) { candidates.extend(members) } else { gone.extend(members) }
    }
    let asked: Vec<OwnedUserId> = candidates.union(&gone).cloned().collect();
    let sharing: BTreeSet<OwnedUserId> = conn.users_sharing_among(user, &asked).await?.into_iter().collect();
    changes.changed.extend(candidates.into_iter().filter(|other| other == user || sharing.contains(other)));
    changes.left.extend(gone.into_iter().filter(|other| other != user && !sharing.contains(other)));
    Ok(changes)
}
