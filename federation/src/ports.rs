//! What this package needs from the rest of the server. `services` implements these traits; nothing here calls up.
//!
//! Every method may be called at the same time from many tasks. Lookups answer with what exists and leave out what
//! does not; an `Err` means that the question could not be answered (the database is away), and the caller gives up on
//! the piece of work at hand without judging the remote server by it.

use async_trait::async_trait;
use ruma::api::federation::transactions::edu::{
    DeviceListUpdateContent, DirectDeviceContent, PresenceContent, SigningKeyUpdateContent, TypingContent,
};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedServerSigningKeyId, OwnedTransactionId, OwnedUserId,
    RoomId, RoomVersionId, ServerName, UInt,
};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use waxwing_model::{Event, StateKey};

/// The root of an immutable state tree.
pub use waxwing_rooms::state_tree::NodeId as StateRoot;

/// The question could not be answered. The text is for our log only and never leaves the server.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PortError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl PortError {
    /// Wraps what went wrong below.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PortError {
        PortError(source.into())
    }
}

/// What a port answers.
pub type PortResult<T> = Result<T, PortError>;

// ---------------------------------------------------------------------------------------------------- keys

/// One signing key of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// `ed25519:name`.
    pub key_id: OwnedServerSigningKeyId,
    /// The 32 bytes of the public key.
    pub key: Vec<u8>,
    /// The last moment at which the key counts, milliseconds since the epoch. For a retired key (`old_verify_keys`)
    /// its `expired_ts`.
    pub valid_until: u64,
}

/// All that is kept of another server's keys.
#[derive(Clone, Debug, Default)]
pub struct ServerKeyRecord {
    /// Every key ever seen.
    pub keys: Vec<StoredKey>,
    /// The newest self-signed key document, byte for byte: what the notary countersigns.
    pub document: Option<Arc<RawValue>>,
    /// When that document was fetched.
    pub fetched_at: u64,
}

/// Keeps the keys of other servers, for ever: events of a dead server must stay verifiable.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// What is kept of `server`.
    async fn server_keys_load(&self, server: &ServerName) -> PortResult<Option<ServerKeyRecord>>;
    /// Upserts each key by (server, key id) and, when the record has a document, replaces the document and
    /// `fetched_at`. Deletes nothing.
    async fn server_keys_save(&self, server: &ServerName, record: &ServerKeyRecord) -> PortResult<()>;
}

// ------------------------------------------------------------------------------------------------ timeline

/// What this server has come to think of a known event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Known, but not part of the graph that we follow: it has no state before it.
    pub outlier: bool,
    /// Failed authorisation at its auth events or at the state before it.
    pub rejected: bool,
    /// Passed there, but not against the room's current state.
    pub soft_failed: bool,
}

/// A known event with what we think of it.
#[derive(Clone, Debug)]
pub struct Known {
    /// The event as stored (redacted if its content hash did not match, or sealing demanded it).
    pub event: Arc<Event>,
    /// The verdict so far.
    pub flags: Flags,
}

/// How a received event came through the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All checks passed.
    Accepted,
    /// Stored, takes part in state resolution, but is no extremity and is not shown. With the reason, for the log.
    SoftFailed(String),
    /// Stored so that it is not fetched again; its state change is skipped. With the reason, for the log.
    Rejected(String),
}

/// An event that has been through all checks and is to become part of the graph.
#[derive(Clone, Debug)]
pub struct Received {
    /// The event, in redacted form if its content hash did not match.
    pub event: Arc<Event>,
    /// The server that gave it to us (not always the sender's).
    pub origin: OwnedServerName,
    /// The root of the state before it.
    pub state_before: StateRoot,
    /// The outcome of the checks.
    pub verdict: Verdict,
    /// The root of the current state against which the soft-fail check was made. When the room has moved on since,
    /// [`Timeline::persist`] answers [`Persisted::Raced`].
    pub current_state: Option<StateRoot>,
    /// A gap was crossed: some of its `prev_events` are not part of our graph. The states after those, as another server
    /// told them; `state_before` is worked out from them.
    pub fetched: Vec<StateRoot>,
    /// It was fetched as history (backfill): it is older than what we have, becomes no forward extremity, changes no
    /// current state, and is nothing new to anybody. The number, from [`Timeline::history_reserve`], is its place.
    pub history: Option<i64>,
}

/// An event without a place in the graph: it authorises others, or is part of a state that was fetched.
#[derive(Clone, Debug)]
pub struct Outlier {
    /// The event, in redacted form if its content hash did not match.
    pub event: Arc<Event>,
    /// Why it failed authorisation by its auth events, if it did.
    pub rejected: Option<String>,
}

/// What became of [`Timeline::persist`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persisted {
    /// It is stored (or was already).
    Stored,
    /// The room's current state is no longer `Received::current_state`: check again and come back.
    Raced,
}

/// The newest events of a room as this server sees it.
#[derive(Clone, Debug, Default)]
pub struct Extremities {
    /// The forward extremities.
    pub events: Vec<OwnedEventId>,
}

/// The room graph, as the receiving side needs it. All ids belong to `room`: an implementation must not answer with
/// events of another room.
#[async_trait]
pub trait Timeline: Send + Sync {
    /// The version of a room that this server takes part in (or has been invited to and knows the create event of);
    /// `None` for every other room: its PDUs are refused.
    async fn room_version(&self, room: &RoomId) -> PortResult<Option<RoomVersionId>>;

    /// Whether a user of `server` is joined to the room.
    async fn has_server(&self, room: &RoomId, server: &ServerName) -> PortResult<bool>;

    /// Flags of those of `ids` that are known.
    async fn events_flags(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> PortResult<BTreeMap<OwnedEventId, Flags>>;

    /// Those of `ids` that are known.
    async fn events_load(
        &self,
        room: &RoomId,
        ids: &[OwnedEventId],
    ) -> PortResult<BTreeMap<OwnedEventId, Known>>;

    /// The forward extremities: what `get_missing_events` names as the events that we have.
    async fn extremities(&self, room: &RoomId) -> PortResult<Extremities>;

    /// The root of the room's current state.
    async fn state_current(&self, room: &RoomId) -> PortResult<Option<StateRoot>>;

    /// The state before an event with these `prev_events`: the states after each of them, resolved into one.
    /// `None` when one of them is unknown or an outlier. (After a rejected event the state is the one before it.)
    async fn state_before(
        &self,
        room: &RoomId,
        prev_events: &[OwnedEventId],
    ) -> PortResult<Option<StateRoot>>;

    /// The state before an event behind a gap: the states after those of its `prev_events` that are known, and the
    /// `fetched` states after the others, resolved into one.
    async fn state_join(
        &self,
        room: &RoomId,
        known_prev_events: &[OwnedEventId],
        fetched: &[StateRoot],
    ) -> PortResult<StateRoot>;

    /// The entries of the state at `root` for those of `keys` that are set.
    async fn state_entries(
        &self,
        room: &RoomId,
        root: StateRoot,
        keys: &[StateKey],
    ) -> PortResult<BTreeMap<StateKey, OwnedEventId>>;

    /// The same, to judge an event by that names `claimed` as authorising it. While the room's members are being
    /// fetched, the entries are resolved with the claimed ones: the state may lack them. The verdict is looked at again when
    /// all members are here.
    async fn state_to_judge_by(
        &self,
        room: &RoomId,
        root: StateRoot,
        keys: &[StateKey],
        _claimed: &[OwnedEventId],
    ) -> PortResult<BTreeMap<StateKey, OwnedEventId>> {
        self.state_entries(room, root, keys).await
    }

    /// Stores a tree with exactly these entries and gives its root.
    async fn state_build(
        &self,
        room: &RoomId,
        entries: Vec<(StateKey, OwnedEventId)>,
    ) -> PortResult<StateRoot>;

    /// Makes an event part of the graph: the one persist function of local and remote events. Seals it first where
    /// the server's policy says so. An event that was an outlier stops being one. Idempotent.
    async fn persist(&self, received: Received) -> PortResult<Persisted>;

    /// The version of a room that this server is not in, while one of its users is invited to it or knocks on it.
    async fn invited_version(&self, room: &RoomId) -> PortResult<Option<RoomVersionId>>;

    /// A verified membership event of such a room that puts out one of our users: an invitation taken back by the one
    /// who invited, a knock refused. Whatever else it is, it changes nothing.
    async fn take_back(&self, event: Arc<Event>) -> PortResult<()>;

    /// Reserves `count` numbers for events of history, below everything that the room has; gives the lowest.
    async fn history_reserve(&self, room: &RoomId, count: usize) -> PortResult<i64>;

    /// Stores events without a place in the graph. Idempotent; an event that is already part of the graph is left.
    async fn persist_outliers(&self, room: &RoomId, outliers: Vec<Outlier>) -> PortResult<()>;
}

// --------------------------------------------------------------------------------------------- ephemeral data

/// How far another server's user has read in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadReceipt {
    /// The room.
    pub room: OwnedRoomId,
    /// Who has read.
    pub user: OwnedUserId,
    /// Up to which event, as the server says: at most 255 bytes, perhaps no id of an event.
    pub event_id: String,
    /// When, milliseconds since the epoch, by the server's clock.
    pub ts: Option<UInt>,
    /// `main`, or the root of the thread that it is for; none: for all.
    pub thread: Option<String>,
}

/// Takes the ephemeral data units of other servers. `origin` is authenticated, and the caller has checked that every
/// user named as the sender belongs to it, and the ACL of the room (typing, receipts). What it has not checked: that
/// the user is in the room, or that we share a room with the user at all.
///
/// An error of one EDU is logged and changes nothing for the others; only to-device messages and device lists fail
/// the transaction, which the other side then sends again: so those two must be idempotent.
#[async_trait]
pub trait EduSink: Send + Sync {
    /// `m.typing`.
    async fn typing(&self, origin: &ServerName, content: TypingContent) -> PortResult<()>;
    /// `m.receipt`.
    async fn receipts(&self, origin: &ServerName, receipts: Vec<ReadReceipt>) -> PortResult<()>;
    /// `m.presence`.
    async fn presence(&self, origin: &ServerName, content: PresenceContent) -> PortResult<()>;
    /// `m.device_list_update`.
    async fn device_list_update(
        &self,
        origin: &ServerName,
        content: DeviceListUpdateContent,
    ) -> PortResult<()>;
    /// `m.signing_key_update` and its older name.
    async fn signing_key_update(
        &self,
        origin: &ServerName,
        content: SigningKeyUpdateContent,
    ) -> PortResult<()>;
    /// `m.direct_to_device`. The sink drops a `message_id` that it has seen from this sender.
    async fn direct_to_device(&self, origin: &ServerName, content: DirectDeviceContent) -> PortResult<()>;
}

// ----------------------------------------------------------------------------------------------------- replays

/// Names a transaction: a repetition has all three.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplayKey {
    /// The server that sent it, authenticated.
    pub origin: OwnedServerName,
    /// The id that it gave. At most [`crate::inbound::MAX_TXN_ID`] bytes.
    pub txn_id: String,
    /// The SHA-256 of the body: a sender that lost count and takes an id again repeats nothing.
    pub content: [u8; 32],
}

/// Keeps the answers to transactions, so that a repetition gets the same one after a restart and from another node.
#[async_trait]
pub trait Replays: Send + Sync {
    /// The answer that this transaction got before: JSON, as it was kept.
    async fn answer_load(&self, key: &ReplayKey) -> PortResult<Option<String>>;
    /// Keeps the answer, in the place of an older transaction's with the same origin and id.
    async fn answer_keep(&self, key: &ReplayKey, answer: &str) -> PortResult<()>;
}

// ------------------------------------------------------------------------------------------------------ staging

/// A received event that is still to be taken in.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The event.
    pub event_id: OwnedEventId,
    /// The server that sent it.
    pub origin: OwnedServerName,
    /// As it came.
    pub json: Box<RawValue>,
    /// How often it was tried in vain.
    pub attempts: u32,
}

/// Keeps received events that are still to be taken in, room by room.
#[async_trait]
pub trait Staging: Send + Sync {
    /// Keeps events for a turn after `wait`; those that are kept already stay as they are. A room's are bounded: what is
    /// too much is dropped, which costs a gap later.
    async fn staged_put(&self, room: &RoomId, events: Vec<Staged>, wait: Duration) -> PortResult<()>;
    /// Rooms of which some are to have a turn, at most `limit`. One node at a time gets any.
    async fn staged_rooms(&self, limit: usize) -> PortResult<Vec<OwnedRoomId>>;
    /// Those of a room that are to have a turn, in the order in which they came, at most `limit`.
    async fn staged_load(&self, room: &RoomId, limit: usize) -> PortResult<Vec<Staged>>;
    /// These are done with.
    async fn staged_remove(&self, room: &RoomId, events: &[OwnedEventId]) -> PortResult<()>;
    /// These were tried in vain, and have another turn after `wait`.
    async fn staged_later(&self, room: &RoomId, events: &[OwnedEventId], wait: Duration) -> PortResult<()>;
}

// --------------------------------------------------------------------------------------------------- outbound

/// A destination with work for it, as the database remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationState {
    /// The server.
    pub destination: OwnedServerName,
    /// When the current row of failures began, milliseconds since the epoch.
    pub failing_since: Option<u64>,
    /// Not to be tried before this time.
    pub retry_at: Option<u64>,
    /// The wait that led to `retry_at`, milliseconds.
    pub interval: Option<u64>,
}

/// How much of the queue goes into one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// At most this many PDUs.
    pub pdus: usize,
    /// At most this many durable EDUs.
    pub edus: usize,
    /// After a long outage: leave out every PDU that is not the newest waiting one of its room. EDUs are never left
    /// out.
    pub catch_up: bool,
}

/// The next piece of a destination's queue, in queue order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Names the transaction. The same rows must get the same id, also after a restart: the receiver recognises a
    /// repetition by it. Other rows must get another id. So the implementation derives it from what is in the batch.
    pub txn_id: OwnedTransactionId,
    /// PDUs in federation format.
    pub pdus: Vec<Arc<RawValue>>,
    /// EDUs as `{edu_type, content}`.
    pub edus: Vec<Arc<RawValue>>,
    /// Everything up to and including this row is done when the transaction has been accepted (also the rows left
    /// out).
    pub upto: i64,
}

/// The durable queues. One node at a time owns a destination (leases are the implementation's business): the methods
/// that list answer with destinations that this node owns.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Destinations of this node with waiting rows, those to be tried first first, at most `limit`. Asked at start and
    /// from time to time; between, [`crate::outbound::Sender::wake`] tells of new rows.
    async fn destinations_waiting(&self, limit: usize) -> PortResult<Vec<DestinationState>>;
    /// The batch that is open, or else the next one; `None` when nothing waits or another node owns the destination.
    async fn next_batch(&self, destination: &ServerName, limits: BatchLimits) -> PortResult<Option<Batch>>;
    /// The destination has accepted everything up to `upto`. Also forgets its failures.
    async fn batch_done(&self, destination: &ServerName, upto: i64) -> PortResult<()>;
    /// A transaction failed; it is tried again at `state.retry_at`. Kept so that a restart does not forget the backoff.
    async fn destination_failed(&self, state: &DestinationState) -> PortResult<()>;
    /// The destination spoke to us, or a request to it succeeded: forget its failures.
    async fn destination_recovered(&self, destination: &ServerName) -> PortResult<()>;
}
