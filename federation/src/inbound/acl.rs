use ruma::events::StateEventType;
use ruma::{RoomId, ServerName};
use waxwing_model::state_key;

use super::Context;
use crate::acl::ServerAcl;
use crate::ports::PortResult;

impl Context {
    /// Whether the room's server ACL lets `server` take part. A room without one lets everybody.
    pub(super) async fn acl_permits(&self, room: &RoomId, server: &ServerName) -> PortResult<bool> {
        let Some(root) = self.timeline.state_current(room).await? else { return Ok(true) };
        let key = state_key(StateEventType::RoomServerAcl, "");
        let entries = self.timeline.state_entries(room, root, std::slice::from_ref(&key)).await?;
        let Some(id) = entries.get(&key) else { return Ok(true) };
        let events = self.timeline.events_load(room, std::slice::from_ref(id)).await?;
        Ok(events.get(id).is_none_or(|known| ServerAcl::from_event(&known.event).permits(server)))
    }
}
