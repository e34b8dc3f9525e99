//! Answers to sends that may be repeated. On SQLite they go into their table many at a time: until then they are in
//! memory, and the log has them for the next start. A page of the table's tree for each send would be more than all else
//! that a send writes.

use crate::engine::{Conn, Engine, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use crate::tx::TransactionKey;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, RoomId};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use waxwing_model::{Event, LogPosition};

/// Answers that are in memory at most. Enough for those of one device to share pages; few enough to be read at a start
/// within some ten milliseconds.
const LATE_ANSWERS: usize = 1000;
/// Rows of the log after which the answers go to their table however few they are: so many are looked through at a start.
const LATE_ROWS: i64 = 20_000;
/// Rows that one statement reads at a start.
const PIECE: i64 = 500;
/// Up to where the table has the answers.
const CURSOR: &str = "transactions";

statements! {
    LATE = "SELECT l.position, l.data, e.event_id, e.room_id, e.ts, e.json FROM log l JOIN events e ON e.sn = l.position WHERE l.kind = 1 AND l.data IS NOT NULL AND l.position > $1 ORDER BY l.position LIMIT $2";
}

/// The endpoint, as the key of a request names it, to which a client sends events of this type.
/// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid>
pub fn send_endpoint(room: &RoomId, kind: &str) -> String {
    format!("send {room} {kind}")
}

/// What the row of the log that announces an event says of the request that sent it.
pub fn request_note(device: &str, transaction: &str) -> String {
    serde_json::json!([device, transaction]).to_string()
}

/// The device and the transaction id of [`request_note`].
pub fn noted_request(note: &str) -> Option<(String, String)> {
    serde_json::from_str(note).ok()
}

/// An answer that a request got.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub key: TransactionKey,
    pub response: String,
    /// When, in milliseconds since the epoch.
    pub at: u64,
    /// The log says the same, so that it need not be in the table yet.
    pub late: bool,
}

/// Whose answers are forgotten: a user's, of one device or of all.
pub(crate) type Forgotten = (ruma::OwnedUserId, Option<String>);

/// The answers that the table does not have yet.
#[derive(Default)]
pub(crate) struct Repeats {
    late: Mutex<HashMap<TransactionKey, (String, u64)>>,
    /// This process has sent something. Another one, which does a chore beside the server, must not move the cursor.
    active: AtomicBool,
    cursor: AtomicI64,
}

/// What a committed group means for the answers in memory.
#[derive(Default)]
pub(crate) struct Change {
    pub late: Vec<Answered>,
    pub forgotten: Vec<Forgotten>,
    /// The table has all up to here.
    pub settled: Option<i64>,
}

fn is_forgotten(forgotten: &[Forgotten], key: &TransactionKey) -> bool {
    forgotten
        .iter()
        .any(|(user, device)| *user == key.0 && device.as_ref().is_none_or(|device| *device == key.1))
}

impl Repeats {
    pub fn get(&self, key: &TransactionKey) -> Option<String> {
        self.late.lock().get(key).map(|(response, _)| response.clone())
    }

    /// Reads what the table lacks.
    pub async fn recover(&self, conn: &mut Conn) -> StoreResult<()> {
        if conn.engine() == Engine::Postgres {
            return Ok(());
        }
        let mut after = conn.cursor_load(CURSOR).await?.unwrap_or(LogPosition::START).0;
        self.cursor.store(after, Ordering::Relaxed);
        loop {
            let rows: Vec<(i64, String, String, String, i64, String)> =
                on_engine!(conn, |c| sqlx::query_as(LATE).bind(after).bind(PIECE).fetch_all(c).await)?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.0;
            let mut late = self.late.lock();
            for (_, note, id, room, ts, json) in rows {
                let corrupt = |why: String| StoreError::corrupt("events", id.clone(), why);
                let room = OwnedRoomId::try_from(room).map_err(|error| corrupt(error.to_string()))?;
                let event_id =
                    ruma::OwnedEventId::try_from(id.as_str()).map_err(|error| corrupt(error.to_string()))?;
                let raw = RawValue::from_string(json).map_err(|error| corrupt(error.to_string()))?;
                let event = Event::parse(event_id, room, raw).map_err(|error| corrupt(error.to_string()))?;
                let Some((device, transaction)) = noted_request(&note) else { continue };
                let endpoint = send_endpoint(&event.room_id, &event.kind.to_string());
                late.insert((event.sender.clone(), device, endpoint, transaction), (id, ts as u64));
            }
        }
    }

    /// Called before a group that writes rows of the log up to `last` is committed. Puts the answers into their table
    /// when it is time, with those of the group.
    pub async fn settle(&self, conn: &mut Conn, change: &mut Change, last: i64) -> StoreResult<()> {
        if !change.late.is_empty() {
            self.active.store(true, Ordering::Relaxed);
        }
        let in_memory = self.late.lock().len();
        let moved = last - self.cursor.load(Ordering::Relaxed);
        if conn.engine() == Engine::Postgres
            || !self.active.load(Ordering::Relaxed)
            || in_memory + change.late.len() < LATE_ANSWERS && moved < LATE_ROWS
        {
            return Ok(());
        }
        let mut all: Vec<Answered> = self
            .late
            .lock()
            .iter()
            .filter(|(key, _)| !is_forgotten(&change.forgotten, key))
            .map(|(key, (response, at))| Answered {
                key: key.clone(),
                response: response.clone(),
                at: *at,
                late: true,
            })
            .chain(change.late.iter().cloned())
            .collect();
        // Neighbours in the table's tree one after the other.
        all.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        conn.transactions_insert(&all.iter().collect::<Vec<_>>()).await?;
        conn.cursor_move(CURSOR, LogPosition(last)).await?;
        change.settled = Some(last);
        Ok(())
    }

    /// The group is committed.
    pub fn committed(&self, change: Change) {
        let mut late = self.late.lock();
        if let Some(position) = change.settled {
            self.cursor.store(position, Ordering::Relaxed);
            late.clear();
            return;
        }
        if !change.forgotten.is_empty() {
            late.retain(|key, _| !is_forgotten(&change.forgotten, key));
        }
        late.extend(change.late.into_iter().map(|answered| (answered.key, (answered.response, answered.at))));
    }
}
