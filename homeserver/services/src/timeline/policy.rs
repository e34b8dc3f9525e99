//! Rooms with a policy server: an event of ours is built, signed, shown to the policy server, and stored with its
//! signature if the room is still as it was; else it is built anew. A write of several events is run again for each:
//! what was signed before comes out of it the same, so that the next can follow it.
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

/// What policy servers said to the events of one write. A handle: clones share everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Approvals(Arc<Mutex<Vec<Said>>>);

/// What a policy server said to an event.
#[derive(Clone, Debug)]
struct Said {
    /// The event, with its signature if it is for it.
    event: Arc<Event>,
    approved: bool,
}

impl Approvals {
    /// What was said to an event that says the same in the same place.
    fn of(&self, event: &Event) -> Option<Said> {
        self.0.lock().iter().find(|said| is_same(&said.event, event)).cloned()
    }

    /// Keeps what was said, in the place of what was said to the same event elsewhere: the room has moved on.
    fn keep(&self, event: Arc<Event>, approved: bool) {
        let mut all = self.0.lock();
        all.retain(|said| said.event.room_id != event.room_id || !says_the_same(&said.event, &event));
        all.push(Said { event, approved });
    }
}

/// An event that needs the policy server's signature before it can be stored.
#[derive(Clone, Debug)]
pub struct Unapproved {
    event: Arc<Event>,
    policy: PolicyServer,
    version: RoomVersionId,
    approvals: Approvals,
}

impl Unapproved {
    /// The event.
    pub(crate) fn event(&self) -> &Event {
        &self.event
    }

    /// Goes on as if the policy server had refused the event: the write that it is part of can do without it.
    pub(crate) fn give_up(self) {
        self.approvals.keep(self.event, false);
    }
}

/// The event to store: as it is, or as the policy server signed it before.
///
/// # Errors
/// [`TimelineError::Unapproved`] when its signature is to be asked for first, [`TimelineError::Forbidden`] when it was
/// refused.
pub(super) async fn approved(
    core: &Core,
    tx: &mut Tx,
    row: &RoomRow,
    approvals: &Approvals,
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
    match approvals.of(&event) {
        Some(Said { event, approved: true }) if policy.has_signed(&event, &row.version) => Ok(event),
        Some(Said { approved: false, .. }) => {
            Err(TimelineError::Forbidden("the room's policy server is against it".to_owned()))
        }
        _ => Err(TimelineError::Unapproved(Box::new(Unapproved {
            event,
            policy,
            version: row.version.clone(),
            approvals: approvals.clone(),
        }))),
    }
}

/// Whether two events differ in nothing but when they were made, and by whom they are signed.
fn is_same(one: &Event, other: &Event) -> bool {
    one.room_id == other.room_id
        && one.prev_events == other.prev_events
        && one.auth_events == other.auth_events
        && one.depth == other.depth
        && says_the_same(one, other)
}

/// The same, wherever they stand in the room.
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
            match write().await {
                Err(TimelineError::Unapproved(unapproved)) => self.ask_policy(&unapproved).await?,
                other => return other,
            }
        }
        Err(TimelineError::Raced)
    }

    /// Asks a policy server to sign an event, and keeps its signature for the next run of the write that the event is
    /// part of.
    ///
    /// # Errors
    /// [`TimelineError::Remote`] with its words when it refuses; [`TimelineError::Unreachable`].
    pub(crate) async fn ask_policy(&self, unapproved: &Unapproved) -> Result<(), TimelineError> {
        let Unapproved { event, policy, version, approvals } = unapproved;
        let Some(remote) = &self.remote else {
            return Err(TimelineError::Unreachable("this server does not federate".to_owned()));
        };
        let signed = remote.client().policy_sign(policy, event, version).await;
        approvals.keep(Arc::new(signed.map_err(|error| remote_error(error.into()))?), true);
        Ok(())
    }
}
