//! Two engines behind one type. A query is written once and type-checked for each engine by [`on_engine!`].

use crate::error::{StoreError, StoreResult};
use crate::postgres::{PgConn, PgConnections};
use crate::sqlite::{SqliteConn, SqliteConnections};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Connections for each core that read on SQLite: enough to keep the disk busy. Each takes some 3 MB once it was busy.
const SQLITE_READERS_EACH: usize = 2;
/// And no more than so many, however many cores there are.
const SQLITE_READERS_MOST: usize = 16;
/// Prepared statements that a reading connection keeps: those of lists of hundreds of parameters are large.
const SQLITE_READER_STATEMENTS: usize = 150;
/// Memory of each reading connection for pages, as the pragma wants it (negative: KiB). The operating system keeps the
/// file in memory too.
const SQLITE_READER_CACHE: &str = "-1000";
/// The same for the connection that writes. Not more: whenever a page of an index was split, SQLite goes through its whole
/// table of pages at the commit, which cost more than what 16 MB more of them saved, with 100 MB and with 900 MB of data.
const SQLITE_WRITER_CACHE: &str = "-4000";
/// Bytes of a page of a new file. A commit writes each page that it touched whole, and what a send touches of the indexes
/// are a few dozen bytes here and there: pages a quarter as large as SQLite's own make what is written less than half,
/// and reading no slower. An event takes a page and a bit, wherever it ends.
const SQLITE_PAGE: u32 = 1024;
/// Pages in the write-ahead log after which a commit copies them into the database: 32 MiB. A page that changes a
/// thousand times until then is written to the database once. SQLite's own 4 MiB made half of all that was written.
const SQLITE_CHECKPOINT: &str = "32000";
/// Where a statement keeps what it would need to undo itself alone: a file of its own for each would be as much again as
/// all else that a commit writes.
const SQLITE_TEMPORARY: &str = "MEMORY";
/// Connections of one node to PostgreSQL for lookups. With its own ([`POSTGRES_OWN`]) and the two of `bus.rs` a node has
/// 16; PostgreSQL's default of 100 must serve several nodes.
const POSTGRES_CONNECTIONS: usize = 12;
/// Connections that requests cannot take: one commits groups, one follows the log. So neither ever waits behind lookups.
const POSTGRES_OWN: usize = 2;
/// A statement of SQLite that waits longer for a lock or a connection has met a fault, not load.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `$body` with `$c` bound to the engine's own connection type. `$body` is compiled twice; no `return`, no `?`.
macro_rules! on_engine {
    ($conn:expr, |$c:ident| $body:expr) => {
        match $conn {
            $crate::engine::Conn::Sqlite(inner) => {
                inner.begins();
                let outcome = {
                    let $c = &mut **inner;
                    $body
                };
                inner.ended(outcome)
            }
            $crate::engine::Conn::Postgres(inner) => {
                let limit = inner.begins();
                let running = async {
                    let $c = &mut **inner;
                    $body
                };
                let outcome = tokio::time::timeout(limit, running).await;
                inner.ended(outcome)
            }
        }
    };
}
pub(crate) use on_engine;

/// Which engine it is, for the few statements of `dialect.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A file on this machine, one process.
    Sqlite,
    /// A server, many nodes.
    Postgres,
}

/// One connection: what every lookup is a method of.
pub enum Conn {
    /// To SQLite.
    Sqlite(SqliteConn),
    /// To PostgreSQL.
    Postgres(PgConn),
}

impl Conn {
    /// The engine behind this connection.
    pub fn engine(&self) -> Engine {
        match self {
            Conn::Sqlite(_) => Engine::Sqlite,
            Conn::Postgres(_) => Engine::Postgres,
        }
    }

    /// Lets statements take as long as they need: migrations. Nobody else gets this connection to PostgreSQL.
    pub(crate) async fn unhurried(&mut self) -> StoreResult<()> {
        match self {
            Conn::Sqlite(_) => Ok(()),
            Conn::Postgres(inner) => Ok(inner.unhurried().await?),
        }
    }

    /// Whether a statement failed since the last call, so that the transaction around it takes no more: PostgreSQL would
    /// undo it at its COMMIT without an error.
    pub(crate) fn take_failed(&mut self) -> bool {
        match self {
            Conn::Sqlite(_) => false,
            Conn::Postgres(inner) => inner.take_failed(),
        }
    }

    /// Whatever state it is in, nobody else gets it.
    pub(crate) fn discard(&mut self) {
        match self {
            Conn::Sqlite(inner) => inner.discard(),
            Conn::Postgres(inner) => inner.discard(),
        }
    }

    /// Runs a statement without parameters.
    pub(crate) async fn execute(&mut self, sql: &'static str) -> StoreResult<()> {
        on_engine!(self, |c| sqlx::query(sql).execute(c).await.map(|_| ()))?;
        Ok(())
    }
}

fn sqlite_readers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (SQLITE_READERS_EACH * cores).clamp(SQLITE_READERS_EACH * 2, SQLITE_READERS_MOST)
}

/// The pools of one database.
#[derive(Clone, Debug)]
pub(crate) enum Pools {
    Sqlite { writer: Arc<SqliteConnections>, readers: Arc<SqliteConnections> },
    Postgres { lookups: Arc<PgConnections>, own: Arc<PgConnections> },
}

impl Pools {
    /// Opens `sqlite:PATH` (made if absent) or `postgres://…`.
    pub(crate) async fn open(address: &str) -> StoreResult<Pools> {
        if address.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(address)?
                .create_if_missing(true)
                // Counts for a new file only. A purge then gives back what it frees.
                .auto_vacuum(SqliteAutoVacuum::Incremental)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(false)
                .busy_timeout(PATIENCE)
                .statement_cache_capacity(500)
                .page_size(SQLITE_PAGE)
                .pragma("cache_size", SQLITE_READER_CACHE)
                .optimize_on_close(false, None);
            let writing = options
                .clone()
                .pragma("cache_size", SQLITE_WRITER_CACHE)
                .pragma("temp_store", SQLITE_TEMPORARY)
                .pragma("wal_autocheckpoint", SQLITE_CHECKPOINT);
            let writer = SqliteConnections::new(writing, 1, PATIENCE);
            // Makes the file and what belongs to it, before others read it.
            drop(writer.acquire().await?);
            let reading = options.statement_cache_capacity(SQLITE_READER_STATEMENTS);
            let readers = SqliteConnections::new(reading, sqlite_readers(), PATIENCE);
            return Ok(Pools::Sqlite { writer, readers });
        }
        if address.starts_with("postgres://") || address.starts_with("postgresql://") {
            let options = PgConnectOptions::from_str(address)?.statement_cache_capacity(500);
            let own = PgConnections::new(options.clone(), POSTGRES_OWN);
            let lookups = PgConnections::new(options, POSTGRES_CONNECTIONS);
            return Ok(Pools::Postgres { lookups, own });
        }
        Err(StoreError::Address)
    }

    pub(crate) fn engine(&self) -> Engine {
        match self {
            Pools::Sqlite { .. } => Engine::Sqlite,
            Pools::Postgres { .. } => Engine::Postgres,
        }
    }

    /// A connection for lookups.
    pub(crate) async fn reader(&self) -> StoreResult<Conn> {
        Ok(match self {
            Pools::Sqlite { readers, .. } => Conn::Sqlite(readers.acquire().await?),
            Pools::Postgres { lookups, .. } => Conn::Postgres(lookups.acquire().await?),
        })
    }

    /// A connection that follows the log.
    pub(crate) async fn follower(&self) -> StoreResult<Conn> {
        match self {
            Pools::Sqlite { .. } => self.reader().await,
            Pools::Postgres { own, .. } => Ok(Conn::Postgres(own.acquire().await?)),
        }
    }

    /// A connection that may write.
    pub(crate) async fn writer(&self) -> StoreResult<Conn> {
        Ok(match self {
            Pools::Sqlite { writer, .. } => Conn::Sqlite(writer.acquire().await?),
            Pools::Postgres { own, .. } => Conn::Postgres(own.acquire().await?),
        })
    }
}
