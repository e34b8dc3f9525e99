//! Connections to PostgreSQL, which come and go with the database: it is restarted, it fails over to a replica, the line
//! to it is cut without a word.
//!
//! A connection is given back as it is, without a question to the server; one that may be dead is asked before it is
//! given out again. A statement has an end, so that a server that fell silent holds nobody up for the quarter of an hour
//! in which the kernel would notice.

use parking_lot::Mutex;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, error::Elapsed, timeout};

/// A statement that takes longer has met a fault, not load: a server that is gone, or a lock whose holder hangs.
const STATEMENT: Duration = Duration::from_secs(15);
/// Whoever wants a connection waits so long for one: a restart of the database passes unnoticed, a longer outage is said.
const ACQUIRE: Duration = Duration::from_secs(10);
/// A server that is there answers a new connection, and a question whether an old one is alive, in this time.
const ANSWER: Duration = Duration::from_secs(3);
/// A connection that was used so recently is alive, unless others were found dead since.
const FRESH: Duration = Duration::from_secs(1);
/// A connection is replaced after this time: what the server keeps for each grows with what it has seen.
const LIFE: Duration = Duration::from_mins(30);
/// One that nobody has used for this time is closed.
const IDLE: Duration = Duration::from_mins(10);
/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// What every session asks of the server. A node that was stopped in the middle of a transaction holds locks that all
/// others wait for, that of the log above all: the server ends such a transaction. And it notices while it works, or waits
/// for a lock, that a node has hung up.
///
/// Every statement has an index. Until a table's statistics are taken the server guesses, and reads whole tables where a
/// list of some hundred keys is asked for, or a whole room to sort what an index has in order; and it compiles plans that
/// it thinks dear, which takes longer than they do.
const SESSION: [(&str, &str); 6] = [
    ("idle_in_transaction_session_timeout", "2500"),
    ("client_connection_check_interval", "1000"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("random_page_cost", "1.1"),
    ("jit", "off"),
];
const IS_REPLICA: &str = "SELECT pg_is_in_recovery()";

/// Whether an error says that the connection is of no use any more, whatever was asked.
pub(crate) trait Lost {
    fn is_lost(&self) -> bool;
}

impl Lost for sqlx::Error {
    fn is_lost(&self) -> bool {
        match self {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            // The server shuts down, crashed or is starting; it ended a transaction that stood still; the connection
            // failed; it is a replica now.
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                code.starts_with("57P") || code.starts_with("08") || ["25P03", "25006"].contains(&&*code)
            }),
            _ => false,
        }
    }
}

struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

/// A bounded number of connections to one server.
pub(crate) struct PgConnections {
    options: PgConnectOptions,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// When a connection was last found dead.
    troubled: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for PgConnections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgConnections")
            .field("free", &self.places.available_permits())
            .finish_non_exhaustive()
    }
}

impl PgConnections {
    /// At most `count` of them; none is opened yet.
    pub fn new(options: PgConnectOptions, count: usize) -> Arc<PgConnections> {
        Arc::new(PgConnections {
            options: options.options(SESSION),
            places: Arc::new(Semaphore::new(count)),
            idle: Mutex::default(),
            troubled: Mutex::default(),
        })
    }

    /// How they connect.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// A live connection.
    ///
    /// # Errors
    /// `PoolTimedOut` when none is free, or the server is away, for ten seconds; others when it refuses.
    pub async fn acquire(self: &Arc<Self>) -> Result<PgConn, sqlx::Error> {
        let deadline = Instant::now() + ACQUIRE;
        let place = tokio::time::timeout_at(deadline, Arc::clone(&self.places).acquire_owned());
        let place =
            place.await.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)?;
        let (connection, opened) = match self.reuse().await {
            Some(found) => found,
            None => (self.connect(deadline).await?, Instant::now()),
        };
        let (connection, pool) = (Some(connection), Arc::clone(self));
        Ok(PgConn {
            connection,
            opened,
            pool,
            busy: false,
            lost: false,
            failed: false,
            unhurried: false,
            _place: place,
        })
    }

    /// The connection that was used last, of those that are alive.
    async fn reuse(&self) -> Option<(PgConnection, Instant)> {
        loop {
            let mut idle = self.idle.lock().pop()?;
            if idle.opened.elapsed() > LIFE {
                continue;
            }
            let troubled = self.troubled.lock().is_some_and(|troubled| troubled >= idle.since);
            if !troubled && idle.since.elapsed() < FRESH {
                return Some((idle.connection, idle.opened));
            }
            match timeout(ANSWER, idle.connection.ping()).await {
                Ok(Ok(())) => return Some((idle.connection, idle.opened)),
                Ok(Err(_)) | Err(_) => self.trouble(),
            }
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<PgConnection, sqlx::Error> {
        let mut wait = RETRY;
        loop {
            let failed = match timeout(ANSWER, self.connect_once()).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) if is_passing(&error) => error,
                Ok(Err(error)) => return Err(error),
                Err(_) => sqlx::Error::PoolTimedOut,
            };
            if Instant::now() + wait >= deadline {
                return Err(failed);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_RETRY);
        }
    }

    async fn connect_once(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let (replica,): (bool,) = sqlx::query_as(IS_REPLICA).fetch_one(&mut connection).await?;
        if replica {
            // Where the address leads until the replica is the primary.
            return Err(sqlx::Error::Io(std::io::Error::other("the database is a replica")));
        }
        Ok(connection)
    }

    fn trouble(&self) {
        *self.troubled.lock() = Some(Instant::now());
    }
}

/// Whether it is worth trying again: the server is starting, or not there, or full.
fn is_passing(error: &sqlx::Error) -> bool {
    error.is_lost()
        || matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| code == "53300"))
}

/// A connection; given back when dropped, unless a statement was broken off or the server was lost.
pub struct PgConn {
    connection: Option<PgConnection>,
    opened: Instant,
    pool: Arc<PgConnections>,
    /// A statement is running: dropped now, the connection is in the middle of an answer.
    busy: bool,
    lost: bool,
    /// A statement failed since [`PgConn::take_failed`]: the transaction around it takes no more.
    failed: bool,
    unhurried: bool,
    _place: OwnedSemaphorePermit,
}

impl PgConn {
    /// Lets statements take as long as they need, and transactions stand still: migrations.
    pub(crate) async fn unhurried(&mut self) -> Result<(), sqlx::Error> {
        self.unhurried = true;
        // The session is not for others any more.
        self.lost = true;
        sqlx::raw_sql("SET idle_in_transaction_session_timeout = 0").execute(&mut **self).await.map(|_| ())
    }

    /// Nobody gets this connection after this one.
    pub(crate) fn discard(&mut self) {
        self.lost = true;
    }

    /// Whether a statement failed since the last call.
    pub(crate) fn take_failed(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }

    pub(crate) fn begins(&mut self) -> Duration {
        self.busy = true;
        if self.unhurried { Duration::MAX } else { STATEMENT }
    }

    pub(crate) fn ended<T, E>(&mut self, outcome: Result<Result<T, E>, Elapsed>) -> Result<T, E>
    where
        E: Lost + From<sqlx::Error>,
    {
        let Ok(outcome) = outcome else {
            self.lose();
            let why = std::io::Error::new(std::io::ErrorKind::TimedOut, "a statement took too long");
            return Err(E::from(sqlx::Error::Io(why)));
        };
        self.busy = false;
        self.failed |= outcome.is_err();
        if outcome.as_ref().is_err_and(Lost::is_lost) {
            self.lose();
        }
        outcome
    }

    fn lose(&mut self) {
        self.lost = true;
        self.pool.trouble();
    }
}

impl Deref for PgConn {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for PgConn {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for PgConn {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if self.busy || self.lost {
            // Closed with its socket; the server ends what was under way.
            return;
        }
        let now = Instant::now();
        let mut idle = self.pool.idle.lock();
        idle.push(Idle { connection, opened: self.opened, since: now });
        // The one that was not needed for longest is at the bottom.
        if idle.first().is_some_and(|oldest| now - oldest.since > IDLE) {
            idle.remove(0);
        }
    }
}
