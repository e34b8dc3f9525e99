use ruma::OwnedServerName;
use ruma::events::StateEventType;
use std::sync::Arc;
use waxwing_model::{Event, state_key};

use super::event::RoomWork;
use crate::client::PolicyServer;
use crate::ports::{PortResult, StateRoot};

impl RoomWork<'_> {
    /// Check 7: the event with the signature of the room's policy server, or why it is soft-failed. One that lacks the
    /// signature may get it now.
    /// <https://spec.matrix.org/v1.19/server-server-api/#validating-policy-server-signatures>
    pub(super) async fn approved(
        &self,
        event: &Arc<Event>,
        current: StateRoot,
    ) -> PortResult<Result<Arc<Event>, String>> {
        if event.is_state_of(&StateEventType::from("m.room.policy"), "") {
            return Ok(Ok(Arc::clone(event)));
        }
        let Some(policy) = self.policy_server(current).await? else { return Ok(Ok(Arc::clone(event))) };
        if policy.has_signed(event, self.version) {
            return Ok(Ok(Arc::clone(event)));
        }
        let asked = self.context.client.policy_sign(&policy, event, self.version).await;
        Ok(asked.map(Arc::new).map_err(|error| format!("no signature of the policy server: {error}")))
    }

    /// The policy server by the room's current state, if it has one that is in the room and is not this server.
    async fn policy_server(&self, current: StateRoot) -> PortResult<Option<PolicyServer>> {
        let key = state_key(StateEventType::from("m.room.policy"), "");
        let timeline = &self.context.timeline;
        let entries = timeline.state_entries(self.room, current, std::slice::from_ref(&key)).await?;
        let Some(id) = entries.get(&key) else { return Ok(None) };
        let known = self.load(std::slice::from_ref(id)).await?;
        let Some(policy) = known.get(id).and_then(|known| PolicyServer::of(&known.event)) else {
            return Ok(None);
        };
        let ours: &OwnedServerName = &self.context.client.identity().server;
        let used = policy.via != *ours && timeline.has_server(self.room, &policy.via).await?;
        Ok(used.then_some(policy))
    }
}
