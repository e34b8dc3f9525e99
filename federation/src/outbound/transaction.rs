//! Transactions as they are sent: <https://spec.matrix.org/v1.19/server-server-api/#transactions>.

use ruma::ServerName;
use serde::Serialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use waxwing_model::opaque_id;

use crate::ports::Batch;

/// PDUs in a transaction: <https://spec.matrix.org/v1.19/server-server-api/#transactions>.
pub(super) const MAX_PDUS: usize = 50;
/// EDUs in a transaction.
pub(super) const MAX_EDUS: usize = 100;
/// Of those, room kept for volatile ones, so that a long queue of to-device messages does not silence typing.
pub(super) const MAX_DURABLE_EDUS: usize = 80;
/// Levels of nesting in an EDU; the transaction around it adds three.
const MAX_EDU_DEPTH: usize = 100;

/// A transaction ready to be sent, again and again until it is accepted.
#[derive(Clone)]
pub(super) struct Prepared {
    pub txn_id: String,
    pub body: Arc<RawValue>,
    /// Absent when it holds only volatile data: such a one is not repeated.
    pub upto: Option<i64>,
    pub full: bool,
}

#[derive(Serialize)]
struct Transaction<'a> {
    origin: &'a ServerName,
    origin_server_ts: u64,
    pdus: Vec<&'a RawValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    edus: Vec<&'a RawValue>,
}

impl Prepared {
    /// A transaction of `origin`'s with what waits; `volatile` EDUs come after those that must arrive.
    pub(super) fn of(
        origin: &ServerName,
        now: u64,
        batch: Option<Batch>,
        volatile: Vec<Arc<RawValue>>,
    ) -> Prepared {
        let full = batch
            .as_ref()
            .is_some_and(|batch| batch.pdus.len() >= MAX_PDUS || batch.edus.len() >= MAX_DURABLE_EDUS);
        let (txn_id, pdus, mut edus, upto) = match batch {
            Some(batch) => (batch.txn_id.to_string(), batch.pdus, batch.edus, Some(batch.upto)),
            None => (opaque_id(16), Vec::new(), Vec::new(), None),
        };
        debug_assert!(
            pdus.len() <= MAX_PDUS && edus.len() + volatile.len() <= MAX_EDUS,
            "a batch beyond its limits"
        );
        edus.extend(volatile);
        // Nobody could read the transaction, nor could we sign it: it would block the queue for ever.
        edus.retain(|edu| is_shallow(edu.get()));
        let transaction = Transaction {
            origin,
            origin_server_ts: now,
            pdus: pdus.iter().map(|pdu| &**pdu).collect(),
            edus: edus.iter().map(|edu| &**edu).collect(),
        };
        let body = serde_json::value::to_raw_value(&transaction).expect("lists of JSON are JSON");
        Prepared { txn_id, body: Arc::from(body), upto, full }
    }
}

/// Whether JSON is nested little enough to be read inside a transaction: JSON parsers stop at 128 levels or so.
fn is_shallow(json: &str) -> bool {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest <= MAX_EDU_DEPTH
}
