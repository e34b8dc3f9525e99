//! Questions whether tables agree with each other, for `waxwing doctor`. Each is one statement, so that it sees one moment
//! of a database in use.

use crate::engine::{Conn, on_engine};
use crate::error::StoreResult;
use crate::sql::statements;
use ruma::{OwnedEventId, OwnedUserId, RoomId};

statements! {
    HEAD = "SELECT COUNT(*), CAST(MIN(position) AS TEXT) FROM log_head WHERE position < (SELECT COALESCE(MAX(position), 0) FROM log)";
    LOWEST = "SELECT COUNT(*), MIN(event_id) FROM events WHERE sn < (SELECT lowest FROM log_head WHERE id = 1)";
    LOGGED = "SELECT COUNT(*), MIN(l.reference) FROM log l LEFT JOIN events e ON e.event_id = l.reference WHERE l.kind = 1 AND e.event_id IS NULL";
    ANNOUNCED = "SELECT COUNT(*), MIN(e.event_id) FROM events e LEFT JOIN log l ON l.position = e.sn AND l.kind = 1 AND l.reference = e.event_id WHERE e.sn > COALESCE((SELECT position FROM log_cursors WHERE name = 'log-trimmed'), 0) AND e.flags = 0 AND l.position IS NULL";
    // An answer may outlive its event by two days where something was purged, which is remembered for two weeks.
    ANSWERED = "SELECT COUNT(*), MIN(t.response) FROM transactions t LEFT JOIN events e ON e.event_id = t.response WHERE t.response LIKE '$%' AND e.event_id IS NULL AND NOT EXISTS (SELECT 1 FROM purges)";
    LETTERS = "SELECT COUNT(*), MIN(d.user_id) FROM to_device d LEFT JOIN log l ON l.position = d.position AND l.kind = 6 AND l.user_id = d.user_id WHERE d.position > COALESCE((SELECT position FROM log_cursors WHERE name = 'log-trimmed'), 0) AND l.position IS NULL";
    UNTRIMMED = "SELECT COUNT(*), CAST(MIN(position) AS TEXT) FROM log_cursors WHERE name = 'log-trimmed' AND position > (SELECT position FROM log_head WHERE id = 1)";
    MEMBERS = "SELECT COUNT(*), MIN(m.event_id) FROM members m JOIN rooms r ON r.room_id = m.room_id LEFT JOIN events e ON e.event_id = m.event_id WHERE m.membership = 'join' AND e.event_id IS NULL";
    RELATIONS = "SELECT COUNT(*), MIN(r.child_id) FROM relations r LEFT JOIN events e ON e.event_id = r.child_id WHERE e.event_id IS NULL";
    RECEIPTS = "SELECT COUNT(*), MIN(user_id) FROM receipts WHERE event_sn > (SELECT position FROM log_head WHERE id = 1)";
    OUTGOING = "SELECT COUNT(*), MIN(o.event_id) FROM outgoing o LEFT JOIN events e ON e.event_id = o.event_id WHERE o.edu IS NULL AND e.event_id IS NULL";
    TOKENS = "SELECT COUNT(*), MIN(t.user_id) FROM access_tokens t LEFT JOIN devices d ON d.user_id = t.user_id AND d.device_id = t.device_id WHERE t.device_id IS NOT NULL AND d.device_id IS NULL";
    DEVICES = "SELECT COUNT(*), MIN(d.user_id) FROM devices d LEFT JOIN users u ON u.user_id = d.user_id WHERE u.user_id IS NULL";
    FILES = "SELECT COUNT(*), MIN(m.media_id) FROM media m JOIN media_garbage g ON g.object = m.object";
    GRAPH = "SELECT COUNT(*), MIN(e.event_id) FROM events e LEFT JOIN auth_graph g ON g.number = e.auth_number WHERE e.auth_number > 0 AND (g.number IS NULL OR g.event_id <> e.event_id)";
    USES = "SELECT COUNT(*), MIN(u.event_id) FROM media_uses u LEFT JOIN events e ON e.event_id = u.event_id WHERE e.event_id IS NULL";
    IN_ROOM = "SELECT user_id, event_id FROM members WHERE room_id = $1";
}

/// What each statement finds, as a person would say it.
const QUESTIONS: &[(&str, &str)] = &[
    ("rows of the log beyond its head", HEAD),
    ("events numbered below the lowest number", LOWEST),
    ("events in the log that are not there", LOGGED),
    ("live events that are not in the log", ANNOUNCED),
    ("requests answered with an event that is not there", ANSWERED),
    ("letters to devices that are not in the log", LETTERS),
    ("rows of the log that went although they are yet to come", UNTRIMMED),
    ("joined members without their event", MEMBERS),
    ("relations of events that are not there", RELATIONS),
    ("receipts beyond the head of the log", RECEIPTS),
    ("events for other servers that are not there", OUTGOING),
    ("access tokens of devices that are not there", TOKENS),
    ("devices of accounts that are not there", DEVICES),
    ("files that are garbage at the same time", FILES),
    ("events with a place in the auth graph that is not theirs", GRAPH),
    ("files named by events that are not there", USES),
];

/// What a question found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// What it is that should not be.
    pub what: &'static str,
    /// How many there are.
    pub count: u64,
    /// One of them: an id, never content.
    pub example: Option<String>,
}

impl Conn {
    /// Asks every question; those that find nothing are answered with a count of zero.
    pub async fn disagreements(&mut self) -> StoreResult<Vec<Disagreement>> {
        // Whole tables are read: it takes as long as it takes.
        self.unhurried().await?;
        let mut all = Vec::with_capacity(QUESTIONS.len());
        for (what, statement) in QUESTIONS {
            let (count, example): (i64, Option<String>) =
                on_engine!(self, |c| sqlx::query_as(*statement).fetch_one(c).await)?;
            all.push(Disagreement { what, count: count as u64, example });
        }
        Ok(all)
    }

    /// Everybody whose membership of the room is known, and the event that says so.
    pub async fn memberships_in(&mut self, room: &RoomId) -> StoreResult<Vec<(OwnedUserId, OwnedEventId)>> {
        let found: Vec<(String, String)> =
            on_engine!(self, |c| sqlx::query_as(IN_ROOM).bind(room.as_str()).fetch_all(c).await)?;
        let corrupt = |user: &str| crate::StoreError::corrupt("members", format!("{room} {user}"), "an id");
        let decoded = found.into_iter().map(|(user, event)| {
            let ids = (OwnedUserId::try_from(user.as_str()), OwnedEventId::try_from(event.as_str()));
            let (Ok(user), Ok(event)) = ids else { return Err(corrupt(&user)) };
            Ok((user, event))
        });
        decoded.collect()
    }
}
