use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

use super::edu::EduIntake;
use super::event::{RoomWork, Source};
use super::staged::{BUSY_WAIT, FIRST_WAIT};
use super::{Inbound, Trouble, parse, verify};
use crate::ports::{PortError, ReplayKey};

/// <https://spec.matrix.org/v1.19/server-server-api/#transactions>
const MAX_PDUS: usize = 50;
/// The same for ephemeral data.
const MAX_EDUS: usize = 100;
/// The answer comes at the latest after this: events that are still being worked on then (a gap, a large state) are put
/// aside, so that no crash loses them, and answered for as received. A sender sends nothing else while it waits.
const ANSWER_AFTER: Duration = Duration::from_secs(15);

/// Bytes of a transaction's id. Other servers' have 20 or so.
pub const MAX_TXN_ID: usize = 255;
/// What only says how things are at the moment: taking it twice changes nothing, so that the answer to a transaction
/// with nothing else is not written down.
const VOLATILE: [&str; 2] = ["m.typing", "m.presence"];

/// What became of each event of a transaction, by id: `Err` with the reason for those that were not accepted.
#[derive(Clone, Debug, Default)]
pub struct TransactionResult {
    /// The events.
    pub pdus: BTreeMap<OwnedEventId, Result<(), String>>,
}

/// The answer as it is sent.
/// <https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1sendtxnid>
#[derive(Serialize, Deserialize)]
struct Answer {
    pdus: BTreeMap<OwnedEventId, Outcome>,
}

#[derive(Serialize, Deserialize)]
struct Outcome {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl TransactionResult {
    /// The body of the answer, JSON.
    pub fn to_json(&self) -> String {
        let outcome = |result: &Result<(), String>| Outcome { error: result.as_ref().err().cloned() };
        let pdus = self.pdus.iter().map(|(id, result)| (id.clone(), outcome(result))).collect();
        serde_json::to_string(&Answer { pdus }).unwrap_or_else(|_| r#"{"pdus":{}}"#.to_owned())
    }

    /// What [`TransactionResult::to_json`] wrote.
    fn from_json(json: &str) -> Option<TransactionResult> {
        let answer: Answer = serde_json::from_str(json).ok()?;
        let result = |outcome: Outcome| outcome.error.map_or(Ok(()), Err);
        Some(TransactionResult {
            pdus: answer.pdus.into_iter().map(|(id, outcome)| (id, result(outcome))).collect(),
        })
    }
}

/// Why a transaction is not accepted as a whole.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransactionError {
    /// Not a transaction: 400 `M_NOT_JSON` or `M_BAD_JSON`.
    #[error("not a transaction: {0}")]
    Malformed(String),
    /// More events than a transaction may hold: 400.
    #[error("more than 50 PDUs or 100 EDUs")]
    TooMany,
    /// The id of the transaction is too long: 400.
    #[error("the transaction's id is too long")]
    BadId,
    /// A room takes in less than is sent to it: 429, come back later.
    #[error("too much at once")]
    Busy,
    /// Our own trouble: 500, come back later.
    #[error("internal error")]
    Internal,
}

#[derive(Deserialize)]
struct Transaction {
    #[serde(default)]
    pdus: Vec<Box<RawValue>>,
    #[serde(default)]
    edus: Vec<Box<RawValue>>,
}

impl Transaction {
    /// Whether a repetition must be recognised after a restart, too.
    fn is_lasting(&self) -> bool {
        #[derive(Deserialize)]
        struct Kind {
            edu_type: String,
        }
        let lasting = |edu: &RawValue| {
            let kind = serde_json::from_str::<Kind>(edu.get());
            kind.is_ok_and(|kind| !VOLATILE.contains(&&*kind.edu_type))
        };
        !self.pdus.is_empty() || self.edus.iter().any(|edu| lasting(edu))
    }
}

type RoomResult = Vec<(OwnedEventId, Result<(), String>)>;

/// What became of the events of one room.
#[derive(Default)]
pub(super) struct RoomOutcome {
    results: RoomResult,
    /// Those that follow what could not be had.
    pub(super) stranded: Vec<OwnedEventId>,
}

/// The events of one room of a transaction, and the task that takes them in.
struct RoomTask {
    room: OwnedRoomId,
    events: Arc<Vec<Box<RawValue>>>,
    /// They were put aside while the task goes on.
    aside: Arc<AtomicBool>,
    task: JoinHandle<RoomOutcome>,
}

impl Inbound {
    /// `PUT /send/{txnId}` of an authenticated server. Idempotent. The work goes on when the caller goes away.
    pub async fn transaction(
        &self,
        origin: &ServerName,
        txn_id: &str,
        body: &[u8],
    ) -> Result<Arc<TransactionResult>, TransactionError> {
        // A list would do for serde.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(TransactionError::Malformed("not an object".to_owned()));
        }
        let transaction: Transaction =
            serde_json::from_slice(body).map_err(|error| TransactionError::Malformed(error.to_string()))?;
        if transaction.pdus.len() > MAX_PDUS || transaction.edus.len() > MAX_EDUS {
            return Err(TransactionError::TooMany);
        }
        if txn_id.len() > MAX_TXN_ID {
            return Err(TransactionError::BadId);
        }
        let content = Sha256::digest(body).into();
        let key = ReplayKey { origin: origin.to_owned(), txn_id: txn_id.to_owned(), content };
        let this = self.clone();
        // Of its own: a sender that hangs up must not stop half-way what it will not repeat in the same way.
        let work = tokio::spawn(async move {
            let replays = this.context.replays.clone();
            replays.try_get_with(key.clone(), this.process_once(key, transaction)).await
        });
        match work.await {
            Ok(result) => result.map_err(|error| (*error).clone()),
            Err(error) => {
                tracing::error!(%error, "receiving a transaction failed");
                Err(TransactionError::Internal)
            }
        }
    }

    /// The answer that was given before, by any node; else that of now, which is kept. A crash between the two costs a
    /// second look at events that are known by then.
    async fn process_once(
        &self,
        key: ReplayKey,
        transaction: Transaction,
    ) -> Result<Arc<TransactionResult>, TransactionError> {
        let lasting = transaction.is_lasting();
        if lasting {
            let before = self.context.kept.answer_load(&key).await.map_err(|error| {
                tracing::error!(origin = %key.origin, %error, "answers to transactions cannot be read");
                TransactionError::Internal
            })?;
            if let Some(result) = before.as_deref().and_then(TransactionResult::from_json) {
                return Ok(Arc::new(result));
            }
        }
        let result = self.process(key.origin.clone(), transaction).await?;
        if lasting && let Err(error) = self.context.kept.answer_keep(&key, &result.to_json()).await {
            tracing::warn!(origin = %key.origin, %error, "the answer to a transaction could not be kept");
        }
        Ok(result)
    }

    async fn process(
        &self,
        origin: OwnedServerName,
        transaction: Transaction,
    ) -> Result<Arc<TransactionResult>, TransactionError> {
        let rooms = by_room(transaction.pdus);
        if rooms.iter().any(|(room, _)| !self.context.rooms.has_room(room)) {
            return Err(TransactionError::Busy);
        }
        let tasks: Vec<RoomTask> =
            rooms.into_iter().map(|(room, events)| self.begin_room(&origin, room, events)).collect();
        let deadline = tokio::time::Instant::now() + ANSWER_AFTER;
        let mut intake = EduIntake::new(&self.context, &origin);
        let mut lost = false;
        for edu in &transaction.edus {
            if let Err(error) = intake.take(edu).await {
                tracing::warn!(%origin, %error, "a message between devices could not be stored");
                lost = true;
            }
        }
        let mut result = TransactionResult::default();
        for mut room in tasks {
            match tokio::time::timeout_at(deadline, &mut room.task).await {
                Ok(Ok(outcome)) => {
                    lost |= self.keep_stranded(&origin, &room, &outcome.stranded).await.is_err();
                    result.pdus.extend(outcome.results);
                }
                Ok(Err(error)) => {
                    tracing::error!(room = %room.room, %error, "receiving events failed");
                    lost = true;
                }
                // Dropping the handle leaves the task running.
                Err(_) => lost |= self.keep_late(&origin, &room).await.is_err(),
            }
        }
        // The sender repeats the transaction; the events are known by then.
        if lost { Err(TransactionError::Internal) } else { Ok(Arc::new(result)) }
    }

    /// Takes in the events of one room, beside the others.
    fn begin_room(&self, origin: &ServerName, room: OwnedRoomId, events: Vec<Box<RawValue>>) -> RoomTask {
        let (events, aside) = (Arc::new(events), Arc::new(AtomicBool::new(false)));
        let (this, origin) = (self.clone(), origin.to_owned());
        let task = tokio::spawn({
            let (room, events, aside) = (room.clone(), Arc::clone(&events), Arc::clone(&aside));
            async move {
                let outcome = this.receive_in_room(&origin, &room, &events).await;
                if aside.load(Ordering::SeqCst) {
                    // Those that are stranded keep their rows.
                    let done = outcome.results.iter().map(|(id, _)| id);
                    let done: Vec<_> = done.filter(|id| !outcome.stranded.contains(id)).cloned().collect();
                    if let Err(error) = this.context.staging.staged_remove(&room, &done).await {
                        tracing::warn!(%room, %error, "events that are taken in stay put aside");
                    }
                }
                outcome
            }
        });
        RoomTask { room, events, aside, task }
    }

    /// What could not be taken in because of a gap is tried again later.
    async fn keep_stranded(
        &self,
        origin: &ServerName,
        room: &RoomTask,
        stranded: &[OwnedEventId],
    ) -> Result<(), PortError> {
        if stranded.is_empty() {
            return Ok(());
        }
        let kept = self.put_aside(origin, &room.room, &room.events, Some(stranded), FIRST_WAIT).await;
        kept.map(drop)
            .inspect_err(|error| tracing::error!(room = %room.room, %error, "events cannot be put aside"))
    }

    /// What takes longer than the sender waits is kept until it is done.
    async fn keep_late(&self, origin: &ServerName, room: &RoomTask) -> Result<(), PortError> {
        room.aside.store(true, Ordering::SeqCst);
        metrics::counter!("waxwing_federation_events_put_aside_total").increment(room.events.len() as u64);
        let kept = self.put_aside(origin, &room.room, &room.events, None, BUSY_WAIT).await;
        kept.map(drop)
            .inspect_err(|error| tracing::error!(room = %room.room, %error, "events cannot be put aside"))
    }

    /// Receives the events of one room, in the order in which they were sent.
    pub(super) async fn receive_in_room(
        &self,
        origin: &ServerName,
        room: &RoomId,
        pdus: &[Box<RawValue>],
    ) -> RoomOutcome {
        let mut outcome = RoomOutcome::default();
        if let Err(error) = self.receive_all(origin, room, pdus, &mut outcome).await {
            tracing::error!(%room, %error, "events could not be received");
            // Whatever had no turn yet did not make it.
            for (_, result) in &mut outcome.results {
                if result.as_ref().is_err_and(String::is_empty) {
                    *result = Err("internal error".into());
                }
            }
        }
        outcome
    }

    async fn receive_all(
        &self,
        origin: &ServerName,
        room: &RoomId,
        pdus: &[Box<RawValue>],
        outcome: &mut RoomOutcome,
    ) -> Result<(), PortError> {
        let context = &*self.context;
        let results = &mut outcome.results;
        if pdus.iter().any(|json| super::outside::puts_out(json))
            && let Some(version) = context.timeline.invited_version(room).await?
        {
            return context.receive_outside(room, &version, pdus, results).await;
        }
        let Some(version) = context.timeline.room_version(room).await? else {
            tracing::debug!(%origin, %room, "events of a room that we are not in");
            return Ok(());
        };
        let permitted = context.acl_permits(room, origin).await?;
        let mut parsed = Vec::new();
        let mut seen = BTreeSet::new();
        for json in pdus {
            match parse::parse(json, room, &version) {
                Ok(pdu) if !seen.insert(pdu.event.event_id.clone()) => {}
                Ok(pdu) if permitted => {
                    results.push((pdu.event.event_id.clone(), Err(String::new())));
                    parsed.push(pdu);
                }
                Ok(pdu) => {
                    results.push((pdu.event.event_id, Err("the server is banned from the room".into())));
                }
                Err(reason) => note_dropped(origin, room, json, &version, &reason, results),
            }
        }
        let verified = verify::verify_all(&context.ring, &version, parsed).await?;
        let _turn = context.rooms.enter_patiently(room).await;
        let work = RoomWork { context, origin, room, version: &version };
        for (id, event) in verified {
            let received = match event {
                Ok(event) => work.receive(event, Source::Pushed).await,
                Err(reason) => Err(Trouble::Dropped(reason)),
            };
            if let Err(trouble) = &received {
                tracing::info!(%origin, %room, event = %id, %trouble, "an event is not taken");
            }
            // An error says that the event is bad; one that is only out of reach is not.
            let received = match received {
                Err(Trouble::Stranded(_)) => {
                    outcome.stranded.push(id.clone());
                    Ok(())
                }
                other => other.map_err(|trouble| trouble.to_remote()),
            };
            if let Some(entry) = results.iter_mut().find(|(known, _)| *known == id) {
                entry.1 = received;
            }
        }
        Ok(())
    }
}

/// An event that is none still gets an answer when it has an id.
fn note_dropped(
    origin: &ServerName,
    room: &RoomId,
    json: &RawValue,
    version: &RoomVersionId,
    reason: &str,
    results: &mut RoomResult,
) {
    tracing::info!(%origin, %room, reason, "an event is dropped");
    metrics::counter!("waxwing_federation_events_received_total", "verdict" => "dropped").increment(1);
    let pdu = waxwing_rooms::lenient_object(json.get())
        .ok()
        .and_then(|object| waxwing_rooms::parse::pdu_from_object(object, version).ok());
    if let Some(pdu) = pdu {
        results.push((pdu.event.event_id, Err(reason.to_owned())));
    }
}

/// Groups PDUs by room, keeping their order in each.
fn by_room(pdus: Vec<Box<RawValue>>) -> BTreeMap<OwnedRoomId, Vec<Box<RawValue>>> {
    let mut rooms: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>> = BTreeMap::new();
    for json in pdus {
        if let Some(room) = parse::room_of(&json) {
            rooms.entry(room).or_default().push(json);
        }
    }
    rooms
}
