//! Events that their sender was answered for and that are still to be taken in: because a gap before them took longer
//! than a sender waits, or could not be filled. They are rows, so a crash loses none; here they get their turn.

use ruma::{OwnedEventId, OwnedServerName, RoomId, ServerName, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

use super::{Inbound, parse};
use crate::ports::{PortError, PortResult, Staged};

/// Rooms that are worked on at the same time: each may be filling a gap.
const ROOMS: usize = 8;
/// Events of one room in one turn.
const BATCH: usize = 100;
/// How often the table is looked at.
const LOOK: Duration = Duration::from_secs(3);
/// Attempts for one event, over about ten hours; then it is given up, as a gap that nobody fills.
const MAX_ATTEMPTS: u32 = 6;
/// The wait before an event is tried again; four times as long after each attempt.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(30);
/// What was put aside because it takes long is being worked on: only if that ends, with the node, it is begun anew.
pub(super) const BUSY_WAIT: Duration = Duration::from_mins(2);

impl Inbound {
    /// Takes in what was put aside, until it is dropped.
    pub async fn run_staged(&self) {
        let mut rooms = JoinSet::new();
        let mut busy = std::collections::BTreeSet::new();
        loop {
            let free = ROOMS.saturating_sub(rooms.len());
            if free > 0 {
                match self.context.staging.staged_rooms(ROOMS).await {
                    Ok(due) => {
                        for room in
                            due.into_iter().filter(|room| !busy.contains(room)).take(free).collect::<Vec<_>>()
                        {
                            busy.insert(room.clone());
                            let this = self.clone();
                            rooms.spawn(async move {
                                if let Err(error) = this.take_staged(&room).await {
                                    tracing::warn!(%room, %error, "events put aside could not be taken in");
                                }
                                room
                            });
                        }
                    }
                    Err(error) => tracing::warn!(%error, "events put aside cannot be looked up"),
                }
            }
            tokio::select! {
                Some(done) = rooms.join_next() => {
                    match done {
                        Ok(room) => drop(busy.remove(&room)),
                        Err(error) => tracing::error!(%error, "taking in events put aside failed"),
                    }
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// One turn for each room in which something that was put aside is due, as [`Inbound::run_staged`] gives them: for
    /// whoever keeps the time, as a simulation does. Gives how many rooms had a turn.
    pub async fn take_staged_once(&self) -> PortResult<usize> {
        let due = self.context.staging.staged_rooms(ROOMS).await?;
        for room in &due {
            self.take_staged(room).await?;
        }
        Ok(due.len())
    }

    async fn take_staged(&self, room: &RoomId) -> Result<(), PortError> {
        let staging = &self.context.staging;
        for staged in staging.staged_load(room, BATCH).await? {
            let id = std::slice::from_ref(&staged.event_id);
            let server = server_to_ask(&staged);
            let events = Arc::new(vec![staged.json]);
            let outcome = self.receive_in_room(&server, room, &events).await;
            let attempts = staged.attempts + 1;
            if outcome.stranded.is_empty() || attempts >= MAX_ATTEMPTS {
                staging.staged_remove(room, id).await?;
            } else {
                staging.staged_later(room, id, FIRST_WAIT * 4_u32.pow(attempts)).await?;
            }
        }
        Ok(())
    }

    /// Puts those of `events` that are events of the room aside, for a turn after `wait`.
    pub(super) async fn put_aside(
        &self,
        origin: &ServerName,
        room: &RoomId,
        events: &[Box<RawValue>],
        only: Option<&[OwnedEventId]>,
        wait: Duration,
    ) -> PortResult<Vec<OwnedEventId>> {
        let Some(version) = self.context.timeline.room_version(room).await? else { return Ok(Vec::new()) };
        let staged: Vec<Staged> = events
            .iter()
            .filter_map(|json| {
                let event_id = parse::parse(json, room, &version).ok()?.event.event_id;
                Some(Staged { event_id, origin: origin.to_owned(), json: json.clone(), attempts: 0 })
            })
            .filter(|staged| only.is_none_or(|only| only.contains(&staged.event_id)))
            .collect();
        let ids = staged.iter().map(|staged| staged.event_id.clone()).collect();
        if !staged.is_empty() {
            self.context.staging.staged_put(room, staged, wait).await?;
        }
        Ok(ids)
    }
}

/// The server that sent the event, and every other time that of its author.
fn server_to_ask(staged: &Staged) -> OwnedServerName {
    #[derive(Deserialize)]
    struct Sent<'a> {
        sender: &'a str,
    }
    if staged.attempts % 2 == 1
        && let Ok(sent) = serde_json::from_str::<Sent<'_>>(staged.json.get())
        && let Ok(sender) = <&UserId>::try_from(sent.sender)
    {
        return sender.server_name().to_owned();
    }
    staged.origin.clone()
}
