//! Rooms that the user is invited to or knocks at: what may be seen of them from outside.
//! <https://spec.matrix.org/v1.19/client-server-api/#stripped-state>

use super::build::Build;
use super::response::{Events, InvitedRoom, KnockedRoom};
use ruma::{OwnedEventId, RoomId};
use serde::Deserialize;
use serde_json::value::RawValue;
use waxwing_model::Event;
use waxwing_rooms::stripped;
use waxwing_storage::{MemberRow, StoreResult};

impl Build<'_> {
    /// The room as one that the user is invited to; `None` when the invitation is not shown.
    pub async fn invited(&self, room: &RoomId) -> StoreResult<Option<InvitedRoom>> {
        let Some(row) = self.own_membership(room, "invite").await? else { return Ok(None) };
        if self.ignored.contains(&row.sender) {
            return Ok(None);
        }
        let events = self.stripped_state(&row).await?;
        Ok(Some(InvitedRoom { invite_state: Events { events } }))
    }

    /// The room as one that the user knocks at.
    pub async fn knocked(&self, room: &RoomId) -> StoreResult<Option<KnockedRoom>> {
        let Some(row) = self.own_membership(room, "knock").await? else { return Ok(None) };
        let events = self.stripped_state(&row).await?;
        Ok(Some(KnockedRoom { knock_state: Events { events } }))
    }

    async fn own_membership(&self, room: &RoomId, membership: &str) -> StoreResult<Option<MemberRow>> {
        let row = self.core().store.read().await?.member_load(room, self.user()).await?;
        Ok(row.filter(|row| row.membership == membership))
    }

    /// What came with the invitation, or what this server knows itself; always with the user's own member event.
    async fn stripped_state(&self, row: &MemberRow) -> StoreResult<Vec<Box<RawValue>>> {
        let mut events: Vec<Box<RawValue>> = match &row.stripped {
            Some(stripped) => serde_json::from_str(stripped).unwrap_or_default(),
            None => self.stripped_of_room(row).await?,
        };
        if events.iter().any(|event| is_own_member(event, row)) {
            return Ok(events);
        }
        match self.core().store.event(&row.event_id).await? {
            Some(stored) => events.extend(stripped::strip(&stored.event)),
            None => events.extend(own_member(row)),
        }
        Ok(events)
    }

    async fn stripped_of_room(&self, row: &MemberRow) -> StoreResult<Vec<Box<RawValue>>> {
        let store = &self.core().store;
        let mut conn = store.read().await?;
        let Some(room) = conn.room_load(&row.room_id).await? else { return Ok(Vec::new()) };
        let keys = stripped::keys(Some(&row.sender));
        let ids = store.state(&mut conn).get_many(room.state_root, &keys).await?;
        drop(conn);
        let ids: Vec<OwnedEventId> = ids.into_iter().flatten().collect();
        let loaded = store.events(&ids).await?;
        let events: Vec<&Event> =
            ids.iter().filter_map(|id| loaded.get(id)).map(|stored| &*stored.event).collect();
        Ok(stripped::stripped_state(events))
    }
}

fn is_own_member(event: &RawValue, row: &MemberRow) -> bool {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "type")]
        kind: String,
        state_key: String,
    }
    serde_json::from_str::<Named>(event.get())
        .is_ok_and(|named| named.kind == "m.room.member" && named.state_key == row.user_id.as_str())
}

/// A member event that is not here, from what is known of it.
pub(super) fn own_member(row: &MemberRow) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(&serde_json::json!({
        "type": "m.room.member",
        "sender": row.sender,
        "state_key": row.user_id,
        "content": { "membership": row.membership },
    }))
    .ok()
}
