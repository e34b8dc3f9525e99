use crate::postgres::Lost;
use waxwing_model::LogPosition;

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
    #[error(
        "the database is from a newer version (it has migration {0}, which this program does not know and cannot work beside)"
    )]
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
    /// The database is away, or was lost on the way; whether anything was written is not known. Worth asking again.
    #[error("the database is away: {0}")]
    Away(String),
    /// The database has less in it than this node has read: it was restored, or fell to a replica that was behind. What
    /// this node remembers is of no use.
    #[error("the database is not the one that this node has read: it lacks the log from {0} on")]
    GoneBack(LogPosition),
    /// A request of the group was being answered by another node when the group looked it up. Its answer is there now.
    #[error("a request was answered by another node")]
    Answered,
    /// So many writes wait that no more are taken. Worth asking again.
    #[error("too many writes wait")]
    Full,
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
    /// The member's code panicked; its writes were undone.
    #[error("a write panicked")]
    Panicked,
}

impl Lost for StoreError {
    fn is_lost(&self) -> bool {
        match self {
            StoreError::Sql(error) => error.is_lost(),
            StoreError::Away(_) => true,
            _ => false,
        }
    }
}

impl StoreError {
    /// Whether the request was not at fault, and the same one is worth sending again in a moment.
    pub fn is_passing(&self) -> bool {
        self.is_lost() || matches!(self, StoreError::Full | StoreError::Closed)
    }

    /// A row that cannot be read back.
    pub fn corrupt(table: &'static str, row: impl Into<String>, why: impl ToString) -> StoreError {
        StoreError::Corrupt { table, row: row.into(), why: why.to_string() }
    }
}

/// What a storage call answers.
pub type StoreResult<T> = Result<T, StoreError>;
