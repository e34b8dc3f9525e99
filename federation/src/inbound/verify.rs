use futures_util::StreamExt;
use ruma::room_version_rules::RoomVersionRules;
use ruma::{OwnedEventId, RoomVersionId};
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::parse::pdu_from_object;
use waxwing_rooms::sign::{required_keys, verify_event};
use waxwing_rooms::{Pdu, Verified, version};

use crate::keys::{KeyBook, KeyNeeds, KeyRing};
use crate::ports::{PortError, PortResult};

/// Events verified in one go on a blocking thread: 5 to 10 ms of work.
const BATCH: usize = 64;

/// Checks 2 and 3 for many events: fetches all keys first, then verifies in parallel on blocking threads. An event
/// whose content hash does not match comes back redacted. In the order given.
pub(crate) async fn verify_all(
    ring: &KeyRing,
    room_version: &RoomVersionId,
    pdus: Vec<Pdu>,
) -> PortResult<Vec<(OwnedEventId, Result<Arc<Event>, String>)>> {
    let enforce =
        version::rules(room_version).is_some_and(|rules: &RoomVersionRules| rules.enforce_key_validity);
    let mut all = KeyNeeds::new();
    let mut jobs = Vec::with_capacity(pdus.len());
    for pdu in pdus {
        let at = enforce.then(|| pdu.event.origin_server_ts.get().into());
        let needs = needs_of(&pdu, room_version, at.unwrap_or(0));
        for (server, keys) in needs.iter().flatten() {
            let known = all.entry(server.clone()).or_default();
            for (key, at) in keys {
                let latest = known.entry(key.clone()).or_default();
                *latest = (*latest).max(*at);
            }
        }
        jobs.push(Job { pdu, needs, at });
    }
    let book = Arc::new(ring.gather(&all).await?);
    let version = Arc::new(room_version.clone());
    let batches = into_batches(jobs).into_iter().map(|batch| {
        let (book, version) = (Arc::clone(&book), Arc::clone(&version));
        tokio::task::spawn_blocking(move || {
            batch.into_iter().map(|job| job.run(&book, &version)).collect::<Vec<_>>()
        })
    });
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut verified = Vec::new();
    let mut running = futures_util::stream::iter(batches).buffered(threads);
    while let Some(batch) = running.next().await {
        verified.extend(batch.map_err(PortError::new)?);
    }
    Ok(verified)
}

struct Job {
    pdu: Pdu,
    needs: Result<KeyNeeds, String>,
    at: Option<u64>,
}

impl Job {
    fn run(self, book: &KeyBook, version: &RoomVersionId) -> (OwnedEventId, Result<Arc<Event>, String>) {
        let id = self.pdu.event.event_id.clone();
        let keys = match self.needs {
            Ok(needs) => book.map(&needs, self.at),
            Err(error) => return (id, Err(error)),
        };
        let event = match verify_event(&self.pdu.object, version, &keys) {
            Ok(Verified::All) => Ok(Arc::new(self.pdu.event)),
            Ok(Verified::ContentHashMismatch(redacted)) => {
                let pdu = pdu_from_object(redacted, version).map_err(|error| error.to_string());
                pdu.map(|pdu| Arc::new(pdu.event))
            }
            Err(error) => Err(error.to_string()),
        };
        debug_assert!(
            event.as_ref().is_ok_and(|event| event.event_id == id) || event.is_err(),
            "redaction keeps the id"
        );
        (id, event)
    }
}

fn needs_of(pdu: &Pdu, version: &RoomVersionId, at: u64) -> Result<KeyNeeds, String> {
    let mut needs = KeyNeeds::new();
    for (server, key) in required_keys(&pdu.object, version).map_err(|error| error.to_string())? {
        needs.entry(server).or_default().insert(key, at);
    }
    Ok(needs)
}

fn into_batches(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut batches = Vec::new();
    let mut jobs = jobs.into_iter().peekable();
    while jobs.peek().is_some() {
        batches.push(jobs.by_ref().take(BATCH).collect());
    }
    batches
}
