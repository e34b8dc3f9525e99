//! Connections to a SQLite file: each is a thread of its own, and every question to it wakes that thread and is waited
//! for. So a connection is given out and given back without one.

use parking_lot::Mutex;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// A bounded number of connections to one file.
pub(crate) struct SqliteConnections {
    options: SqliteConnectOptions,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<SqliteConnection>>,
    /// Whoever wants a connection waits so long for one.
    patience: Duration,
}

impl std::fmt::Debug for SqliteConnections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteConnections")
            .field("free", &self.places.available_permits())
            .finish_non_exhaustive()
    }
}

impl SqliteConnections {
    /// At most `count` of them; none is opened yet.
    pub fn new(options: SqliteConnectOptions, count: usize, patience: Duration) -> Arc<SqliteConnections> {
        let places = Arc::new(Semaphore::new(count));
        Arc::new(SqliteConnections { options, places, idle: Mutex::default(), patience })
    }

    /// A connection: the one that was used last, whose pages are in memory.
    ///
    /// # Errors
    /// `PoolTimedOut` when none becomes free; others when the file cannot be opened.
    pub async fn acquire(self: &Arc<Self>) -> Result<SqliteConn, sqlx::Error> {
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(TryAcquireError::Closed) => return Err(sqlx::Error::PoolClosed),
            Err(TryAcquireError::NoPermits) => {
                let waiting = Arc::clone(&self.places).acquire_owned();
                let place = tokio::time::timeout(self.patience, waiting).await;
                place.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)?
            }
        };
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        Ok(SqliteConn { connection: Some(connection), pool: Arc::clone(self), busy: false, _place: place })
    }
}

/// A connection; given back when dropped. Where a statement was broken off it is closed instead: its thread may be busy
/// with it for long, and what the transaction wrote is undone.
pub struct SqliteConn {
    connection: Option<SqliteConnection>,
    pool: Arc<SqliteConnections>,
    busy: bool,
    _place: OwnedSemaphorePermit,
}

impl SqliteConn {
    /// Nobody gets this connection after this one.
    pub(crate) fn discard(&mut self) {
        self.busy = true;
    }

    pub(crate) fn begins(&mut self) {
        self.busy = true;
    }

    pub(crate) fn ended<T, E>(&mut self, outcome: Result<T, E>) -> Result<T, E> {
        self.busy = false;
        outcome
    }
}

impl Deref for SqliteConn {
    type Target = SqliteConnection;
    fn deref(&self) -> &SqliteConnection {
        self.connection.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for SqliteConn {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for SqliteConn {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| !self.busy) {
            self.pool.idle.lock().push(connection);
        }
    }
}
