//! Rooms that this server is not in, but one of its users is invited to, or knocks on.

use super::Timeline;
use super::effects::{member_row, member_target};
use super::error::TimelineError;
use super::membership::resident_in;
use ruma::{RoomId, RoomVersionId};
use serde::Deserialize;
use waxwing_model::Event;

/// The version that the create event among an invitation's stripped state names; 1 where it names none.
fn version_in(stripped: &str) -> Option<RoomVersionId> {
    #[derive(Deserialize)]
    struct Stripped {
        #[serde(rename = "type")]
        kind: String,
        content: Content,
    }
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        room_version: Option<RoomVersionId>,
    }
    let events: Vec<serde_json::Value> = serde_json::from_str(stripped).ok()?;
    let create = events
        .into_iter()
        .filter_map(|event| serde_json::from_value::<Stripped>(event).ok())
        .find(|event| event.kind == "m.room.create")?;
    Some(create.content.room_version.unwrap_or(RoomVersionId::V1))
}

impl Timeline {
    /// The version of a room that we are not in and have an invitation to, or knock on.
    pub(super) async fn version_of_invitation(
        &self,
        room: &RoomId,
    ) -> Result<Option<RoomVersionId>, TimelineError> {
        let mut conn = self.core.store.read().await?;
        let row = conn.room_load(room).await?;
        if row.is_some() && resident_in(&self.core, &mut conn, room).await? {
            return Ok(None);
        }
        for membership in ["invite", "knock"] {
            for user in conn.local_members_of(room, membership).await? {
                let member = conn.member_load(room, &user).await?;
                let stripped = member.and_then(|member| member.stripped);
                if let Some(version) = stripped.as_deref().and_then(version_in) {
                    return Ok(Some(version));
                }
            }
        }
        Ok(row.map(|row| row.version))
    }

    /// Ends an invitation that its sender takes back, or a knock that is refused.
    pub(super) async fn invitation_ends(&self, event: &Event) -> Result<(), TimelineError> {
        let Some(target) = member_target(event).filter(|user| self.core.is_local(user)) else {
            return Ok(());
        };
        let before = self.core.store.read().await?.member_load(&event.room_id, &target).await?;
        let (Some(before), Some(mut row)) = (before, member_row(event)) else { return Ok(()) };
        let ends = match before.membership.as_str() {
            "invite" => before.sender == event.sender,
            "knock" => event.sender != target,
            _ => false,
        };
        if !ends {
            return Ok(());
        }
        row.stripped = before.stripped;
        self.save_outside(row).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_create_event_names_the_version() {
        let state = r#"[{"type":"m.room.name","content":{"name":"x"}},
            {"type":"m.room.create","content":{"room_version":"10"}}]"#;
        assert_eq!(version_in(state), Some(RoomVersionId::V10));
        assert_eq!(version_in(r#"[{"type":"m.room.create","content":{}}]"#), Some(RoomVersionId::V1));
        assert_eq!(version_in("[]"), None);
    }
}
