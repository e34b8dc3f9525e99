//! To-device messages on SQLite that are not filed under their devices yet. They are in their table in the order of the
//! log; which of them wait for a device is in memory, and read back at a start. When there are many they are filed, all at
//! once: most were fetched by then and are gone, and the others share pages of the index by device.

use crate::engine::{Conn, Engine, on_engine};
use crate::error::StoreResult;
use crate::log::{Fact, LogRow};
use crate::sql::statements;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use std::collections::HashMap;
use waxwing_model::LogPosition;

/// Messages that are in memory at most, some 150 bytes for each. Enough for those of one device to share pages; few enough
/// to be read at a start, and to be filed in a commit, within some milliseconds.
const UNFILED: usize = 2000;
/// Up to where the messages are filed.
const CURSOR: &str = "to_device";

statements! {
    UNFILED_ALL = "SELECT user_id, device_id, position FROM to_device WHERE position > $1 AND NOT filed ORDER BY position";
    FILE = "UPDATE to_device SET filed = TRUE WHERE position > $1 AND position <= $2 AND NOT filed";
}

/// Messages that were given to a device, or to its application service, and are deleted: those after `after` and up to
/// `upto`.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub user: OwnedUserId,
    pub device: String,
    pub after: i64,
    pub upto: i64,
}

#[derive(Default)]
struct State {
    /// Positions by user and device, rising.
    waiting: HashMap<OwnedUserId, HashMap<String, Vec<i64>>>,
    count: usize,
    /// Everything up to here is filed.
    cursor: i64,
    /// There is anything that is not: on SQLite, once it was read.
    late: bool,
}

impl State {
    fn add(&mut self, user: &UserId, device: &str, position: i64) {
        if position <= self.cursor {
            return;
        }
        let devices = match self.waiting.get_mut(user) {
            Some(devices) => devices,
            None => self.waiting.entry(user.to_owned()).or_default(),
        };
        match devices.get_mut(device) {
            Some(positions) if positions.last() >= Some(&position) => return,
            Some(positions) => positions.push(position),
            None => drop(devices.insert(device.to_owned(), vec![position])),
        }
        self.count += 1;
    }
}

/// The messages that are not filed.
#[derive(Default)]
pub(crate) struct Unfiled {
    state: Mutex<State>,
}

impl Unfiled {
    /// Reads what is not filed.
    pub async fn recover(&self, conn: &mut Conn) -> StoreResult<()> {
        if conn.engine() == Engine::Postgres {
            return Ok(());
        }
        let cursor = conn.cursor_load(CURSOR).await?.unwrap_or(LogPosition::START).0;
        let found: Vec<(String, String, i64)> =
            on_engine!(conn, |c| sqlx::query_as(UNFILED_ALL).bind(cursor).fetch_all(c).await)?;
        let mut state = self.state.lock();
        *state = State { cursor, late: true, ..State::default() };
        for (user, device, position) in found {
            if let Ok(user) = <&UserId>::try_from(user.as_str()) {
                state.add(user, &device, position);
            }
        }
        Ok(())
    }

    /// Whether messages are filed late at all.
    pub fn is_late(&self) -> bool {
        self.state.lock().late
    }

    /// Everything up to here is filed.
    pub fn cursor(&self) -> i64 {
        self.state.lock().cursor
    }

    /// The positions of the messages that wait for the device after `after` and up to `upto`, rising, at most `limit`.
    pub fn positions(&self, user: &UserId, device: &str, after: i64, upto: i64, limit: usize) -> Vec<i64> {
        let state = self.state.lock();
        let waiting = state.waiting.get(user).and_then(|devices| devices.get(device));
        let Some(waiting) = waiting else { return Vec::new() };
        let first = waiting.partition_point(|position| *position <= after);
        let within = waiting[first..].iter().take_while(|position| **position <= upto);
        within.take(limit).copied().collect()
    }

    /// The newest message of each device for which any waits.
    pub fn newest(&self) -> Vec<(OwnedUserId, String, i64)> {
        let state = self.state.lock();
        let devices = state.waiting.iter().flat_map(|(user, devices)| {
            devices
                .iter()
                .filter_map(|(device, positions)| Some((user.clone(), device.clone(), *positions.last()?)))
        });
        devices.collect()
    }

    /// Rows of the log that were committed, by whomever.
    pub fn add(&self, rows: &[LogRow]) {
        let mut messages = rows.iter().filter(|row| row.fact == Fact::ToDevice).peekable();
        if messages.peek().is_none() {
            return;
        }
        let mut state = self.state.lock();
        if !state.late {
            return;
        }
        for row in messages {
            if let (Some(user), Some(device)) = (&row.user, &row.reference) {
                state.add(user, device, row.position.0);
            }
        }
    }

    /// A committed group has deleted these, and filed everything up to `filed`.
    pub fn committed(&self, taken: Vec<Taken>, filed: Option<i64>) {
        if taken.is_empty() && filed.is_none() {
            return;
        }
        let mut state = self.state.lock();
        if let Some(cursor) = filed {
            *state = State { cursor, late: true, ..State::default() };
            return;
        }
        for Taken { user, device, after, upto } in taken {
            let Some(devices) = state.waiting.get_mut(&user) else { continue };
            let Some(positions) = devices.get_mut(&device) else { continue };
            let before = positions.len();
            positions.retain(|position| *position <= after || *position > upto);
            let gone = before - positions.len();
            if positions.is_empty() {
                devices.remove(&device);
            }
            if devices.is_empty() {
                state.waiting.remove(&user);
            }
            state.count -= gone;
        }
    }

    /// Called before a group that has written `new` messages and rows of the log up to `last` is committed: files them all
    /// when there are many. Gives up to where everything is filed then.
    pub async fn file(&self, conn: &mut Conn, new: usize, last: i64) -> StoreResult<Option<i64>> {
        let (count, cursor, late) = {
            let state = self.state.lock();
            (state.count, state.cursor, state.late)
        };
        if !late || new == 0 || count + new <= UNFILED {
            return Ok(None);
        }
        on_engine!(conn, |c| sqlx::query(FILE).bind(cursor).bind(last).execute(c).await.map(|_| ()))?;
        conn.cursor_move(CURSOR, LogPosition(last)).await?;
        Ok(Some(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::NewRow;
    use ruma::user_id;

    fn message(position: i64, device: &str) -> LogRow {
        let NewRow { fact, room, user, reference, data } =
            NewRow::new(Fact::ToDevice).user(user_id!("@a:x")).reference(device);
        LogRow { position: LogPosition(position), fact, room, user, reference, data, event: None }
    }

    #[test]
    fn knows_what_waits_until_it_is_taken_or_filed() {
        let (unfiled, user) = (Unfiled::default(), user_id!("@a:x"));
        unfiled.add(&[message(1, "D")]);
        assert!(unfiled.newest().is_empty(), "where messages are filed at once nothing is kept");
        unfiled.state.lock().late = true;
        unfiled.add(&[message(1, "D"), message(2, "E"), message(3, "D"), message(5, "D")]);
        assert_eq!(unfiled.positions(user, "D", 0, 4, 10), [1, 3]);
        assert_eq!(unfiled.positions(user, "D", 1, 9, 1), [3]);
        assert!(unfiled.positions(user, "F", 0, 9, 9).is_empty());
        let taken =
            |device: &str, after, upto| Taken { user: user.into(), device: device.into(), after, upto };
        unfiled.committed(vec![taken("D", 0, 1), taken("E", 1, 2), taken("F", 0, 9)], None);
        assert_eq!(unfiled.newest(), [(user.to_owned(), "D".to_owned(), 5)]);
        assert_eq!(unfiled.state.lock().count, 2);
        unfiled.committed(Vec::new(), Some(6));
        unfiled.add(&[message(6, "D"), message(7, "D")]);
        assert_eq!(unfiled.positions(user, "D", 0, 9, 9), [7]);
        assert_eq!(unfiled.state.lock().count, 1);
        assert_eq!(unfiled.cursor(), 6);
    }
}
