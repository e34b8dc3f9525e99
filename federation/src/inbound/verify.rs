use futures_util::StreamExt;
use ruma::room_version_rules::RoomVersionRules;
use ruma::{OwnedEventId, OwnedServerName, RoomVersionId};
use std::collections::BTreeSet;
use std::sync::Arc;
use waxwing_model::Event;
use waxwing_rooms::parse::pdu_from_object;
use waxwing_rooms::sign::{required_keys, verify_event};
use waxwing_rooms::{Pdu, Verified, version};

use crate::keys::{KeyBook, KeyNeeds, KeyRing};
use crate::ports::{PortError, PortResult};

/// Events verified in one go on a blocking thread: 5 to 10 ms of work.
const BATCH: usize = 64;
/// Servers asked again for their keys because signatures in one set of events do not fit: the few that were set up
/// anew, not all that someone names in rubbish.
const MOST_DOUBTED: usize = 8;

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
    let done = run_all(ring, room_version, &all, jobs).await?;
    let doubted: BTreeSet<&OwnedServerName> = done
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Err(Failure::Signature(_))))
        .flat_map(|(job, _)| job.needs.iter().flat_map(KeyNeeds::keys))
        .take(MOST_DOUBTED)
        .collect();
    let mut changed = false;
    for server in doubted {
        changed |= ring.again(server).await?;
    }
    if !changed {
        return Ok(done.into_iter().map(answer).collect());
    }
    let (again, fine): (Vec<_>, Vec<_>) = done
        .into_iter()
        .enumerate()
        .partition(|(_, (_, outcome))| matches!(outcome, Err(Failure::Signature(_))));
    let (places, jobs): (Vec<usize>, Vec<Job>) =
        again.into_iter().map(|(place, (job, _))| (place, job)).unzip();
    let second = run_all(ring, room_version, &all, jobs).await?;
    let mut all: Vec<_> = fine.into_iter().chain(places.into_iter().zip(second)).collect();
    all.sort_by_key(|(place, _)| *place);
    Ok(all.into_iter().map(|(_, done)| answer(done)).collect())
}

type Done = (Job, Result<Arc<Event>, Failure>);

enum Failure {
    /// A signature is missing or does not fit the key at hand.
    Signature(String),
    /// It is out of shape.
    Shape(String),
}

fn answer((job, outcome): Done) -> (OwnedEventId, Result<Arc<Event>, String>) {
    let outcome = outcome.map_err(|failure| match failure {
        Failure::Signature(why) | Failure::Shape(why) => why,
    });
    (job.pdu.event.event_id, outcome)
}

/// Fetches the keys and verifies in parallel; in the order given.
async fn run_all(
    ring: &KeyRing,
    room_version: &RoomVersionId,
    needs: &KeyNeeds,
    jobs: Vec<Job>,
) -> PortResult<Vec<Done>> {
    let book = Arc::new(ring.gather(needs).await?);
    let version = Arc::new(room_version.clone());
    let batches = into_batches(jobs).into_iter().map(|batch| {
        let (book, version) = (Arc::clone(&book), Arc::clone(&version));
        tokio::task::spawn_blocking(move || {
            batch
                .into_iter()
                .map(|job| {
                    let outcome = job.run(&book, &version);
                    (job, outcome)
                })
                .collect::<Vec<_>>()
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
    fn run(&self, book: &KeyBook, version: &RoomVersionId) -> Result<Arc<Event>, Failure> {
        let needs = self.needs.as_ref().map_err(|error| Failure::Shape(error.clone()))?;
        let keys = book.map(needs, self.at);
        let event = match verify_event(&self.pdu.object, version, &keys) {
            Ok(Verified::All) => self.pdu.event.clone(),
            Ok(Verified::ContentHashMismatch(redacted)) => {
                pdu_from_object(redacted, version).map_err(|error| Failure::Shape(error.to_string()))?.event
            }
            Err(error) => return Err(Failure::Signature(error.to_string())),
        };
        debug_assert!(event.event_id == self.pdu.event.event_id, "redaction keeps the id");
        Ok(Arc::new(event))
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
