/// What can go wrong with the database. Never reaches a client as it is: the text names tables and rows.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine refused or was away.
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
    /// A migration could not be applied.
    #[error("migration: {0}")]
    Migrate(String),
    /// The database was written by a newer version of this program.
    #[error("the database is from a newer version (it has migration {0}, which this program does not know)")]
    Newer(i64),
    /// A row that this program wrote cannot be read back.
    #[error("table {table}, row {row}: {why}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// Which row, by its key.
        row: String,
        /// What is wrong with it.
        why: String,
    },
    /// The database address is of no known kind.
    #[error("the database must be `sqlite:…` or `postgres://…`")]
    Address,
    /// The group could not be committed; nothing of it was written.
    #[error("the commit failed: {0}")]
    Commit(String),
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
    /// The member's code panicked; its writes were undone.
    #[error("a write panicked")]
    Panicked,
}

impl StoreError {
    /// A row that cannot be read back.
    pub fn corrupt(table: &'static str, row: impl Into<String>, why: impl ToString) -> StoreError {
        StoreError::Corrupt { table, row: row.into(), why: why.to_string() }
    }
}

/// What a storage call answers.
pub type StoreResult<T> = Result<T, StoreError>;
