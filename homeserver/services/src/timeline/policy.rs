//! Rooms with a policy server: an event of ours is built, signed, shown to the policy server, and stored with its
//! signature if the room is still as it was; else it is built anew.
//! <https://spec.matrix.org/v1.19/server-server-api/#policy-servers>

use super::Timeline;
use super::append::state_events;
use super::error::TimelineError;
use super::join::remote_error;
use crate::Core;
use parking_lot::Mutex;
use ruma::RoomVersionId;
use ruma::events::StateEventType;
use std::sync::Arc;
use waxwing_federation::client::PolicyServer;
use waxwing_model::{Event, state_key};
use waxwing_storage::{RoomRow, Tx};

/// How often a room may change while its policy server thinks.
const ATTEMPTS: usize = 8;

/// What the policy server signed, and the revision of the room that it was built on.
pub(crate) type Approval = Arc<Mutex<Option<(i64, Arc<Event>)>>>;

/// An event that needs the policy server's signature before it can be stored.
#[derive(Clone, Debug)]
pub struct Unapproved {
    event: Arc<Event>,
    policy: PolicyServer,
    version: RoomVersionId,
    revision: i64,
    approval: Approval,
}

/// The event to store: as it is, or as the policy server signed it before.
///
/// # Errors
/// [`TimelineError::Unapproved`] when its signature is to be asked for first.
pub(super) async fn approved(
    core: &Core,
    tx: &mut Tx,
    row: &RoomRow,
    approval: &Approval,
    event: Arc<Event>,
) -> Result<Arc<Event>, TimelineError> {
    let kind = StateEventType::from("m.room.policy");
    if event.is_state_of(&kind, "") || !core.settings.federation {
        return Ok(event);
    }
    let key = state_key(kind, "");
    let state = state_events(tx, row.state_root, std::slice::from_ref(&key)).await?;
    let Some(policy) = state.get(&key).and_then(|event| PolicyServer::of(event)) else { return Ok(event) };
    let present = tx.servers_in_state(&row.room_id, row.state_root, &core.server_name).await?;
    if policy.via == core.server_name || !present.contains(&policy.via) {
        return Ok(event);
    }
    if let Some((revision, signed)) = approval.lock().take()
        && revision == row.revision
        && says_the_same(&signed, &event)
    {
        return Ok(signed);
    }
    Err(TimelineError::Unapproved(Box::new(Unapproved {
        event,
        policy,
        version: row.version.clone(),
        revision: row.revision,
        approval: Arc::clone(approval),
    })))
}

/// Whether two events differ in nothing but when they were made, and by whom they are signed.
fn says_the_same(one: &Event, other: &Event) -> bool {
    one.kind == other.kind
        && one.state_key == other.state_key
        && one.sender == other.sender
        && one.content.get() == other.content.get()
        && one.redacts == other.redacts
}

impl Timeline {
    /// Runs a write that appends events; where the room's policy server must see one first, it is asked, and the write
    /// run again. Its refusal is the answer.
    pub(crate) async fn with_policy<T, F>(&self, write: impl Fn() -> F) -> Result<T, TimelineError>
    where
        F: Future<Output = Result<T, TimelineError>>,
    {
        for _ in 0..ATTEMPTS {
            let unapproved = match write().await {
                Err(TimelineError::Unapproved(unapproved)) => unapproved,
                other => return other,
            };
            let Some(remote) = &self.remote else { return Err(TimelineError::Unapproved(unapproved)) };
            let Unapproved { event, policy, version, revision, approval } = *unapproved;
            let signed = remote.client().policy_sign(&policy, &event, &version).await;
            let signed = signed.map_err(|error| remote_error(error.into()))?;
            *approval.lock() = Some((revision, Arc::new(signed)));
        }
        Err(TimelineError::Raced)
    }
}
