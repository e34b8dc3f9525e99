//! Applies the migrations, which are compiled in.

use crate::engine::{Conn, Engine, Pools, on_engine};
use crate::error::{StoreError, StoreResult};
use sqlx::AssertSqlSafe;

/// One migration: number, name, text for SQLite, text for PostgreSQL.
type Migration = (i64, &'static str, &'static str, &'static str);

macro_rules! migrations {
    ($($number:literal $name:literal),* $(,)?) => {
        &[$((
            $number,
            $name,
            include_str!(concat!("../../../migrations/sqlite/", $name, ".sql")),
            include_str!(concat!("../../../migrations/postgres/", $name, ".sql")),
        )),*]
    };
}

/// In the order in which they are applied. Never change one that was released: add the next.
pub(crate) const MIGRATIONS: &[Migration] = migrations![
    1 "0001_base",
    10 "0010_inbound_transactions",
    11 "0011_to_device_seen_by_time",
    12 "0012_to_device_handed_out",
    13 "0013_dehydrated_devices",
    20 "0020_push",
    30 "0030_appservice_rooms",
    40 "0040_sliding_sync",
    50 "0050_addresses",
    51 "0051_erasure",
    52 "0052_server_notices",
    53 "0053_rendezvous",
    60 "0060_delayed_events",
    61 "0061_thread_subscriptions",
    62 "0062_search",
    63 "0063_sticky_events",
    64 "0064_relation_claims",
    70 "0070_media",
    80 "0080_partial_rooms",
    81 "0081_staged_pdus",
    90 "0090_outgoing",
    91 "0091_signing_keys",
    100 "0100_purges",
    110 "0110_transactions_by_time",
    170 "0170_fewer_indexes",
];

const CREATE: &str =
    "CREATE TABLE IF NOT EXISTS schema_migrations (version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)";
const APPLIED: &str = "SELECT version FROM schema_migrations ORDER BY version";
const RECORD: &str = "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)";
/// An arbitrary number that keeps two nodes from migrating one PostgreSQL database at the same time.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7786914351)";

/// Brings the database to the newest schema, in one transaction.
///
/// # Errors
/// [`StoreError::Newer`] when the database has a migration that this program does not know.
pub(crate) async fn migrate(pools: &Pools) -> StoreResult<()> {
    let mut conn = pools.writer().await?;
    conn.execute(crate::dialect::begin(conn.engine())).await?;
    match apply(&mut conn).await {
        Ok(()) => conn.execute("COMMIT").await,
        Err(error) => {
            conn.execute("ROLLBACK").await?;
            Err(error)
        }
    }
}

async fn apply(conn: &mut Conn) -> StoreResult<()> {
    if conn.engine() == Engine::Postgres {
        conn.execute(LOCK).await?;
    }
    conn.execute(CREATE).await?;
    let applied: Vec<(i64,)> = on_engine!(conn, |c| sqlx::query_as(APPLIED).fetch_all(c).await)?;
    let newest = MIGRATIONS.last().map_or(0, |migration| migration.0);
    if let Some((version,)) = applied.last()
        && *version > newest
    {
        return Err(StoreError::Newer(*version));
    }
    for (version, name, sqlite, postgres) in MIGRATIONS {
        if applied.iter().any(|(done,)| done == version) {
            continue;
        }
        let text = match conn.engine() {
            Engine::Sqlite => sqlite,
            Engine::Postgres => postgres,
        };
        on_engine!(conn, |c| sqlx::raw_sql(AssertSqlSafe(*text)).execute(c).await.map(|_| ()))
            .map_err(|error| StoreError::Migrate(format!("{name}: {error}")))?;
        on_engine!(conn, |c| sqlx::query(RECORD).bind(version).bind(*name).execute(c).await.map(|_| ()))?;
        tracing::info!(migration = name, "applied");
    }
    Ok(())
}
