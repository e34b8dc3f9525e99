//! How much a node takes on at a time. Beyond that it says so at once: whoever is told to come back in a second costs
//! nothing meanwhile, and those who are being served are served as fast as ever.

use crate::error::{ApiError, ApiResult};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Requests that run at a time; those that wait for news are not counted. Enough that a group commit is never short of
/// members, few enough that the last of them is answered within about a second.
const MOST_RUNNING: usize = 1024;
/// Bytes of large bodies in memory at a time.
const MOST_BODIES: usize = 256 * 1024 * 1024;
/// Bodies up to this size are not counted: all that may run together hold no more than a quarter as much.
const SMALL: usize = 64 * 1024;
/// When to come back.
const LATER: Duration = Duration::from_secs(1);

/// What a node has taken on.
#[derive(Default)]
pub(crate) struct Load {
    running: Arc<AtomicUsize>,
    bodies: Arc<AtomicUsize>,
}

/// A part of a limited whole, given back when dropped.
pub(crate) struct Share {
    of: Arc<AtomicUsize>,
    size: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.size, Ordering::Relaxed);
    }
}

fn take(of: &Arc<AtomicUsize>, size: usize, most: usize) -> ApiResult<Share> {
    let before = of.fetch_add(size, Ordering::Relaxed);
    let share = Share { of: Arc::clone(of), size };
    if before + size > most {
        metrics::counter!("waxwing_requests_shed_total").increment(1);
        return Err(ApiError::limit_exceeded(LATER));
    }
    Ok(share)
}

impl Load {
    /// One more request runs, until the answer is dropped.
    ///
    /// # Errors
    /// 429 `M_LIMIT_EXCEEDED` when there are too many.
    pub fn run(&self) -> ApiResult<Share> {
        take(&self.running, 1, MOST_RUNNING)
    }

    /// A body of at most `bytes` is held, until the answer is dropped; none for small ones.
    ///
    /// # Errors
    /// 429 `M_LIMIT_EXCEEDED` when too much is held.
    pub fn hold(&self, bytes: usize) -> ApiResult<Option<Share>> {
        if bytes <= SMALL { Ok(None) } else { take(&self.bodies, bytes, MOST_BODIES).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_refused_and_what_is_given_back_can_be_taken() {
        let load = Load::default();
        let mut running: Vec<Share> = (0..MOST_RUNNING).map(|_| load.run().unwrap()).collect();
        let refused = load.run().err().unwrap();
        assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(LATER)));
        running.pop();
        drop(load.run().unwrap());
        let body = load.hold(MOST_BODIES).unwrap();
        assert!(load.hold(SMALL + 1).is_err() && load.hold(SMALL).unwrap().is_none());
        drop(body);
        assert!(load.hold(MOST_BODIES).is_ok());
    }
}
