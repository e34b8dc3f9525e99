//! Work that several wait for is done once: whoever comes while it goes on waits for the same outcome. It goes on when
//! those who wait have gone.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::watch;

/// Work in progress, by what it is for.
pub(crate) struct Flights<K, V> {
    running: Mutex<HashMap<K, watch::Receiver<Option<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Flights<K, V> {
        Flights { running: Mutex::default() }
    }
}

/// Takes the work out of the map, also when it panics.
struct Landing<K: Eq + Hash, V> {
    flights: Arc<Flights<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.flights.running.lock().remove(&self.key);
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The outcome of the work for `key`, which `begin` begins if nobody has. None: it panicked.
    pub async fn join<F>(self: &Arc<Self>, key: K, begin: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut outcome = {
            let mut running = self.running.lock();
            match running.get(&key) {
                Some(outcome) => outcome.clone(),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    running.insert(key.clone(), outcome.clone());
                    let landing = Landing { flights: Arc::clone(self), key };
                    let work = begin();
                    tokio::spawn(async move {
                        let value = work.await;
                        drop(landing);
                        sender.send_replace(Some(value));
                    });
                    outcome
                }
            }
        };
        let done = outcome.wait_for(Option::is_some).await;
        done.ok().and_then(|value| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn many_wait_for_one_and_it_outlives_the_first() {
        let flights: Arc<Flights<u8, usize>> = Arc::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let join = || {
            let (flights, begun) = (Arc::clone(&flights), Arc::clone(&begun));
            async move {
                flights
                    .join(1, || async move {
                        let number = begun.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        number
                    })
                    .await
            }
        };
        // The first gives up before it is done.
        assert!(tokio::time::timeout(Duration::from_millis(10), join()).await.is_err());
        let (a, b) = tokio::join!(join(), join());
        assert_eq!((a, b, begun.load(Ordering::SeqCst)), (Some(0), Some(0), 1));
        // Afterwards it begins anew.
        assert_eq!(join().await, Some(1));
    }

    #[tokio::test]
    async fn a_panic_is_no_outcome_and_blocks_nobody() {
        let flights: Arc<Flights<u8, usize>> = Arc::default();
        let crash = flights.join(1, || async { panic!("expected by this test") });
        assert_eq!(crash.await, None);
        assert_eq!(flights.join(1, || async { 7 }).await, Some(7));
    }
}
