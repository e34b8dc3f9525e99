//! The rows that a server wrote for letters, and how quickly its database takes them without the server.

use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Postgres, QueryBuilder, Sqlite};
use std::collections::HashMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

const EVENTS: &str = "SELECT sn, event_id, room_id, flags, state_before, redacted_by, ts, json FROM events \
     WHERE sn > 0 ORDER BY sn";
const LOG: &str = "SELECT position, kind, room_id, user_id, reference, data FROM log ORDER BY position";
const TRANSACTIONS: &str =
    "SELECT user_id, device_id, endpoint, txn_id, response, created_at FROM transactions ORDER BY response";

/// `EVENTS`: sn, id, room, flags, state before, redacted by, time, text.
type EventRow = (i64, String, String, i16, Option<Vec<u8>>, Option<String>, i64, String);
/// `LOG`: position, kind, room, user, reference, data.
type LogRow = (i64, i16, Option<String>, Option<String>, Option<String>, Option<String>);
/// `TRANSACTIONS`: user, device, endpoint, transaction, response, time.
type TransactionRow = (String, String, String, String, String, i64);

/// The rows of one letter.
pub struct Letter {
    event: EventRow,
    log: Vec<LogRow>,
    transaction: TransactionRow,
}

async fn sqlite(url: &str) -> SqliteConnection {
    // As the server has it: write-ahead log, an fsync for each commit.
    let options = SqliteConnectOptions::from_str(url).unwrap();
    options
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", "-16000")
        .pragma("mmap_size", "268435456")
        .connect()
        .await
        .unwrap()
}

/// Runs `$body` with a connection of the engine behind `$url`, and its type as `$engine`.
macro_rules! connected {
    ($url:expr, |$conn:ident, $engine:ident| $body:expr) => {
        if $url.starts_with("sqlite:") {
            type $engine = Sqlite;
            let mut $conn = sqlite($url).await;
            $body
        } else {
            type $engine = Postgres;
            let mut $conn = PgConnection::connect($url).await.unwrap();
            $body
        }
    };
}

/// The letters whose transaction ids start with `prefix`.
pub async fn read(url: &str, prefix: &str) -> Vec<Letter> {
    let (events, log, transactions): (Vec<EventRow>, Vec<LogRow>, Vec<TransactionRow>) =
        connected!(url, |conn, Engine| {
            (
                sqlx::query_as::<Engine, _>(EVENTS).fetch_all(&mut conn).await.unwrap(),
                sqlx::query_as::<Engine, _>(LOG).fetch_all(&mut conn).await.unwrap(),
                sqlx::query_as::<Engine, _>(TRANSACTIONS).fetch_all(&mut conn).await.unwrap(),
            )
        });
    let mut by_event: HashMap<String, TransactionRow> = transactions
        .into_iter()
        .filter(|row| row.3.starts_with(prefix))
        .map(|row| (row.4.clone(), row))
        .collect();
    let mut log_of: HashMap<String, Vec<LogRow>> = HashMap::new();
    for row in log {
        // An event's row names it; the row of its transaction has it in its data.
        let event = row.4.clone().filter(|reference| reference.starts_with('$'));
        let event = event.or_else(|| row.5.as_ref()?.split('"').nth(1).map(str::to_owned));
        if let Some(event) = event {
            log_of.entry(event).or_default().push(row);
        }
    }
    events
        .into_iter()
        .filter_map(|event| {
            let transaction = by_event.remove(&event.1)?;
            let log = log_of.remove(&event.1).unwrap_or_default();
            Some(Letter { event, log, transaction })
        })
        .collect()
}

/// Inserts letters into empty tables, `together` in each commit, until all are in or time is up. Letters a second.
pub async fn insert(url: &str, letters: &[Letter], together: usize, limit: Duration) -> f64 {
    connected!(url, |conn, Engine| {
        for table in ["DELETE FROM events", "DELETE FROM log", "DELETE FROM transactions"] {
            sqlx::query::<Engine>(table).execute(&mut conn).await.unwrap();
        }
        let (began, mut count) = (Instant::now(), 0);
        for group in letters.chunks(together) {
            if began.elapsed() > limit {
                break;
            }
            let mut tx = conn.begin().await.unwrap();
            let mut events: QueryBuilder<Engine> = QueryBuilder::new(
                "INSERT INTO events (sn, event_id, room_id, flags, state_before, redacted_by, ts, json) ",
            );
            events.push_values(group, |mut row, Letter { event, .. }| {
                row.push_bind(event.0).push_bind(&event.1).push_bind(&event.2);
                row.push_bind(event.3).push_bind(&event.4).push_bind(&event.5);
                row.push_bind(event.6).push_bind(&event.7);
            });
            events.build().execute(&mut *tx).await.unwrap();
            let mut log: QueryBuilder<Engine> =
                QueryBuilder::new("INSERT INTO log (position, kind, room_id, user_id, reference, data) ");
            log.push_values(group.iter().flat_map(|letter| &letter.log), |mut row, entry| {
                row.push_bind(entry.0).push_bind(entry.1).push_bind(&entry.2);
                row.push_bind(&entry.3).push_bind(&entry.4).push_bind(&entry.5);
            });
            log.build().execute(&mut *tx).await.unwrap();
            let mut transactions: QueryBuilder<Engine> = QueryBuilder::new(
                "INSERT INTO transactions (user_id, device_id, endpoint, txn_id, response, created_at) ",
            );
            transactions.push_values(group, |mut row, Letter { transaction, .. }| {
                row.push_bind(&transaction.0).push_bind(&transaction.1);
                row.push_bind(&transaction.2).push_bind(&transaction.3);
                row.push_bind(&transaction.4).push_bind(transaction.5);
            });
            transactions.build().execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
            count += group.len();
        }
        count as f64 / began.elapsed().as_secs_f64()
    })
}
