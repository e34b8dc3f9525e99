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
    140 "0140_outgoing_edus",
    170 "0170_fewer_indexes",
    200 "0200_auth_graph",
    210 "0210_media_uses",
    211 "0211_partial_progress",
    220 "0220_key_batches",
    221 "0221_to_device_filed",
    230 "0230_log_ages",
    240 "0240_members_joined",
];

/// The oldest program that works with the schema of this one, named by the newest migration that it knows. Nodes of two
/// versions run side by side during an upgrade: a migration only adds (tables, columns with defaults, indexes), and what the
/// older program does not know, it leaves alone. What takes away or changes a meaning comes a release later, when no
/// program is left that needs it; the migration that does so sets this to the newest number of the release before.
const COMPATIBLE_SINCE: i64 = 110;

const CREATE: &str =
    "CREATE TABLE IF NOT EXISTS schema_migrations (version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)";
const APPLIED: &str = "SELECT version FROM schema_migrations ORDER BY version";
const HAS_SETTINGS: &str = "SELECT COUNT(*) FROM schema_migrations WHERE version = 1";
const COMPATIBLE: &str = "SELECT value FROM settings WHERE name = 'compatible_since'";
const SET_COMPATIBLE: &str = "INSERT INTO settings (name, value) VALUES ('compatible_since', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
const RECORD: &str = "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)";
/// An arbitrary number that keeps two nodes from migrating one PostgreSQL database at the same time.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7786914351)";

/// Brings the database to the newest schema, in one transaction.
///
/// # Errors
/// [`StoreError::Newer`] when the database has a migration that this program does not know, unless the newer program that
/// applied it has written down that this one works with it.
pub(crate) async fn migrate(pools: &Pools) -> StoreResult<()> {
    let mut conn = pools.writer().await?;
    conn.unhurried().await?;
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
    let compatible = compatible_since(conn).await?;
    let unknown = applied.iter().map(|(version,)| *version).filter(|version| !is_known(*version)).max();
    if let Some(version) = unknown {
        if compatible.is_none_or(|compatible| compatible > newest) {
            return Err(StoreError::Newer(version));
        }
        tracing::info!(version, "the schema is newer than this program, which works with it");
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
    if compatible.is_none_or(|compatible| compatible < COMPATIBLE_SINCE) {
        let value = COMPATIBLE_SINCE.to_string();
        on_engine!(conn, |c| sqlx::query(SET_COMPATIBLE).bind(value).execute(c).await.map(|_| ()))?;
    }
    Ok(())
}

fn is_known(version: i64) -> bool {
    MIGRATIONS.iter().any(|(known, ..)| *known == version)
}

/// What the newest program that has migrated the database says: the oldest that works with it.
async fn compatible_since(conn: &mut Conn) -> StoreResult<Option<i64>> {
    let (settings,): (i64,) = on_engine!(conn, |c| sqlx::query_as(HAS_SETTINGS).fetch_one(c).await)?;
    if settings == 0 {
        return Ok(None);
    }
    let found: Option<(String,)> = on_engine!(conn, |c| sqlx::query_as(COMPATIBLE).fetch_optional(c).await)?;
    let corrupt = |value: &str| StoreError::corrupt("settings", "compatible_since", value);
    found.map(|(value,)| value.parse().map_err(|_| corrupt(&value))).transpose()
}
