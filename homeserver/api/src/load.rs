//! How many requests a node runs at a time. Beyond that it says so at once: whoever is told to come back in a second costs
//! nothing meanwhile, and those who are being served are served as fast as ever.

use crate::error::{ApiError, ApiResult};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Requests that run at a time; those that wait for news are not counted. Enough that a group commit is never short of
/// members, few enough that the last of them is answered within about a second.
const MOST_RUNNING: usize = 1024;
/// When to come back.
const LATER: Duration = Duration::from_secs(1);

/// The requests that run.
#[derive(Default)]
pub(crate) struct Load(Arc<AtomicUsize>);

/// One of them, until it is dropped.
pub(crate) struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Load {
    /// One more request runs.
    ///
    /// # Errors
    /// 429 `M_LIMIT_EXCEEDED` when there are too many.
    pub fn run(&self) -> ApiResult<Running> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let running = Running(Arc::clone(&self.0));
        if before < MOST_RUNNING { Ok(running) } else { Err(too_much()) }
    }
}

/// The answer to a request for which there is no place.
pub(crate) fn too_much() -> ApiError {
    metrics::counter!("waxwing_requests_shed_total").increment(1);
    ApiError::limit_exceeded(LATER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_refused_and_what_is_given_back_can_be_taken() {
        let load = Load::default();
        let mut running: Vec<Running> = (0..MOST_RUNNING).map(|_| load.run().unwrap()).collect();
        let refused = load.run().err().unwrap();
        assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(LATER)));
        running.pop();
        drop(load.run().unwrap());
    }
}
