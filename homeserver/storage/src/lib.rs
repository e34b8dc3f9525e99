//! The database: the only package that names sqlx.
//!
//! One SQL text serves SQLite and PostgreSQL. Everything that changes is appended to the one log in the transaction
//! that changes it ([`Store::write`]); everything that leaves the server reads the log ([`Store::tail`]).
//!
//! What it does not do: decide. It knows no authorisation, no protocol rules and no network.

mod account_data;
mod accounts;
mod aliases;
mod appservices;
mod audit;
mod auth_graph;
mod backups;
mod bus;
mod by_time;
mod current;
mod cursors;
mod dehydrated;
mod delayed;
mod device_lists;
mod dialect;
mod doctor;
mod engine;
mod erased;
mod error;
mod events;
mod filters;
mod group;
mod inbound_transactions;
mod keys;
mod leases;
mod leavings;
mod level;
mod log;
mod media;
mod media_cache;
mod media_uses;
mod members;
mod migrate;
mod one_time_keys;
mod outbox;
mod outgoing;
mod partial;
mod partial_events;
mod people;
mod postgres;
mod profiles;
mod purges;
mod purging;
mod pushers;
mod queues;
mod receipts;
mod redactions;
mod registration;
mod relation_claims;
mod relations;
mod rendezvous;
mod repeats;
mod reports;
mod requests;
mod rooms;
mod search;
mod server_keys;
mod server_notices;
mod sharing;
mod signing_keys;
mod sliding;
mod sql;
mod sqlite;
mod staging;
mod state;
mod sticky;
mod store;
mod sync_reads;
mod tail;
mod thread_subscriptions;
mod threepids;
mod to_device;
mod tokens;
mod trim;
mod tx;
mod unfiled;
mod url_previews;
mod whispers;

pub use account_data::AccountDataEntry;
pub use accounts::{DeviceRow, UserRow};
pub use audit::ToDeviceEntry;
pub use backups::{BackupKeyRow, BackupRow, BackupScope};
pub use bus::{Nats, NatsError};
pub use current::{JoinedRow, Now, RoomNow};
pub use dehydrated::DehydratedRow;
pub use delayed::DelayedRow;
pub use device_lists::DeviceListRow;
pub use doctor::Disagreement;
pub use engine::{Conn, Engine};
pub use erased::ERASED;
pub use error::{StoreError, StoreResult};
pub use events::{EventFlags, StoredEvent};
pub use group::Needs;
pub use keys::{CrossSigningRow, DeviceKeysRow, KeySignatureRow};
pub use leases::{LEASE_LASTS, LEASE_RENEW};
pub use log::{Fact, LogRow, NewRow};
pub use media::{MediaEntry, MediaOfUser, MediaRow, ThumbnailKey};
pub use media_cache::CachedMedia;
pub use media_uses::UnusedPlace;
pub use members::MemberRow;
pub use one_time_keys::{ClaimedKey, KeyClaim, OneTimeKeyRow, OneTimeKeysPut};
pub use outbox::{DestinationRow, Waiting};
pub use outgoing::{Outgoing, OutgoingRow, ServerSet};
pub use partial::PartialRow;
pub use partial_events::{PartialEvent, PartialJudged, PartialVerdict};
pub use people::Person;
pub use purges::{PurgeKind, PurgePhase, PurgeRow};
pub use purging::now as node_clock;
pub use pushers::{PusherKey, PusherRow, PusherTry};
pub use receipts::ReceiptRow;
pub use registration::RegistrationTokenRow;
pub use relations::{EditRow, RelationChild, RelationQuery, ThreadRow};
pub use rendezvous::RendezvousRow;
pub use repeats::{noted_request, request_note, send_endpoint};
pub use reports::ReportRow;
pub use rooms::RoomRow;
pub use search::{search_text, search_words};
pub use server_keys::ServerKeyRow;
pub use signing_keys::SigningKeyRow;
pub use sliding::{SlidingChange, SlidingKey, SlidingState};
pub use staging::StagedRow;
pub use state::{StateQuestion, StateReader};
pub use store::Store;
pub use sync_reads::Hero;
pub use tail::Tail;
pub use thread_subscriptions::{THREAD_SUBSCRIPTION, ThreadSubscriptionRow};
pub use threepids::{ThreepidRow, ValidationRow};
pub use tokens::{AccessTokenRow, NewAccessToken, RefreshTokenRow, TokenHash};
pub use tx::{Place, Slot, TransactionKey, Tx};
pub use url_previews::OldPreview;
pub use whispers::MAX_WHISPER;

/// The `data` of a [`Fact::Room`] row after events of the room were purged: caches drop its events.
pub const PURGED: &str = "purged";

/// Every statement, by file: a test prepares each on both engines.
#[doc(hidden)]
pub const STATEMENTS: &[(&str, &[(&str, &str)])] = &[
    ("account_data", account_data::STATEMENTS),
    ("aliases", aliases::STATEMENTS),
    ("appservices", appservices::STATEMENTS),
    ("audit", audit::STATEMENTS),
    ("auth_graph", auth_graph::STATEMENTS),
    ("backups", backups::STATEMENTS),
    ("by_time", by_time::STATEMENTS),
    ("current", current::STATEMENTS),
    ("cursors", cursors::STATEMENTS),
    ("delayed", delayed::STATEMENTS),
    ("dehydrated", dehydrated::STATEMENTS),
    ("device_lists", device_lists::STATEMENTS),
    ("doctor", doctor::STATEMENTS),
    ("events", events::STATEMENTS),
    ("filters", filters::STATEMENTS),
    ("inbound_transactions", inbound_transactions::STATEMENTS),
    ("keys", keys::STATEMENTS),
    ("leases", leases::STATEMENTS),
    ("leavings", leavings::STATEMENTS),
    ("log", log::STATEMENTS),
    ("media", media::STATEMENTS),
    ("media_cache", media_cache::STATEMENTS),
    ("media_uses", media_uses::STATEMENTS),
    ("members", members::STATEMENTS),
    ("one_time_keys", one_time_keys::STATEMENTS),
    ("outbox", outbox::STATEMENTS),
    ("outgoing", outgoing::STATEMENTS),
    ("partial", partial::STATEMENTS),
    ("partial_events", partial_events::STATEMENTS),
    ("people", people::STATEMENTS),
    ("profiles", profiles::STATEMENTS),
    ("purges", purges::STATEMENTS),
    ("purging", purging::STATEMENTS),
    ("pushers", pushers::STATEMENTS),
    ("queues", queues::STATEMENTS),
    ("receipts", receipts::STATEMENTS),
    ("redactions", redactions::STATEMENTS),
    ("relation_claims", relation_claims::STATEMENTS),
    ("relations", relations::STATEMENTS),
    ("rendezvous", rendezvous::STATEMENTS),
    ("repeats", repeats::STATEMENTS),
    ("reports", reports::STATEMENTS),
    ("rooms", rooms::STATEMENTS),
    ("search", search::STATEMENTS),
    ("server_keys", server_keys::STATEMENTS),
    ("server_notices", server_notices::STATEMENTS),
    ("signing_keys", signing_keys::STATEMENTS),
    ("sliding", sliding::STATEMENTS),
    ("staging", staging::STATEMENTS),
    ("state", state::STATEMENTS),
    ("sticky", sticky::STATEMENTS),
    ("sync_reads", sync_reads::STATEMENTS),
    ("thread_subscriptions", thread_subscriptions::STATEMENTS),
    ("threepids", threepids::STATEMENTS),
    ("to_device", to_device::STATEMENTS),
    ("tokens", tokens::STATEMENTS),
    ("trim", trim::STATEMENTS),
    ("accounts", accounts::STATEMENTS),
    ("registration", registration::STATEMENTS),
    ("unfiled", unfiled::STATEMENTS),
    ("url_previews", url_previews::STATEMENTS),
];
