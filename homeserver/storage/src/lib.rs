//! The database: the only package that names sqlx.
//!
//! One SQL text serves SQLite and PostgreSQL. Everything that changes is appended to the one log in the transaction
//! that changes it ([`Store::write`]); everything that leaves the server reads the log ([`Store::tail`]).
//!
//! What it does not do: decide. It knows no authorisation, no protocol rules and no network.

mod aliases;
mod backups;
mod bus;
mod device_lists;
mod dialect;
mod engine;
mod error;
mod events;
mod group;
mod keys;
mod log;
mod members;
mod migrate;
mod one_time_keys;
mod queues;
mod relations;
mod rooms;
mod sql;
mod state;
mod store;
mod tail;
mod to_device;
mod tx;

pub use backups::{BackupKeyRow, BackupRow, BackupScope};
pub use device_lists::DeviceListRow;
pub use engine::{Conn, Engine};
pub use error::{StoreError, StoreResult};
pub use events::{EventFlags, StoredEvent};
pub use keys::{CrossSigningRow, DeviceKeysRow, KeySignatureRow};
pub use log::{Fact, LogRow, NewRow};
pub use members::MemberRow;
pub use one_time_keys::{ClaimedKey, OneTimeKeyRow};
pub use relations::{EditRow, RelationChild, RelationQuery, ThreadRow};
pub use rooms::RoomRow;
pub use state::StateReader;
pub use store::Store;
pub use tail::Tail;
pub use tx::{Place, Slot, TransactionKey, Tx};

/// Every statement, by file: a test prepares each on both engines.
#[doc(hidden)]
pub const STATEMENTS: &[(&str, &[(&str, &str)])] = &[
    ("aliases", aliases::STATEMENTS),
    ("backups", backups::STATEMENTS),
    ("device_lists", device_lists::STATEMENTS),
    ("events", events::STATEMENTS),
    ("keys", keys::STATEMENTS),
    ("log", log::STATEMENTS),
    ("members", members::STATEMENTS),
    ("one_time_keys", one_time_keys::STATEMENTS),
    ("queues", queues::STATEMENTS),
    ("relations", relations::STATEMENTS),
    ("rooms", rooms::STATEMENTS),
    ("state", state::STATEMENTS),
    ("to_device", to_device::STATEMENTS),
];
