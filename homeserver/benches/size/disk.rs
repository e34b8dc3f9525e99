//! What is on disk, table by table.

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use std::path::Path;

/// Pages by table, indexes counted with their tables; tables of less than one page in a thousand are left out.
const BY_TABLE: &str = "SELECT m.tbl_name, m.type = 'index', SUM(s.pgsize) FROM dbstat s \
     JOIN sqlite_master m ON m.name = s.name GROUP BY 1, 2 ORDER BY 3 DESC";
/// Bytes of the nodes themselves.
const NODES: &str = "SELECT COUNT(*), SUM(LENGTH(bytes)) FROM state_nodes";
/// Bytes of the events as they are sent between servers.
const EVENTS: &str = "SELECT COUNT(*), SUM(LENGTH(json)) FROM events";

async fn open(database: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(database);
    options.connect().await.expect("the database")
}

/// Prints the size of a database that nobody has open.
pub async fn report(database: &Path, events: usize) {
    let mut conn = open(database).await;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await.expect("a checkpoint");
    let whole = std::fs::metadata(database).expect("the database").len();
    let each = |bytes: i64| bytes as f64 / events as f64;
    println!(
        "on disk                 {:>10.1} MB, {:.0} bytes for each state event",
        whole as f64 / 1e6,
        whole as f64 / events as f64
    );
    let tables: Vec<(String, bool, i64)> =
        sqlx::query_as(BY_TABLE).fetch_all(&mut conn).await.expect("the pages");
    for (table, index, bytes) in tables.into_iter().filter(|(_, _, bytes)| *bytes as u64 * 1000 > whole) {
        let what = if index { "indexes" } else { "rows" };
        println!("  {table:<22}{:>10.1} MB, {:.0} bytes for each ({what})", bytes as f64 / 1e6, each(bytes));
    }
    for (what, statement) in [("state nodes", NODES), ("events' texts", EVENTS)] {
        let (count, bytes): (i64, i64) = sqlx::query_as(statement).fetch_one(&mut conn).await.expect("sums");
        println!(
            "  {what:<22}{count:>10}, {:.1} MB, {:.0} bytes for each state event",
            bytes as f64 / 1e6,
            each(bytes)
        );
    }
    conn.close().await.expect("closed");
}
