use serde::{Deserialize, Serialize};
use std::fmt;

/// A place in the one log: the position of a row, or "everything up to and including this row has been seen".
/// Zero is before the first row. Positions are taken in commit order, so no reader ever meets a smaller one later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition(pub i64);

impl LogPosition {
    /// Before the first row.
    pub const START: LogPosition = LogPosition(0);

    /// The position after this one.
    #[must_use]
    pub fn next(self) -> LogPosition {
        LogPosition(self.0 + 1)
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
