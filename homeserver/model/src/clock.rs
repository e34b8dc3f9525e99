use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the time comes from. Code takes a `Clock` instead of asking the system, so that a test can move it.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// A clock that a test moves, in milliseconds since the Unix epoch.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A manual clock standing at `millis` milliseconds since the Unix epoch.
    pub fn manual(millis: u64) -> Clock {
        Clock::Manual(Arc::new(AtomicU64::new(millis)))
    }

    /// Milliseconds since the Unix epoch. A system clock before 1970 reads as zero.
    pub fn millis(&self) -> u64 {
        match self {
            Clock::System => {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
            }
            Clock::Manual(at) => at.load(Ordering::SeqCst),
        }
    }

    /// The same as the protocol writes it.
    pub fn now(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.millis()))
    }

    /// Moves a manual clock forward; a system clock does not move.
    pub fn advance(&self, millis: u64) {
        if let Clock::Manual(at) = self {
            at.fetch_add(millis, Ordering::SeqCst);
        }
    }
}
